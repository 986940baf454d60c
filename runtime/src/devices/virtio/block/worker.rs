//! The queues of a block device, on an event loop.
//!
//! Owns the queues, a share of the disk and, where there is one, the disk's ring. Refuses to hold the loop for the guest's
//! sake: after [`REQUESTS`] requests or [`BYTES`] bytes the loop's commands come first; for the disk's sake it may wait, so the
//! loop is the drive's own. Invariant: without a ring a request is answered before the next is taken, so nothing is in flight
//! between two events; with one, what is in flight is bounded by the ring, and a drain or another file waits for all of it.
//! Where a rate limiter has no tokens, all queues wait for its timer, and then come in turn: none takes the others' share.

use super::flight::{self, Job};
use super::request::{Disk, HEADER_BYTES, MAX_BYTES, handle};
use super::seat::Seat;
use crate::devices::virtio::gate::{self, Gate};
use crate::devices::virtio::guest_ring::GuestRing;
use crate::devices::virtio::queue::{Chain, Virtqueue};
use crate::devices::virtio::service::{Budget, Service};
use crate::devices::virtio::{Busy, DeviceError, Interrupt, Token, Worker};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;
use virtio_queue::Queue;
use vmm_sys_util::eventfd::EventFd;

/// Most requests per event.
const REQUESTS: u32 = 64;
/// Most bytes per event, give or take the last request.
const BYTES: u64 = 4 << 20;
/// The token of the limiter's timer; those of the first queues are their places in `queues`.
const TIMER: Token = Token(u32::MAX);
/// The token of the ring's completions.
const RING: Token = Token(u32::MAX - 1);
/// The token of the seat's bell: another file is to be the disk.
const CHANGE: Token = Token(u32::MAX - 2);

/// What a worker tells others through.
pub(super) struct Outlets {
    /// Of the device's configuration.
    pub(super) interrupt: Arc<dyn Interrupt>,
    /// Counts requests that made no sense.
    pub(super) dropped: Arc<AtomicU64>,
}

pub(super) struct BlockWorker {
    events: Vec<(Token, RawFd)>,
    queues: Vec<Service>,
    seat: Arc<Seat>,
    disk: Arc<Disk>,
    ring: Option<GuestRing<Job>>,
    /// Of a ring that is no more: the loop has watched it, and has to be told to stop.
    old_bell: Option<Arc<EventFd>>,
    interrupt: Arc<dyn Interrupt>,
    gate: Option<Gate>,
    /// The queue that comes first when the gate opens.
    turn: usize,
    /// No request is taken: its queues are wanted back.
    draining: bool,
    /// No request is taken: what is in flight has to end first, for another file is to be the disk.
    changing: bool,
}

impl BlockWorker {
    pub(super) fn new(
        queues: Vec<Virtqueue>,
        seat: Arc<Seat>,
        gate: Option<Gate>,
        Outlets { interrupt, dropped }: Outlets,
    ) -> Self {
        let (disk, ring) = seat.take();
        let kicks = queues.iter().map(|queue| queue.kick().as_raw_fd());
        let timer = gate.as_ref().map(|gate| (TIMER, gate.timer()));
        let completions = ring.as_ref().map(|ring| (RING, ring.bell()));
        let bells = [(CHANGE, seat.bell())].into_iter().chain(timer).chain(completions);
        let events = (0..).map(Token).zip(kicks).chain(bells).collect();
        let budget = Budget { looks: REQUESTS, cost: BYTES };
        let service = |queue| Service::new(queue, budget, Arc::clone(&dropped)).by_edge();
        let queues = queues.into_iter().map(service).collect();
        let (draining, changing) = (false, false);
        Self {
            events,
            queues,
            seat,
            disk,
            ring,
            old_bell: None,
            interrupt,
            gate,
            turn: 0,
            draining,
            changing,
        }
    }

    fn serve(&mut self, place: usize) -> Result<(), DeviceError> {
        let Some(queue) = self.queues.get_mut(place) else { return Ok(()) };
        let (disk, ranges) = (&self.disk, self.gate.is_none());
        let answered = match &mut self.ring {
            None => queue.serve_through(self.gate.as_mut(), data_bytes, |memory, chain| {
                Ok(handle(memory, chain, disk).ok())
            })?,
            // What a rate limiter makes requests about ranges pay is known when they are done, so they are done at once.
            Some(ring) => queue.take_through(self.gate.as_mut(), data_bytes, |memory, chain| {
                Ok(flight::begin(memory, (place, chain), disk, ring, ranges))
            })?,
        };
        if !gate::is_open(self.gate.as_ref()) {
            // A queue that has had nothing yet keeps its turn, or one with small requests would always be faster.
            self.turn = if answered > 0 { (place + 1) % self.queues.len() } else { place };
        }
        self.submit()
    }

