//! The guest's driver: sound rings, sound starts and sound requests, for attacks to spoil.

use crate::guest::{Guest, register};

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
/// A page that the guest can do without.
const SPARE: u64 = 24 << 20;

/// Address, length, flags, successor.
pub(crate) type Descriptor = (u64, u32, u16, u16);

#[derive(Clone, Copy)]
pub(crate) struct Device {
    pub(crate) name: &'static str,
    pub(crate) slot: u64,
    /// How many queues it has, and which one takes requests.
    queues: u32,
    pub(crate) queue: u32,
    features: u32,
    /// Bytes that it writes for a sound request.
    written: u32,
}

/// In the order of the machine's slots.
pub(crate) const DEVICES: [Device; 4] = [
    Device { name: "block", slot: 0, queues: 1, queue: 0, features: FEATURE_INDIRECT, written: 513 },
    Device { name: "vsock", slot: 1, queues: 3, queue: 1, features: 0, written: 0 },
    Device { name: "entropy", slot: 2, queues: 1, queue: 0, features: 0, written: 64 },
    Device { name: "balloon", slot: 3, queues: 2, queue: 0, features: 0, written: 0 },
];

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
    pub(crate) fn write(&self, guest: &mut Guest, offset: u64, value: u32) {
        guest.store(4, register(self.slot, offset), value.into());
    }

    pub(crate) fn wait_status(&self, guest: &mut Guest, name: &str, value: u32) {
        guest.wait(&format!("{} {name}", self.name), register(self.slot, STATUS), u32::MAX, value);
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
    }

    pub(crate) fn set_queue(&self, guest: &mut Guest, queue: u32, size: u32, ring: &Ring) {
        self.write(guest, 0x30, queue);
        self.write(guest, 0x38, size);
        for (offset, address) in [(0x80, ring.table), (0x90, ring.available), (0xa0, ring.used)] {
            self.write(guest, offset, u32::try_from(address & 0xffff_ffff).unwrap());
            self.write(guest, offset + 4, u32::try_from(address >> 32).unwrap());
        }
        self.write(guest, 0x44, 1);
    }

    /// A proper start; returns the ring of the queue that takes requests.
    pub(crate) fn start(&self, guest: &mut Guest) -> Ring {
        self.negotiate(guest);
        let mut request = None;
        for queue in 0..self.queues {
            let ring = Ring::new(guest);
            // The socket device's third queue, for events, is smaller.
            self.set_queue(guest, queue, if queue == 2 { 8 } else { SIZE.into() }, &ring);
            if queue == self.queue {
                request = Some(ring);
            }
        }
        self.write(guest, STATUS, 15);
        self.wait_status(guest, "start", 15);
        request.unwrap()
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
            "entropy" => vec![(room, 64, WRITE, 0)],
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

/// A packet to which there is no answer: the end of a connection that never was.
fn reset_packet() -> Vec<u8> {
    let mut packet = [3_u64, 2].map(u64::to_le_bytes).concat();
    packet.extend([7_u32, 9, 0].map(u32::to_le_bytes).concat());
    packet.extend([1_u16, 3].map(u16::to_le_bytes).concat());
    packet.extend([0; 12]);
    packet
}
