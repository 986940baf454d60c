//! A vCPU: the loop that runs it, and the handle that others hold.
//!
//! Owns the vCPU's descriptor and its thread's life. Refuses exits that no guest may cause: they end the machine by name.
//! Nothing is logged per guest action. Invariant: a kick is never lost, by this argument:
//!
//! 1. [`VcpuHandle::kick`] first stores `wanted = Parked`, then `immediate_exit = 1`, then sends the signal.
//! 2. The thread first stores `immediate_exit = 0`, then loads `wanted`, and only then enters the guest. All of these are
//!    sequentially consistent.
//! 3. If the thread's store of 0 comes after the kick's 1, its load of `wanted` comes after the kick's store: it parks.
//! 4. Otherwise `immediate_exit` is 1 until the thread passes 2 again. KVM_RUN loads it after it has begun; if it sees 1 it
//!    leaves with EINTR.
//! 5. If KVM_RUN loaded it before the store, it was under way when the signal was sent, and the pending signal makes it
//!    leave with EINTR.
//! 6. If the thread has not said who it is when the kick looks (no signal is sent), its load of `wanted` is still to come.
//!
//! The thread looks at `wanted` after EINTR only, so an exit's I/O is always completed by the KVM_RUN that follows it.

mod gate;

pub use gate::{Exits, VcpuEnd, VcpuHandle};

use crate::devices::bus::Bus;
use crate::kvm::KvmError;
use crate::memory::Hotplug;
use crate::sys::signal::{self, ThreadId};
use gate::Gate;
use husk_protocol::control::Fault;
use kvm_bindings::KVM_EXIT_MEMORY_FAULT;
use kvm_ioctls::{VcpuExit, VcpuFd};
use std::mem::ManuallyDrop;
use std::sync::Arc;

/// The signal that makes a thread leave KVM_RUN; its handler does nothing.
const KICK: i32 = husk_seccomp::VCPU_KICK_SIGNAL.cast_signed();

/// `KVM_SYSTEM_EVENT_RESET` of `linux/kvm.h`; all others end the machine as a shutdown.
const SYSTEM_EVENT_RESET: u32 = 2;

