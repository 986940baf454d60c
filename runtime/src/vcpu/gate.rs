//! What a vCPU's thread shares with others: the gate that it waits at, and the report of its end.
//!
//! Owns the pointer to `immediate_exit` in the page that the thread shares with KVM. Invariant: that page stays mapped until
//! the process ends, because a `Vcpu` never drops its descriptor.

use crate::sys::monotonic_ns;
use crate::sys::signal::ThreadId;
use husk_protocol::control::Fault;
use kvm_bindings::kvm_run;
use std::io;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};
use vmm_sys_util::eventfd::EventFd;

/// How a vCPU ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VcpuEnd {
    /// It shut down: a triple fault.
    Shutdown,
    /// It asked for a reset.
    Reset,
    /// It cannot run on.
    Fault {
        /// Who is to blame.
        fault: Fault,
        /// The vCPU and the reason.
        message: String,
    },
}

/// What all vCPUs of a machine tell the control thread: the first end, and when the guest was entered.
#[derive(Debug)]
pub struct Exits {
    first: Mutex<Option<VcpuEnd>>,
    entered_ns: AtomicU64,
    event: EventFd,
}

impl Exits {
    /// Nothing has happened.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new() -> io::Result<Self> {
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        Ok(Self { first: Mutex::new(None), entered_ns: AtomicU64::new(0), event })
    }

    /// Readable when something happened.
    #[must_use]
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    /// Takes the first end, if there was one.
    pub fn take(&self) -> Option<VcpuEnd> {
        self.first.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// When the first vCPU was about to run its first instruction (`CLOCK_MONOTONIC`, ns); taken once.
    pub fn take_entered(&self) -> Option<u64> {
        match self.entered_ns.swap(0, Ordering::SeqCst) {
            0 => None,
            at => Some(at),
        }
    }

    pub(super) fn entering(&self) {
        self.entered_ns.store(monotonic_ns(), Ordering::SeqCst);
        self.notify();
    }

    pub(super) fn end(&self, end: VcpuEnd) {
        self.first.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(end);
        self.notify();
    }

    fn notify(&self) {
        // It fails only when the counter is full, and then it is readable.
        let _full = self.event.write(1);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Running,
    Parked,
}

/// `kvm_run::immediate_exit` of one vCPU.
#[derive(Debug)]
struct ImmediateExit(*const AtomicU8);

#[expect(unsafe_code, reason = "a raw pointer to shared memory")]
// SAFETY: it points to an atomic that is valid for the life of the process (module's invariant).
unsafe impl Send for ImmediateExit {}
#[expect(unsafe_code, reason = "a raw pointer to shared memory")]
// SAFETY: as above; all access is atomic.
unsafe impl Sync for ImmediateExit {}

impl ImmediateExit {
    fn store(&self, value: u8) {
        #[expect(unsafe_code, reason = "a raw pointer to shared memory")]
        // SAFETY: the byte is in the vCPU's mapped page, which is never unmapped; the kernel reads it as one byte.
        let byte = unsafe { &*self.0 };
        byte.store(value, Ordering::SeqCst);
    }
}

/// Where a vCPU's thread waits.
#[derive(Debug)]
pub(super) struct Gate {
    wanted: Mutex<Wanted>,
    changed: Condvar,
    immediate_exit: ImmediateExit,
    thread: OnceLock<ThreadId>,
}

impl Gate {
    /// Closed. `run` is the vCPU's page, which must stay mapped until the process ends.
    pub(super) fn new(run: &mut kvm_run) -> Self {
        let immediate_exit = ImmediateExit((&raw mut run.immediate_exit).cast_const().cast());
        Self {
            wanted: Mutex::new(Wanted::Parked),
            changed: Condvar::new(),
            immediate_exit,
            thread: OnceLock::new(),
        }
    }

    /// The calling thread, `thread`, is the vCPU's.
    pub(super) fn introduce(&self, thread: ThreadId) {
        self.thread.get_or_init(|| thread);
    }

    /// Waits until the guest may run.
    pub(super) fn wait(&self) {
        self.immediate_exit.store(0);
        let wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        let _running = self.changed.wait_while(wanted, |wanted| *wanted == Wanted::Parked);
    }

    /// Waits for ever.
    pub(super) fn close(&self) -> ! {
        loop {
            *self.wanted.lock().unwrap_or_else(PoisonError::into_inner) = Wanted::Parked;
            self.wait();
        }
    }
}

/// A vCPU as others see it.
#[derive(Debug)]
pub struct VcpuHandle {
    gate: std::sync::Arc<Gate>,
}

impl VcpuHandle {
    pub(super) fn new(gate: std::sync::Arc<Gate>) -> Self {
        Self { gate }
    }

    /// Lets the guest run.
    pub fn run(&self) {
        *self.gate.wanted.lock().unwrap_or_else(PoisonError::into_inner) = Wanted::Running;
        self.gate.changed.notify_one();
    }

    /// Makes the vCPU leave the guest and wait; returns before it has.
    ///
    /// # Errors
    /// The thread has ended.
    pub fn kick(&self) -> io::Result<()> {
        *self.gate.wanted.lock().unwrap_or_else(PoisonError::into_inner) = Wanted::Parked;
        self.gate.immediate_exit.store(1);
        self.gate.thread.get().map_or(Ok(()), |thread| thread.signal(super::KICK))
    }
}
