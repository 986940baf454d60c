//! The queue of a block device, on an event loop.
//!
//! Owns the queue and a share of the disk. Refuses to hold the loop for the guest's sake: after [`REQUESTS`] requests or
//! [`BYTES`] bytes the loop's commands come first; for the disk's sake it waits, so the loop is the drive's own.
//! Invariant: a request is answered before the next is taken, so nothing is in flight between two events: a drain is
//! immediate once the loop gets to it, and the request that it waited for has let go of its buffers.

use super::request::{Disk, handle};
use crate::devices::virtio::queue::{Chain, Popped, QueueError, Virtqueue};
use crate::devices::virtio::{Busy, DeviceError, Token, Worker};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use virtio_queue::Queue;

/// Most requests per event.
const REQUESTS: u32 = 64;
/// Most bytes per event, give or take the last request.
const BYTES: u64 = 4 << 20;

pub(super) struct BlockWorker {
    events: [(Token, RawFd); 1],
    queue: Virtqueue,
    disk: Arc<Disk>,
    dropped: Arc<AtomicU64>,
    chain: Chain,
}

impl BlockWorker {
    pub(super) fn new(queue: Virtqueue, disk: Arc<Disk>, dropped: Arc<AtomicU64>) -> Self {
        let events = [(Token(0), queue.kick().as_raw_fd())];
        Self { events, queue, disk, dropped, chain: Chain::default() }
    }

    fn serve(&mut self) -> Result<(), QueueError> {
        self.queue.acknowledge_kick();
        self.queue.refuse_kicks()?;
        let (mut requests, mut bytes) = (0, 0);
        loop {
            // Counts looks at the queue, not only requests: a second vCPU may flip the index under our eyes for ever.
            requests += 1;
            match self.queue.pop(&mut self.chain)? {
                Popped::Empty if self.queue.want_kicks()? => {}
                Popped::Empty => break,
                popped => {
                    self.answer(popped)?;
                    bytes += self.chain.readable_bytes() + self.chain.writable_bytes();
                }
            }
            if requests >= REQUESTS || bytes >= BYTES {
                self.queue.kick_again();
                break;
            }
        }
        self.queue.signal()
    }

    fn answer(&mut self, popped: Popped) -> Result<(), QueueError> {
        let written = match popped {
            Popped::Chain => handle(self.queue.memory(), &self.chain, &self.disk).ok(),
            Popped::Malformed | Popped::Empty => None,
        };
        if written.is_none() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        self.queue.add_used(self.chain.head, written.unwrap_or(0))
    }
}

impl Worker for BlockWorker {
    fn events(&self) -> &[(Token, RawFd)] {
        &self.events
    }

    fn ready(&mut self, _token: Token) -> Result<(), DeviceError> {
        self.serve().map_err(|source| DeviceError::Queue { index: self.queue.index(), source })
    }

    fn drain(&mut self, _deadline: Instant) -> Result<Vec<(u16, Queue)>, Busy> {
        Ok(vec![self.queue.take()])
    }
}
