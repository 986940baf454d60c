//! Carries a plan out: each step's system calls, on what the steps before it left in the [`Site`].
//!
//! Owns all descriptors on the way. A step that fails before the clone takes back the directories that were made; after
//! it they are the caller's to remove, as the crate's documentation says. Nothing is retried.

mod error;

pub use error::CellError;

use crate::args::{Args, VolumeArgs};
use crate::best_effort::Walls;
use crate::caller::Isolation;
use crate::cell;
use crate::cgroup;
use crate::executable;
use crate::host;
use crate::jail::{self, Jail};
use crate::layout::Chroot;
use crate::limits::Limit;
use crate::plan::{Plan, Step};
use crate::pool;
use crate::report::{self, Fault};
use crate::roots::{self, Part};
use crate::sys::{self, Cloned};
use crate::user_namespace;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::process::{
    DumpableBehavior, Signal, fchdir, pidfd_send_signal, set_dumpable_behavior,
    set_parent_process_death_signal, setsid, umask,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space, set_no_new_privs};
use std::ffi::{CString, OsStr};
use std::fmt::Display;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Which side of the clone the caller is on.
#[derive(Debug)]
pub enum Side {
    /// The jailer; its work is done. The process id of the cell as seen here.
    Outside(i32),
    /// In the cell, with the control socket.
    Inside(Option<OwnedFd>),
}

/// What the steps so far have opened and made.
#[derive(Debug, Default)]
pub(crate) struct Site {
    pub(crate) control: Option<OwnedFd>,
    pub(crate) program: Option<OwnedFd>,
    pub(crate) null: Option<OwnedFd>,
    netns: Option<OwnedFd>,
    pub(crate) cgroups: cgroup::Made,
    jail: Option<Jail>,
    /// What was taken for the root.
    parts: Vec<Part>,
    pub(crate) walls: Walls,
    /// The socket that a volume is served on, or that the network is behind.
    pub(crate) served: Option<OwnedFd>,
    /// Where standard error was, once the cell's own is the null device.
    complaints: Option<OwnedFd>,
    /// What there is of Firecracker's layout.
    pub(crate) chroot: Chroot,
    /// The process is in a network namespace that is the cell's alone.
    pub(crate) has_network: bool,
    /// From the clone on, on both sides: what was made is the caller's to remove.
    pub(crate) cloned: bool,
}

impl Site {
    /// Takes the control socket over.
    pub(crate) fn new(args: &Args) -> Result<Self, CellError> {
        let mut site = Self::with_control(args.control_fd)?;
        site.walls.best_effort = args.isolation == Isolation::BestEffort;
        Ok(site)
    }

    /// A site where nothing has happened yet; `number`: descriptor of the control socket.
    pub(crate) fn with_control(number: Option<i32>) -> Result<Self, CellError> {
        let Some(number) = number else { return Ok(Self::default()) };
        let control =
            sys::adopt(number).map_err(|_| CellError::Control(number, "no such descriptor is open"))?;
        let status = fstat(&control).map_err(|_| CellError::Control(number, "is no file"))?;
        if FileType::from_raw_mode(status.st_mode) != FileType::Socket {
            return Err(CellError::Control(number, "is not a socket; a SOCK_SEQPACKET socket is expected"));
        }
        Ok(Self { control: Some(control), ..Self::default() })
    }

    /// Says something to husk, if it listens.
    pub(crate) fn tell(&self, message: &str) {
        if let Some(control) = &self.control {
            let _ = report::tell(control, message);
        }
    }

    /// Says that there is no cell, to husk and on standard error.
    pub(crate) fn complain(&self, fault: Fault, error: &dyn Display) {
        self.tell(&report::failed(fault, &error.to_string()));
        let line = format!("husk-jailer: {error}\n");
        let _ = match &self.complaints {
            Some(fd) => rustix::io::write(fd, line.as_bytes()),
            None => rustix::io::write(std::io::stderr(), line.as_bytes()),
        };
    }

    /// Carries out all of `plan`, on both sides of the clone.
    pub(crate) fn carry_out(&mut self, plan: &Plan) -> Result<Side, CellError> {
        for step in plan.steps() {
            if self.walls.does_without(step) {
                continue;
            }
            match step.apply(self) {
                Ok(None) => {}
                Ok(Some(pid)) => return Ok(Side::Outside(pid)),
                Err(error) => {
                    if !self.cloned {
                        self.take_back();
                    }
                    return Err(error);
                }
            }
        }
        Ok(Side::Inside(self.control.take()))
    }

