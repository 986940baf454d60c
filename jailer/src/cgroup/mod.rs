//! The sandbox's cgroups: where each controller lives on this host, one directory per hierarchy, limits written.
//!
//! Refuses a cgroup that exists, a controller that no hierarchy offers, and a limit that the kernel does not take. A
//! failure leaves nothing of this sandbox behind. v2: `<mount>/<parent>/<id>`, and the process is born there; v1: the
//! same below each needed controller's mount, and the process enters before it does anything else.

mod mounts;
mod setting;
mod v1;
mod v2;

pub(crate) use setting::settings;
pub use setting::{Setting, SettingError};

use crate::host;
use crate::report::Fault;
use mounts::Mounts;
use rustix::fd::OwnedFd;
use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
use rustix::io::{Errno, retry_on_intr, write};
use std::path::{Path, PathBuf};

/// What is to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// The only version to use.
    pub version: Option<u8>,
    /// Names between a hierarchy's mount and the sandbox's cgroup.
    pub parent: Vec<String>,
    /// The sandbox.
    pub id: String,
    /// What is written, in this order.
    pub settings: Vec<Setting>,
}

impl Order {
    /// The sandbox's cgroup below a hierarchy's mount.
    fn below(&self, mount: &Path) -> PathBuf {
        self.parent.iter().fold(mount.to_owned(), |path, name| path.join(name)).join(&self.id)
    }
}

/// Cgroups that are there now.
#[derive(Debug, Default)]
pub(crate) struct Made {
    /// v2: the directory that the process is born into.
    pub(crate) unified: Option<OwnedFd>,
    /// v1: `cgroup.procs` of each hierarchy, opened for writing.
    procs: Vec<OwnedFd>,
    directories: Vec<PathBuf>,
}

/// A cgroup that cannot be.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// No such controller.
    #[error("cgroup controller {controller} (for {file}): not offered by this host{}", only(*version))]
    Missing {
        /// Which.
        controller: String,
        /// What needs it.
        file: String,
        /// The only version that was allowed.
        version: Option<u8>,
    },
    /// Taken.
    #[error("cgroup {}: exists already; another sandbox has this id, or its remains were not removed", .0.display())]
    Exists(PathBuf),
    /// A directory.
    #[error("cgroup {}: {errno}", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        errno: Errno,
    },
    /// Controllers that cannot be handed down.
    #[error("cgroup controllers {controllers} cannot be enabled in {}: {errno}", path.display())]
    Enable {
        /// `+cpu +memory`.
        controllers: String,
        /// The file.
        path: PathBuf,
        /// Why.
        errno: Errno,
    },
    /// No such file.
    #[error("cgroup file {}: its controller has no such file on this host", .0.display())]
    NoFile(PathBuf),
    /// A limit that the kernel does not take.
    #[error("cgroup limit {}={value:?}: {errno}", path.display())]
    Set {
        /// The file.
        path: PathBuf,
        /// What was written.
        value: String,
        /// Why not.
        errno: Errno,
    },
    /// The process cannot enter.
    #[error("cgroup.procs: the sandbox's process cannot enter its cgroup: {0}")]
    Enter(Errno),
}

fn only(version: Option<u8>) -> String {
    version.map(|version| format!(" in version {version}")).unwrap_or_default()
}

impl CgroupError {
    /// Who is to blame.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::Exists(_) | Self::NoFile(_) => Fault::Operator,
            Self::Set { errno, .. } if [Errno::INVAL, Errno::RANGE].contains(errno) => Fault::Operator,
            _ => Fault::Host,
        }
    }
}

/// Makes what `order` asks for.
pub(crate) fn make(order: &Order) -> Result<Made, CgroupError> {
    let mut made = Made::default();
    match fill(order, &mut made) {
        Ok(()) => Ok(made),
        Err(error) => {
            made.remove();
            Err(error)
        }
    }
}

