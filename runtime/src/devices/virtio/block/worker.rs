//! The queues of a block device, on an event loop.
//!
//! Owns the queues and a share of the disk. Refuses to hold the loop for the guest's sake: after [`REQUESTS`] requests or
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
    /// A token is a place in `queues`.
    events: Vec<(Token, RawFd)>,
    queues: Vec<Virtqueue>,
    disk: Arc<Disk>,
    dropped: Arc<AtomicU64>,
    chain: Chain,
}

impl BlockWorker {
    pub(super) fn new(queues: Vec<Virtqueue>, disk: Arc<Disk>, dropped: Arc<AtomicU64>) -> Self {
        let kicks = queues.iter().map(|queue| queue.kick().as_raw_fd());
        let events = (0..).map(Token).zip(kicks).collect();
        Self { events, queues, disk, dropped, chain: Chain::default() }
    }
}

/// What serving one queue takes.
struct Service<'a> {
    queue: &'a mut Virtqueue,
    disk: &'a Disk,
    dropped: &'a AtomicU64,
    chain: &'a mut Chain,
}

impl Service<'_> {
    fn serve(&mut self) -> Result<(), QueueError> {
        self.queue.acknowledge_kick();
        self.queue.refuse_kicks()?;
        let (mut requests, mut bytes) = (0, 0);
        loop {
            // Counts looks at the queue, not only requests: a second vCPU may flip the index under our eyes for ever.
            requests += 1;
            match self.queue.pop(self.chain)? {
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
            Popped::Chain => handle(self.queue.memory(), self.chain, self.disk).ok(),
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

    fn ready(&mut self, Token(place): Token) -> Result<(), DeviceError> {
        let Self { queues, disk, dropped, chain, .. } = self;
        let Some(queue) = queues.get_mut(place as usize) else { return Ok(()) };
        let index = queue.index();
        let mut service = Service { queue, disk, dropped, chain };
        service.serve().map_err(|source| DeviceError::Queue { index, source })
    }

    fn drain(&mut self, _deadline: Instant) -> Result<Vec<(u16, Queue)>, Busy> {
        Ok(self.queues.iter_mut().map(Virtqueue::take).collect())
    }
}
