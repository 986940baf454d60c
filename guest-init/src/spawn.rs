//! fork, and the child's way to execve. Owns the order of the steps in the child and the pipe on which it reports
//! failure; refuses nothing. Invariant: after the fork the child makes system calls and nothing else (no allocation,
//! no lock), and ends in the command or in `_exit`.
//!
//! The pipe is close-on-exec: end of file means "executed". A report is [`REPORT_BYTES`]: step, candidate, errno.

use crate::command::Command;
use crate::stdio::CommandEnds;
use crate::sys;
use husk_protocol::exec::{ExecFailure, ExecFailureKind};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Gid, Uid};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Pid;
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::thread::{set_thread_gid, set_thread_groups, set_thread_uid};
use std::ffi::CStr;

/// Bytes of a failure report, written at once.
const REPORT_BYTES: usize = 12;

/// A step of the child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum Step {
    Session,
    Terminal,
    Stdio,
    Groups,
    User,
    Directory,
    Execute,
}

const STEPS: [Step; 7] =
    [Step::Session, Step::Terminal, Step::Stdio, Step::Groups, Step::User, Step::Directory, Step::Execute];

/// What became of an attempt to execute.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Not known yet.
    Pending,
    /// The command runs.
    Executed,
    /// It does not.
    Failed(ExecFailure),
}

/// Forks a child that becomes `command`; its report comes on the descriptor.
///
/// # Errors
/// The kernel's: no process, no memory, no descriptors to be had.
pub(crate) fn spawn(command: &Command, ends: CommandEnds) -> Result<(Pid, OwnedFd), Errno> {
    let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    let groups: Vec<Gid> = command.account.groups.iter().map(|&gid| Gid::from_raw(gid)).collect();
    match sys::fork()? {
        Some(pid) => Ok((pid, ours)),
        None => {
            let (step, at, errno) = become_command(command, &ends, &groups);
            let mut report = [0; REPORT_BYTES];
            report[..4].copy_from_slice(&(step as u32).to_le_bytes());
            report[4..8].copy_from_slice(&at.to_le_bytes());
            report[8..].copy_from_slice(&errno.raw_os_error().to_le_bytes());
            let _ = rustix::io::write(&theirs, &report);
            sys::exit_now(127)
        }
    }
}

/// In the child: everything up to execve; returns what failed.
fn become_command(command: &Command, ends: &CommandEnds, groups: &[Gid]) -> (Step, u32, Errno) {
    let steps = || -> Result<(), (Step, Errno)> {
        rustix::process::setsid().map_err(|error| (Step::Session, error))?;
        match ends {
            CommandEnds::Pipes([zero, one, two]) => take_stdio(zero, one, two)?,
            CommandEnds::Terminal(slave) => {
                rustix::process::ioctl_tiocsctty(slave).map_err(|error| (Step::Terminal, error))?;
                take_stdio(slave, slave, slave)?;
            }
        }
        set_thread_groups(groups).map_err(|error| (Step::Groups, error))?;
        set_thread_gid(Gid::from_raw(command.account.gid)).map_err(|error| (Step::Groups, error))?;
        set_thread_uid(Uid::from_raw(command.account.uid)).map_err(|error| (Step::User, error))?;
        rustix::process::chdir(command.cwd.as_c_str()).map_err(|error| (Step::Directory, error))
    };
    if let Err((step, errno)) = steps() {
        return (step, 0, errno);
    }
    sys::default_signals();
    let (at, errno) = try_candidates(command);
    (Step::Execute, at, errno)
}

fn take_stdio(zero: &OwnedFd, one: &OwnedFd, two: &OwnedFd) -> Result<(), (Step, Errno)> {
    let failed = |error| (Step::Stdio, error);
    dup2_stdin(zero).map_err(failed)?;
    dup2_stdout(one).map_err(failed)?;
    dup2_stderr(two).map_err(failed)
}

/// As a shell does it: go on if it is not there, remember if it is but may not be executed, stop at anything else.
fn try_candidates(command: &Command) -> (u32, Errno) {
    let mut worst = (0, Errno::NOENT);
    for (at, candidate) in (0..).zip(&command.candidates) {
        match sys::execve(candidate, &command.argv, &command.env) {
            Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG => {}
            Errno::ACCESS => worst = if worst.1 == Errno::ACCESS { worst } else { (at, Errno::ACCESS) },
            errno => return (at, errno),
        }
    }
    worst
}

/// Reads the child's report.
pub(crate) fn outcome(command: &Command, status: impl AsFd) -> Outcome {
    let mut report = [0; REPORT_BYTES];
    match rustix::io::read(status, &mut report) {
        Ok(0) => Outcome::Executed,
        Ok(REPORT_BYTES) => Outcome::Failed(failure(command, &report)),
        Err(Errno::AGAIN | Errno::INTR) => Outcome::Pending,
        other => Outcome::Failed(setup(format!("the report of a new process is cut: {other:?}"))),
    }
}

fn failure(command: &Command, report: &[u8; REPORT_BYTES]) -> ExecFailure {
    let word = |at: usize| u32::from_le_bytes([report[at], report[at + 1], report[at + 2], report[at + 3]]);
    let errno = Errno::from_raw_os_error(word(8).cast_signed());
    let account = &command.account;
    let step = usize::try_from(word(0)).ok().and_then(|step| STEPS.get(step));
    match step {
        Some(Step::Execute) => command.failure(usize::try_from(word(4)).unwrap_or(0), errno),
        Some(Step::Directory) => setup(format!("working directory {}: {errno}", text(&command.cwd))),
        Some(Step::Groups) => setup(format!("cannot take on gid {} and its groups: {errno}", account.gid)),
        Some(Step::User) => setup(format!("cannot take on uid {}: {errno}", account.uid)),
        Some(Step::Terminal) => setup(format!("cannot make the terminal the controlling one: {errno}")),
        Some(Step::Stdio | Step::Session) | None => setup(format!("cannot set up a new process: {errno}")),
    }
}

fn text(string: &CStr) -> String {
    crate::command::printable(string.to_bytes())
}

/// A failure that is neither "not found" nor "not executable".
pub(crate) fn setup(message: String) -> ExecFailure {
    ExecFailure { kind: ExecFailureKind::Setup, message }
}
