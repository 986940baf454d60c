//! The virtio-mmio transport (virtio 1.2, 4.2): shows one device to the guest through a window of 4 KiB.
//!
//! Owns the device while it is inactive, its registers and its interrupt; hands queues to a worker at `DRIVER_OK` and
//! takes them back at reset, and for a pause (`pause`). Refuses queues that are not sound with `DEVICE_NEEDS_RESET`. Invariant: a vCPU thread
//! takes one short lock and never waits for a worker; a reset is over when the worker is gone, and the status register
//! reads non-zero until then.

mod pause;
mod registers;

use super::event_loop::{LoopHandle, Owner, WorkerKey};
use super::queue::{QueueSetup, Virtqueue};
use super::{
    ActivateError, Activation, DeviceError, DeviceKind, FEATURE_EVENT_IDX, Interrupt, Memory, VirtioDevice,
};
use crate::devices::BusDevice;
use crate::kvm::IrqLine;
pub use pause::NotPaused;
use pause::Phase;
use registers::{Effect, Registers};
use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use virtio_bindings::virtio_mmio as mmio;
use virtio_queue::Queue;
use vmm_sys_util::eventfd::EventFd;

/// Bytes of a device's window.
pub const WINDOW_BYTES: u64 = 0x1000;
/// Where in the window the driver writes a queue's index (4 bytes) to kick it: for an ioeventfd.
pub const NOTIFY_OFFSET: u64 = mmio::VIRTIO_MMIO_QUEUE_NOTIFY as u64;
/// Where in the window the driver acknowledges an interrupt, and the value (4 bytes) by which it acknowledges one of queues
/// alone: for an ioeventfd.
pub const ACKNOWLEDGE_OFFSET: u64 = mmio::VIRTIO_MMIO_INTERRUPT_ACK as u64;
/// See [`ACKNOWLEDGE_OFFSET`].
pub const ACKNOWLEDGED: u32 = mmio::VIRTIO_MMIO_INT_VRING;
const CONFIG: u64 = mmio::VIRTIO_MMIO_CONFIG as u64;

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

/// A device's interrupt line; its rising edge is the interrupt.
pub trait Line: Send + Sync {
    /// Raises and lowers it; never waits.
    fn pulse(&self);
}

impl Line for IrqLine {
    fn pulse(&self) {
        Self::pulse(self);
    }
}

/// For a driver that is a test.
impl Line for EventFd {
    fn pulse(&self) {
        // It fails only at 2^64 - 2 interrupts that nobody has taken: the line is up.
        let _ = self.write(1);
    }
}

/// The interrupt's status, and its acknowledgements. Linux acknowledges each interrupt of a queue by a write of
/// [`ACKNOWLEDGED`], which KVM turns into a signal of `acknowledged` without leaving the guest. Each that is signalled clears
/// the queues' bit, no later than anybody looks at it. While a bit is set its edge is still to be answered: the driver
/// acknowledges it and looks at what it stands for after that, so there is no other edge for it.
struct MmioInterrupt {
    status: Mutex<u32>,
    acknowledged: EventFd,
    line: Box<dyn Line>,
}

impl MmioInterrupt {
    fn new(line: Box<dyn Line>) -> io::Result<Self> {
        let acknowledged = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        Ok(Self { status: Mutex::new(0), acknowledged, line })
    }

    fn raise(&self, bits: u32) {
        let news = self.with_status(|status| {
            let news = bits & !*status != 0;
            *status |= bits;
            news
        });
        if news {
            self.line.pulse();
        }
    }

    /// Applies the acknowledgements that have come, then `f`. One that comes between the two is applied later and clears the
    /// bit that `f` may have set: its driver looks at the queues after it, and finds what the bit was set for.
    fn with_status<T>(&self, f: impl FnOnce(&mut u32) -> T) -> T {
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        if self.acknowledged.read().is_ok() {
            *status &= !ACKNOWLEDGED;
        }
        f(&mut status)
    }
}

impl Interrupt for MmioInterrupt {
    fn queue(&self, _index: u16) {
        self.raise(mmio::VIRTIO_MMIO_INT_VRING);
    }

    fn config(&self) {
        self.raise(mmio::VIRTIO_MMIO_INT_CONFIG);
    }
}

struct State {
    registers: Registers,
    device: Box<dyn VirtioDevice>,
    worker: Option<WorkerKey>,
    phase: Phase,
    /// Queues of a worker that was drained for a pause, or that were loaded: what the next one goes on with.
    kept: Vec<(u16, Queue)>,
    failures: u64,
    last: Option<String>,
}

/// See the module.
pub struct MmioTransport {
    this: Weak<Self>,
    kind: DeviceKind,
    memory: Memory,
    event_loop: LoopHandle,
    interrupt: Arc<MmioInterrupt>,
    notifiers: Arc<[EventFd]>,
    dropped: Arc<AtomicU64>,
    /// Of the configuration (4.2.2); another after each change, under the state's lock.
    generation: AtomicU32,
    state: Mutex<State>,
    /// The phase has changed.
    settled: Condvar,
}

