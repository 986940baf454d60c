//! The walls that a host may refuse, and what becomes of the cell then.
//!
//! Owns the decision: strictly, the first refusal ends the jailer; at best effort it is reported and the plan goes on without
//! what it makes impossible. Refuses to serve a volume, or to be a network, from a cell that is not
//! one. Invariant: what is left out is reported
//! before the program is executed, and what a process gives up by itself is never left out.

use crate::act::{CellError, Site};
use crate::caller::Caller;
use crate::cgroup::{self, CgroupError, Made, Order};
use crate::host;
use crate::plan::Step;
use crate::report;
use crate::sys::{self, Cloned};
use crate::user_namespace::{self, advice};
use rustix::fd::AsFd;
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, capabilities};

/// Which walls there can be.
#[derive(Debug, Default)]
pub(crate) struct Walls {
    /// What is refused is left out.
    pub(crate) best_effort: bool,
    /// There is no user namespace.
    no_user: bool,
    /// There is no power over any namespace: root, host name and mounts are the caller's.
    none: bool,
}

impl Walls {
    /// Whether `step` is not possible any more. The root of a volume or a
    /// network is: it fails, because there is neither without one.
    pub(crate) fn does_without(&self, step: &Step) -> bool {
        match step {
            Step::MapUser { .. } => self.no_user,
            Step::CgroupNamespace
            | Step::Hostname(_)
            | Step::PrivateMounts
            | Step::EmptyRoot
            | Step::DropBoundingSet => self.none,
            _ => false,
        }
    }
}

impl Site {
    /// Says that the cell is without `part`.
    pub(crate) fn miss(&self, part: &str, why: &str) {
        if self.control.is_some() {
            self.tell(&report::missing(part, why));
        } else {
            eprintln!("husk-jailer: without {part}: {why}");
        }
    }

    /// Makes the sandbox's cgroups, or those of them, with those limits, that can be.
    pub(crate) fn make_cgroups(&mut self, order: &Order) -> Result<(), CgroupError> {
        self.cgroups = match cgroup::make(order) {
            // Somebody else's sandbox is no matter of what the host permits.
            Err(error) if self.walls.best_effort && !matches!(error, CgroupError::Exists(_)) => {
                self.cgroups_one_by_one(order)?
            }
            other => other?,
        };
        Ok(())
    }

    fn cgroups_one_by_one(&self, order: &Order) -> Result<Made, CgroupError> {
        let mut possible = Order { settings: Vec::new(), ..order.clone() };
        let mut made = match cgroup::make(&possible) {
            Ok(made) => made,
            Err(error) => {
                self.miss("cgroup", &error.to_string());
                return Ok(Made::default());
            }
        };
        for setting in &order.settings {
            made.remove();
            possible.settings.push(setting.clone());
            made = match cgroup::make(&possible) {
                Ok(made) => made,
                Err(error) => {
                    self.miss(&format!("cgroup limit {}", setting.file()), &error.to_string());
                    possible.settings.pop();
                    cgroup::make(&possible)?
                }
            };
        }
        Ok(made)
    }

    /// Finds the sandbox's cgroups. At best effort it may have none.
    pub(crate) fn find_cgroups(&mut self, order: &Order) -> Result<(), CgroupError> {
        self.cgroups = match cgroup::find(order) {
            Err(error) if self.walls.best_effort => {
                self.miss("cgroup", &error.to_string());
                Made::default()
            }
            other => other?,
        };
        Ok(())
    }

    /// Makes the process of a [`Step::Clone`], in as many of its namespaces as can be.
    pub(crate) fn clone_cell(&mut self, step: &Step) -> Result<Cloned, CellError> {
        let Step::Clone { user, net, detached } = *step else { return Err(CellError::Clone(Errno::NOSYS)) };
        let others = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
        let others = others | if net && !self.has_network { libc::CLONE_NEWNET } else { 0 };
        let own = if user { libc::CLONE_NEWUSER } else { 0 };
        let errno = match self.clone_with(others | own, detached) {
            Err(errno) if user && user_namespace::is_refusal(errno) => errno,
            other => return other.map_err(CellError::Clone),
        };
        if !self.walls.best_effort || self.served.is_some() {
            return Err(CellError::UserNamespace(errno));
        }
        self.walls.no_user = true;
        let privileged =
            capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN));
        let (part, namespaces) =
            if privileged { ("user namespace", others) } else { ("namespaces and empty root", 0) };
        self.walls.none = !privileged;
        self.miss(part, &format!("user namespace: {errno}; {}", advice(errno)));
        self.clone_with(namespaces, detached).map_err(CellError::Clone)
    }

    fn clone_with(&self, namespaces: i32, detached: bool) -> Result<Cloned, Errno> {
        // The kernel wants no signal named where the parent is somebody else.
        let (parent, signal) = if detached { (0, libc::SIGCHLD) } else { (libc::CLONE_PARENT, 0) };
        let flags = u64::from((namespaces | parent).unsigned_abs());
        let cgroup = self.cgroups.unified.as_ref().map(AsFd::as_fd);
        sys::clone3(flags, u64::from(signal.unsigned_abs()), cgroup)
    }

    /// Writes the user namespace's map. That fails first where a security module has taken the namespace's capabilities away.
    pub(crate) fn map_user(&mut self, inside: Caller, outside: Caller) -> Result<(), CellError> {
        let Err(errno) = user_namespace::map(inside, outside) else { return Ok(()) };
        if !self.walls.best_effort || self.served.is_some() {
            return Err(CellError::UserNamespace(errno));
        }
        self.walls.none = true;
        self.miss("empty root", &format!("user namespace: {errno}; {}", advice(errno)));
        Ok(())
    }

    /// A core scheduling cookie, where it matters: where cores run several threads at once. A kernel that cannot is reported,
    /// never refused: what it leaves open are side channels, which are the operator's to judge.
    pub(crate) fn schedule_cores(&self) {
        let Err(errno) = sys::new_core_cookie() else { return };
        let threads = host::read("/sys/devices/system/cpu/smt/active");
        if threads.is_some_and(|text| text.trim() == "1") {
            self.miss("core scheduling", &format!("prctl PR_SCHED_CORE: {errno}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Args;
    use crate::plan::Plan;
    use std::ffi::OsString;

    #[test]
    fn what_a_process_gives_up_by_itself_is_never_left_out() {
        let words = ["--id", "x", "--exec-file", "/opt/prog"].map(OsString::from);
        let plan = Plan::from(&Args::parse(words, Caller { uid: 7, gid: 7 }).unwrap());
        let walls = Walls { best_effort: true, no_user: true, none: true };
        let left: Vec<_> = plan.steps().iter().filter(|step| !walls.does_without(step)).collect();
        for wanted in [Step::KeepDescriptors, Step::DropCapabilities, Step::NoNewPrivileges, Step::Undumpable]
        {
            assert!(left.contains(&&wanted), "{wanted:?}");
        }
        assert!(left.iter().any(|step| matches!(step, Step::Limit(_))));
        assert!(!plan.steps().iter().any(|step| Walls::default().does_without(step)));
    }

    #[test]
    fn the_root_of_a_volume_or_a_network_is_never_left_out() {
        let walls = Walls { best_effort: true, no_user: true, none: true };
        for step in [Step::TakeVolume { writable: false }, Step::TakeSystem, Step::RootOfParts] {
            assert!(!walls.does_without(&step), "{step:?}");
        }
    }
}
