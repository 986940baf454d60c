//! The queues of a balloon, on an event loop.
//!
//! Owns the queues. Refuses nothing itself: `pages` does. Invariant: each queue has a budget of its own and one event
//! serves one queue, so no event costs more than one budget and one request.

use super::pages;
use super::statistics::{Polling, Statistics};
use super::{FEATURE_REPORTING, FEATURE_STATS, QUEUE_SIZE};
use crate::devices::virtio::queue::Virtqueue;
use crate::devices::virtio::service::{Budget, Service};
use crate::devices::virtio::{ActivateError, Activation, Busy, DeviceError, Token, Worker};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Instant;
use virtio_queue::Queue;

/// The queues' indexes, which are also the tokens of their kicks (5.5.2). Linux numbers the queues of the features that
/// it has acknowledged without gaps: those of statistics and of free pages come after these two, in that order.
const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;
const NEXT: u16 = 2;
/// The token of the timer: time for new statistics.
const TICK: Token = Token(u32::MAX);

/// Most requests for one event: a queue's full.
const LOOKS: u32 = QUEUE_SIZE as u32;
/// Pages that one event gives back or takes, give or take the last request.
const PAGES_BUDGET: Budget = Budget { looks: LOOKS, cost: pages::REQUEST_PAGES as u64 };
/// Bytes that one event gives back, give or take the last request.
const REPORTING_BUDGET: Budget = Budget { looks: LOOKS, cost: pages::REPORT_BYTES };

pub(super) struct BalloonWorker {
    events: Vec<(Token, RawFd)>,
    inflate: Service,
    deflate: Service,
    statistics: Option<Statistics>,
    reporting: Option<Service>,
}

impl BalloonWorker {
    pub(super) fn new(
        mut activation: Activation,
        polling: Option<&Arc<Polling>>,
    ) -> Result<Self, ActivateError> {
        let has = |feature| activation.features & feature != 0;
        let (polling, reports) = (polling.filter(|_| has(FEATURE_STATS)), has(FEATURE_REPORTING));
        let dropped = activation.dropped.clone();
        let mut take = |index, budget| {
            let queue = activation.take_queue(index)?;
            Ok(Service::new(queue, budget, dropped.clone()))
        };
        let inflate = take(INFLATE, PAGES_BUDGET)?;
        let deflate = take(DEFLATE, PAGES_BUDGET)?;
        let after = NEXT + u16::from(polling.is_some());
        let reporting = reports.then(|| take(after, REPORTING_BUDGET)).transpose()?;
        let statistics = |polling: &Arc<Polling>| {
            let queue = activation.take_queue(NEXT)?;
            Ok(Statistics::new(queue, Arc::clone(polling), dropped.clone()))
        };
        let statistics = polling.map(statistics).transpose()?;
        let queues = [
            Some(&inflate.queue),
            Some(&deflate.queue),
            statistics.as_ref().map(|statistics| &statistics.queue),
            reporting.as_ref().map(|reporting| &reporting.queue),
        ];
        let event = |queue: &Virtqueue| (Token(queue.index().into()), queue.kick().as_raw_fd());
        let mut events: Vec<_> = queues.into_iter().flatten().map(event).collect();
        events.extend(polling.map(|polling| (TICK, polling.timer())));
        Ok(Self { events, inflate, deflate, statistics, reporting })
    }
}

impl Worker for BalloonWorker {
    fn events(&self) -> &[(Token, RawFd)] {
        &self.events
    }

    fn ready(&mut self, token: Token) -> Result<(), DeviceError> {
        if token == Token(INFLATE.into()) {
            self.inflate.serve(|memory, chain| Ok(pages::inflate(memory, chain)))
        } else if token == Token(DEFLATE.into()) {
            self.deflate.serve(|memory, chain| Ok(pages::deflate(memory, chain)))
        } else if let Some(statistics) = &mut self.statistics
            && token == TICK
        {
            statistics.tick()
        } else if let Some(statistics) = &mut self.statistics
            && token == Token(NEXT.into())
        {
            statistics.kicked()
        } else if let Some(reporting) = &mut self.reporting {
            reporting.serve(|memory, chain| Ok(pages::report(memory, chain)))
        } else {
            Ok(())
        }
    }

    fn drain(&mut self, _deadline: Instant) -> Result<Vec<(u16, Queue)>, Busy> {
        let mut queues = vec![self.inflate.queue.take(), self.deflate.queue.take()];
        queues.extend(self.statistics.as_mut().map(|statistics| {
            statistics.put_back();
            statistics.queue.take()
        }));
        queues.extend(self.reporting.as_mut().map(|reporting| reporting.queue.take()));
        Ok(queues)
    }
}
