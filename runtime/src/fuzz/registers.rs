//! A driver at a transport's registers, and a device behind it on its event loop, turned by hand.
//!
//! Owns transport, loop and memory. Refuses, by a panic, a register that answers an access of the wrong width, status
//! bits that do not exist, more failures than there were starts, and a device that a reset and a proper start do not
//! bring back. Invariant: one thread, so the same input does the same.

use super::hosts;
use super::input::Input;
use super::script::memory;
use crate::devices::BusDevice;
use crate::devices::virtio::balloon::Balloon;
use crate::devices::virtio::entropy::Entropy;
use crate::devices::virtio::event_loop::EventLoop;
use crate::devices::virtio::mmio::MmioTransport;
use crate::devices::virtio::testkit::Ring;
use crate::devices::virtio::testkit::drive::{driver_ok, negotiate, read, set_queue, status, write};
use crate::devices::virtio::{Memory, VirtioDevice};
use std::sync::Arc;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

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
    pub(super) const COUNT: u8 = OFFER + 1;
}

/// A queue, and a sound request of its device for it: address, bytes, device writes.
type Request = (usize, &'static [(u64, u32, bool)]);

struct Rig {
    transport: Arc<MmioTransport>,
    event_loop: EventLoop,
    memory: Memory,
    rings: Vec<Ring>,
    sizes: Vec<u16>,
    request: Request,
}

/// Runs one input; the device answers at least once, or it panics.
pub(super) fn run(mut input: Input<'_>) -> u32 {
    let (device, request): (Box<dyn VirtioDevice>, Request) = match input.below(3) {
        0 => (Box::new(hosts::disk(8).0), (2, &[(0x1000, 16, false), (0x2000, 513, true)])),
        1 => (Box::new(Entropy::new(None)), (0, &[(0x2000, 16, true)])),
        _ => (Box::new(Balloon::new(4, true, true)), (1, &[(0x1000, 4, false)])),
    };
    let (event_loop, handle) = EventLoop::new().unwrap();
    let (memory, sizes) = (memory(), device.queue_sizes().to_vec());
    let line = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let transport = MmioTransport::new(device, memory.clone(), Box::new(line), handle).unwrap();
    let mut rig = Rig { transport, event_loop, memory, rings: Vec::new(), sizes, request };
    rig.fresh_rings();
    let mut operations = 0;
    while !input.is_empty() {
        rig.step(&mut input);
        operations += 1;
    }
    assert!(rig.transport.faults().failures <= operations, "a failure that nobody caused");
    rig.finish()
}

impl Rig {
    fn step(&mut self, input: &mut Input<'_>) {
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
            _ => {
                let (queue, chain) = self.request;
                self.rings[queue].offer(chain);
                write(&self.transport, 0x50, queue as u32);
            }
        }
        let status = status(&self.transport);
        assert_eq!(status & !STATUS_BITS, 0, "status {status:#x}");
    }

    fn turn(&mut self) {
        assert!(self.event_loop.turn(0).unwrap().is_continue());
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
    fn finish(mut self) -> u32 {
        write(&self.transport, STATUS, 0);
        self.until(|rig| status(&rig.transport) == 0);
        assert_eq!(read(&self.transport, 0x60), 0, "no interrupt outlives a reset");
        negotiate(&self.transport);
        self.set_queues();
        driver_ok(&self.transport);
        assert_eq!(status(&self.transport), 15);
        self.memory.write_slice(&[0; 0x2000], GuestAddress(0x1000)).unwrap();
        let (queue, chain) = self.request;
        self.rings[queue].offer(chain);
        write(&self.transport, 0x50, queue as u32);
        self.until(|rig| rig.rings[queue].take_used().is_some());
        1
    }

    fn until(&mut self, condition: impl Fn(&mut Self) -> bool) {
        for _ in 0..PATIENCE {
            if condition(self) {
                return;
            }
            self.turn();
        }
        panic!("it did not happen within {PATIENCE} turns");
    }
}
