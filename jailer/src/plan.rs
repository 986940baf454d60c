//! The plan of a cell: which steps, in which order. Pure: nothing is touched, and the order is tested without root.
//!
//! Invariant: whatever needs a privilege stands before the step that gives it up, and what is given up is never taken
//! back. [`Step::Clone`] divides the plan: before it the jailer, after it the process that becomes the runtime.

use crate::args::{Args, VolumeArgs};
use crate::cgroup::Order;
use crate::limits::Limit;
use std::ffi::OsString;
use std::path::PathBuf;

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Open the program, and look at what it is.
    OpenProgram(PathBuf),
    /// The same, of a program that is not Husk's and may be linked dynamically.
    OpenForeignProgram(PathBuf),
    /// Open the null device, which is not there in the cell.
    OpenNull,
    /// Open the network namespace that the cell joins.
    OpenNetns(PathBuf),
    /// Make the sandbox's cgroups and write its limits.
    MakeCgroups(Order),
    /// Find the cgroups of the sandbox that a volume or a network belongs to.
    FindCgroups(Order),
    /// Take over the socket that the network is behind.
    TakeNetworkSocket(i32),
    /// Enter the directory that is to be a volume, and take over the socket that it is served on.
    EnterVolume(VolumeArgs),
    /// Make the jail's directory and enter it.
    MakeJail {
        /// Where jails are made.
        base: PathBuf,
        /// Name of the program.
        program: String,
        /// Name of the sandbox.
        id: String,
    },
    /// Make the process that becomes the runtime, in namespaces of its own.
    Clone {
        /// Whether it gets an empty network namespace.
        net: bool,
        /// Whether it is no child of the jailer's parent.
        detached: bool,
    },
    /// Enter the cgroups that a process cannot be born into.
    EnterCgroups,
    /// Name the host that the cell is.
    Hostname(String),
    /// Cut mounts off from the host's.
    PrivateMounts,
    /// Join the network namespace that was opened.
    JoinNetns,
    /// Swap the root for an empty one.
    EmptyRoot,
    /// Swap the root for one with nothing in it but the directory that was entered, and a /proc.
    VolumeRoot {
        /// Whether the directory may be changed through it.
        writable: bool,
    },
    /// Swap the root for a read-only one with the host's programs and libraries, an empty /tmp and a /proc.
    SystemRoot,
    /// Leave the caller's session and terminal.
    NewSession,
    /// Forget the caller's signal mask and dispositions.
    ResetSignals,
    /// Make what is made readable by nobody else.
    Umask,
    /// Close everything but the null device, the control socket, a volume's or network's socket and the program.
    KeepDescriptors,
    /// Let the program speak on the caller's standard error, and not on the control socket, whose language it does not know.
    SpeakOnStandardError,
    /// Limit the process.
    Limit(Limit),
    /// Empty the ambient and bounding sets.
    DropBoundingSet,
    /// Become the user.
    BecomeUser {
        /// User.
        uid: u32,
        /// Group.
        gid: u32,
    },
    /// Empty the other capability sets.
    DropCapabilities,
    /// Keep what serving files takes, and nothing else, in all sets.
    KeepServingCapabilities {
        /// Whether files are changed.
        writable: bool,
    },
    /// No execution gives privileges.
    NoNewPrivileges,
    /// Nobody of the same user may look inside.
    Undumpable,
    /// Die with the parent. After the change of user, which clears it.
    DieWithParent,
    /// Become the program.
    Execute(Vec<OsString>),
}

/// The steps of a cell, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    steps: Vec<Step>,
}

impl Plan {
    /// The steps.
    #[must_use]
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// The same cell, without a program: for code that is to find out what it is like to be inside.
    #[must_use]
    pub fn without_program(mut self) -> Self {
        self.steps.retain(|step| !matches!(step, Step::OpenProgram(_) | Step::Execute(_)));
        self
    }
}

impl Plan {
    /// The cell of a volume's server: in the sandbox's cgroups, with the directory and nothing else of the host's.
    fn for_volume(args: &Args, volume: VolumeArgs) -> Self {
        let writable = volume.writable;
        let mut steps = vec![
            Step::OpenProgram(args.exec_file.clone()),
            Step::OpenNull,
            Step::FindCgroups(order(args)),
            Step::EnterVolume(volume),
            Step::Clone { net: true, detached: false },
            Step::EnterCgroups,
            Step::Hostname(args.id.clone()),
            Step::PrivateMounts,
            Step::VolumeRoot { writable },
            Step::NewSession,
            Step::ResetSignals,
            Step::Umask,
            Step::KeepDescriptors,
        ];
        steps.extend(args.limits.iter().copied().map(Step::Limit));
        steps.extend([
            Step::BecomeUser { uid: args.uid, gid: args.gid },
            Step::KeepServingCapabilities { writable },
            Step::NoNewPrivileges,
            Step::Undumpable,
            Step::DieWithParent,
            Step::Execute(args.argv.clone()),
        ]);
        Self { steps }
    }
}

