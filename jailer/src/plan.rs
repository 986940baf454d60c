//! The plan of a cell: which steps, in which order. Pure: nothing is touched, and the order is tested without root.
//!
//! Invariant: whatever needs a privilege stands before the step that gives it up, and what is given up is never taken
//! back. [`Step::Clone`] divides the plan: before it the jailer, after it the process that becomes the runtime. From there on
//! a cell's privileges are those of its user namespace, over what was made with it.

use crate::args::{Args, VolumeArgs};
use crate::caller::Caller;
use crate::cgroup::Order;
use crate::layout::{self, ChrootStep, Layout};
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
    /// Find a cgroup that the operator made for the sandbox; there may be none.
    FindParentCgroup(Order),
    /// Find the cgroups of the sandbox that a volume or a network belongs to.
    FindCgroups(Order),
    /// Take over the socket that the network is behind.
    TakeNetworkSocket(i32),
    /// Enter the directory that is to be a volume, and take over the socket that it is served on.
    EnterVolume(VolumeArgs),
    /// Take the mount of the directory that was entered: a copy, which is attached to nothing. Where the host's mounts can be named.
    TakeVolume {
        /// Whether the directory may be changed through it.
        writable: bool,
    },
    /// Take the host's programs and libraries in the same way.
    TakeSystem,
    /// Make a directory of the sandbox's name, and enter it.
    MakeJail {
        /// Where jails are made.
        base: PathBuf,
        /// Name of the program.
        program: String,
        /// Name of the sandbox.
        id: String,
    },
    /// Let the process have as much of something as [`Step::Limit`] gives it later, which takes a privilege.
    RaiseLimit(Limit),
    /// Enter namespaces that were made once for all cells: a mount namespace of one mount, to be cloned from, and an empty network
    /// namespace that no cell has had. What is not there is made, or done without: the clone makes its own.
    EnterPool {
        /// The directory.
        path: PathBuf,
        /// Who builds the cell.
        caller: Caller,
        /// Whether a network namespace is wanted.
        network: bool,
        /// Whether the cell mounts a /proc. In a user namespace that takes one that is there already, and the cell does without
        /// the pool.
        proc: bool,
    },
    /// Make the process that becomes the runtime, in namespaces of its own.
    Clone {
        /// Whether it gets a user namespace, to which the other namespaces belong.
        user: bool,
        /// Whether it gets an empty network namespace.
        net: bool,
        /// Whether it is no child of the jailer's parent.
        detached: bool,
    },
    /// Enter the cgroups that a process cannot be born into.
    EnterCgroups,
    /// Say who the one user and the one group of the user namespace are.
    MapUser {
        /// As they are called inside.
        inside: Caller,
        /// As they are called outside.
        outside: Caller,
    },
    /// See nothing of the cgroups above the sandbox's.
    CgroupNamespace,
    /// Share no core with anybody else at the same time, where a core runs several threads.
    CoreScheduling,
    /// Name the host that the cell is.
    Hostname(String),
    /// Cut mounts off from the host's.
    PrivateMounts,
    /// Join the network namespace that was opened. Before the clone: it is not the cell's user namespace's.
    JoinNetns,
    /// Swap the root for an empty one.
    EmptyRoot,
    /// Swap the root for a read-only one with what was taken, and a /proc.
    RootOfParts,
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
    /// Become the user. Capabilities stay; they are other steps' to give up.
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
    /// Only with `--layout firecracker`.
    Chroot(ChrootStep),
}

/// The steps of a cell, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    steps: Vec<Step>,
}

