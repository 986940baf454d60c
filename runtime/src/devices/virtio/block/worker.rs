//! The queues of a block device, on an event loop.
//!
//! Owns the queues and a share of the disk. Refuses to hold the loop for the guest's sake: after [`REQUESTS`] requests or
//! [`BYTES`] bytes the loop's commands come first; for the disk's sake it waits, so the loop is the drive's own.
//! Invariant: a request is answered before the next is taken, so nothing is in flight between two events: a drain is
//! immediate once the loop gets to it, and the request that it waited for has let go of its buffers. Where a rate limiter
//! has no tokens, all queues wait for its timer, and then come in turn: none takes the others' share.

use super::request::{Disk, HEADER_BYTES, MAX_BYTES, handle};
use crate::devices::virtio::gate::{self, Gate};
use crate::devices::virtio::queue::{Chain, Virtqueue};
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
/// The token of the limiter's timer; the others are places in `queues`.
const TIMER: Token = Token(u32::MAX);

pub(super) struct BlockWorker {
    events: Vec<(Token, RawFd)>,
    queues: Vec<Service>,
    disk: Arc<Disk>,
    gate: Option<Gate>,
    /// The queue that comes first when the gate opens.
    turn: usize,
}

impl BlockWorker {
    pub(super) fn new(
        queues: Vec<Virtqueue>,
        disk: Arc<Disk>,
        gate: Option<Gate>,
        dropped: &Arc<AtomicU64>,
    ) -> Self {
        let kicks = queues.iter().map(|queue| queue.kick().as_raw_fd());
        let timer = gate.as_ref().map(|gate| (TIMER, gate.timer()));
        let events = (0..).map(Token).zip(kicks).chain(timer).collect();
        let budget = Budget { looks: REQUESTS, cost: BYTES };
        let service = |queue| Service::new(queue, budget, Arc::clone(dropped)).by_edge();
        Self { events, queues: queues.into_iter().map(service).collect(), disk, gate, turn: 0 }
    }

    fn serve(&mut self, place: usize) -> Result<(), DeviceError> {
        let Some(queue) = self.queues.get_mut(place) else { return Ok(()) };
        let disk = &self.disk;
        let answered = queue.serve_through(self.gate.as_mut(), data_bytes, |memory, chain| {
            Ok(handle(memory, chain, disk).ok())
        })?;
        if !gate::is_open(self.gate.as_ref()) {
            // A queue that has had nothing yet keeps its turn, or one with small requests would always be faster.
            self.turn = if answered > 0 { (place + 1) % self.queues.len() } else { place };
        }
        Ok(())
    }

    /// The limiter's timer has rung: the queues in turn, until it has to be waited for again.
    fn go_on(&mut self) -> Result<(), DeviceError> {
        if let Some(gate) = &mut self.gate {
            gate.rang();
        }
        let (first, count) = (self.turn, self.queues.len());
        for place in (first..count).chain(0..first) {
            self.serve(place)?;
            if !gate::is_open(self.gate.as_ref()) {
                break;
            }
        }
        Ok(())
    }
}

/// What a request looks as if it moved: all but header and status, of what is not refused for its size.
fn data_bytes(chain: &Chain) -> u64 {
    let bytes = chain.readable_bytes() + chain.writable_bytes();
    bytes.saturating_sub(HEADER_BYTES as u64 + 1).min(MAX_BYTES)
}

impl Worker for BlockWorker {
    fn events(&self) -> &[(Token, RawFd)] {
        &self.events
    }

    fn wants(&self, token: Token) -> bool {
        (token == TIMER) != gate::is_open(self.gate.as_ref())
    }

    fn by_edge(&self, token: Token) -> bool {
        token != TIMER
    }

    fn ready(&mut self, token: Token) -> Result<(), DeviceError> {
        if token == TIMER { self.go_on() } else { self.serve(token.0 as usize) }
    }

    fn drain(&mut self, _deadline: Instant) -> Result<Vec<(u16, Queue)>, Busy> {
        Ok(self.queues.iter_mut().map(|service| service.queue.take()).collect())
    }
}
