//! Roots with something of the host's in them: a volume, or the host's programs.
//!
//! Owns the mounts on their way there. First they are taken: copied from where the host's can be named, attached to nothing, cut off
//! from what is mounted there later, with their attributes. Then they are put into a root, in a mount namespace that has nothing of
//! the host's itself. Invariant: what was not taken is not in the root, and each of them is one mount: other file systems that are
//! mounted below it do not come along.

use crate::cell;
use crate::sys;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, mkdirat, open, openat, readlinkat, symlinkat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};
use rustix::process::{chdir, fchdir};
use std::ffi::CString;

/// Where a volume's server finds the directory, relative to its root.
const VOLUME: &str = "volume";
/// Where the host keeps programs, their loader and their libraries; on many hosts the last two are links into the first.
const SYSTEM: [&str; 3] = ["usr", "lib", "lib64"];
/// The file that says where names are asked for.
const RESOLVERS: &str = "etc/resolv.conf";

/// A name in a root.
#[derive(Debug)]
pub(crate) enum Part {
    /// An empty directory.
    Empty(&'static str),
    /// A directory of the host's.
    Directory(&'static str, OwnedFd),
    /// A file of the host's.
    File(&'static str, OwnedFd),
    /// A symbolic link.
    Link(&'static str, CString),
}

/// What no mount in a root is without.
fn strict() -> MountAttrFlags {
    MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV
}

/// Takes the working directory, as [`VOLUME`].
pub(crate) fn volume(writable: bool) -> Result<Vec<Part>, Errno> {
    let attributes = strict() | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let read_only = attributes | MountAttrFlags::MOUNT_ATTR_RDONLY;
    let mount = take(CWD, ".", if writable { attributes } else { read_only })?;
    Ok(vec![Part::Directory(VOLUME, mount)])
}

/// Takes the host's programs and libraries and its [`RESOLVERS`]: what a program of the host's needs to start, and with an empty
/// /tmp to make itself an empty root.
pub(crate) fn system() -> Result<Vec<Part>, Errno> {
    let host = open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let attributes = strict() | MountAttrFlags::MOUNT_ATTR_RDONLY;
    let mut parts = Vec::new();
    for name in SYSTEM {
        match readlinkat(&host, name, Vec::new()) {
            Ok(target) => parts.push(Part::Link(name, target)),
            // It is there, and no link.
            Err(Errno::INVAL) => parts.push(Part::Directory(name, take(&host, name, attributes)?)),
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    parts.extend([Part::Empty("etc"), Part::Empty("tmp")]);
    parts.extend(take(&host, RESOLVERS, attributes).ok().map(|mount| Part::File(RESOLVERS, mount)));
    Ok(parts)
}

/// A copy of one mount, from `path` on. Nothing can be mounted on it from outside, for nobody has a path to it.
fn take(at: impl AsFd, path: &str, attributes: MountAttrFlags) -> Result<OwnedFd, Errno> {
    let mount = open_tree(at, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    sys::cut_off_mount(mount.as_fd(), attributes)?;
    Ok(mount)
}

/// Swaps the root for a read-only one that holds `parts` and a /proc of the process's own.
pub(crate) fn enter(parts: Vec<Part>) -> Result<(), Errno> {
    let attributes = strict() | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let read_only = attributes | MountAttrFlags::MOUNT_ATTR_RDONLY;
    let filesystem = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in [("size", "4096"), ("nr_inodes", "16"), ("mode", "0555")] {
        fsconfig_set_string(filesystem.as_fd(), key, value)?;
    }
    fsconfig_create(filesystem.as_fd())?;
    let root = fsmount(filesystem.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    chdir("/")?;
    move_mount(root.as_fd(), "", CWD, ".", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    let proc = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(proc.as_fd(), "subset", "pid")?;
    fsconfig_create(proc.as_fd())?;
    let proc = fsmount(proc.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, read_only)?;
    for part in parts.into_iter().chain([Part::Directory("proc", proc)]) {
        put(&root, part)?;
    }
    sys::set_mount_attributes(root.as_fd(), read_only)?;
    fchdir(root.as_fd())?;
    cell::leave_old_root()
}

fn put(root: &OwnedFd, part: Part) -> Result<(), Errno> {
    let directory = Mode::from_raw_mode(0o555);
    let place = |mount: OwnedFd, name: &str| {
        move_mount(mount.as_fd(), "", root.as_fd(), name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
    };
    match part {
        Part::Empty(name) => mkdirat(root, name, directory),
        Part::Link(name, target) => symlinkat(target, root, name),
        Part::Directory(name, mount) => {
            mkdirat(root, name, directory)?;
            place(mount, name)
        }
        Part::File(name, mount) => {
            let create = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            openat(root, name, create, Mode::from_raw_mode(0o444))?;
            place(mount, name)
        }
    }
}
