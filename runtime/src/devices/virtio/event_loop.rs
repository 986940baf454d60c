//! The thread body that runs workers.
//!
//! Owns an epoll set, the workers in it and the channel on which transports hand them over. Refuses to end for any
//! worker's sake: one that fails is cut off from its events and reported to its [`Owner`]; the others go on.
//! Invariant: a worker does a bounded amount of work per event, and epoll reports ready descriptors in turn, so
//! one device's storm delays another by at most one such amount per device. A descriptor that its worker does not want
//! now is not in the epoll set at all: left in without events it would still report errors, for ever. A worker whose calls
//! may wait for the host runs on a loop of its own, and a deputy of it here ([`LoopHandle::watching`]): so that the loop
//! that everybody hears from never waits.

mod deputy;

use super::{Busy, DeviceError, Token, Worker};
use crate::memory::Reader;
use deputy::{Deputy, Ward};
use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};
use virtio_queue::Queue;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

/// How long a worker may take to end what is in flight before its owner hears of it.
const DRAIN_PATIENCE: Duration = Duration::from_secs(5);
/// How often a worker that is busy draining is asked again, in milliseconds.
const DRAIN_RETRY_MS: i32 = 5;
/// Events taken from the kernel at once.
const BATCH: usize = 32;
/// Event data of the command channel; workers' keys are below.
const COMMANDS: u64 = u64::MAX;

/// Who handed a worker over, and hears how it fares. Called on the event loop's thread; must not wait for it.
pub trait Owner: Send + Sync {
    /// The worker cannot go on; it gets no more events.
    fn failed(&self, error: DeviceError);
    /// The worker was asked to drain and is gone.
    fn drained(&self, queues: Vec<(u16, Queue)>);
}

/// Names a worker on its loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct WorkerKey(u32);

/// How long a worker may take to drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Patience {
    /// A driver waits for its reset: the owner hears if it takes long.
    Short,
    /// As long as it takes: whoever pauses the device has a deadline of his own, and nothing may be lost.
    Endless,
}

enum Command {
    Run { key: WorkerKey, worker: Box<dyn Worker>, owner: Arc<dyn Owner> },
    Drain { key: WorkerKey, patience: Patience },
    Call(Box<dyn FnOnce() + Send>),
    Stop,
}

/// The way to an event loop, from any thread. Never waits for it.
#[derive(Clone)]
pub struct LoopHandle {
    commands: Sender<Command>,
    wake: Arc<EventFd>,
    next_key: Arc<AtomicU32>,
    /// The loop that workers really run on, if it is not this one.
    ward: Option<Ward>,
}

impl LoopHandle {
    /// The way for one device whose worker may have to wait for the host: it runs on `other`, and a deputy of it on this
    /// loop, which hears how it fares and tells its owner. Makes a descriptor.
    ///
    /// # Errors
    /// No descriptor can be made.
    pub fn watching(&self, other: Self) -> io::Result<Self> {
        Ok(Self { ward: Some(Ward::new(other)?), ..self.clone() })
    }

    /// Hands `worker` over.
    pub fn run(&self, worker: Box<dyn Worker>, owner: Arc<dyn Owner>) -> WorkerKey {
        let worker = match &self.ward {
            Some(ward) => Box::new(Deputy::of(worker, ward)),
            None => worker,
        };
        let key = WorkerKey(self.next_key.fetch_add(1, Ordering::Relaxed));
        self.send(Command::Run { key, worker, owner });
        key
    }

    /// Asks for the worker's queues back, for a reset; its owner hears of it, and of a failure if it takes longer than
    /// 5 s. A caller asks once per worker, which bounds the channel.
    pub fn drain(&self, key: WorkerKey) {
        self.send(Command::Drain { key, patience: Patience::Short });
    }

    /// The same for a pause: what is in flight is waited for, however long it takes. [`Self::drain`] may follow, and ends
    /// the patience.
    pub fn pause(&self, key: WorkerKey) {
        self.send(Command::Drain { key, patience: Patience::Endless });
    }

