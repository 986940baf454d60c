//! A driver at a transport's registers, and a device behind it on its event loop, turned by hand.
//!
//! Owns transport, loop and memory. Refuses, by a panic, a register that answers an access of the wrong width, status
//! bits that do not exist, more failures than there were starts, a state that can be saved and not loaded, and a device that
//! a reset and a proper start do not bring back. Invariant: one thread, so the same input does the same.

use super::input::Input;
use super::script::{Host, memory};
use super::volumes::{self, READS};
use super::{hosts, sockets};
use crate::devices::BusDevice;
use crate::devices::virtio::balloon::Balloon;
use crate::devices::virtio::entropy::Entropy;
use crate::devices::virtio::event_loop::EventLoop;
use crate::devices::virtio::mmio::MmioTransport;
use crate::devices::virtio::pci::PciTransport;
use crate::devices::virtio::pmem::Pmem;
use crate::devices::virtio::testkit::drive::{driver_ok, negotiate, read, set_queue, status, write};
use crate::devices::virtio::testkit::pci::{OverPci, Shown, WINDOWS};
use crate::devices::virtio::testkit::{Ring, image};
use crate::devices::virtio::{Memory, VirtioDevice};
use crate::state::LoadError;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

/// All of them.
pub(super) const DEVICES: usize = 9;
/// Turns of the loop within which a reset is over and a request is answered.
const PATIENCE: u32 = 100;
const STATUS: u64 = 0x70;
/// Every bit that status can have.
const STATUS_BITS: u32 = 1 | 2 | 4 | 8 | 64 | 128;
const CONFIG: u64 = 0x100;

/// What an operation is; its operands follow.
pub(super) mod op {
    pub(crate) const READ: u8 = 0;
    pub(crate) const WRITE: u8 = 1;
    pub(crate) const WRITE_WIDE: u8 = 2;
    pub(crate) const TURN: u8 = 3;
    pub(crate) const MEMORY: u8 = 4;
    pub(crate) const NEGOTIATE: u8 = 5;
    pub(crate) const QUEUES: u8 = 6;
    pub(crate) const OFFER: u8 = 7;
    pub(crate) const PAUSE: u8 = 8;
    pub(crate) const RESUME: u8 = 9;
    pub(crate) const MOVE: u8 = 10;
    pub(super) const COUNT: u8 = MOVE + 1;
}

/// A queue, and a sound request of its device for it: address, bytes, device writes.
pub(super) type Request = (usize, &'static [(u64, u32, bool)]);

/// A device, what it is answered by, and a request that it answers when zeros are all that memory holds.
pub(super) type Subject = (Box<dyn VirtioDevice>, Box<dyn Host>, Request);

pub(super) struct Rig {
    pub(super) transport: Shown,
    event_loop: EventLoop,
    host: Box<dyn Host>,
    pub(super) memory: Memory,
    rings: Vec<Ring>,
    sizes: Vec<u16>,
    request: Request,
}

/// One of all devices.
pub(super) fn device(choice: usize) -> Subject {
    fn of<H: Host + 'static>((device, host): (impl VirtioDevice + 'static, H), request: Request) -> Subject {
        (Box::new(device), Box::new(host), request)
    }
    match choice {
        0 => of(hosts::disk(8), (2, &[(0x1000, 16, false), (0x2000, 513, true)])),
        1 => of((Entropy::new(None), ()), (0, &[(0x2000, 16, true)])),
        2 => of((Balloon::new(4, true, true), ()), (1, &[(0x1000, 4, false)])),
        3 => of(hosts::card(1), (1, &[(0x1000, 60, false)])),
        4 => of(sockets::device(), (1, &[(0x1000, 44, false)])),
        5 => of((Pmem::new(&image()), ()), (0, &[(0x1000, 4, false), (0x2000, 4, true)])),
        6 => of(volumes::device(READS), (1, &[(0x1000, 40, false), (0x2000, 16, true)])),
        7 => of(hosts::console(), (1, &[(0x1000, 9, false)])),
        _ => of(hosts::memory_device(), (0, &[(0x1000, 24, false), (0x2000, 10, true)])),
    }
}

/// Runs one input; the device answers at least once, or it panics.
pub(super) fn run(mut input: Input<'_>) -> u32 {
    let choice = input.below(DEVICES);
    let mut rig = Rig::new(device(choice));
    let mut operations = 0;
    while !input.is_empty() {
        rig.step(&mut input, choice);
        operations += 1;
    }
    assert!(rig.transport.faults().failures <= operations, "a failure that nobody caused");
    rig.finish()
}

impl Rig {
    /// A device without a driver yet.
    pub(super) fn new(subject: Subject) -> Self {
        let mut rig = Self::within(memory(), subject, false);
        rig.fresh_rings();
        rig
    }

    /// The same on a PCI bus.
    pub(super) fn on_bus(subject: Subject) -> Self {
        let mut rig = Self::within(memory(), subject, true);
        rig.fresh_rings();
        rig
    }