    fn take_back(&self) {
        self.cgroups.remove();
        if let Some(jail) = &self.jail {
            jail.remove();
        }
        self.chroot.remove();
    }

    fn make_jail(&mut self, base: &Path, program: &str, id: &str) -> Result<(), CellError> {
        let jail = self.jail.insert(jail::make(base, program, id)?);
        fchdir(&jail.root).map_err(named("enter the jail's directory"))
    }

    fn enter_volume(&mut self, volume: VolumeArgs) -> Result<(), CellError> {
        let taken = |flag, number| move |errno| CellError::Volume(flag, number, errno);
        let adopt = |flag, number| sys::adopt(number).map_err(taken(flag, number));
        let directory = adopt("volume-fd", volume.directory)?;
        self.served = Some(adopt("volume-socket-fd", volume.socket)?);
        fchdir(directory).map_err(taken("volume-fd", volume.directory))
    }

    /// Whoever is at the other end of the control socket is still there. Asked where a parent that died before the signal of its
    /// death was asked for would not be noticed.
    fn is_heard(&self) -> Result<(), CellError> {
        let Some(control) = &self.control else { return Ok(()) };
        if report::has_hung_up(control) { Err(CellError::Unheard(Errno::PIPE)) } else { Ok(()) }
    }

    /// In the parent: the child's id. In the child: nothing.
    fn clone_runtime(&mut self, step: &Step) -> Result<Option<i32>, CellError> {
        self.is_heard()?;
        match self.clone_cell(step)? {
            Cloned::Child => {
                self.cloned = true;
                self.jail = None;
                self.cgroups.unified = None;
                Ok(None)
            }
            Cloned::Parent(pid, pidfd) => {
                self.cloned = true;
                if let Some(control) = &self.control
                    && let Err(errno) = report::tell(control, &report::cloned(pid))
                {
                    let _ = pidfd_send_signal(&pidfd, Signal::KILL);
                    return Err(CellError::Unheard(errno));
                }
                Ok(Some(pid))
            }
        }
    }

    pub(crate) fn close_netns(&mut self) {
        self.netns = None;
    }

    fn keep_descriptors(&mut self) -> Result<(), CellError> {
        host::forget();
        self.netns = None;
        self.cgroups = cgroup::Made::default();
        let null = self.null.take().ok_or(CellError::Step { step: "descriptors", errno: Errno::BADF })?;
        let handed = [self.control.take(), self.served.take()];
        let kept = cell::keep(null, handed, self.program.take()).map_err(named("descriptors"))?;
        [self.control, self.served] = kept.handed;
        self.program = kept.program;
        self.complaints = Some(kept.complaints);
        Ok(())
    }

    fn speak(&self) -> Result<(), Errno> {
        if let Some(complaints) = &self.complaints {
            sys::copy(complaints.as_fd(), 2)?;
        }
        self.control.as_ref().map_or(Ok(()), |control| fcntl_setfd(control, FdFlags::CLOEXEC))
    }

    /// Returns only if it cannot.
    pub(crate) fn execute(&self, argv: &[impl AsRef<OsStr>]) -> CellError {
        let program =
            argv.first().map(|name| name.as_ref().to_string_lossy().into_owned()).unwrap_or_default();
        let words: Result<Vec<_>, _> =
            argv.iter().map(|word| CString::new(word.as_ref().as_bytes())).collect();
        let errno = match (words, &self.program) {
            (Ok(words), Some(file)) => {
                self.tell(&report::stage("jailed", report::now_ns()));
                sys::execute(file.as_fd(), &words)
            }
            (Err(_), _) => Errno::INVAL,
            (_, None) => Errno::BADF,
        };
        CellError::Execute { program, errno }
    }
}

