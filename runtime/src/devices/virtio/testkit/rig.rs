//! A transport with its device and driver on event loops that the test turns by hand, and that can be saved.
//!
//! Owns the loops, so nothing happens between two turns. A restored rig shares nothing with the one that was saved but what
//! the test hands to both devices: its memory is a copy, its section went through bytes.

use super::drive::{driver_ok, negotiate, set_queue, status, write};
use super::pci::{OverPci, Shown, WINDOWS};
use super::{HIGH, LOW_END, Ring, memory};
use crate::devices::virtio::event_loop::{EventLoop, LoopHandle};
use crate::devices::virtio::mmio::MmioTransport;
use crate::devices::virtio::pci::PciTransport;
use crate::devices::virtio::{Memory, VirtioDevice};
use crate::state;
use std::cell::Cell;
use std::time::Instant;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

/// What the device is called in its section.
pub(crate) const NAME: &str = "the device";
/// Turns within which what is to happen happens.
const PATIENCE: u32 = 20_000;

thread_local! {
    static OVER_PCI: Cell<bool> = const { Cell::new(false) };
}

/// Runs `test` with rigs whose devices are on a PCI bus.
pub(crate) fn with_pci(test: impl FnOnce()) {
    OVER_PCI.set(true);
    test();
    OVER_PCI.set(false);
}

/// The same tests again, over PCI.
macro_rules! over_pci {
    ($($test:ident),* $(,)?) => {
        mod over_pci {
            $(#[test]
            fn $test() {
                crate::devices::virtio::testkit::rig::with_pci(super::$test);
            })*
        }
    };
}
pub(crate) use over_pci;

pub(crate) struct Rig {
    pub(crate) memory: Memory,
    pub(crate) transport: Shown,
    pub(crate) rings: Vec<Ring>,
    /// The interrupt's.
    pub(crate) line: EventFd,
    event_loop: EventLoop,
    /// The drive's own, if the device has one.
    pub(crate) drive_loop: Option<EventLoop>,
}

impl Rig {
    /// A driver that has taken all features and set up all queues.
    pub(crate) fn start(device: Box<dyn VirtioDevice>) -> Self {
        Self::on(memory(), device, false).started()
    }

    /// The same with a loop for the worker alone, as a drive has.
    pub(crate) fn start_drive(device: Box<dyn VirtioDevice>) -> Self {
        Self::on(memory(), device, true).started()
    }

    /// No driver has come yet.
    pub(crate) fn on(memory: Memory, device: Box<dyn VirtioDevice>, drive: bool) -> Self {
        let (event_loop, handle) = EventLoop::new().unwrap();
        let (drive_loop, handle): (_, LoopHandle) = if drive {
            let (other, slow) = EventLoop::new().unwrap();
            (Some(other), handle.watching(slow).unwrap())
        } else {
            (None, handle)
        };
        let sizes = device.queue_sizes().to_vec();
        let rings = (0..).zip(sizes).map(|(index, size)| Ring::new(&memory, index, size)).collect();
        let line = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let far = Box::new(line.try_clone().unwrap());
        let transport = if OVER_PCI.get() {
            let function = PciTransport::new(device, memory.clone(), WINDOWS, far, handle);
            Shown::Pci(OverPci::new(function.unwrap()))
        } else {
            Shown::Mmio(MmioTransport::new(device, memory.clone(), far, handle).unwrap())
        };
        Self { memory, transport, rings, line, event_loop, drive_loop }
    }

    fn started(mut self) -> Self {
        negotiate(&self.transport);
        for (index, ring) in (0..).zip(&self.rings) {
            set_queue(&self.transport, index, &ring.setup);
        }
        driver_ok(&self.transport);
        assert_eq!(status(&self.transport), 15);
        self.turn();
        self
    }

    /// One turn of the loop that everybody is on.
    pub(crate) fn turn(&mut self) {
        assert!(self.event_loop.turn(0).unwrap().is_continue());
    }

    /// One turn of the drive's loop.
    pub(crate) fn turn_drive(&mut self) {
        assert!(self.drive_loop.as_mut().unwrap().turn(0).unwrap().is_continue());
    }

    /// Turns all loops until `condition` holds.
    pub(crate) fn until(&mut self, mut condition: impl FnMut(&mut Self) -> bool) {
        for _ in 0..PATIENCE {
            if condition(self) {
                return;
            }
            self.turn();
            if self.drive_loop.is_some() {
                self.turn_drive();
            }
        }
        panic!("it did not happen within {PATIENCE} turns");
    }

    /// Turns often enough for whatever is pending.
    pub(crate) fn settle(&mut self) {
        let mut turns = 0;
        self.until(|_| {
            turns += 1;
            turns > 200
        });
    }

    pub(crate) fn kick(&self, queue: u32) {
        write(&self.transport, 0x50, queue);
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.transport.wait_paused(Instant::now()).is_ok()
    }

    /// Until the device stands still.
    pub(crate) fn pause(&mut self) {
        self.transport.pause();
        self.until(|rig| rig.is_paused());
    }

    /// A paused machine goes on as `device`, elsewhere.
    pub(crate) fn restore(self, device: Box<dyn VirtioDevice>) -> Self {
        let bytes = state::to_bytes(&[self.transport.save(NAME).unwrap()]);
        let copy = memory();
        for start in [0, HIGH] {
            let mut content = vec![0; usize::try_from(LOW_END).unwrap()];
            self.memory.read_slice(&mut content, GuestAddress(start)).unwrap();
            copy.write_slice(&content, GuestAddress(start)).unwrap();
        }
        let mut restored = Self::on(copy, device, self.drive_loop.is_some());
        restored.rings = self.rings.into_iter().map(|ring| ring.moved(&restored.memory)).collect();
        drop((self.transport, self.event_loop, self.drive_loop));
        let sections = state::from_bytes(&bytes).unwrap();
        restored.transport.load(NAME, &sections[0]).unwrap();
        assert_eq!(restored.transport.save(NAME).unwrap(), sections[0], "what was loaded is what is saved");
        restored.settle();
        assert!(restored.is_paused());
        restored.transport.resume();
        restored
    }

    pub(crate) fn write(&self, addr: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(addr)).unwrap();
    }

    pub(crate) fn read(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(addr)).unwrap();
        bytes
    }

    /// Fails if the device has.
    pub(crate) fn is_well(&self) {
        let faults = self.transport.faults();
        assert_eq!((faults.failures, faults.dropped), (0, 0), "{faults:?}");
    }
}
