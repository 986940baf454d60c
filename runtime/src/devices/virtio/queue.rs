//! A split virtqueue in use, and the descriptor chains taken from it.
//!
//! Owns a `virtio_queue::Queue` with its notification and interrupt, and checks what that leaves open. Refuses, as
//! [`QueueError`], what no driver can mean: an available index that jumps, a head outside the table, rings outside
//! memory. A chain that is malformed (a cycle, a `next` outside the table, a nested or overlong indirect table, more
//! than 2^32 bytes, readable after writable) is no error of the queue: it comes out as [`Popped::Malformed`] and goes
//! back unused. Invariant: every descriptor is read once, into [`Chain`], and only that copy is used.

use super::{Interrupt, Memory};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};
use vmm_sys_util::eventfd::EventFd;

/// Why a queue cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// At activation.
    #[error("size {size} is not a power of two of at most {max}")]
    Size {
        /// What the driver wrote.
        size: u32,
        /// What the device offers.
        max: u16,
    },
    /// At activation.
    #[error("the {ring} at {addr:#x} is not aligned to {align} bytes")]
    Alignment {
        /// Which of the three.
        ring: &'static str,
        /// Where.
        addr: u64,
        /// To what it has to be aligned.
        align: u64,
    },
    /// At activation.
    #[error("the {ring} at {addr:#x}, {len} bytes long, does not lie in guest memory")]
    OutsideMemory {
        /// Which of the three.
        ring: &'static str,
        /// Where.
        addr: u64,
        /// Its length in bytes.
        len: u64,
    },
    /// At activation.
    #[error("the {first} overlaps the {second}")]
    Overlap {
        /// One of the three.
        first: &'static str,
        /// Another.
        second: &'static str,
    },
    /// In use.
    #[error("the available ring names descriptor {head} of {size}")]
    Head {
        /// What it names.
        head: u16,
        /// The queue's size.
        size: u16,
    },
    /// In use: an index jumped, or a ring could not be read or written.
    #[error("the rings are not usable: {0}")]
    Rings(#[from] virtio_queue::Error),
}

/// What the driver wrote into a queue's registers: an allegation until [`QueueSetup::check`] has passed it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueSetup {
    /// Descriptors.
    pub size: u32,
    /// Whether the driver wants it.
    pub ready: bool,
    /// Guest address of the descriptor table.
    pub descriptors: u64,
    /// Guest address of the available ring.
    pub available: u64,
    /// Guest address of the used ring.
    pub used: u64,
}

impl QueueSetup {
    /// The queue, if it is sound: sizes, alignments (virtio 1.2, 2.7), all in memory, nothing overlapping.
    pub fn check(&self, max: u16, event_idx: bool, memory: &Memory) -> Result<Queue, QueueError> {
        let bad_size = QueueError::Size { size: self.size, max };
        let Ok(size) = u16::try_from(self.size) else { return Err(bad_size) };
        if !size.is_power_of_two() || size > max {
            return Err(bad_size);
        }
        let entries = u64::from(size);
        let rings = [
            ("descriptor table", self.descriptors, 16 * entries, 16),
            ("available ring", self.available, 6 + 2 * entries, 2),
            ("used ring", self.used, 6 + 8 * entries, 4),
        ];
        for (ring, addr, len, align) in rings {
            if !addr.is_multiple_of(align) {
                return Err(QueueError::Alignment { ring, addr, align });
            }
            let bytes = usize::try_from(len).unwrap_or(usize::MAX);
            if !GuestMemory::check_range(memory, GuestAddress(addr), bytes, Permissions::ReadWrite) {
                return Err(QueueError::OutsideMemory { ring, addr, len });
            }
        }
        for (first, second) in [(0, 1), (0, 2), (1, 2)] {
            let ((first, a, a_len, _), (second, b, b_len, _)) = (rings[first], rings[second]);
            if a < b + b_len && b < a + a_len {
                return Err(QueueError::Overlap { first, second });
            }
        }
        let mut queue = Queue::new(max)?;
        queue.try_set_size(size)?;
        queue.try_set_desc_table_address(GuestAddress(self.descriptors))?;
        queue.try_set_avail_ring_address(GuestAddress(self.available))?;
        queue.try_set_used_ring_address(GuestAddress(self.used))?;
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        Ok(queue)
    }
}

/// One buffer of a chain; where it lies is unchecked until it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// Guest address.
    pub addr: GuestAddress,
    /// Bytes, not zero.
    pub len: u32,
}

/// A descriptor chain, copied out of guest memory. Reused from one request to the next.
#[derive(Debug, Default)]
pub struct Chain {
    /// What goes back into the used ring.
    pub head: u16,
    /// What the device may read, in order.
    pub readable: Vec<Buffer>,
    /// What the device may write, in order.
    pub writable: Vec<Buffer>,
}

impl Chain {
    /// Bytes that the device may read.
    #[must_use]
    pub fn readable_bytes(&self) -> u64 {
        self.readable.iter().map(|buffer| u64::from(buffer.len)).sum()
    }

    /// Bytes that the device may write.
    #[must_use]
    pub fn writable_bytes(&self) -> u64 {
        self.writable.iter().map(|buffer| u64::from(buffer.len)).sum()
    }
}

