//! The life of one sandbox, as its main thread lives it.
//!
//! ```text
//! Waiting ──Start──► Running ──Stop, end of file, guest's end──► Ended
//!    └──────────────end of file, Stop────────────────────────────►┘
//! ```
//!
//! Owns the order of the steps from the first message to the process's end, and what each failure is called. Refuses
//! requests that the state does not admit. Invariants: nothing that came from outside is read before landlock and the first
//! filter are in place, and the guest runs only after every thread's last one is.
//!
//! The main thread's filters follow its phases, and each only narrows: `Shell` (the start message, the virtual machine and
//! its vCPUs), `Build` (memory, devices, kernel, threads), `Control` (the guest runs).

mod change;
mod error;
mod run;
mod state;

pub use error::VmmError;
pub use state::{Refused, Request, State, admit};

use crate::arch::{self, cmdline};
use crate::machine::{Machine, Shell, Voices};
use crate::report::{self, Reporter};
use crate::resources::{BootFiles, Resources};
use crate::spec::{MachineSpec, PmemSpec};
use crate::{boot, confine, control, memory, sys, vcpu};
use husk_protocol::control::{Ended, FromCell, Stage};
use husk_protocol::exit::RuntimeExit;
use husk_protocol::spec::RawSpec;
use husk_seccomp::Role;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Lives one sandbox on the control socket and ends the process; the end of the process frees the machine.
pub fn run(control: OwnedFd) -> ! {
    let reporter = Arc::new(Reporter::new(control));
    let exit = match live(&reporter) {
        Ok(exit) => exit,
        Err(error) => {
            let failed = FromCell::Failed { fault: error.fault(), message: error.to_string() };
            // If husk is gone, nobody is left to be told.
            let _gone = reporter.send(&failed);
            error.exit()
        }
    };
    sys::exit_now(exit as u8)
}

fn live(reporter: &Arc<Reporter>) -> Result<RuntimeExit, VmmError> {
    reporter.stage(Stage::Runtime);
    report::install_handlers(reporter).map_err(VmmError::Handlers)?;
    // Executing a readable file has made the process dumpable again: nobody of the same user may look inside.
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    // A name is for people; without it the machine is the same.
    let _unnamed = rustix::thread::set_name(c"husk-control");
    vcpu::install_kick().map_err(VmmError::Handlers)?;
    let landlock = confine::deny_files()?;
    reporter.hold(FromCell::Confined { landlock });
    // Nothing that came from outside has been read yet.
    confine::install(Role::Shell)?;
    let Some(received) = control::receive(reporter, false)? else { return Ok(RuntimeExit::Ended) };
    let request = Request::from(received);
    match admit(State::Waiting, &request)? {
        State::Running => {}
        State::Waiting | State::Ended => return Ok(RuntimeExit::Ended),
    }
    let Request::Start { spec, descriptors } = request else { return Ok(RuntimeExit::Ended) };
    let machine = start(*spec, descriptors, reporter)?;
    let queue = run::queue(&machine, reporter)?;
    confine::install(Role::Control)?;
    machine.resume();
    let (fault, ended) = run::until_end(&queue, &machine, reporter)?;
    if let Some(failed) = &fault {
        let _gone = reporter.send(failed);
    }
    let exit = error::exit_of(fault.as_ref());
    if let Some(reason) = ended {
        let console_tail = machine.last_lines();
        let _gone = reporter.send(&FromCell::Ended(Ended { reason, console_tail }));
    }
    // Not dropped: taking a machine apart takes longer than ending the process, and its vCPUs may still run.
    std::mem::forget(machine);
    Ok(exit)
}

/// From a request to a machine that waits for [`Machine::resume`], with every thread but this one in its last filter.
fn start(spec: RawSpec, descriptors: Vec<OwnedFd>, reporter: &Arc<Reporter>) -> Result<Machine, VmmError> {
    let spec = MachineSpec::try_from(spec)?;
    let files = Resources::assign(&spec, descriptors)?;
    let shell = Shell::new(files.kvm, spec.vcpus())?;
    confine::install(Role::Build)?;
    let mut machine = Machine::build(shell, spec, files.devices, voices(reporter))?;
    reporter.stage(Stage::Built);
    for line in machine.drives().degraded() {
        // husk hears of what matters by itself if it has gone.
        let _gone = reporter.send(&FromCell::Degraded { message: line.clone() });
    }
    load(&machine, files.boot, reporter)?;
    reporter.stage(Stage::Loaded);
    machine.start_threads()?;
    Ok(machine)
}

/// Writes the kernel into the machine, populates its memory if asked to, and sets the first vCPU to the entry.
fn load(machine: &Machine, files: BootFiles, reporter: &Reporter) -> Result<(), VmmError> {
    let spec = machine.spec();
    let args = kernel_args(spec);
    let request =
        boot::Request { spec: spec.boot(), args: &args, devices: machine.found(), vcpus: spec.vcpus() };
    let entry = boot::load(machine.memory(), &files.kernel, files.initrd.as_ref(), &request)?;
    if spec.placement().prefault() {
        memory::populate(machine.memory()).map_err(crate::machine::MachineError::from)?;
    }
    if let Some(vcpu) = machine.first_vcpu() {
        arch::set_entry(vcpu, entry)?;
        reporter.hold(arch::guest_clock(vcpu)?);
    }
    Ok(())
}

/// The command line of the spec, or the default, with `root=` if a drive or an image is the root.
fn kernel_args(spec: &MachineSpec) -> String {
    let mut args = match spec.boot().args() {
        Some(args) => args.to_owned(),
        None if spec.hotplug().is_some() => {
            format!("{} {}", cmdline::default_args(spec.console_device()), cmdline::HOTPLUG)
        }
        None => cmdline::default_args(spec.console_device()),
    };
    if let Some((letter, drive)) = ('a'..='z').zip(spec.drives()).find(|(_, drive)| drive.is_root()) {
        let mode = if drive.is_read_only() { "ro" } else { "rw" };
        args.push_str(&format!(" root=/dev/vd{letter} {mode}"));
    }
    if let Some(place) = spec.pmem().iter().position(PmemSpec::is_root) {
        args.push_str(&format!(" root=/dev/pmem{place} ro rootflags=dax"));
    }
    args
}

/// How devices reach husk: without waiting, because a guest can make them speak.
fn voices(reporter: &Arc<Reporter>) -> Voices {
    let (asks, tells) = (Arc::clone(reporter), Arc::clone(reporter));
    Voices {
        ask: Box::new(move |request, port| asks.try_send(&FromCell::VsockConnect { request, port }).is_ok()),
        tell: Arc::new(move |report| {
            // A husk that does not read now hears the next one.
            let _unheard = tells.try_send(&FromCell::Balloon(Box::new(report)));
        }),
    }
}