impl Plan {
    /// These steps.
    pub(crate) const fn of(steps: Vec<Step>) -> Self {
        Self { steps }
    }

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
    ///
    /// Root needs no user namespace for it, and could not have one of a single user: files belong to many. Without root
    /// there is one, in which the caller is called root, because only root keeps capabilities when it executes a program. He may
    /// copy a mount only in a mount namespace of his, which has to have it: his cells copy the host's table first.
    fn for_volume(args: &Args, volume: VolumeArgs) -> Self {
        let (writable, rootless) = (volume.writable, !args.caller.is_root());
        let inside = Caller { uid: 0, gid: 0 };
        let mut steps = vec![
            Step::OpenProgram(args.exec_file.clone()),
            Step::OpenNull,
            Step::FindCgroups(order(args)),
            Step::EnterVolume(volume),
        ];
        steps.extend((!rootless).then_some(Step::TakeVolume { writable }));
        steps.extend(enter_pool(args, true, true));
        steps.extend([Step::Clone { user: rootless, net: true, detached: false }, Step::EnterCgroups]);
        steps.extend(rootless.then_some(Step::MapUser { inside, outside: args.caller }));
        steps.extend(own_namespaces(args));
        steps.extend(rootless.then_some(Step::TakeVolume { writable }));
        steps.extend([
            Step::RootOfParts,
            Step::NewSession,
            Step::ResetSignals,
            Step::Umask,
            Step::KeepDescriptors,
        ]);
        steps.extend(args.limits.iter().copied().map(Step::Limit));
        steps.extend((!rootless).then_some(Step::BecomeUser { uid: args.uid, gid: args.gid }));
        steps.extend([
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
    ///
    /// Root needs no user namespace for it: what is there of root's is given up. Without root one makes the others possible, and
    /// mounts are taken there, as a volume's.
    fn for_network(args: &Args, socket: i32) -> Self {
        let (rootless, user) = (!args.caller.is_root(), Caller { uid: args.uid, gid: args.gid });
        let mut steps = vec![
            Step::OpenForeignProgram(args.exec_file.clone()),
            Step::OpenNull,
            Step::FindCgroups(order(args)),
            Step::TakeNetworkSocket(socket),
        ];
        steps.extend((!rootless).then_some(Step::TakeSystem));
        steps.extend(enter_pool(args, false, true));
        steps.extend([Step::Clone { user: rootless, net: false, detached: false }, Step::EnterCgroups]);
        steps.extend(rootless.then_some(Step::MapUser { inside: user, outside: args.caller }));
        steps.extend(own_namespaces(args));
        steps.extend(rootless.then_some(Step::TakeSystem));
        steps.extend([
            Step::RootOfParts,
            Step::NewSession,
            Step::ResetSignals,
            Step::Umask,
            Step::KeepDescriptors,
            Step::SpeakOnStandardError,
        ]);
        steps.extend(args.limits.iter().copied().map(Step::Limit));
        steps.push(Step::DropBoundingSet);
        steps.extend((!rootless).then_some(Step::BecomeUser { uid: user.uid, gid: user.gid }));
        steps.extend([
            Step::DropCapabilities,
            Step::NoNewPrivileges,
            Step::DieWithParent,
            Step::Execute(args.argv.clone()),
        ]);
        Self { steps }
    }
}

/// What is done to the new namespaces first.
fn own_namespaces(args: &Args) -> [Step; 4] {
    [Step::CgroupNamespace, Step::CoreScheduling, Step::Hostname(args.id.clone()), Step::PrivateMounts]
}

/// The step, if there is a pool.
pub(crate) fn enter_pool(args: &Args, network: bool, proc: bool) -> Option<Step> {
    args.pool.clone().map(|path| Step::EnterPool { path, caller: args.caller, network, proc })
}

pub(crate) fn order(args: &Args) -> Order {
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
        if let Layout::Firecracker { copy, new_pid } = args.layout {
            return layout::plan(args, copy, new_pid);
        }
        let user = Caller { uid: args.uid, gid: args.gid };
        let mut steps = vec![Step::OpenProgram(args.exec_file.clone()), Step::OpenNull];
        steps.extend(args.netns.clone().map(Step::OpenNetns));
        steps.extend(args.netns.as_ref().map(|_| Step::JoinNetns));
        steps.push(Step::MakeCgroups(order(args)));
        steps.extend(args.chroot_base_dir.clone().map(|base| Step::MakeJail {
            base,
            program: args.program.clone(),
            id: args.id.clone(),
        }));
        steps.extend(enter_pool(args, args.netns.is_none(), false));
        if args.caller.is_root() {
            steps.extend(args.limits.iter().copied().map(Step::RaiseLimit));
            steps.push(Step::BecomeUser { uid: user.uid, gid: user.gid });
        }
        steps.extend([
            Step::Clone { user: true, net: args.netns.is_none(), detached: args.daemonize },
            Step::EnterCgroups,
            Step::MapUser { inside: user, outside: user },
        ]);
        steps.extend(own_namespaces(args));
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
mod tests;