/// Finds what [`make`] has made for the same order; nothing is written, and nothing is [`Made::remove`]'s.
pub(crate) fn find(order: &Order) -> Result<Made, CgroupError> {
    let mounts = Mounts::of_this_host(order.version);
    let mut made = Made::default();
    let mut legacy: Vec<v1::Hierarchy<'_>> = Vec::new();
    for setting in order.settings.iter().filter(|setting| !mounts.unified_has(setting.controller())) {
        if let Some(mount) = mounts.legacy(setting.controller()) {
            v1::file_under(&mut legacy, mount, setting)?;
        }
    }
    if let Some(mount) = mounts.unified() {
        made.unified = Some(directory(&order.below(mount))?);
    }
    for hierarchy in &legacy {
        made.procs.push(v1::procs(hierarchy, order)?);
    }
    Ok(made)
}

/// Finds the cgroup of version 2 that the sandbox's would be made in, for the process itself. None: nothing is entered.
pub(crate) fn find_parent(order: &Order) -> Result<Made, CgroupError> {
    let mounts = Mounts::of_this_host(order.version);
    let Some(mount) = mounts.unified() else { return Ok(Made::default()) };
    let path = order.parent.iter().fold(mount.to_owned(), |path, name| path.join(name));
    match directory(&path) {
        Ok(parent) => Ok(Made { unified: Some(parent), ..Made::default() }),
        Err(CgroupError::Directory { errno: Errno::NOENT, .. }) => Ok(Made::default()),
        Err(error) => Err(error),
    }
}

fn fill(order: &Order, made: &mut Made) -> Result<(), CgroupError> {
    let mounts = Mounts::of_this_host(order.version);
    let mut unified: Vec<&Setting> = Vec::new();
    let mut legacy: Vec<v1::Hierarchy<'_>> = Vec::new();
    for setting in &order.settings {
        let controller = setting.controller();
        if mounts.unified_has(controller) {
            unified.push(setting);
        } else if let Some(mount) = mounts.legacy(controller) {
            v1::file_under(&mut legacy, mount, setting)?;
        } else if !setting.is_optional() {
            let (controller, file) = (controller.to_owned(), setting.file().to_owned());
            return Err(CgroupError::Missing { controller, file, version: order.version });
        }
    }
    if let Some(mount) = mounts.unified() {
        v2::make(mount, order, &unified, made)?;
    }
    legacy.iter().try_for_each(|hierarchy| v1::make(hierarchy, order, made))
}

impl Made {
    /// The calling process enters the v1 cgroups, and the v2 one where it was not born there.
    pub(crate) fn enter(&self) -> Result<(), CgroupError> {
        if let Some(unified) = &self.unified {
            put(unified, "cgroup.procs", "0").map_err(CgroupError::Enter)?;
        }
        let enter = |procs: &OwnedFd| retry_on_intr(|| write(procs, b"0"));
        self.procs.iter().try_for_each(|procs| enter(procs).map(drop).map_err(CgroupError::Enter))
    }

    /// Takes back what was made; for a sandbox that never was.
    pub(crate) fn remove(&self) {
        for directory in self.directories.iter().rev() {
            host::remove_directory(directory);
        }
    }

    /// Makes the sandbox's own directory, which must be new, in an existing parent.
    fn claim(&mut self, path: PathBuf) -> Result<OwnedFd, CgroupError> {
        match mkdirat(CWD, &path, Mode::from_raw_mode(0o755)) {
            Ok(()) => {}
            Err(Errno::EXIST) => return Err(CgroupError::Exists(path)),
            Err(errno) => return Err(CgroupError::Directory { path, errno }),
        }
        self.directories.push(path.clone());
        directory(&path)
    }
}

fn directory(path: &Path) -> Result<OwnedFd, CgroupError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty())
        .map_err(|errno| CgroupError::Directory { path: path.into(), errno })
}

/// Makes a directory that many sandboxes share.
fn share(path: &Path) -> Result<(), CgroupError> {
    match mkdirat(CWD, path, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(CgroupError::Directory { path: path.into(), errno }),
    }
}

/// Writes one value; `ENOENT` is the caller's to understand.
fn put(directory: &OwnedFd, file: &str, value: &str) -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(directory, file, flags, Mode::empty())?;
    // What takes the kernel its time, as taking memory back does, a signal interrupts.
    retry_on_intr(|| write(&file, value.as_bytes())).map(drop)
}
