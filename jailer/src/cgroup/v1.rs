//! Cgroups of version 1: one directory per hierarchy that a limit needs.
//!
//! A cpuset has no CPUs and no memory nodes when it is made, and nothing can run in it; so both are taken from its
//! parent before the limits are written.

use super::{CgroupError, Made, Order, Setting, put, share};
use rustix::fd::OwnedFd;
use rustix::fs::{CWD, Mode, OFlags, openat, stat};
use rustix::io::Errno;
use std::path::{Path, PathBuf};

/// One hierarchy and what is written into the sandbox's cgroup there.
pub(super) struct Hierarchy<'a> {
    mount: PathBuf,
    /// Device number of the mounted file system: two controllers may share one.
    device: u64,
    settings: Vec<&'a Setting>,
}

/// Adds `setting` to the hierarchy at `mount`.
pub(super) fn file_under<'a>(
    hierarchies: &mut Vec<Hierarchy<'a>>,
    mount: PathBuf,
    setting: &'a Setting,
) -> Result<(), CgroupError> {
    let status = stat(&mount).map_err(|errno| CgroupError::Directory { path: mount.clone(), errno })?;
    match hierarchies.iter_mut().find(|hierarchy| hierarchy.device == status.st_dev) {
        Some(hierarchy) => hierarchy.settings.push(setting),
        None => hierarchies.push(Hierarchy { mount, device: status.st_dev, settings: vec![setting] }),
    }
    Ok(())
}

pub(super) fn make(hierarchy: &Hierarchy<'_>, order: &Order, made: &mut Made) -> Result<(), CgroupError> {
    let is_cpuset = hierarchy.settings.iter().any(|setting| setting.controller() == "cpuset");
    let mut path = hierarchy.mount.clone();
    for name in &order.parent {
        let above = path.clone();
        path.push(name);
        share(&path)?;
        if is_cpuset {
            inherit(&above, &path)?;
        }
    }
    let parent = path.clone();
    path.push(&order.id);
    let leaf = made.claim(path.clone())?;
    if is_cpuset {
        inherit(&parent, &path)?;
    }
    for setting in &hierarchy.settings {
        let file = path.join(setting.file());
        match put(&leaf, setting.file(), setting.value()) {
            Ok(()) => {}
            Err(Errno::NOENT) if setting.is_optional() => {}
            Err(Errno::NOENT) => return Err(CgroupError::NoFile(file)),
            Err(errno) => {
                let value = setting.value().to_owned();
                return Err(CgroupError::Set { path: file, value, errno });
            }
        }
    }
    made.procs.push(procs(hierarchy, order)?);
    Ok(())
}

/// Where a process enters the sandbox's cgroup.
pub(super) fn procs(hierarchy: &Hierarchy<'_>, order: &Order) -> Result<OwnedFd, CgroupError> {
    let path = order.below(&hierarchy.mount).join("cgroup.procs");
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(CWD, &path, flags, Mode::empty()).map_err(|errno| CgroupError::Directory { path, errno })
}

/// Gives an empty cpuset what its parent has.
fn inherit(parent: &Path, child: &Path) -> Result<(), CgroupError> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let read = |directory: &Path| std::fs::read_to_string(directory.join(file)).unwrap_or_default();
        if !read(child).trim().is_empty() {
            continue;
        }
        let value = read(parent).trim().to_owned();
        put(&super::directory(child)?, file, &value).map_err(|errno| CgroupError::Set {
            path: child.join(file),
            value,
            errno,
        })?;
    }
    Ok(())
}
