//! The guest's driver: sound rings, sound starts and sound requests, for attacks to spoil.

use crate::function::{Found, Place, cell};
use crate::guest::{Bus, Guest, register};
use crate::peers::{HOST_MAC, MAC};
use crate::tap;

/// Descriptors in each queue of the guest's.
pub(crate) const SIZE: u16 = 16;
pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;
/// `VIRTIO_F_INDIRECT_DESC`, in the lower half.
const FEATURE_INDIRECT: u32 = 1 << 28;
pub(crate) const STATUS: u64 = 0x70;
pub(crate) const NOTIFY: u64 = 0x50;
pub(crate) const NEEDS_RESET: u32 = 64;
/// Where the guest's memory ends.
pub(crate) const RAM: u64 = 32 << 20;
/// Where the image in memory is.
pub(crate) const IMAGE: u64 = 4 << 30;
/// A page that the guest can do without.
const SPARE: u64 = 24 << 20;

/// Address, length, flags, successor.
pub(crate) type Descriptor = (u64, u32, u16, u16);

#[derive(Clone, Copy)]
pub(crate) struct Device {
    pub(crate) name: &'static str,
    pub(crate) bus: Bus,
    pub(crate) slot: u64,
    /// Its kind's number (virtio 1.2, 5).
    id: u32,
    /// How many queues it has, and which one takes requests.
    pub(crate) queues: u32,
    pub(crate) queue: u32,
    features: u32,
    /// Bytes that it writes for a sound request.
    written: u32,
}

/// All of them, in the order of the machine's slots; the network card where this user can make a tap.
pub(crate) fn devices(bus: Bus) -> Vec<Device> {
    let device = |name, id, (queues, queue), features, written| Device {
        name,
        bus,
        slot: 0,
        id,
        queues,
        queue,
        features,
        written,
    };
    let mut devices = vec![
        device("block", 2, (1, 0), 0, 513),
        device("net", 1, (2, 1), FEATURE_INDIRECT, 0),
        device("vsock", 19, (3, 1), 0, 0),
        device("entropy", 4, (1, 0), 0, 64),
        device("balloon", 5, (2, 0), 0, 0),
        device("pmem", 27, (1, 0), 0, 4),
        device("fs", 26, (2, 1), FEATURE_INDIRECT, 16),
        device("console", 3, (2, 1), 0, 0),
    ];
    devices.retain(|device| device.name != "net" || tap::missing().is_none());
    (0..).zip(&mut devices).for_each(|(slot, device)| device.slot = slot);
    devices
}

/// One of them; none if there is no card.
pub(crate) fn device(bus: Bus, name: &str) -> Option<Device> {
    devices(bus).into_iter().find(|device| device.name == name)
}

/// Registers over MMIO, and what they are in the common configuration (virtio 1.2, 4.1.4.3): offset and bytes.
const FIELDS: [(u64, u32, u8); 12] = [
    (0x20, 0x0c, 4),
    (0x24, 0x08, 4),
    (0x30, 0x16, 2),
    (0x38, 0x18, 2),
    (0x44, 0x1c, 2),
    (STATUS, 0x14, 1),
    (0x80, 0x20, 4),
    (0x84, 0x24, 4),
    (0x90, 0x28, 4),
    (0x94, 0x2c, 4),
    (0xa0, 0x30, 4),
    (0xa4, 0x34, 4),
];
/// Fields that MMIO does not have: the vectors of configuration and queue.
pub(crate) const CONFIG_VECTOR: u32 = 0x10;
pub(crate) const QUEUE_VECTOR: u32 = 0x1a;
/// A message that interrupts: to the only processor's local APIC, with the first number that is no exception's or device's.
pub(crate) const APIC: u64 = 0xfee0_0000;
pub(crate) const INTERRUPT: u32 = 0x30;
/// Message control: MSI-X is on.
pub(crate) const VECTORS_ON: u16 = 1 << 15;

/// A queue's memory, from a table of [`SIZE`] descriptors on.
#[derive(Clone, Copy)]
pub(crate) struct Ring {
    pub(crate) table: u64,
    pub(crate) available: u64,
    pub(crate) used: u64,
}

impl Ring {
    pub(crate) fn new(guest: &mut Guest) -> Self {
        let table = guest.place(&[0; 0x400]);
        Self { table, available: table + 0x100, used: table + 0x200 }
    }