extern "C" fn on_kick(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// Installs the handler of the signal that kicks vCPUs. Once, before the first thread.
///
/// # Errors
/// What `sigaction(2)` says.
pub fn install_kick() -> std::io::Result<()> {
    signal::handle(KICK, on_kick)
}

/// The two address spaces of devices, frozen.
#[derive(Debug, Clone)]
pub struct Buses {
    /// I/O ports.
    pub ports: Arc<Bus>,
    /// Memory-mapped registers.
    pub mmio: Arc<Bus>,
}

/// A vCPU, to be moved to its thread.
#[derive(Debug)]
pub struct Vcpu {
    /// Never dropped: its handle points into the page that it maps.
    fd: ManuallyDrop<VcpuFd>,
    index: u8,
    buses: Buses,
    gate: Arc<Gate>,
    exits: Arc<Exits>,
    hotplug: Option<Hotplug>,
}

/// Why the guest was left.
enum Left {
    Kicked,
    Ended(VcpuEnd),
}

impl Vcpu {
    /// A parked vCPU and its handle.
    #[must_use]
    pub fn new(mut fd: VcpuFd, index: u8, buses: Buses, exits: Arc<Exits>) -> (Self, VcpuHandle) {
        let gate = Arc::new(Gate::new(fd.get_kvm_run()));
        let handle = VcpuHandle::new(Arc::clone(&gate));
        (Self { fd: ManuallyDrop::new(fd), index, buses, gate, exits, hotplug: None }, handle)
    }

    /// The same, in a guest part of whose memory comes and goes.
    #[must_use]
    pub fn with_hotplug(self, hotplug: Option<Hotplug>) -> Self {
        Self { hotplug, ..self }
    }

    /// The descriptor, to set registers while the vCPU is parked.
    #[must_use]
    pub fn fd(&self) -> &VcpuFd {
        &self.fd
    }

    /// The body of `thread`: runs the guest whenever the gate is open. Does not return; the process's end ends it.
    pub fn run(mut self, thread: ThreadId) -> ! {
        self.gate.introduce(thread);
        self.gate.wait();
        if self.index == 0 {
            self.exits.entering();
        }
        loop {
            match self.run_guest() {
                Left::Kicked => self.gate.wait(),
                Left::Ended(end) => {
                    self.exits.end(end);
                    self.gate.close();
                }
            }
        }
    }

    fn run_guest(&mut self) -> Left {
        loop {
            let end = match self.fd.run() {
                Ok(VcpuExit::MmioRead(address, data)) => {
                    self.buses.mmio.read(address, data);
                    continue;
                }
                Ok(VcpuExit::MmioWrite(address, data)) => {
                    self.buses.mmio.write(address, data);
                    continue;
                }
                Ok(VcpuExit::IoIn(port, data)) => {
                    self.buses.ports.read(port.into(), data);
                    continue;
                }
                Ok(VcpuExit::IoOut(port, data)) => {
                    self.buses.ports.write(port.into(), data);
                    continue;
                }
                Ok(VcpuExit::Intr) => continue,
                Ok(VcpuExit::Shutdown) => VcpuEnd::Shutdown,
                Ok(VcpuExit::SystemEvent(SYSTEM_EVENT_RESET, _)) => VcpuEnd::Reset,
                Ok(VcpuExit::SystemEvent(..)) => VcpuEnd::Shutdown,
                Ok(VcpuExit::InternalError) => self.internal_error(),
                Ok(other) => {
                    let what = format!("exit {other:?}, which no guest may cause");
                    self.fault(Fault::Guest, &what)
                }
                Err(error) => match error.errno() {
                    libc::EINTR => return Left::Kicked,
                    libc::EAGAIN => continue,
                    errno => self.run_failed(errno),
                },
            };
            return Left::Ended(end);
        }
    }

    fn fault(&self, fault: Fault, what: &str) -> VcpuEnd {
        VcpuEnd::Fault { fault, message: format!("vCPU {}: {what}", self.index) }
    }

    fn run_failed(&mut self, errno: i32) -> VcpuEnd {
        if let Some(address) = self.unplugged().filter(|_| errno == libc::EFAULT) {
            let what = format!("the guest touched {address:#x}, memory that is not plugged in");
            return self.fault(Fault::Guest, &what);
        }
        let source = std::io::Error::from_raw_os_error(errno);
        let hint = match errno {
            libc::EFAULT | libc::ENOMEM | libc::EHWPOISON => {
                " (the host cannot back guest memory: no huge page left, a cgroup's limit, a pmem image cut short, \
                 or on an older host the guest touched memory that is not plugged in)"
            }
            _ => "",
        };
        self.fault(Fault::Host, &format!("KVM_RUN: {source}{hint}"))
    }

    /// The address of the memory that KVM could not have, if it says so (hosts since Linux 6.8) and it is not plugged in.
    fn unplugged(&mut self) -> Option<u64> {
        let run = self.fd.get_kvm_run();
        if run.exit_reason != KVM_EXIT_MEMORY_FAULT {
            return None;
        }
        #[expect(unsafe_code, reason = "kvm_run is a union")]
        // SAFETY: the exit reason is KVM_EXIT_MEMORY_FAULT, for which KVM fills `memory_fault`; any bytes are valid.
        let address = unsafe { run.__bindgen_anon_1.memory_fault.gpa };
        self.hotplug.as_ref().filter(|hotplug| !hotplug.allows(address, 1)).map(|_| address)
    }

    /// `KVM_EXIT_INTERNAL_ERROR`. A software KVM says here that it cannot emulate what the guest executes.
    fn internal_error(&mut self) -> VcpuEnd {
        const EMULATION: u32 = 1;
        let rip = self.fd.get_regs().map_or(0, |regs| regs.rip);
        let run = self.fd.get_kvm_run();
        #[expect(unsafe_code, reason = "kvm_run is a union")]
        // SAFETY: the exit reason is KVM_EXIT_INTERNAL_ERROR, for which KVM fills `internal`; any bytes are valid.
        let suberror = unsafe { run.__bindgen_anon_1.internal.suberror };
        let what = if suberror == EMULATION {
            format!("KVM cannot emulate the instruction at {rip:#x} (a software KVM cannot boot Linux)")
        } else {
            format!("KVM internal error {suberror} at {rip:#x}")
        };
        self.fault(Fault::Host, &what)
    }
}

/// Makes a vCPU's descriptor and gives it what its architecture needs.
///
/// # Errors
/// What KVM says.
pub fn create(vm: &crate::kvm::Vm, setup: &crate::arch::VcpuSetup, index: u8) -> Result<VcpuFd, KvmError> {
    let fd = vm.create_vcpu(index)?;
    setup.apply(&fd, index)?;
    Ok(fd)
}

#[cfg(test)]
mod tests;
