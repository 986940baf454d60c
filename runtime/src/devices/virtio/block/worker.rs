//! The queues of a block device, on an event loop.
//!
//! Owns the queues and a share of the disk. Refuses to hold the loop for the guest's sake: after [`REQUESTS`] requests or
//! [`BYTES`] bytes the loop's commands come first; for the disk's sake it waits, so the loop is the drive's own.
//! Invariant: a request is answered before the next is taken, so nothing is in flight between two events: a drain is
//! immediate once the loop gets to it, and the request that it waited for has let go of its buffers.

use super::request::{Disk, handle};
use crate::devices::virtio::queue::Virtqueue;
use crate::devices::virtio::service::{Budget, Service};
use crate::devices::virtio::{Busy, DeviceError, Token, Worker};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;
use virtio_queue::Queue;

/// Most requests per event.
const REQUESTS: u32 = 64;
/// Most bytes per event, give or take the last request.
const BYTES: u64 = 4 << 20;

pub(super) struct BlockWorker {
    /// A token is a place in `queues`.
    events: Vec<(Token, RawFd)>,
    queues: Vec<Service>,
    disk: Arc<Disk>,
}

impl BlockWorker {
    pub(super) fn new(queues: Vec<Virtqueue>, disk: Arc<Disk>, dropped: &Arc<AtomicU64>) -> Self {
        let kicks = queues.iter().map(|queue| queue.kick().as_raw_fd());
        let events = (0..).map(Token).zip(kicks).collect();
        let budget = Budget { looks: REQUESTS, cost: BYTES };
        let service = |queue| Service::new(queue, budget, Arc::clone(dropped));
        Self { events, queues: queues.into_iter().map(service).collect(), disk }
    }
}

impl Worker for BlockWorker {
    fn events(&self) -> &[(Token, RawFd)] {
        &self.events
    }

    fn ready(&mut self, Token(place): Token) -> Result<(), DeviceError> {
        let Some(queue) = self.queues.get_mut(place as usize) else { return Ok(()) };
        let disk = &self.disk;
        queue.serve(|memory, chain| Ok(handle(memory, chain, disk).ok()))
    }

    fn drain(&mut self, _deadline: Instant) -> Result<Vec<(u16, Queue)>, Busy> {
        Ok(self.queues.iter_mut().map(|service| service.queue.take()).collect())
    }
}
