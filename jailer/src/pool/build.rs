//! Makes the pool and removes it. Called with the parent's lock held alone.
//!
//! Owns the order: first what an interrupted maker left goes, then the directory is bound on itself, so that it is a mount that is
//! private; the pool is bound last. Refuses a directory with names in it that are not the pool's.

use super::{FREE, HOLDER, NET, POOL, Place, PoolError, STUB, hold, open_strictly};
use crate::caller::Caller;
use crate::cell;
use crate::host;
use crate::sys;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, ResolveFlags, mkdirat, openat, unlinkat};
use rustix::io::Errno;
use rustix::mount::{
    MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount_change, move_mount, open_tree,
    unmount,
};
use rustix::process::fchdir;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Mounts on top of each other that are taken off the directory.
const MOST_MOUNTS: usize = 16;

/// Makes the pool.
pub(super) fn build(place: &Place, caller: Caller) -> Result<(), PoolError> {
    clear(place, caller)?;
    furnish(place).map_err(place.failed("make the files"))?;
    if caller.is_root() {
        bind_on_host(place).map_err(place.failed("make the namespaces"))
    } else {
        hold::start(place, caller)
    }
}

/// Takes everything away but the directory. No process holds it any more, and nobody is about to use it.
pub(super) fn clear(place: &Place, caller: Caller) -> Result<(), PoolError> {
    if caller.is_root() {
        fchdir(&place.parent).map_err(place.failed("enter"))?;
        let detach = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
        for _ in 0..MOST_MOUNTS {
            match unmount(place.name.as_c_str(), detach) {
                Ok(()) => {}
                // Nothing is mounted there, or nothing may be by this caller.
                Err(Errno::INVAL | Errno::PERM) => break,
                Err(errno) => return Err(place.failed("unmount")(errno)),
            }
        }
    }
    let dir = open(place).map_err(place.failed("open"))?;
    let entries = Dir::read_from(&dir).map_err(place.failed("list"))?;
    let names: Vec<_> = entries.filter_map(Result::ok).map(|entry| entry.file_name().to_owned()).collect();
    for name in &names {
        let failed = place.failed("remove what is left of another");
        match name.to_str() {
            Ok("." | "..") => {}
            Ok(file @ (POOL | STUB | HOLDER)) => unlinkat(&dir, file, AtFlags::empty()).map_err(failed)?,
            Ok(directory @ (NET | FREE)) => empty(&dir, directory).map_err(failed)?,
            _ => {
                let why = format!("holds {name:?}, which is nothing of Husk's; remove it");
                return Err(PoolError::Refused { path: place.path.clone(), why });
            }
        }
    }
    Ok(())
}

/// The directory itself, not what was mounted on it when the place was opened.
fn open(place: &Place) -> Result<OwnedFd, Errno> {
    open_strictly(&place.parent, place.name.as_c_str(), ResolveFlags::BENEATH)
}

fn empty(at: &OwnedFd, name: &str) -> Result<(), Errno> {
    let directory = open_strictly(at, name, ResolveFlags::BENEATH)?;
    for entry in Dir::read_from(&directory)?.filter_map(Result::ok) {
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            unlinkat(&directory, entry.file_name(), AtFlags::empty())?;
        }
    }
    unlinkat(at, name, AtFlags::REMOVEDIR)
}

/// What mounts are put on.
fn furnish(place: &Place) -> Result<(), Errno> {
    let dir = open(place)?;
    for name in [NET, FREE] {
        mkdirat(&dir, name, Mode::from_raw_mode(0o700))?;
    }
    [POOL, STUB].into_iter().try_for_each(|name| touch(&dir, name))
}

/// Makes an empty file, which must be new.
pub(super) fn touch(at: impl AsFd, name: impl rustix::path::Arg) -> Result<(), Errno> {
    let new = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    openat(at, name, new, Mode::from_raw_mode(0o600)).map(drop)
}

/// Root's: held by a bind of the host's, with no process.
fn bind_on_host(place: &Place) -> Result<(), Errno> {
    // Where the pool is, there is no /proc.
    host::keep()?;
    let below = open(place)?;
    fchdir(&place.parent)?;
    bind(&below, &place.parent, place.name.as_c_str())?;
    // A mount namespace can be bound on a private mount only, and nobody else is to have a copy of it.
    mount_change(place.name.as_c_str(), MountPropagationFlags::PRIVATE)?;
    let dir = open(place)?;
    let host = own(c"mnt")?;
    fchdir(&dir)?;
    sys::unshare(libc::CLONE_NEWNS)?;
    let pool = settle()?;
    move_into_link_name_space(host.as_fd(), Some(LinkNameSpaceType::Mount))?;
    bind(&pool, &dir, POOL)
}

/// In a mount namespace of the process's own, with the directory as the working directory: leaves nothing in it but the directory,
/// as the root, with the stub bound in it. Returns the namespace.
pub(super) fn settle() -> Result<OwnedFd, Errno> {
    cell::keep_mounts_private()?;
    let here = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let root = open_tree(CWD, ".", here)?;
    move_mount(root.as_fd(), "", CWD, ".", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    fchdir(root.as_fd())?;
    cell::leave_old_root()?;
    let pool = own(c"mnt")?;
    sys::unshare(libc::CLONE_NEWNS)?;
    cell::empty_root()?;
    let stub = own(c"mnt")?;
    move_into_link_name_space(pool.as_fd(), Some(LinkNameSpaceType::Mount))?;
    bind(&stub, CWD, STUB)?;
    Ok(pool)
}

/// One of this process's own namespaces; /proc is the host's.
pub(super) fn own(kind: &std::ffi::CStr) -> Result<OwnedFd, Errno> {
    let path = format!("/proc/self/ns/{}", kind.to_string_lossy());
    host::open(&path, OFlags::RDONLY)
}

/// Mounts what `from` is at `name`, by descriptors alone.
pub(super) fn bind(from: &OwnedFd, at: impl AsFd, name: impl rustix::path::Arg) -> Result<(), Errno> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(from, "", flags)?;
    move_mount(tree.as_fd(), "", at, name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// Removes the pool and the directory.
pub(super) fn remove(place: &Place, caller: Caller) -> Result<(), PoolError> {
    if !caller.is_root() {
        hold::end(place)?;
    }
    clear(place, caller)?;
    unlinkat(&place.parent, place.name.as_c_str(), AtFlags::REMOVEDIR).map_err(place.failed("remove"))
}
