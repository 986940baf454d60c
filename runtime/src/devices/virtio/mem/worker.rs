//! The queue of a memory device, on the device thread.
//!
//! Owns the queue. Refuses nothing itself: `request` does. Invariant: what one event costs is bounded by the queue's budget,
//! or by what [`Hotplug::take_away`] takes at once, whatever number of blocks a request names.

use super::{QUEUE_SIZE, Requested, request};
use crate::devices::virtio::queue::Virtqueue;
use crate::devices::virtio::service::{Budget, Service};
use crate::devices::virtio::{Busy, DeviceError, Token, Worker};
use crate::memory::Hotplug;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;
use virtio_queue::Queue;

/// The driver's kicks.
const KICK: Token = Token(0);
/// Something can be taken away.
const LEFT: Token = Token(1);
/// Most requests for one event: a queue's full; and blocks, 16 GiB of them, give or take the last request.
const BUDGET: Budget = Budget { looks: QUEUE_SIZE as u32, cost: 8192 };

pub(super) struct MemWorker {
    events: [(Token, RawFd); 2],
    requests: Service,
    hotplug: Hotplug,
    requested: Requested,
}

impl MemWorker {
    pub(super) fn new(
        queue: Virtqueue,
        dropped: Arc<AtomicU64>,
        hotplug: Hotplug,
        requested: Requested,
    ) -> Self {
        let events = [(KICK, queue.kick().as_raw_fd()), (LEFT, hotplug.left().as_raw_fd())];
        Self { events, requests: Service::new(queue, BUDGET, dropped), hotplug, requested }
    }
}

impl Worker for MemWorker {
    fn events(&self) -> &[(Token, RawFd)] {
        &self.events
    }

    fn ready(&mut self, token: Token) -> Result<(), DeviceError> {
        let mut served = Ok(());
        if token == LEFT {
            // It fails only where nobody called.
            let _ = self.hotplug.left().read();
        } else {
            let (hotplug, requested) = (&self.hotplug, &self.requested);
            served =
                self.requests.serve(|memory, chain| Ok(request::answer(memory, chain, hotplug, requested)));
        }
        // Whatever the driver did to its queue: what was unplugged is not its any more.
        self.hotplug.take_away();
        served
    }

    fn drain(&mut self, _deadline: Instant) -> Result<Vec<(u16, Queue)>, Busy> {
        Ok(vec![self.requests.queue.take()])
    }
}
