//! What the runtime takes away from itself: files and networks by landlock, system calls by seccomp.
//!
//! Owns the making of threads: [`spawn`] is the only way (`clippy.toml` forbids the others), so that no thread lives without
//! its role's filter. Refuses nothing of the machine; reports what the host could not enforce. Invariant: a thread's
//! function runs only after its name, its CPU and its filter are set.

use crate::sys::signal::ThreadId;
use husk_protocol::control::Landlock;
use husk_seccomp::Role;
use landlock::{
    ABI, Access, AccessFs, AccessNet, Compatible, Ruleset, RulesetAttr, RulesetError, RulesetStatus, Scope,
};
use rustix::thread::CpuSet;
use std::io;
use std::sync::mpsc::sync_channel;

/// The newest landlock interface whose rights are denied where the running kernel knows them.
const NEWEST: ABI = ABI::V9;
/// Bytes of a thread's stack. The deepest path is a virtio request; 256 KiB is many times what it takes.
const STACK_BYTES: usize = 256 << 10;

/// The process cannot be confined.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// landlock failed although the kernel has it.
    #[error("landlock: {0}")]
    Landlock(#[from] RulesetError),
    /// The filter could not be put on.
    #[error(transparent)]
    Filter(#[from] husk_seccomp::InstallError),
    /// The CPU is not there or not allowed.
    #[error(
        "placement.pin: thread {thread} cannot run on CPU {cpu}: {source} (not a CPU of this host, or not of the cpuset)"
    )]
    Cpu {
        /// Name of the thread.
        thread: String,
        /// The CPU.
        cpu: usize,
        /// What `sched_setaffinity(2)` said.
        source: io::Error,
    },
    /// No thread can be made.
    #[error("thread {thread} cannot start: {source} (a limit on processes or memory)")]
    Thread {
        /// Name of the thread.
        thread: String,
        /// What `clone(2)` said.
        source: io::Error,
    },
}

/// Denies the calling thread, and all that it makes later, every path, TCP port, abstract socket and signal to the outside
/// that the running kernel can deny. Before the first thread. Descriptors that are open stay usable.
///
/// # Errors
/// [`ConfineError::Landlock`].
pub fn deny_files() -> Result<Landlock, ConfineError> {
    let status = Ruleset::default()
        .set_compatibility(landlock::CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?
        .restrict_self()?;
    Ok(match status.ruleset {
        RulesetStatus::FullyEnforced => Landlock::Full,
        RulesetStatus::PartiallyEnforced => Landlock::Partial,
        RulesetStatus::NotEnforced => Landlock::Absent,
    })
}

/// Puts `role`'s filter on the calling thread.
///
/// # Errors
/// [`ConfineError::Filter`].
pub fn install(role: Role) -> Result<(), ConfineError> {
    crate::report::set_role(role.name());
    Ok(husk_seccomp::install(role)?)
}

/// Makes a thread: its name, its CPU (or all), `role`'s filter, then `body`, which is told the thread's id. Returns when it
/// is confined.
///
/// # Errors
/// The thread cannot be made or confined; `body` is not run then.
pub fn spawn(
    role: Role,
    name: &str,
    cpu: Option<usize>,
    body: impl FnOnce(ThreadId) + Send + 'static,
) -> Result<(), ConfineError> {
    let (confined, result) = sync_channel(1);
    let thread = name.to_owned();
    let start = move || {
        // Asked before the filter, which does not allow it.
        let id = ThreadId::current();
        let outcome = pin(&thread, cpu).and_then(|()| install(role));
        let go = outcome.is_ok();
        // The receiver waits until this is sent.
        let _received = confined.send(outcome);
        drop(confined);
        if go {
            body(id);
        }
    };
    #[expect(clippy::disallowed_methods, reason = "the one place where threads are made")]
    let spawned = std::thread::Builder::new().name(name.to_owned()).stack_size(STACK_BYTES).spawn(start);
    let failed = |source| ConfineError::Thread { thread: name.to_owned(), source };
    spawned.map_err(failed)?;
    result.recv().unwrap_or_else(|_| Err(failed(io::ErrorKind::BrokenPipe.into())))
}

fn pin(thread: &str, cpu: Option<usize>) -> Result<(), ConfineError> {
    let Some(cpu) = cpu else { return Ok(()) };
    let mut set = CpuSet::new();
    set.set(cpu);
    rustix::thread::sched_setaffinity(None, &set).map_err(|error| ConfineError::Cpu {
        thread: thread.to_owned(),
        cpu,
        source: error.into(),
    })
}

#[cfg(test)]
mod tests;