impl MmioTransport {
    /// Shows `device` to the guest. Its worker will run on `event_loop`; `line` is its interrupt's.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: Memory,
        line: Box<dyn Line>,
        event_loop: LoopHandle,
    ) -> io::Result<Arc<Self>> {
        let notifiers: Vec<EventFd> = device
            .queue_sizes()
            .iter()
            .map(|_| EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC))
            .collect::<Result<_, _>>()?;
        let kind = device.kind();
        let interrupt = Arc::new(MmioInterrupt::new(line)?);
        let registers = Registers::new(kind.id(), device.features(), device.queue_sizes());
        let (phase, kept) = (Phase::Running, Vec::new());
        let state = State { registers, device, worker: None, phase, kept, failures: 0, last: None };
        Ok(Arc::new_cyclic(|this| Self {
            this: this.clone(),
            kind,
            memory,
            event_loop,
            interrupt,
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

    /// One eventfd a queue, in order: to be written when the driver writes the queue's index at [`NOTIFY_OFFSET`].
    #[must_use]
    pub fn queue_notifiers(&self) -> &[EventFd] {
        &self.notifiers
    }

    /// The eventfd to be written when the driver writes [`ACKNOWLEDGED`] at [`ACKNOWLEDGE_OFFSET`].
    #[must_use]
    pub fn acknowledgements(&self) -> &EventFd {
        &self.interrupt.acknowledged
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
        if state.registers.is_live() {
            self.interrupt.config();
        }
    }

    /// The queues that a worker has, or gets at the resume.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn running_queues(&self) -> Vec<QueueSetup> {
        let state = self.lock();
        let queues = state.registers.queues().filter(|(_, setup, _)| setup.ready && state.registers.runs());
        queues.map(|(_, setup, _)| setup).collect()
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
        let features = state.registers.acknowledged();
        let mut kept: Vec<_> = std::mem::take(&mut state.kept);
        let mut queues = Vec::with_capacity(self.notifiers.len());
        for (index, setup, max) in state.registers.queues() {
            let there = kept.iter().position(|(kept, _)| *kept == index);
            let queue = match there.map(|place| kept.swap_remove(place).1) {
                Some(queue) => Some(queue),
                None if setup.ready => Some(self.queue(index, &setup, max, features)?),
                None => None,
            };
            let (notifiers, interrupt) = (&self.notifiers, &self.interrupt);
            queues.push(queue.map(|queue| {
                Virtqueue::new(index, queue, self.memory.clone(), notifiers.clone(), interrupt.clone())
            }));
        }
        let activation = Activation {
            features,
            memory: self.memory.clone(),
            interrupt: self.interrupt.clone(),
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
        state.registers.fail();
        self.interrupt.config();
    }

    fn finish_reset(&self, state: &mut State) {
        state.kept.clear();
        state.registers.reset();
        state.device.reset();
        // Workers that hear of kicks by their edges leave them in place; the next driver's queues are not this one's.
        for kick in self.notifiers.iter() {
            let _none = kick.read();
        }
        self.interrupt.with_status(|status| *status = 0);
    }

    fn read_register(&self, offset: u32) -> u32 {
        match offset {
            mmio::VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt.with_status(|status| *status),
            mmio::VIRTIO_MMIO_CONFIG_GENERATION => self.config_generation(&self.lock()),
            _ => self.lock().registers.read(offset),
        }
    }

    fn write_register(&self, offset: u32, value: u32) {
        if offset == mmio::VIRTIO_MMIO_INTERRUPT_ACK {
            self.interrupt.with_status(|status| *status &= !value);
            return;
        }
        let mut state = self.lock();
        let effect = state.registers.write(offset, value);
        self.apply(&mut state, effect);
    }
}

impl BusDevice for MmioTransport {
    /// Registers are read 4 bytes at a time (4.2.2.2); any other access to them reads as zero.
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            self.lock().device.read_config(offset, data);
            return;
        }
        data.fill(0);
        if let (Ok(register), Ok(data)) = (register(offset), <&mut [u8; 4]>::try_from(data)) {
            *data = self.read_register(register).to_le_bytes();
        }
    }

    /// Registers are written 4 bytes at a time (4.2.2.2); any other access to them is ignored.
    fn write(&self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            let mut state = self.lock();
            if !state.registers.is_resetting() {
                state.device.write_config(offset, data);
            }
        } else if let (Ok(register), Ok(data)) = (register(offset), <[u8; 4]>::try_from(data)) {
            self.write_register(register, u32::from_le_bytes(data));
        }
    }
}

/// Which register is at `offset`, if one starts there.
fn register(offset: u64) -> Result<u32, ()> {
    if offset.is_multiple_of(4) { u32::try_from(offset).map_err(drop) } else { Err(()) }
}

impl Owner for MmioTransport {
    fn failed(&self, error: DeviceError) {
        let mut state = self.lock();
        self.fail(&mut state, error.to_string());
    }

    fn drained(&self, queues: Vec<(u16, Queue)>) {
        let mut state = self.lock();
        state.worker = None;
        state.kept = queues;
        if state.registers.is_resetting() {
            self.finish_reset(&mut state);
        }
        self.settle(&mut state);
    }
}

#[cfg(test)]
mod tests;