/// What came out of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Popped {
    /// Nothing is available.
    Empty,
    /// A chain was filled in.
    Chain,
    /// The driver's chain makes no sense; its head, to be given back unused, is filled in.
    Malformed,
}

/// A queue with all that belongs to it; owned by a worker.
pub struct Virtqueue {
    index: u16,
    queue: Queue,
    memory: Memory,
    notifiers: Arc<[EventFd]>,
    interrupt: Arc<dyn Interrupt>,
    unsignalled: bool,
}

impl Virtqueue {
    /// Queue `index` of the device whose queues are kicked through `notifiers`.
    #[must_use]
    pub fn new(
        index: u16,
        queue: Queue,
        memory: Memory,
        notifiers: Arc<[EventFd]>,
        interrupt: Arc<dyn Interrupt>,
    ) -> Self {
        Self { index, queue, memory, notifiers, interrupt, unsignalled: false }
    }

    /// Its place among the device's queues.
    #[must_use]
    pub fn index(&self) -> u16 {
        self.index
    }

    /// The eventfd that becomes readable when the driver kicks.
    #[must_use]
    pub fn kick(&self) -> &EventFd {
        &self.notifiers[usize::from(self.index)]
    }

    /// Takes note of the driver's kicks.
    pub fn acknowledge_kick(&self) {
        // It fails only where there was no kick.
        let _ = self.kick().read();
    }

    /// Kicks in the driver's stead: there is more to do, but others come first.
    pub fn kick_again(&self) {
        // It fails only at 2^64 - 2 kicks: readable all the same.
        let _ = self.kick().write(1);
    }

    /// Takes the next chain into `chain`.
    pub fn pop(&mut self, chain: &mut Chain) -> Result<Popped, QueueError> {
        let Some(descriptors) = self.queue.iter(&self.memory)?.next() else { return Ok(Popped::Empty) };
        let size = self.queue.size();
        chain.head = descriptors.head_index();
        chain.readable.clear();
        chain.writable.clear();
        if chain.head >= size {
            return Err(QueueError::Head { head: chain.head, size });
        }
        let mut complete = false;
        for (count, descriptor) in descriptors.enumerate() {
            let list = if descriptor.is_write_only() { &mut chain.writable } else { &mut chain.readable };
            if descriptor.len() > 0 {
                list.push(Buffer { addr: descriptor.addr(), len: descriptor.len() });
            }
            // Virtio 1.2, 2.7.4.2 and 2.7.5.3.1: readable before writable; no chain is longer than the queue.
            let misplaced = !descriptor.is_write_only() && !chain.writable.is_empty();
            if misplaced || count >= usize::from(size) {
                return Ok(Popped::Malformed);
            }
            // The iterator ends at whatever it cannot follow; only a descriptor without a successor ends a chain.
            complete = !descriptor.has_next();
        }
        Ok(if complete { Popped::Chain } else { Popped::Malformed })
    }

    /// Puts the last `count` chains back: they come out of [`Self::pop`] again.
    pub fn unpop(&mut self, count: u16) {
        self.queue.set_next_avail(self.queue.next_avail().wrapping_sub(count));
    }

    /// Gives chain `head` back with `written` bytes in it. [`Self::signal`] has to follow, once for many.
    pub fn add_used(&mut self, head: u16, written: u32) -> Result<(), QueueError> {
        self.unsignalled = true;
        Ok(self.queue.add_used(&self.memory, head, written)?)
    }

    /// Interrupts the driver if it wants to know of what was given back since the last call.
    pub fn signal(&mut self) -> Result<(), QueueError> {
        if !std::mem::take(&mut self.unsignalled) {
            return Ok(());
        }
        if self.queue.needs_notification(&self.memory)? && !self.interrupts_off() {
            self.interrupt.queue(self.index);
        }
        Ok(())
    }

    /// Without `EVENT_IDX` a driver turns interrupts off by a flag, which virtio-queue does not look at.
    fn interrupts_off(&self) -> bool {
        if self.queue.event_idx_enabled() {
            return false;
        }
        fence(Ordering::SeqCst);
        let flags: Result<u16, _> =
            self.memory.load(GuestAddress(self.queue.avail_ring()), Ordering::Relaxed);
        flags.is_ok_and(|flags| u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT != 0)
    }

    /// Asks the driver for kicks again. True if something is available already: then it has to be taken first.
    pub fn want_kicks(&mut self) -> Result<bool, QueueError> {
        Ok(self.queue.enable_notification(&self.memory)?)
    }

    /// Tells the driver that kicks are not needed; it may kick all the same.
    pub fn refuse_kicks(&mut self) -> Result<(), QueueError> {
        Ok(self.queue.disable_notification(&self.memory)?)
    }

    /// Guest memory.
    #[must_use]
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Gives the queue back to the transport.
    #[must_use]
    pub fn into_parts(self) -> (u16, Queue) {
        (self.index, self.queue)
    }

    /// The queue's index and state, for a worker that is drained but not yet dropped.
    #[must_use]
    pub fn take(&mut self) -> (u16, Queue) {
        (self.index, std::mem::take(&mut self.queue))
    }
}

#[cfg(test)]
mod tests;
