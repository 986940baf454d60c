//! What is in a cell's root: nothing, or what Firecracker's users know.
//!
//! Owns `--layout firecracker`: its defaults, its plan and its steps. The directory `<base>/<program>/<id>/root` is the root,
//! where the operator finds the program's sockets and the program the operator's files; device nodes are on a small mount of
//! their own. Refuses whatever lies in the way of what it makes there. Invariant: everything that may fail for a reason of the
//! host's or the operator's comes before the process enters its cgroups, and until then what was made is taken back.
//!
//! Unlike in the empty layout the process is not a child of the jailer's parent but the jailer itself, as Firecracker's is: its
//! standard streams, session, umask and exit status are its caller's to see. It is a child with `--new-pid-ns` or `--daemonize`
//! alone, and then the jailer ends with 0. There is no user namespace: device nodes, and what the operator mounts into the root
//! while the program runs, are the initial one's.

mod directory;
mod nodes;
mod process;
#[cfg(test)]
mod tests;

use crate::act::{CellError, Site, named};
use crate::args::Args;
use crate::caller::Caller;
use crate::limits;
use crate::plan::{self, Plan, Step};
use directory::Directory;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::process::fchdir;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// The layout's name on the command line.
pub(crate) const FIRECRACKER: &str = "firecracker";
/// The name under which the jailer is Firecracker's.
const JAILER: &str = "jailer";
/// Where jails are, unless told otherwise.
const BASE: &str = "/srv/jailer";
/// Descriptors, unless told otherwise; Firecracker's jailer's default.
const FILES: u64 = 2048;

/// What is in a root, and how its program comes to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Nothing.
    Empty,
    /// What Firecracker's jailer puts there.
    Firecracker {
        /// Whether the program is copied into the root and executed there.
        copy: bool,
        /// Whether it is the first process of a namespace.
        new_pid: bool,
    },
}

impl Layout {
    /// Where jails are made if nobody says.
    pub(crate) fn base(self) -> Option<PathBuf> {
        (self != Self::Empty).then(|| PathBuf::from(BASE))
    }

    /// The parent cgroup if nobody names one.
    pub(crate) const fn parent(self, program: &str) -> &str {
        match self {
            Self::Empty => "husk",
            Self::Firecracker { .. } => program,
        }
    }

    /// How many descriptors there are if nobody says.
    pub(crate) const fn files(self) -> u64 {
        match self {
            Self::Empty => limits::FILES,
            Self::Firecracker { .. } => FILES,
        }
    }

    /// The program that `path` names: here the file behind symbolic links, for its name is a directory's, as is Firecracker's.
    pub(crate) fn program(self, path: PathBuf) -> PathBuf {
        match self {
            Self::Empty => path,
            // What cannot be resolved, the step that opens it says why.
            Self::Firecracker { .. } => std::fs::canonicalize(&path).unwrap_or(path),
        }
    }
}

/// The command line without the program's own name, which chooses the layout if no flag does.
pub(crate) fn called(words: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut words = words.into_iter();
    let name = words.next();
    let mut rest: Vec<_> = words.collect();
    let named = name.as_deref().map(Path::new).and_then(Path::file_name) == Some(OsStr::new(JAILER));
    let ours = rest.iter().take_while(|word| *word != "--");
    let mut chosen = ours.filter_map(|word| word.to_str());
    if named && !chosen.any(|word| word == "--layout" || word.starts_with("--layout=")) {
        rest.splice(..0, ["--layout".into(), FIRECRACKER.into()]);
    }
    rest
}

/// A step of this layout alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChrootStep {
    /// Make what is missing of the root's directory, and give it to the user.
    Directory {
        /// Where jails are made.
        base: PathBuf,
        /// Name of the program.
        program: String,
        /// Name of the sandbox.
        id: String,
        /// Who the root belongs to.
        user: Caller,
    },
    /// Copy the program into the root, under this name; what is executed is the copy.
    CopyProgram(String),
    /// Enter the root's directory, and make a mount of it that is attached to nothing.
    TakeRoot,
    /// New mount, IPC and UTS namespaces.
    Namespaces,
    /// Attach the root's mount, and mount the device nodes below it.
    Mounts(Caller),
    /// Make the file that will hold the process's id: that of this program.
    PidFile(String),
    /// Swap the root.
    Enter,
    /// Leave the caller's session; the jailer ends.
    Detach,
    /// Say which process it is. With `new_pid` or `detached` that is a new one, and the jailer ends.
    HandOver {
        /// Whether it is the first of a namespace.
        new_pid: bool,
        /// Whether the process has left the caller's session.
        detached: bool,
    },
    /// Close everything but the standard streams and the program; `null`: those become the null device.
    KeepStandard {
        /// Whether there is nobody to speak to.
        null: bool,
    },
    /// Deny everything that is not below the root, and there the making of programs, links and nodes.
    Landlock,
    /// Become the program, with these arguments and what the jailer's work has taken.
    Execute(Vec<OsString>),
}