    /// The same, in memory that has something in it already.
    pub(super) fn within(memory: Memory, (device, host, request): Subject, pci: bool) -> Self {
        let (event_loop, handle) = EventLoop::new().unwrap();
        let sizes = device.queue_sizes().to_vec();
        let line = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let line = Box::new(line);
        let transport = if pci {
            let function = PciTransport::new(device, memory.clone(), WINDOWS, line, handle);
            Shown::Pci(OverPci::new(function.unwrap()))
        } else {
            Shown::Mmio(MmioTransport::new(device, memory.clone(), line, handle).unwrap())
        };
        Self { transport, event_loop, host, memory, rings: Vec::new(), sizes, request }
    }

    pub(super) fn step(&mut self, input: &mut Input<'_>, choice: usize) {
        match input.u8() % op::COUNT {
            op::READ => {
                let (offset, width) = (u64::from(input.u16()), input.below(17));
                let mut data = vec![0xaa; width];
                self.transport.read(offset, &mut data);
                let silent = offset < CONFIG && (width != 4 || !offset.is_multiple_of(4));
                assert!(!silent || data.iter().all(|&byte| byte == 0), "{width} bytes at {offset:#x}");
            }
            op::WRITE => write(&self.transport, input.u16().into(), input.u32()),
            op::WRITE_WIDE => {
                let (offset, width) = (u64::from(input.u16()), input.below(17));
                self.transport.write(offset, input.bytes(width));
            }
            op::TURN => self.turn(),
            op::MEMORY => {
                let (addr, count) = (input.place(), input.u8());
                // What does not lie in memory, nobody writes.
                drop(self.memory.write_slice(input.bytes(count.into()), GuestAddress(addr)));
            }
            op::NEGOTIATE => self.negotiate_features(),
            op::QUEUES => self.set_queues(),
            op::PAUSE => self.transport.pause(),
            op::RESUME => self.transport.resume(),
            op::MOVE => self.go_elsewhere(choice),
            op::OFFER.. => {
                self.offer();
            }
        }
        // A function that answers nowhere reads as all ones.
        let status = status(&self.transport);
        let answers = matches!(self.transport, Shown::Mmio(_)) || status != 0xff;
        assert!(!answers || status & !STATUS_BITS == 0, "status {status:#x}");
    }

    /// If the device is paused it goes on in another transport, whatever its driver has written; unless the rings, which are
    /// the driver's, contradict the device.
    fn go_elsewhere(&mut self, choice: usize) {
        let Ok(section) = self.transport.save("fuzz") else { return };
        let pci = matches!(self.transport, Shown::Pci(_));
        let other = Self::within(self.memory.clone(), device(choice), pci);
        match other.transport.load("fuzz", &section) {
            Ok(()) => {
                (self.transport, self.event_loop, self.host) =
                    (other.transport, other.event_loop, other.host);
            }
            Err(LoadError::Value { key: "next_used" | "number of chains that wait", .. }) => {}
            Err(error) => panic!("what a driver has brought about is refused: {error}"),
        }
    }

    pub(super) fn turn(&mut self) {
        assert!(self.event_loop.turn(0).unwrap().is_continue());
        self.host.check();
    }

    /// Up to `FEATURES_OK`, with all that is offered; from wherever the device is.
    fn negotiate_features(&mut self) {
        for value in [1, 3] {
            write(&self.transport, STATUS, value);
        }
        for half in 0..2 {
            write(&self.transport, 0x14, half);
            write(&self.transport, 0x24, half);
            write(&self.transport, 0x20, read(&self.transport, 0x10));
        }
        write(&self.transport, STATUS, 11);
    }

    fn set_queues(&mut self) {
        self.fresh_rings();
        for (index, ring) in (0..).zip(&self.rings) {
            set_queue(&self.transport, index, &ring.setup);
        }
    }

    fn fresh_rings(&mut self) {
        self.rings =
            (0..).zip(&self.sizes).map(|(index, &size)| Ring::new(&self.memory, index, size)).collect();
        for ring in &self.rings {
            for addr in [ring.setup.available, ring.setup.used] {
                self.memory.write_slice(&[0; 0x400], GuestAddress(addr)).unwrap();
            }
        }
    }

    /// A reset, a proper start and a sound request: whatever was done before, it is answered.
    pub(super) fn finish(mut self) -> u32 {
        self.transport.resume();
        write(&self.transport, STATUS, 0);
        self.until(|rig| status(&rig.transport) == 0);
        assert_eq!(read(&self.transport, 0x60), 0, "no interrupt outlives a reset");
        self.start();
        self.offer();
        self.until(Self::answered);
        1
    }

    /// A proper start.
    pub(super) fn start(&mut self) {
        negotiate(&self.transport);
        self.set_queues();
        driver_ok(&self.transport);
        assert_eq!(status(&self.transport), 15);
        self.memory.write_slice(&[0; 0x2000], GuestAddress(0x1000)).unwrap();
    }

    /// The sound request, and a kick.
    pub(super) fn offer(&mut self) {
        let (queue, chain) = self.request;
        self.rings[queue].offer(chain);
        write(&self.transport, 0x50, queue as u32);
    }

    pub(super) fn answered(&mut self) -> bool {
        self.rings[self.request.0].take_used().is_some()
    }

    pub(super) fn until(&mut self, condition: impl Fn(&mut Self) -> bool) {
        for _ in 0..PATIENCE {
            if condition(self) {
                return;
            }
            self.turn();
        }
        panic!("it did not happen within {PATIENCE} turns");
    }
}
