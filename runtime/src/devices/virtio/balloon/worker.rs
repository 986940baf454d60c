//! The queues of a balloon, on an event loop.
//!
//! Owns the queues. Refuses nothing itself: `pages` does. Invariant: each queue has a budget of its own and one event
//! serves one queue, so no event costs more than one budget and one request.

use super::pages;
use super::{FEATURE_REPORTING, QUEUE_SIZE};
use crate::devices::virtio::service::{Budget, Service};
use crate::devices::virtio::{ActivateError, Activation, Busy, DeviceError, Token, Worker};
use std::os::fd::{AsRawFd, RawFd};
use std::time::Instant;
use virtio_queue::Queue;

/// The queues' indexes, which are also the tokens of their kicks (5.5.2). Linux numbers the queues of the features that
/// it has acknowledged without gaps; with neither statistics nor hints the queue for free pages is the third.
const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;
const REPORTING: u16 = 2;

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
    reporting: Option<Service>,
}

impl BalloonWorker {
    pub(super) fn new(mut activation: Activation) -> Result<Self, ActivateError> {
        let reports = activation.features & FEATURE_REPORTING != 0;
        let mut take = |index, budget| {
            let queue = activation.take_queue(index)?;
            Ok(Service::new(queue, budget, activation.dropped.clone()))
        };
        let inflate = take(INFLATE, PAGES_BUDGET)?;
        let deflate = take(DEFLATE, PAGES_BUDGET)?;
        let reporting = reports.then(|| take(REPORTING, REPORTING_BUDGET)).transpose()?;
        let services = [Some(&inflate), Some(&deflate), reporting.as_ref()];
        let event =
            |service: &Service| (Token(service.queue.index().into()), service.queue.kick().as_raw_fd());
        let events = services.into_iter().flatten().map(event).collect();
        Ok(Self { events, inflate, deflate, reporting })
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
        } else if let Some(reporting) = &mut self.reporting {
            reporting.serve(|memory, chain| Ok(pages::report(memory, chain)))
        } else {
            Ok(())
        }
    }

    fn drain(&mut self, _deadline: Instant) -> Result<Vec<(u16, Queue)>, Busy> {
        let mut queues = vec![self.inflate.queue.take(), self.deflate.queue.take()];
        queues.extend(self.reporting.as_mut().map(|reporting| reporting.queue.take()));
        Ok(queues)
    }
}
