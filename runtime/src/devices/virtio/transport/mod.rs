//! What every transport of virtio (virtio 1.2, 4) shares: shows one device to one driver, whatever registers they meet at.
//!
//! Owns the device while it is inactive, what was negotiated, and the kicks of its queues; hands queues to a worker at
//! `DRIVER_OK` and takes them back at reset, and for a pause (`pause`). What the registers look like and how an interrupt reaches
//! the driver is a [`Face`]'s. Refuses queues that are not sound with `DEVICE_NEEDS_RESET`. Invariant: a vCPU thread
//! takes one short lock and never waits for a worker; a reset is over when the worker is gone, and the status register
//! reads non-zero until then.

pub(super) mod negotiation;
mod pause;

use super::event_loop::{LoopHandle, Owner, WorkerKey};
use super::queue::{QueueSetup, Virtqueue};
use super::{
    ActivateError, Activation, DeviceError, DeviceKind, FEATURE_EVENT_IDX, Interrupt, Memory, VirtioDevice,
};
use crate::state::{LoadError, Section};
use negotiation::{Effect, Negotiation, Write};
pub use pause::NotPaused;
use pause::Phase;
use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use virtio_queue::Queue;
use vmm_sys_util::eventfd::EventFd;

/// What a device's guest did wrong so far, and the host to it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Faults {
    /// Times that the device needed a reset.
    pub failures: u64,
    /// Requests that made no sense and were dropped.
    pub dropped: u64,
    /// The last failure, in a line.
    pub last: Option<String>,
}

/// How a device's driver hears of it, and what the driver has there that is none of the device's: the interrupts' state.
pub(super) trait Face: Interrupt {
    /// The driver has reset the device: nothing is to be heard any more.
    fn reset(&self);
    /// Tells the driver again what it has not taken note of.
    fn repeat(&self);
    /// What the driver has there.
    fn save(&self) -> Section;
    /// Looks at what was saved; what it returns takes it over.
    ///
    /// # Errors
    /// What is wrong with the section.
    fn loaded<'a>(&'a self, section: &Section) -> Result<Box<dyn FnOnce() + 'a>, LoadError>;
}

struct State {
    negotiation: Negotiation,
    device: Box<dyn VirtioDevice>,
    worker: Option<WorkerKey>,
    phase: Phase,
    /// Queues of a worker that was drained for a pause, or that were loaded: what the next one goes on with.
    kept: Vec<(u16, Queue)>,
    failures: u64,
    last: Option<String>,
}

/// See the module.
pub struct Transport {
    this: Weak<Self>,
    kind: DeviceKind,
    memory: Memory,
    event_loop: LoopHandle,
    face: Arc<dyn Face>,
    notifiers: Arc<[EventFd]>,
    dropped: Arc<AtomicU64>,
    /// Of the configuration (2.5.1); another after each change, under the state's lock.
    generation: AtomicU32,
    state: Mutex<State>,
    /// The phase has changed.
    settled: Condvar,
}