    /// Descriptors, from the first on.
    pub(crate) fn describe(&self, guest: &mut Guest, descriptors: &[Descriptor]) {
        let bytes: Vec<u8> = descriptors.iter().flat_map(|&it| descriptor(it)).collect();
        guest.poke(self.table, &bytes);
    }

    /// Makes chains available, from the first entry on, before the guest runs.
    pub(crate) fn offer(&self, guest: &mut Guest, heads: &[u16]) {
        let index = u16::try_from(heads.len()).unwrap();
        let bytes: Vec<u8> = [0, index].iter().chain(heads).flat_map(|it| it.to_le_bytes()).collect();
        guest.poke(self.available, &bytes);
    }

    /// Waits until so many chains came back.
    pub(crate) fn wait(&self, guest: &mut Guest, name: &str, count: u32) {
        guest.wait(name, self.used, 0xffff_0000, count << 16);
    }
}

pub(crate) fn descriptor((addr, len, flags, next): Descriptor) -> Vec<u8> {
    let mut bytes = addr.to_le_bytes().to_vec();
    bytes.extend(len.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes.extend(next.to_le_bytes());
    bytes
}

impl Device {
    /// Finds it, over PCI, and gives it a message for each of its vectors.
    pub(crate) fn find(&self, guest: &mut Guest) {
        if self.bus == Bus::Pci {
            guest.find_function(self.slot, self.id);
            self.set_vectors(guest);
        }
    }

    /// Each vector sends a message, and MSI-X is on.
    pub(crate) fn set_vectors(&self, guest: &mut Guest) {
        for vector in 0..=self.queues {
            guest.set_vector(self.slot, vector, (APIC, INTERRUPT + vector, false));
        }
        guest.control_vectors(self.slot, VECTORS_ON);
    }

    /// A field of the common configuration, over PCI.
    pub(crate) fn field(&self, offset: u32) -> Place {
        Place::Port(cell(self.slot, Found::Common), offset)
    }

    /// The kick of `queue`, whether it has one or not.
    pub(crate) fn notify(&self, queue: u32) -> Place {
        Place::Port(cell(self.slot, Found::Notify), 2 * queue)
    }

    /// What is over MMIO at `offset`, and its bytes.
    fn register(&self, offset: u64) -> (Place, u8) {
        match self.bus {
            Bus::Mmio => (Place::Memory(register(self.slot, offset)), 4),
            Bus::Pci => {
                let &(_, field, width) = FIELDS.iter().find(|it| it.0 == offset).unwrap();
                (self.field(field), width)
            }
        }
    }

    pub(crate) fn write(&self, guest: &mut Guest, offset: u64, value: u32) {
        // Over PCI a queue has a port to kick it at; ports end.
        let (place, width) = match (self.bus, offset) {
            (Bus::Pci, NOTIFY) => (self.notify(value % 0x4000), 2),
            _ => self.register(offset),
        };
        guest.put(place, width, value.into());
    }

    pub(crate) fn wait_status(&self, guest: &mut Guest, name: &str, value: u32) {
        let (place, width) = self.register(STATUS);
        guest.wait_at(&format!("{} {name}", self.name), place, width, value);
    }

    pub(crate) fn kick(&self, guest: &mut Guest) {
        self.write(guest, NOTIFY, self.queue);
    }

    /// A reset, waited for, and all up to `FEATURES_OK`.
    pub(crate) fn negotiate(&self, guest: &mut Guest) {
        self.write(guest, STATUS, 0);
        self.wait_status(guest, "reset", 0);
        for (offset, value) in
            [(STATUS, 1), (STATUS, 3), (0x24, 0), (0x20, self.features), (0x24, 1), (0x20, 1), (STATUS, 11)]
        {
            self.write(guest, offset, value);
        }
        self.wait_status(guest, "features", 11);
        if self.bus == Bus::Pci {
            guest.put(self.field(CONFIG_VECTOR), 2, 0);
        }
    }

    pub(crate) fn set_queue(&self, guest: &mut Guest, queue: u32, size: u32, ring: &Ring) {
        self.write(guest, 0x30, queue);
        self.write(guest, 0x38, size);
        for (offset, address) in [(0x80, ring.table), (0x90, ring.available), (0xa0, ring.used)] {
            self.write(guest, offset, u32::try_from(address & 0xffff_ffff).unwrap());
            self.write(guest, offset + 4, u32::try_from(address >> 32).unwrap());
        }
        if self.bus == Bus::Pci {
            guest.put(self.field(QUEUE_VECTOR), 2, u64::from(queue) + 1);
        }
        self.write(guest, 0x44, 1);
    }

    /// A proper start; returns the ring of the queue that takes requests.
    pub(crate) fn start(&self, guest: &mut Guest) -> Ring {
        self.start_all(guest)[self.queue as usize]
    }

    /// A proper start; returns the ring of each queue.
    pub(crate) fn start_all(&self, guest: &mut Guest) -> Vec<Ring> {
        self.negotiate(guest);
        let mut rings = Vec::new();
        for queue in 0..self.queues {
            let ring = Ring::new(guest);
            // The socket device's third queue, for events, is smaller.
            self.set_queue(guest, queue, if queue == 2 { 8 } else { SIZE.into() }, &ring);
            rings.push(ring);
        }
        self.write(guest, STATUS, 15);
        self.wait_status(guest, "start", 15);
        rings
    }

    /// What a sound request is made of.
    pub(crate) fn request(&self, guest: &mut Guest) -> Vec<Descriptor> {
        let room = guest.place(&[0; 0x400]);
        match self.name {
            "block" => {
                let header = guest.place(&[0; 16]);
                vec![(header, 16, NEXT, 1), (room, 512, NEXT | WRITE, 2), (room + 512, 1, WRITE, 0)]
            }
            "vsock" => vec![(guest.place(&reset_packet()), 44, 0, 0)],
            "net" => {
                let frame = guest.place(&frame(MAC));
                vec![(frame, 66, 0, 0)]
            }
            "entropy" => vec![(room, 64, WRITE, 0)],
            "pmem" => vec![(guest.place(&[0; 4]), 4, NEXT, 1), (room, 4, WRITE, 0)],
            "fs" => vec![(guest.place(&lookup()), 44, NEXT, 1), (room, 64, WRITE, 0)],
            "console" => vec![(guest.place(b"said\n"), 5, 0, 0)],
            _ => vec![(guest.place(&u32::try_from(SPARE / 4096).unwrap().to_le_bytes()), 4, 0, 0)],
        }
    }

    /// Asks for something sound and waits for the answer.
    pub(crate) fn ask(&self, guest: &mut Guest, ring: &Ring) {
        let request = self.request(guest);
        ring.describe(guest, &request);
        ring.offer(guest, &[0]);
        self.kick(guest);
        ring.wait(guest, &format!("{} answer", self.name), 1);
        guest.wait(&format!("{} length", self.name), ring.used + 8, u32::MAX, self.written);
    }

    /// A proper start and a sound request.
    pub(crate) fn sound(&self, guest: &mut Guest) {
        let ring = self.start(guest);
        self.ask(guest, &ring);
    }
}

/// A virtio header of zeros and a frame from `source`: the start of a TCP connection to 10.0.0.1.
pub(crate) fn frame(source: [u8; 6]) -> Vec<u8> {
    let mut bytes = vec![0; 12];
    bytes.extend(HOST_MAC);
    bytes.extend(source);
    bytes.extend([8, 0, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 2, 10, 0, 0, 1]);
    bytes.extend([0, 80, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 2, 0, 0, 0, 0, 0, 0]);
    bytes
}

/// A FUSE request: is there a file of this name?
fn lookup() -> Vec<u8> {
    let mut bytes = [44_u32, 1, 7, 0, 1, 0, 0, 0, 0, 0].map(u32::to_le_bytes).concat();
    bytes.extend(b"abc\0");
    bytes
}

/// A packet to which there is no answer: the end of a connection that never was.
fn reset_packet() -> Vec<u8> {
    packet((3, 2), (7, 9), (0, 1, 3))
}

/// A socket device's packet: context ids and ports of source and destination; length, type and operation.
pub(crate) fn packet(
    (source, destination): (u64, u64),
    (guest, host): (u32, u32),
    (length, kind, operation): (u32, u16, u16),
) -> Vec<u8> {
    let mut packet = [source, destination].map(u64::to_le_bytes).concat();
    packet.extend([guest, host, length].map(u32::to_le_bytes).concat());
    packet.extend([kind, operation].map(u16::to_le_bytes).concat());
    packet.extend([0; 12]);
    packet
}