impl Plan {
    /// The cell of a process that is the network: in the sandbox's cgroups, as its user, in the caller's network.
    fn for_network(args: &Args, socket: i32) -> Self {
        let mut steps = vec![
            Step::OpenForeignProgram(args.exec_file.clone()),
            Step::OpenNull,
            Step::FindCgroups(order(args)),
            Step::TakeNetworkSocket(socket),
            Step::Clone { net: false, detached: false },
            Step::EnterCgroups,
            Step::Hostname(args.id.clone()),
            Step::PrivateMounts,
            Step::SystemRoot,
            Step::NewSession,
            Step::ResetSignals,
            Step::Umask,
            Step::KeepDescriptors,
            Step::SpeakOnStandardError,
        ];
        steps.extend(args.limits.iter().copied().map(Step::Limit));
        steps.extend([
            Step::DropBoundingSet,
            Step::BecomeUser { uid: args.uid, gid: args.gid },
            Step::DropCapabilities,
            Step::NoNewPrivileges,
            Step::DieWithParent,
            Step::Execute(args.argv.clone()),
        ]);
        Self { steps }
    }
}

fn order(args: &Args) -> Order {
    Order {
        version: args.cgroup_version,
        parent: args.parent_cgroup.clone(),
        id: args.id.clone(),
        settings: args.settings.clone(),
    }
}

