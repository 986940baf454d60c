//! What the new process does to itself before it becomes the runtime: root, descriptors, limits, privileges.
//!
//! Each function is one step, and each only takes something away. The order is the plan's.

use crate::sys;
use rustix::fd::{AsFd, OwnedFd, RawFd};
use rustix::fs::CWD;
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount_change, move_mount,
    unmount,
};
use rustix::process::{chdir, fchdir, pivot_root};
use rustix::thread::{
    CapabilitySet, CapabilitySets, Gid, Uid, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};

/// Where the control socket is in the cell.
pub const CONTROL: RawFd = 3;
/// Where the program is until it is executed.
const PROGRAM: RawFd = 4;
/// Where standard error is until the program is executed.
const COMPLAINTS: RawFd = 5;
/// Above all of them.
const OUT_OF_THE_WAY: RawFd = 10;

/// Nothing that happens to mounts from here on is seen outside, nor the other way.
pub(crate) fn keep_mounts_private() -> Result<(), Errno> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
}

/// Swaps the root for an empty read-only file system. The working directory must be the jail's `root`: it was entered
/// before the clone, and the kernel moved it into this mount namespace, so that no path is resolved a second time.
pub(crate) fn empty_root() -> Result<(), Errno> {
    let filesystem = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(filesystem.as_fd(), "size", "4096")?;
    fsconfig_set_string(filesystem.as_fd(), "nr_inodes", "2")?;
    fsconfig_set_string(filesystem.as_fd(), "mode", "0555")?;
    fsconfig_set_flag(filesystem.as_fd(), "ro")?;
    fsconfig_create(filesystem.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let root = fsmount(filesystem.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    move_mount(root.as_fd(), "", CWD, ".", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    fchdir(root.as_fd())?;
    // The old root comes to lie on top of the new one, and is taken off: pivot_root(2), "pivot_root(".", ".")".
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    chdir("/")
}

/// What is open after [`keep`].
#[derive(Debug)]
pub(crate) struct Kept {
    /// The control socket, descriptor 3, the only one that survives the execution besides 0 to 2.
    pub(crate) control: Option<OwnedFd>,
    /// The program; closed when it is executed.
    pub(crate) program: Option<OwnedFd>,
    /// What was standard error, in case the program cannot be executed; closed when it is.
    pub(crate) complaints: OwnedFd,
}

/// Rearranges descriptors: 0 to 2 on the null device, the control socket at 3, program and old standard error behind
/// it; everything else is closed. The caller has closed what it owned besides.
pub(crate) fn keep(null: OwnedFd, control: Option<OwnedFd>, program: Option<OwnedFd>) -> Result<Kept, Errno> {
    let complaints = fcntl_dupfd_cloexec(std::io::stderr(), OUT_OF_THE_WAY)?;
    let null = away(null)?;
    let control = control.map(away).transpose()?;
    let program = program.map(away).transpose()?;
    for standard in 0..CONTROL {
        sys::copy(null.as_fd(), standard)?;
    }
    drop(null);
    let kept = Kept {
        control: control.map(|fd| sys::place(fd, CONTROL, false)).transpose()?,
        program: program.map(|fd| sys::place(fd, PROGRAM, true)).transpose()?,
        complaints: sys::place(complaints, COMPLAINTS, true)?,
    };
    sys::close_from(COMPLAINTS + 1)?;
    Ok(kept)
}

/// The same file at a number that nothing is about to be put at.
fn away(fd: OwnedFd) -> Result<OwnedFd, Errno> {
    fcntl_dupfd_cloexec(&fd, OUT_OF_THE_WAY)
}

/// No program executed from here on, whoever owns it, gets a capability. Asks the kernel how many there are.
pub(crate) fn drop_bounding_set() -> Result<(), Errno> {
    clear_ambient_capability_set()?;
    for number in 0..u64::BITS {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number)) {
            Ok(()) => {}
            // The first number that the kernel does not know.
            Err(Errno::INVAL) if number > 0 => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Becomes user and group, with no group beside it. All ids at once: none is left to return to.
pub(crate) fn become_user(uid: u32, gid: u32) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    set_thread_groups(&[])?;
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)
}

/// The change of user cleared the effective and permitted sets; this clears the inheritable one as well.
pub(crate) fn drop_capabilities() -> Result<(), Errno> {
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
}