impl Transport {
    /// Shows `device` to the guest, by `face`. Its worker will run on `event_loop`.
    pub(super) fn new(
        device: Box<dyn VirtioDevice>,
        memory: Memory,
        face: Arc<dyn Face>,
        event_loop: LoopHandle,
    ) -> io::Result<Arc<Self>> {
        let notifiers: Vec<EventFd> = device
            .queue_sizes()
            .iter()
            .map(|_| EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC))
            .collect::<Result<_, _>>()?;
        let kind = device.kind();
        let negotiation = Negotiation::new(device.features(), device.queue_sizes());
        let (phase, kept) = (Phase::Running, Vec::new());
        let state = State { negotiation, device, worker: None, phase, kept, failures: 0, last: None };
        Ok(Arc::new_cyclic(|this| Self {
            this: this.clone(),
            kind,
            memory,
            event_loop,
            face,
            notifiers: notifiers.into(),
            dropped: Arc::default(),
            generation: AtomicU32::new(0),
            state: Mutex::new(state),
            settled: Condvar::new(),
        }))
    }

    /// What the device is.
    #[must_use]
    pub fn kind(&self) -> DeviceKind {
        self.kind
    }

    /// One eventfd a queue, in order: to be written when the driver kicks the queue.
    #[must_use]
    pub fn queue_notifiers(&self) -> &[EventFd] {
        &self.notifiers
    }

    /// What went wrong so far.
    #[must_use]
    pub fn faults(&self) -> Faults {
        let state = self.lock();
        let dropped = self.dropped.load(Ordering::Relaxed);
        Faults { failures: state.failures, dropped, last: state.last.clone() }
    }

    /// Lets `change` change what the driver reads as the device's configuration, and tells the driver, if there is one. One
    /// that reads in two halves sees by the generation that they do not belong together.
    pub fn change_config(&self, change: impl FnOnce()) {
        let state = self.lock();
        change();
        self.generation.fetch_add(1, Ordering::SeqCst);
        if state.negotiation.is_live() {
            self.face.config();
        }
    }

    /// The queues that a worker has, or gets at the resume.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn running_queues(&self) -> Vec<QueueSetup> {
        let state = self.lock();
        let queues =
            state.negotiation.queues().filter(|(_, setup, _)| setup.ready && state.negotiation.runs());
        queues.map(|(_, setup, _)| setup).collect()
    }

    /// What of the negotiation `look` looks at.
    pub(super) fn look<T>(&self, look: impl FnOnce(&Negotiation) -> T) -> T {
        look(&self.lock().negotiation)
    }

    /// Takes what the driver writes, and does what follows from it.
    pub(super) fn take(&self, write: Write) {
        let mut state = self.lock();
        let effect = state.negotiation.write(write);
        self.apply(&mut state, effect);
    }

    /// Reads the device's configuration; what lies outside reads as zero. Fills all of `data`.
    pub(super) fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.lock().device.read_config(offset, data);
    }

    /// Writes the device's configuration, unless it is being reset.
    pub(super) fn write_config(&self, offset: u64, data: &[u8]) {
        let mut state = self.lock();
        if !state.negotiation.is_resetting() {
            state.device.write_config(offset, data);
        }
    }

    /// The configuration's generation.
    pub(super) fn generation(&self) -> u32 {
        self.config_generation(&self.lock())
    }

    /// What the host changes and what the device changes by itself both count.
    fn config_generation(&self, state: &State) -> u32 {
        self.generation.load(Ordering::SeqCst).wrapping_add(state.device.config_generation())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn apply(&self, state: &mut State, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::Notify(index) => {
                // It fails only at 2^64 - 2 kicks: readable all the same.
                let _ = self.notifiers[usize::from(index)].write(1);
            }
            // One that is paused starts when it is resumed.
            Effect::Activate if state.phase != Phase::Running => {}
            Effect::Activate => self.start(state),
            Effect::Reset => match state.worker {
                Some(key) => self.event_loop.drain(key),
                None => self.finish_reset(state),
            },
        }
    }

    fn start(&self, state: &mut State) {
        if let Err(error) = self.activate(state) {
            self.fail(state, error.to_string());
        }
    }

    fn activate(&self, state: &mut State) -> Result<(), ActivateError> {
        let features = state.negotiation.acknowledged();
        let interrupt: Arc<dyn Interrupt> = self.face.clone();
        let mut kept: Vec<_> = std::mem::take(&mut state.kept);
        let mut queues = Vec::with_capacity(self.notifiers.len());
        for (index, setup, max) in state.negotiation.queues() {
            let there = kept.iter().position(|(kept, _)| *kept == index);
            let queue = match there.map(|place| kept.swap_remove(place).1) {
                Some(queue) => Some(queue),
                None if setup.ready => Some(self.queue(index, &setup, max, features)?),
                None => None,
            };
            let (notifiers, interrupt) = (&self.notifiers, &interrupt);
            queues.push(queue.map(|queue| {
                Virtqueue::new(index, queue, self.memory.clone(), notifiers.clone(), interrupt.clone())
            }));
        }
        let activation = Activation {
            features,
            memory: self.memory.clone(),
            interrupt,
            queues,
            dropped: self.dropped.clone(),
        };
        let worker = state.device.activate(activation)?;
        if let Some(owner) = self.this.upgrade() {
            state.worker = Some(self.event_loop.run(worker, owner));
        }
        Ok(())
    }

    fn queue(&self, index: u16, setup: &QueueSetup, max: u16, features: u64) -> Result<Queue, ActivateError> {
        let event_idx = features & FEATURE_EVENT_IDX != 0;
        setup.check(max, event_idx, &self.memory).map_err(|source| ActivateError::Queue { index, source })
    }

    fn fail(&self, state: &mut State, message: String) {
        state.failures += 1;
        state.last = Some(message);
        state.negotiation.fail();
        self.face.config();
    }

    fn finish_reset(&self, state: &mut State) {
        state.kept.clear();
        state.negotiation.reset();
        state.device.reset();
        // Workers that hear of kicks by their edges leave them in place; the next driver's queues are not this one's.
        for kick in self.notifiers.iter() {
            let _none = kick.read();
        }
        self.face.reset();
    }
}

impl Owner for Transport {
    fn failed(&self, error: DeviceError) {
        let mut state = self.lock();
        self.fail(&mut state, error.to_string());
    }

    fn drained(&self, queues: Vec<(u16, Queue)>) {
        let mut state = self.lock();
        state.worker = None;
        state.kept = queues;
        if state.negotiation.is_resetting() {
            self.finish_reset(&mut state);
        }
        self.settle(&mut state);
    }
}