impl Step {
    /// Makes this step's system calls. `Some`: this is the jailer, and the cell is the process of that id.
    pub(crate) fn apply(&self, site: &mut Site) -> Result<Option<i32>, CellError> {
        match self {
            Self::OpenProgram(path) => site.program = Some(executable::open_program(path)?),
            Self::OpenForeignProgram(path) => site.program = Some(executable::open_foreign_program(path)?),
            Self::OpenNull => site.null = Some(open_host(Path::new("/dev/null"), OFlags::RDWR)?),
            Self::RaiseLimit(limit) => limit.raise().map_err(refused_limit(*limit))?,
            Self::OpenNetns(path) => site.netns = Some(open_host(path, OFlags::RDONLY)?),
            Self::MakeCgroups(order) => site.make_cgroups(order)?,
            Self::FindCgroups(order) => site.find_cgroups(order)?,
            Self::FindParentCgroup(order) => site.cgroups = cgroup::find_parent(order)?,
            Self::Chroot(step) => return site.furnish(step),
            Self::EnterVolume(volume) => site.enter_volume(*volume)?,
            Self::TakeNetworkSocket(number) => {
                let taken = |errno| CellError::Volume("network-socket-fd", *number, errno);
                site.served = Some(sys::adopt(*number).map_err(taken)?);
            }
            Self::EnterPool { path, caller, network, proc } => {
                if !proc || user_namespace::is_initial() {
                    let entered = pool::enter(path, *caller, *network)?;
                    site.has_network = entered.is_some_and(|entered| entered.network);
                }
            }
            Self::TakeVolume { writable } => {
                site.parts = roots::volume(*writable).map_err(named("the mount of the volume"))?;
            }
            Self::TakeSystem => {
                site.parts = roots::system().map_err(named("the mounts of the host's programs"))?;
            }
            Self::RootOfParts => roots::enter(std::mem::take(&mut site.parts)).map_err(named("root"))?,
            Self::MakeJail { base, program, id } => site.make_jail(base, program, id)?,
            Self::Clone { .. } => return site.clone_runtime(self),
            Self::MapUser { inside, outside } => site.map_user(*inside, *outside)?,
            Self::CoreScheduling => site.schedule_cores(),
            Self::EnterCgroups => site.cgroups.enter()?,
            Self::JoinNetns => join_netns(site.netns.as_ref())?,
            Self::KeepDescriptors => site.keep_descriptors()?,
            Self::SpeakOnStandardError => site.speak().map_err(named("standard error"))?,
            Self::Limit(limit) => limit.set().map_err(refused_limit(*limit))?,
            Self::Execute(argv) => return Err(site.execute(argv)),
            Self::DieWithParent => {
                let result = set_parent_process_death_signal(Some(Signal::KILL));
                result.map_err(named("parent-death signal"))?;
                site.is_heard()?;
            }
            simple => simple.confine()?,
        }
        Ok(None)
    }

    /// The steps that need nothing but themselves.
    fn confine(&self) -> Result<(), CellError> {
        let (step, result) = match self {
            Self::CgroupNamespace => ("cgroup namespace", sys::new_cgroup_namespace()),
            Self::Hostname(name) => ("host name", rustix::system::sethostname(name.as_bytes())),
            Self::PrivateMounts => ("private mounts", cell::keep_mounts_private()),
            Self::EmptyRoot => ("empty root", cell::empty_root()),
            Self::NewSession => ("new session", setsid().map(drop)),
            Self::ResetSignals => ("signals", sys::reset_signals()),
            Self::Umask => {
                umask(Mode::from_raw_mode(0o077));
                ("umask", Ok(()))
            }
            Self::DropBoundingSet => ("capability bounding set", cell::drop_bounding_set()),
            Self::BecomeUser { uid, gid } => ("user and group", cell::become_user(*uid, *gid)),
            Self::DropCapabilities => ("capabilities", cell::drop_capabilities()),
            Self::KeepServingCapabilities { writable } => {
                ("capabilities", cell::keep_serving_capabilities(*writable))
            }
            Self::NoNewPrivileges => ("no_new_privs", set_no_new_privs(true)),
            Self::Undumpable => ("dumpable", set_dumpable_behavior(DumpableBehavior::NotDumpable)),
            _ => ("order of the plan", Err(Errno::NOSYS)),
        };
        result.map_err(named(step))
    }
}

pub(crate) fn named(step: &'static str) -> impl Fn(Errno) -> CellError {
    move |errno| CellError::Step { step, errno }
}

fn refused_limit(limit: Limit) -> impl Fn(Errno) -> CellError {
    move |errno| CellError::Limit { name: limit.name(), value: limit.value(), errno }
}

fn open_host(path: &Path, access: OFlags) -> Result<OwnedFd, CellError> {
    open(path, access | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK, Mode::empty())
        .map_err(|errno| CellError::Open { path: path.to_owned(), errno })
}

fn join_netns(netns: Option<&OwnedFd>) -> Result<(), CellError> {
    let result = match netns {
        Some(netns) => move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network)),
        None => Err(Errno::BADF),
    };
    result.map_err(named("network namespace (--netns must name one)"))
}
