//! Which process becomes the program, what it still has open, what it may reach, and what it is told.
//!
//! Firecracker's jailer becomes Firecracker, so the process is the jailer's own unless a new one was asked for. Invariant: the id
//! in the file is that of the process which executes the program, as the jailer's caller sees it.

use super::Chroot;
use crate::act::{CellError, Site, named};
use crate::cgroup;
use crate::host;
use crate::sys::{self, Cloned};
use landlock::{
    ABI, Access, AccessFs, AccessNet, Compatible, PathBeneath, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetError, RulesetStatus, Scope,
};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Mode, OFlags, fstat, open};
use rustix::io::{Errno, fcntl_dupfd_cloexec, write};
use rustix::process::{Signal, getpid, pidfd_send_signal, setsid};
use rustix::time::{ClockId, clock_gettime};
use std::ffi::OsString;

/// Where the program is while it is executed: behind the standard streams.
const PROGRAM: i32 = 3;
/// Above it.
const OUT_OF_THE_WAY: i32 = 10;
/// The newest landlock interface whose rights are denied where the running kernel knows them; the runtime's.
const NEWEST: ABI = ABI::V6;

/// When the jailer began, and the processor's time until the process was handed over, in microseconds.
#[derive(Debug)]
pub(super) struct Spent {
    started: u64,
    cpu: u64,
}

impl Default for Spent {
    fn default() -> Self {
        Self { started: microseconds(ClockId::Monotonic), cpu: 0 }
    }
}

impl Spent {
    /// The arguments with what Firecracker's metrics want to know, behind the id.
    pub(super) fn tell(&self, argv: &[OsString]) -> Vec<OsString> {
        let times = [
            ("--start-time-us", self.started),
            ("--start-time-cpu-us", microseconds(ClockId::ProcessCPUTime)),
            ("--parent-cpu-time-us", self.cpu),
        ];
        let (before, behind) = argv.split_at(argv.len().min(3));
        let times = times.into_iter().flat_map(|(flag, time)| [flag.into(), time.to_string().into()]);
        before.iter().cloned().chain(times).chain(behind.iter().cloned()).collect()
    }
}

fn microseconds(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    seconds.saturating_mul(1_000_000).saturating_add(u64::try_from(now.tv_nsec / 1000).unwrap_or_default())
}

impl Site {
    /// The jailer ends, and a process goes on in a session of its own.
    pub(super) fn detach(&mut self) -> Result<Option<i32>, CellError> {
        self.chroot.spent.cpu = microseconds(ClockId::ProcessCPUTime);
        match sys::clone3(0, u64::from(libc::SIGCHLD.unsigned_abs()), None).map_err(CellError::Clone)? {
            Cloned::Parent(pid, _) => Ok(Some(pid)),
            // The clock of a new process begins anew.
            Cloned::Child => setsid().map(|_| None).map_err(named("new session")),
        }
    }

    /// Settles which process it is, and writes its id down.
    pub(super) fn hand_over(&mut self, new_pid: bool, detached: bool) -> Result<Option<i32>, CellError> {
        self.chroot.spent.cpu += microseconds(ClockId::ProcessCPUTime);
        if !new_pid && !detached {
            return self.write_pid(getpid().as_raw_pid()).map(|()| None);
        }
        // The first process of a namespace hears only signals that it handles; of the end of its session's leader, that is.
        let leads = sys::leads_session();
        let flags = if new_pid { u64::from(libc::CLONE_NEWPID.unsigned_abs()) } else { 0 };
        match sys::clone3(flags, u64::from(libc::SIGCHLD.unsigned_abs()), None).map_err(CellError::Clone)? {
            Cloned::Child if leads && !detached => setsid().map(|_| None).map_err(named("new session")),
            Cloned::Child => Ok(None),
            Cloned::Parent(pid, pidfd) => match self.write_pid(pid) {
                Ok(()) => Ok(Some(pid)),
                Err(error) => {
                    let _ = pidfd_send_signal(&pidfd, Signal::KILL);
                    Err(error)
                }
            },
        }
    }