    /// Has `call` run on the loop's thread, between two events.
    pub fn call(&self, call: Box<dyn FnOnce() + Send>) {
        self.send(Command::Call(call));
    }

    /// Ends the loop.
    pub fn stop(&self) {
        self.send(Command::Stop);
    }

    fn send(&self, command: Command) {
        // A loop that has ended takes no commands, and its machine is ending with it.
        if self.commands.send(command).is_ok() {
            let _ = self.wake.write(1);
        }
    }
}

struct Slot {
    worker: Box<dyn Worker>,
    owner: Arc<dyn Owner>,
    watched: Vec<Watched>,
    draining: Option<Drain>,
}

/// A worker that was asked to drain.
struct Drain {
    /// When its owner hears that it takes long.
    deadline: Option<Instant>,
}

/// One of a worker's descriptors.
struct Watched {
    token: Token,
    fd: RawFd,
    /// Whether it is in the epoll set.
    armed: bool,
}

/// See the module.
pub struct EventLoop {
    epoll: Epoll,
    commands: Receiver<Command>,
    wake: Arc<EventFd>,
    slots: BTreeMap<WorkerKey, Slot>,
    patience: Duration,
    /// Says when this thread is at guest memory, where that can be taken away from it.
    reader: Option<Reader>,
}

impl EventLoop {
    /// A loop without workers, and the way to it.
    pub fn new() -> io::Result<(Self, LoopHandle)> {
        let epoll = Epoll::new()?;
        let wake = Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
        epoll.ctl(ControlOperation::Add, wake.as_raw_fd(), EpollEvent::new(EventSet::IN, COMMANDS))?;
        let (sender, commands) = mpsc::channel();
        let next_key = Arc::new(AtomicU32::new(0));
        let handle = LoopHandle { commands: sender, wake: wake.clone(), next_key, ward: None };
        Ok((
            Self { epoll, commands, wake, slots: BTreeMap::new(), patience: DRAIN_PATIENCE, reader: None },
            handle,
        ))
    }

    /// The same, on a thread beside the one that takes memory away from the guest.
    #[must_use]
    pub fn with_reader(self, reader: Reader) -> Self {
        Self { reader: Some(reader), ..self }
    }

    /// Runs until [`LoopHandle::stop`]. Fails only if the kernel no longer reports events.
    pub fn run(mut self) -> io::Result<()> {
        while self.turn(-1)?.is_continue() {}
        Ok(())
    }