impl From<&Args> for Plan {
    fn from(args: &Args) -> Self {
        if let Some(volume) = args.volume {
            return Self::for_volume(args, volume);
        }
        if let Some(socket) = args.network {
            return Self::for_network(args, socket);
        }
        let mut steps = vec![Step::OpenProgram(args.exec_file.clone()), Step::OpenNull];
        steps.extend(args.netns.clone().map(Step::OpenNetns));
        steps.push(Step::MakeCgroups(order(args)));
        let (base, program, id) = (args.chroot_base_dir.clone(), args.program.clone(), args.id.clone());
        steps.push(Step::MakeJail { base, program, id });
        steps.push(Step::Clone { net: args.netns.is_none(), detached: args.daemonize });
        steps.extend([Step::EnterCgroups, Step::Hostname(args.id.clone()), Step::PrivateMounts]);
        steps.extend(args.netns.as_ref().map(|_| Step::JoinNetns));
        steps.extend([
            Step::EmptyRoot,
            Step::NewSession,
            Step::ResetSignals,
            Step::Umask,
            Step::KeepDescriptors,
        ]);
        steps.extend(args.limits.iter().copied().map(Step::Limit));
        steps.extend([
            Step::DropBoundingSet,
            Step::BecomeUser { uid: args.uid, gid: args.gid },
            Step::DropCapabilities,
            Step::NoNewPrivileges,
            Step::Undumpable,
        ]);
        if !args.daemonize {
            steps.push(Step::DieWithParent);
        }
        steps.push(Step::Execute(args.argv.clone()));
        Self { steps }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(more: &[&str]) -> Plan {
        let least = ["--id", "x", "--uid", "5", "--gid", "6", "--exec-file", "/opt/prog"];
        Plan::from(&Args::parse(least.iter().chain(more).map(OsString::from)).unwrap())
    }

    fn place(plan: &Plan, wanted: impl Fn(&Step) -> bool) -> usize {
        plan.steps().iter().position(wanted).unwrap()
    }

    #[test]
    fn the_order_is_this() {
        let names: Vec<String> = plan(&[])
            .steps()
            .iter()
            .map(|step| format!("{step:?}").split(['(', ' ']).next().unwrap().to_owned())
            .collect();
        assert_eq!(
            names,
            [
                "OpenProgram",
                "OpenNull",
                "MakeCgroups",
                "MakeJail",
                "Clone",
                "EnterCgroups",
                "Hostname",
                "PrivateMounts",
                "EmptyRoot",
                "NewSession",
                "ResetSignals",
                "Umask",
                "KeepDescriptors",
                "Limit",
                "Limit",
                "DropBoundingSet",
                "BecomeUser",
                "DropCapabilities",
                "NoNewPrivileges",
                "Undumpable",
                "DieWithParent",
                "Execute",
            ]
        );
    }

    #[test]
    fn privileges_are_used_before_they_are_given_up() {
        let plan = plan(&["--netns", "/run/netns/x", "--resource-limit", "nproc=9", "--cpus", "0"]);
        let user = place(&plan, |step| matches!(step, Step::BecomeUser { .. }));
        for (at, step) in plan.steps().iter().enumerate() {
            let needs_nothing = matches!(
                step,
                Step::BecomeUser { .. }
                    | Step::DropCapabilities
                    | Step::NoNewPrivileges
                    | Step::Undumpable
                    | Step::DieWithParent
                    | Step::Execute(_)
            );
            assert_eq!(at < user, !needs_nothing, "{step:?}");
        }
        assert!(place(&plan, |step| *step == Step::DropBoundingSet) < user, "it needs CAP_SETPCAP");
        assert!(place(&plan, |step| *step == Step::DieWithParent) > user, "a change of user clears it");
        assert!(matches!(plan.steps().last(), Some(Step::Execute(_))));
    }

    #[test]
    fn everything_from_the_host_is_opened_before_the_root_is_swapped() {
        let plan = plan(&["--netns", "/run/netns/x"]);
        let root = place(&plan, |step| *step == Step::EmptyRoot);
        for wanted in
            [Step::OpenNull, Step::OpenNetns("/run/netns/x".into()), Step::PrivateMounts, Step::JoinNetns]
        {
            assert!(place(&plan, |step| *step == wanted) < root, "{wanted:?}");
        }
    }

    #[test]
    fn a_given_network_namespace_is_joined_and_none_made() {
        let plan = plan(&["--netns", "/run/netns/x"]);
        assert!(plan.steps().contains(&Step::Clone { net: false, detached: false }));
    }

    #[test]
    fn a_daemon_outlives_its_parent() {
        let plan = plan(&["--daemonize"]);
        assert!(plan.steps().contains(&Step::Clone { net: true, detached: true }));
        assert!(!plan.steps().contains(&Step::DieWithParent));
    }

    #[test]
    fn a_volumes_cell_makes_nothing_and_keeps_little() {
        let words = "--id x --exec-file /opt/fs --volume-fd 5 --volume-socket-fd 6 --volume-writable";
        let plan = Plan::from(&Args::parse(words.split(' ').map(OsString::from)).unwrap());
        let made = |step: &Step| matches!(step, Step::MakeCgroups(_) | Step::MakeJail { .. });
        assert!(!plan.steps().iter().any(made));
        let root = place(&plan, |step| *step == Step::VolumeRoot { writable: true });
        let cloned = place(&plan, |step| matches!(step, Step::Clone { net: true, detached: false }));
        let entered = place(&plan, |step| matches!(step, Step::EnterVolume(_)));
        assert!(entered < cloned && cloned < root);
        let user = place(&plan, |step| matches!(step, Step::BecomeUser { uid: 0, gid: 0 }));
        let kept = place(&plan, |step| *step == Step::KeepServingCapabilities { writable: true });
        assert!(root < user && user < kept, "the root and the groups take capabilities that are given up");
        let strict = [Step::NoNewPrivileges, Step::Undumpable, Step::DieWithParent];
        assert!(strict.iter().all(|step| place(&plan, |other| other == step) > kept));
    }

    #[test]
    fn a_networks_cell_is_in_the_hosts_network_and_keeps_no_privilege() {
        let plan = plan(&["--network-socket-fd", "6", "--", "--quiet"]);
        let made =
            |step: &Step| matches!(step, Step::MakeCgroups(_) | Step::MakeJail { .. } | Step::JoinNetns);
        assert!(!plan.steps().iter().any(made));
        let order: Vec<usize> = [
            Step::TakeNetworkSocket(6),
            Step::Clone { net: false, detached: false },
            Step::SystemRoot,
            Step::KeepDescriptors,
            Step::SpeakOnStandardError,
            Step::DropBoundingSet,
            Step::BecomeUser { uid: 5, gid: 6 },
            Step::DropCapabilities,
            Step::NoNewPrivileges,
            Step::DieWithParent,
            Step::Execute(vec!["prog".into(), "--quiet".into()]),
        ]
        .iter()
        .map(|wanted| place(&plan, |step| step == wanted))
        .collect();
        assert!(order.is_sorted(), "{order:?}");
    }

    #[test]
    fn a_cell_without_a_program_is_the_same_cell() {
        let whole = plan(&[]);
        let bare = whole.clone().without_program();
        assert_eq!(bare.steps().len() + 2, whole.steps().len());
        assert!(bare.steps().iter().all(|step| whole.steps().contains(step)));
    }
}