    fn write_pid(&mut self, pid: i32) -> Result<(), CellError> {
        let result = match self.chroot.pid_file.take() {
            Some(file) => write(&file, pid.to_string().as_bytes()).map(drop),
            None => Err(Errno::NOSYS),
        };
        result.map_err(named("file of the process id"))
    }

    /// Closes what is not the program's to have.
    pub(super) fn keep_standard(&mut self, null: bool) -> Result<(), Errno> {
        host::forget();
        self.cgroups = cgroup::Made::default();
        let Chroot { spent, .. } = std::mem::take(&mut self.chroot);
        self.chroot.spent = spent;
        let program = fcntl_dupfd_cloexec(self.program.take().ok_or(Errno::BADF)?, OUT_OF_THE_WAY)?;
        match self.null.take() {
            Some(device) if null => (0..PROGRAM).try_for_each(|fd| sys::copy(device.as_fd(), fd))?,
            _ => {}
        }
        self.close_netns();
        self.program = Some(sys::place(program, PROGRAM, true)?);
        sys::close_from(PROGRAM + 1)
    }

    /// From here on there is the root, and nothing else.
    pub(super) fn allow_root_alone(&self) -> Result<(), CellError> {
        let root = open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(named("root"))?;
        let program = self.program.as_ref().ok_or_else(|| named("landlock")(Errno::BADF))?;
        // A file in memory has no name, is on no mount, and needs no rule.
        let named_program = fstat(program).is_ok_and(|status| status.st_nlink > 0).then_some(program);
        let status = restrict(&root, named_program).map_err(CellError::Landlock)?;
        if status == RulesetStatus::NotEnforced {
            self.miss("landlock", "this kernel has none");
        }
        Ok(())
    }
}

/// What may be done below the root: everything that takes no program, link, node or move between directories.
fn allowed() -> landlock::BitFlags<AccessFs> {
    AccessFs::from_all(NEWEST)
        & !(AccessFs::Execute
            | AccessFs::MakeChar
            | AccessFs::MakeBlock
            | AccessFs::MakeSym
            | AccessFs::Refer)
}

fn restrict(root: &OwnedFd, program: Option<&OwnedFd>) -> Result<RulesetStatus, RulesetError> {
    let rules = Ruleset::default()
        .set_compatibility(landlock::CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?
        .add_rule(PathBeneath::new(root, allowed()))?;
    let rules = match program {
        Some(program) => rules.add_rule(PathBeneath::new(program, AccessFs::Execute | AccessFs::ReadFile))?,
        None => rules,
    };
    Ok(rules.restrict_self()?.ruleset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_took_stands_behind_the_id() {
        let spent = Spent { started: 7, cpu: 9 };
        let argv = ["firecracker", "--id", "a", "--config-file", "x"].map(OsString::from);
        let told = spent.tell(&argv);
        assert_eq!(told[..5], ["firecracker", "--id", "a", "--start-time-us", "7"]);
        assert_eq!(told[5], "--start-time-cpu-us");
        assert!(told[6].to_str().unwrap().parse::<u64>().is_ok());
        assert_eq!(told[7..], ["--parent-cpu-time-us", "9", "--config-file", "x"]);
    }

    #[test]
    fn below_the_root_nothing_is_executed_and_no_node_or_link_is_made() {
        for denied in
            [AccessFs::Execute, AccessFs::MakeChar, AccessFs::MakeBlock, AccessFs::MakeSym, AccessFs::Refer]
        {
            assert!(!allowed().contains(denied), "{denied:?}");
        }
        for needed in [AccessFs::ReadFile, AccessFs::WriteFile, AccessFs::MakeSock, AccessFs::IoctlDev] {
            assert!(allowed().contains(needed), "{needed:?}");
        }
    }
}