    /// Waits for events, at most `wait_ms` milliseconds if that is not negative, and handles those that there are. Breaks
    /// once it was told to stop.
    pub(crate) fn turn(&mut self, wait_ms: i32) -> io::Result<ControlFlow<()>> {
        let mut events = [EpollEvent::default(); BATCH];
        let draining = self.slots.values().any(|slot| slot.draining.is_some());
        let timeout = if draining && wait_ms < 0 { DRAIN_RETRY_MS } else { wait_ms };
        let count = match self.epoll.wait(timeout, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        if let Some(reader) = &self.reader {
            reader.enter();
        }
        let flow = self.handle(&events[..count]);
        if draining {
            self.retry_drains();
        }
        if let Some(reader) = &self.reader {
            reader.leave();
        }
        Ok(flow)
    }

    fn handle(&mut self, events: &[EpollEvent]) -> ControlFlow<()> {
        for event in events {
            if event.data() != COMMANDS {
                self.dispatch(event.data());
            } else if self.obey().is_break() {
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    }

    fn dispatch(&mut self, data: u64) {
        let (key, token) = unpack(data);
        // An event may have been fetched together with the command that removed its worker.
        let Some(slot) = self.slots.get_mut(&key) else { return };
        // Or together with the one after which the worker no longer wanted it.
        if !slot.watched.iter().any(|watched| watched.token == token && watched.armed) {
            return;
        }
        let done = slot.worker.ready(token).and_then(|()| Self::arm(&self.epoll, key, slot));
        if let Err(error) = done {
            Self::cut_off(&self.epoll, slot);
            slot.owner.failed(error);
        }
    }

    fn obey(&mut self) -> ControlFlow<()> {
        let _ = self.wake.read();
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Stop => return ControlFlow::Break(()),
                Command::Call(call) => call(),
                Command::Run { key, worker, owner } => self.adopt(key, worker, owner),
                Command::Drain { key, patience } => {
                    if let Some(slot) = self.slots.get_mut(&key) {
                        let limited = patience == Patience::Short;
                        slot.draining =
                            Some(Drain { deadline: limited.then(|| Instant::now() + self.patience) });
                    }
                    self.retry_drains();
                }
            }
        }
        ControlFlow::Continue(())
    }

    fn adopt(&mut self, key: WorkerKey, worker: Box<dyn Worker>, owner: Arc<dyn Owner>) {
        let watched = |&(token, fd): &(Token, RawFd)| Watched { token, fd, armed: false };
        let watched = worker.events().iter().map(watched).collect();
        let mut slot = Slot { worker, owner, watched, draining: None };
        if let Err(error) = Self::arm(&self.epoll, key, &mut slot) {
            Self::cut_off(&self.epoll, &mut slot);
            slot.owner.failed(error);
        }
        self.slots.insert(key, slot);
    }

    /// Makes the epoll set what the worker wants now. No system call where nothing has changed.
    fn arm(epoll: &Epoll, key: WorkerKey, slot: &mut Slot) -> Result<(), DeviceError> {
        for watched in &mut slot.watched {
            let wanted = slot.worker.wants(watched.token);
            if wanted == watched.armed {
                continue;
            }
            let (operation, events) = match wanted {
                true if slot.worker.by_edge(watched.token) => {
                    (ControlOperation::Add, EventSet::IN | EventSet::EDGE_TRIGGERED)
                }
                true => (ControlOperation::Add, EventSet::IN),
                false => (ControlOperation::Delete, EventSet::empty()),
            };
            epoll
                .ctl(operation, watched.fd, EpollEvent::new(events, pack(key, watched.token)))
                .map_err(DeviceError::host("watching a device's descriptors"))?;
            watched.armed = wanted;
        }
        Ok(())
    }

    fn retry_drains(&mut self) {
        let (epoll, patience) = (&self.epoll, self.patience);
        self.slots.retain(|_, slot| {
            let Some(Drain { deadline }) = slot.draining else { return true };
            match slot.worker.drain(deadline.unwrap_or_else(|| Instant::now() + patience)) {
                Ok(queues) => {
                    Self::cut_off(epoll, slot);
                    slot.owner.drained(queues);
                    false
                }
                Err(Busy) if deadline.is_none_or(|deadline| Instant::now() < deadline) => true,
                Err(Busy) => {
                    slot.draining = Some(Drain { deadline: Some(Instant::now() + patience) });
                    slot.owner.failed(DeviceError::Host {
                        what: "ending the requests in flight",
                        source: io::ErrorKind::TimedOut.into(),
                    });
                    true
                }
            }
        });
    }

    fn cut_off(epoll: &Epoll, slot: &mut Slot) {
        for watched in slot.watched.drain(..).filter(|watched| watched.armed) {
            // The descriptor is open (the worker lives) and was added: nothing is left that could fail.
            let _ = epoll.ctl(ControlOperation::Delete, watched.fd, EpollEvent::default());
        }
    }
}

fn pack(key: WorkerKey, token: Token) -> u64 {
    u64::from(key.0) << 32 | u64::from(token.0)
}

#[expect(clippy::cast_possible_truncation, reason = "takes the two halves apart")]
fn unpack(data: u64) -> (WorkerKey, Token) {
    (WorkerKey((data >> 32) as u32), Token(data as u32))
}

#[cfg(test)]
mod tests;