    fn submit(&mut self) -> Result<(), DeviceError> {
        let submitted = self.ring.as_mut().map_or(Ok(()), GuestRing::submit);
        submitted.map_err(DeviceError::host("handing requests to the drive's ring"))
    }

    /// The queues in turn, until the limiter's timer has to be waited for.
    fn serve_all(&mut self) -> Result<(), DeviceError> {
        let (first, count) = (self.turn, self.queues.len());
        for place in (first..count).chain(0..first) {
            if self.rests() || !gate::is_open(self.gate.as_ref()) {
                break;
            }
            self.serve(place)?;
        }
        Ok(())
    }

    /// The limiter's timer has rung.
    fn go_on(&mut self) -> Result<(), DeviceError> {
        if let Some(gate) = &mut self.gate {
            gate.rang();
        }
        self.serve_all()
    }

    /// No request is taken now.
    fn rests(&self) -> bool {
        self.draining || self.changing
    }

    /// Answers what has completed. Returns whether the ring was full, so that requests may wait in the queues for it.
    fn reap(&mut self) -> Result<bool, DeviceError> {
        let Some(ring) = &mut self.ring else { return Ok(false) };
        ring.hush();
        let was_full = !ring.has_room();
        while let Some((job, result)) = ring.completed() {
            let Some(service) = self.queues.get_mut(job.place) else { continue };
            let queue = &mut service.queue;
            let index = queue.index();
            let Some((head, written)) = job.go_on(result, queue.memory(), ring) else { continue };
            let queue_failed = |source| DeviceError::Queue { index, source };
            queue.add_used(head, written).map_err(queue_failed)?;
        }
        for service in &mut self.queues {
            let index = service.queue.index();
            service.queue.signal().map_err(|source| DeviceError::Queue { index, source })?;
        }
        self.submit()?;
        Ok(was_full)
    }

    fn in_flight(&self) -> usize {
        self.ring.as_ref().map_or(0, GuestRing::in_flight)
    }

    /// Puts another file in place, once nothing is in flight on the old one.
    fn change(&mut self) -> Result<(), DeviceError> {
        self.changing = self.seat.wants_change() && self.in_flight() > 0;
        if self.changing {
            return Ok(());
        }
        if let Some(disk) = self.seat.change() {
            self.disk = disk;
            // The ring knows the old file alone, and no other can be registered.
            self.old_bell = self.ring.take().map(GuestRing::into_bell).or(self.old_bell.take());
            self.interrupt.config();
        }
        // Kicks were not looked at meanwhile, and what the ring had no room for has none pending.
        self.serve_all()
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
        match token {
            CHANGE => !self.draining,
            RING => self.ring.is_some(),
            TIMER => !gate::is_open(self.gate.as_ref()) && !self.rests(),
            _ => gate::is_open(self.gate.as_ref()) && !self.rests(),
        }
    }

    fn by_edge(&self, token: Token) -> bool {
        !matches!(token, TIMER | RING | CHANGE)
    }

    fn ready(&mut self, token: Token) -> Result<(), DeviceError> {
        match token {
            RING => {
                let was_full = self.reap()?;
                match (self.changing, was_full && !self.rests()) {
                    (true, _) => self.change(),
                    (_, true) => self.serve_all(),
                    _ => Ok(()),
                }
            }
            CHANGE => {
                self.seat.hush();
                self.change()
            }
            _ if self.rests() => Ok(()),
            TIMER => self.go_on(),
            _ => self.serve(token.0 as usize),
        }
    }

    fn drain(&mut self, _deadline: Instant) -> Result<Vec<(u16, Queue)>, Busy> {
        self.draining = true;
        // A queue that cannot be used any more keeps nobody from letting go of the rest.
        let _ = self.reap();
        if self.in_flight() > 0 {
            return Err(Busy);
        }
        self.seat.put_back(self.ring.take());
        Ok(self.queues.iter_mut().map(|service| service.queue.take()).collect())
    }
}
