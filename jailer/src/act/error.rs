//! Why a cell cannot be, and whose fault that is.
//!
//! Owns the words for what a step's own module has none for. Invariant: a message names the flag or file, or else the step.

use crate::cgroup::CgroupError;
use crate::executable::ExecutableError;
use crate::jail::JailError;
use crate::pool::PoolError;
use crate::report::Fault;
use crate::user_namespace;
use rustix::io::Errno;
use std::path::PathBuf;

/// A cell that cannot be.
#[derive(Debug, thiserror::Error)]
pub enum CellError {
    /// The program.
    #[error(transparent)]
    Program(#[from] ExecutableError),
    /// The cgroups.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The jail's directory.
    #[error(transparent)]
    Jail(#[from] JailError),
    /// The namespaces that are made once.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// The control socket.
    #[error("--control-fd {0}: {1}")]
    Control(i32, &'static str),
    /// What a volume or network is served on.
    #[error("--{0} {1}: {2}")]
    Volume(&'static str, i32, Errno),
    /// A file of the host.
    #[error("{}: {errno}", path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        errno: Errno,
    },
    /// The new process.
    #[error("clone3: {0}{hint}", hint = clone_hint(*.0))]
    Clone(Errno),
    /// No user namespace, or one that gives no power over anything.
    #[error(
        "user namespace: {0}; {advice}; --isolation best-effort does without it", advice = user_namespace::advice(*.0)
    )]
    UserNamespace(Errno),
    /// Nobody to report the new process to.
    #[error("control socket: {0}; nobody hears of the sandbox, so there is none")]
    Unheard(Errno),
    /// Files that cannot be denied.
    #[error("landlock: {0}")]
    Landlock(landlock::RulesetError),
    /// A limit.
    #[error("--resource-limit {name}={value}: {errno}")]
    Limit {
        /// Which.
        name: &'static str,
        /// What was asked for.
        value: u64,
        /// Why not.
        errno: Errno,
    },
    /// Any other step.
    #[error("cell, step {step}: {errno}")]
    Step {
        /// Which.
        step: &'static str,
        /// Why.
        errno: Errno,
    },
    /// The execution.
    #[error("execution of {program:?}: {errno}")]
    Execute {
        /// What.
        program: String,
        /// Why not.
        errno: Errno,
    },
}

impl CellError {
    /// Who is to blame.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::Program(error) => error.fault(),
            Self::Cgroup(error) => error.fault(),
            Self::Jail(error) => error.fault(),
            Self::Pool(error) => error.fault(),
            Self::Control(..) | Self::Volume(..) | Self::Limit { .. } => Fault::Operator,
            Self::Open { errno: Errno::NOENT, .. } => Fault::Operator,
            _ => Fault::Host,
        }
    }
}

fn clone_hint(errno: Errno) -> &'static str {
    match errno {
        Errno::PERM => " (the host permits no namespaces here)",
        Errno::ACCESS => " (the cgroup that this process is in is not the caller's to leave)",
        Errno::INVAL => " (the kernel lacks a namespace, or the caller is the first process of its own)",
        Errno::AGAIN => " (a limit of processes is reached: the cgroup's pids.max or the user's)",
        _ => "",
    }
}