/// The plan of a cell with this layout.
pub(crate) fn plan(args: &Args, copy: bool, new_pid: bool) -> Plan {
    let user = Caller { uid: args.uid, gid: args.gid };
    let detached = args.daemonize;
    let order = plan::order(args);
    let given = args.cgroup_version == Some(2) && args.settings.is_empty();
    let mut steps = vec![Step::OpenProgram(args.exec_file.clone())];
    steps.extend(detached.then_some(Step::OpenNull));
    steps.extend(args.netns.clone().map(Step::OpenNetns));
    steps.extend(args.netns.as_ref().map(|_| Step::JoinNetns));
    steps.push(Step::Chroot(ChrootStep::Directory {
        base: args.chroot_base_dir.clone().unwrap_or_else(|| PathBuf::from(BASE)),
        program: args.program.clone(),
        id: args.id.clone(),
        user,
    }));
    steps.extend(copy.then(|| Step::Chroot(ChrootStep::CopyProgram(args.program.clone()))));
    steps.push(if given { Step::FindParentCgroup(order) } else { Step::MakeCgroups(order) });
    steps.push(Step::Chroot(ChrootStep::TakeRoot));
    // The network is the caller's, or one that was joined.
    steps.extend(plan::enter_pool(args, false, false));
    steps.extend([
        Step::Chroot(ChrootStep::Namespaces),
        Step::Hostname(args.id.clone()),
        Step::Chroot(ChrootStep::Mounts(user)),
        Step::Chroot(ChrootStep::PidFile(args.program.clone())),
        Step::CoreScheduling,
        Step::EnterCgroups,
        Step::CgroupNamespace,
        Step::Chroot(ChrootStep::Enter),
    ]);
    steps.extend(detached.then_some(Step::Chroot(ChrootStep::Detach)));
    steps.extend([
        Step::Chroot(ChrootStep::HandOver { new_pid, detached }),
        Step::Chroot(ChrootStep::KeepStandard { null: detached }),
        Step::ResetSignals,
    ]);
    steps.extend(args.limits.iter().copied().map(Step::Limit));
    steps.extend([
        Step::DropBoundingSet,
        Step::BecomeUser { uid: user.uid, gid: user.gid },
        Step::DropCapabilities,
        Step::NoNewPrivileges,
        Step::Chroot(ChrootStep::Landlock),
        Step::Chroot(ChrootStep::Execute(args.argv.clone())),
    ]);
    Plan::of(steps)
}

/// What the steps have made.
#[derive(Debug, Default)]
pub(crate) struct Chroot {
    directory: Option<Directory>,
    mount: Option<OwnedFd>,
    pid_file: Option<OwnedFd>,
    spent: process::Spent,
}

impl Chroot {
    /// Takes back what was made; for a sandbox that never was.
    pub(crate) fn remove(&self) {
        if let Some(directory) = &self.directory {
            directory.remove();
        }
    }
}

impl Site {
    /// Makes the system calls of `step`. `Some`: this is the jailer, and what goes on is the process of that id.
    pub(crate) fn furnish(&mut self, step: &ChrootStep) -> Result<Option<i32>, CellError> {
        match step {
            ChrootStep::Directory { base, program, id, user } => {
                self.chroot.directory = Some(directory::prepare(base, program, id, *user)?);
            }
            ChrootStep::CopyProgram(name) => self.copy_program(name)?,
            ChrootStep::TakeRoot => self.take_root().map_err(named("the mount of the root"))?,
            ChrootStep::Namespaces => crate::sys::new_namespaces().map_err(named("namespaces"))?,
            ChrootStep::Mounts(user) => {
                let tree = self.chroot.mount.as_ref().ok_or(Errno::NOSYS);
                let mounted = tree.and_then(|tree| nodes::mount(tree, *user));
                mounted.map_err(named("mounts and device nodes"))?;
            }
            ChrootStep::PidFile(program) => {
                let file = self.directory_mut()?.create(&format!("{program}.pid"), 0o644)?;
                self.chroot.pid_file = Some(file);
            }
            ChrootStep::Enter => self.enter_root().map_err(named("root"))?,
            ChrootStep::Detach => return self.detach(),
            ChrootStep::HandOver { new_pid, detached } => return self.hand_over(*new_pid, *detached),
            ChrootStep::KeepStandard { null } => self.keep_standard(*null).map_err(named("descriptors"))?,
            ChrootStep::Landlock => self.allow_root_alone()?,
            ChrootStep::Execute(argv) => return Err(self.execute(&self.chroot.spent.tell(argv))),
        }
        Ok(None)
    }

    /// No path is resolved a second time.
    fn take_root(&mut self) -> Result<(), Errno> {
        let root = &self.chroot.directory.as_ref().ok_or(Errno::NOSYS)?.root;
        fchdir(root)?;
        self.chroot.mount = Some(nodes::take(root)?);
        Ok(())
    }

    fn directory_mut(&mut self) -> Result<&mut Directory, CellError> {
        self.chroot.directory.as_mut().ok_or_else(|| named("order of the plan")(Errno::NOSYS))
    }

    fn copy_program(&mut self, name: &str) -> Result<(), CellError> {
        let program = self.program.take().ok_or_else(|| named("order of the plan")(Errno::NOSYS))?;
        self.program = Some(self.directory_mut()?.copy(name, &program)?);
        Ok(())
    }

    fn enter_root(&mut self) -> Result<(), Errno> {
        // In its cgroups the process keeps them from being removed: they are the caller's from here on.
        self.cloned = true;
        fchdir(self.chroot.mount.as_ref().ok_or(Errno::NOSYS)?)?;
        crate::cell::leave_old_root()
    }
}
