//! The stand-in for a worker that runs on another loop, because its calls may wait for the host.
//!
//! Owns what the other loop has said and the watching loop has not heard yet: one failure, and the queues at the end.
//! Refuses to wait: while the worker hangs, the deputy says that it is busy, so the watching loop's patience counts.
//! Invariant: the worker's owner hears of it from the watching loop alone, hence in order, and of its end only once the
//! other loop has let go of it; its buffers are in use until then.

use super::super::{Busy, DeviceError, Token, Worker};
use super::{LoopHandle, Owner, WorkerKey};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use virtio_queue::Queue;
use vmm_sys_util::eventfd::EventFd;

/// The other loop, and the bell that it rings; for one worker at a time.
#[derive(Clone)]
pub(super) struct Ward {
    event_loop: Box<LoopHandle>,
    bell: Arc<EventFd>,
}

impl Ward {
    pub(super) fn new(event_loop: LoopHandle) -> io::Result<Self> {
        let bell = Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
        Ok(Self { event_loop: Box::new(event_loop), bell })
    }
}

#[derive(Default)]
struct News {
    failure: Option<DeviceError>,
    drained: Option<Vec<(u16, Queue)>>,
}

/// What the other loop has to say about the worker.
struct Letterbox {
    news: Mutex<News>,
    bell: Arc<EventFd>,
}

impl Letterbox {
    fn news(&self) -> MutexGuard<'_, News> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring(&self) {
        // It fails only at 2^64 - 2 rings: readable all the same.
        let _ = self.bell.write(1);
    }
}

impl Owner for Letterbox {
    fn failed(&self, error: DeviceError) {
        self.news().failure.get_or_insert(error);
        self.ring();
    }

    fn drained(&self, queues: Vec<(u16, Queue)>) {
        self.news().drained = Some(queues);
        self.ring();
    }
}

/// See the module.
pub(super) struct Deputy {
    events: [(Token, RawFd); 1],
    event_loop: LoopHandle,
    worker: WorkerKey,
    letters: Arc<Letterbox>,
    draining: bool,
}

impl Deputy {
    /// Hands `worker` to `ward`'s loop and stands in for it.
    pub(super) fn of(worker: Box<dyn Worker>, ward: &Ward) -> Self {
        let letters = Arc::new(Letterbox { news: Mutex::default(), bell: Arc::clone(&ward.bell) });
        let event_loop = LoopHandle::clone(&ward.event_loop);
        let worker = event_loop.run(worker, Arc::clone(&letters) as Arc<dyn Owner>);
        let events = [(Token(0), letters.bell.as_raw_fd())];
        Self { events, event_loop, worker, letters, draining: false }
    }
}

impl Worker for Deputy {
    fn events(&self) -> &[(Token, RawFd)] {
        &self.events
    }

    fn ready(&mut self, _token: Token) -> Result<(), DeviceError> {
        // It fails only where nobody rang; the last worker's ring may have outlived it.
        let _ = self.letters.bell.read();
        self.letters.news().failure.take().map_or(Ok(()), Err)
    }

    fn drain(&mut self, _deadline: Instant) -> Result<Vec<(u16, Queue)>, Busy> {
        if !std::mem::replace(&mut self.draining, true) {
            // The patience is counted on this side, if there is to be any.
            self.event_loop.pause(self.worker);
        }
        self.letters.news().drained.take().ok_or(Busy)
    }
}

#[cfg(test)]
mod tests;
