//! A queue served request by request, a bounded amount at a time.
//!
//! Owns the order of kicks, looks at the queue and interrupts. Refuses to hold the event loop: past a [`Budget`] the other
//! devices come first, and the queue kicks itself; so it does where a rate limiter's gate closes. Invariant: a request is
//! answered before the next is taken, so nothing is in flight between two events, but what its device said would be answered
//! [`Reply::Later`].

use super::gate::Gate;
use super::queue::{Chain, Popped, Virtqueue};
use super::{DeviceError, Memory};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Most work for one event.
#[derive(Debug, Clone, Copy)]
pub(super) struct Budget {
    /// Looks at the queue.
    pub(super) looks: u32,
    /// What the answers say they cost, give or take the last one; the unit is the device's.
    pub(super) cost: u64,
}

/// A request that was answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Answer {
    /// Bytes written into its buffers.
    pub(super) written: u32,
    /// What it cost, in the unit of the device's [`Budget`]; in bytes where there is a gate.
    pub(super) cost: u64,
}

/// What became of a request that was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reply {
    /// It is done.
    Answered(Answer),
    /// It makes no sense, and goes back unused.
    Nonsense,
    /// It will be given back later; what it cost is known already.
    Later(u64),
    /// There is no room for it now: it stays in the queue, with all behind it, until somebody serves the queue again.
    Full,
}

/// What one queue is served with.
pub(super) struct Service {
    pub(super) queue: Virtqueue,
    budget: Budget,
    dropped: Arc<AtomicU64>,
    chain: Chain,
    by_edge: bool,
}

impl Service {
    /// Serves `queue`; requests that make no sense count in `dropped`.
    pub(super) fn new(queue: Virtqueue, budget: Budget, dropped: Arc<AtomicU64>) -> Self {
        Self { queue, budget, dropped, chain: Chain::default(), by_edge: false }
    }

    /// The same for a worker that hears of kicks by their edges ([`super::Worker::by_edge`]).
    pub(super) fn by_edge(self) -> Self {
        Self { by_edge: true, ..self }
    }

    /// Answers what the driver has made available, up to the budget. `answer` says `None` of a request that makes no
    /// sense: it goes back unused.
    pub(super) fn serve(
        &mut self,
        answer: impl FnMut(&Memory, &Chain) -> Result<Option<Answer>, DeviceError>,
    ) -> Result<(), DeviceError> {
        self.serve_through(None, |_| 0, answer).map(drop)
    }

    /// The same, as far as `gate` lets requests through, each of which moves `bytes` bytes by the looks of it; it pays what
    /// it cost in the end. The one at which the gate closes stays in the queue, and the queue's kick stays pending. Says
    /// how many were answered.
    pub(super) fn serve_through(
        &mut self,
        gate: Option<&mut Gate>,
        bytes: impl Fn(&Chain) -> u64,
        mut answer: impl FnMut(&Memory, &Chain) -> Result<Option<Answer>, DeviceError>,
    ) -> Result<u32, DeviceError> {
        self.take_through(gate, bytes, |memory, chain| {
            Ok(answer(memory, chain)?.map_or(Reply::Nonsense, Reply::Answered))
        })
    }

    /// The same for a device that answers some requests later.
    pub(super) fn take_through(
        &mut self,
        gate: Option<&mut Gate>,
        bytes: impl Fn(&Chain) -> u64,
        answer: impl FnMut(&Memory, &Chain) -> Result<Reply, DeviceError>,
    ) -> Result<u32, DeviceError> {
        let index = self.queue.index();
        let queue_failed = |source| DeviceError::Queue { index, source };
        if !self.by_edge {
            self.queue.acknowledge_kick();
        }
        self.queue.refuse_kicks().map_err(queue_failed)?;
        let answered = self.answer_all(gate, bytes, answer)?;
        self.queue.signal().map_err(queue_failed)?;
        Ok(answered)
    }

    fn answer_all(
        &mut self,
        mut gate: Option<&mut Gate>,
        bytes: impl Fn(&Chain) -> u64,
        mut answer: impl FnMut(&Memory, &Chain) -> Result<Reply, DeviceError>,
    ) -> Result<u32, DeviceError> {
        let index = self.queue.index();
        let queue_failed = |source| DeviceError::Queue { index, source };
        let (mut looks, mut cost, mut count) = (0, 0, 0);
        loop {
            // Counts looks at the queue, not only requests: a second vCPU may flip the index under our eyes for ever.
            looks += 1;
            let popped = self.queue.pop(&mut self.chain).map_err(queue_failed)?;
            if popped != Popped::Empty {
                if let Some(gate) = &mut gate
                    && !gate.admits(bytes(&self.chain))?
                {
                    self.queue.unpop(1);
                    self.queue.kick_again();
                    return Ok(count);
                }
                let reply = match popped {
                    Popped::Chain => answer(self.queue.memory(), &self.chain)?,
                    Popped::Malformed | Popped::Empty => Reply::Nonsense,
                };
                let (used, bytes) = match reply {
                    Reply::Answered(Answer { written, cost }) => (Some(written), cost),
                    Reply::Nonsense => {
                        self.dropped.fetch_add(1, Ordering::Relaxed);
                        (Some(0), 0)
                    }
                    Reply::Later(cost) => (None, cost),
                    Reply::Full => {
                        self.queue.unpop(1);
                        return Ok(count);
                    }
                };
                if let Some(gate) = &gate {
                    gate.took(bytes);
                }
                if let Some(written) = used {
                    self.queue.add_used(self.chain.head, written).map_err(queue_failed)?;
                }
                cost += bytes;
                count += 1;
            } else if !self.queue.want_kicks().map_err(queue_failed)? {
                return Ok(count);
            }
            if looks >= self.budget.looks || cost >= self.budget.cost {
                self.queue.kick_again();
                return Ok(count);
            }
        }
    }
}
