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
use rustix::process::{
    DumpableBehavior, chdir, fchdir, parent_process_death_signal, pivot_root, set_dumpable_behavior,
    set_parent_process_death_signal,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, Gid, Uid, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_keep_capabilities, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};

/// Where the control socket is in the cell; behind it the socket that a volume is served on or that a network is behind.
pub const CONTROL: RawFd = 3;
/// Above all of them.
const OUT_OF_THE_WAY: RawFd = 10;

/// Nothing that happens to mounts from here on is seen outside, nor the other way.
pub(crate) fn keep_mounts_private() -> Result<(), Errno> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
}

/// Swaps the root for an empty read-only file system, which is mounted on the old one: that is there everywhere.
pub(crate) fn empty_root() -> Result<(), Errno> {
    chdir("/")?;
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
    leave_old_root()
}

/// From the working directory, a mount of its own, which becomes the root.
pub(crate) fn leave_old_root() -> Result<(), Errno> {
    // The old root comes to lie on top of the new one, and is taken off: pivot_root(2), "pivot_root(".", ".")".
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    chdir("/")
}

/// What is open after [`keep`].
#[derive(Debug)]
pub(crate) struct Kept {
    /// The control socket and a volume's, from descriptor 3 on: all that survives the execution besides 0 to 2.
    pub(crate) handed: [Option<OwnedFd>; 2],
    /// The program; closed when it is executed.
    pub(crate) program: Option<OwnedFd>,
    /// What was standard error, in case the program cannot be executed; closed when it is.
    pub(crate) complaints: OwnedFd,
}

/// Rearranges descriptors: 0 to 2 on the null device, the control socket at 3, a volume's at 4, program and old standard
/// error behind them; everything else is closed. The caller has closed what it owned besides.
pub(crate) fn keep(
    null: OwnedFd,
    [control, volume]: [Option<OwnedFd>; 2],
    program: Option<OwnedFd>,
) -> Result<Kept, Errno> {
    let complaints = fcntl_dupfd_cloexec(std::io::stderr(), OUT_OF_THE_WAY)?;
    let null = away(null)?;
    let control = control.map(away).transpose()?;
    let volume = volume.map(away).transpose()?;
    let program = program.map(away).transpose()?;
    for standard in 0..CONTROL {
        sys::copy(null.as_fd(), standard)?;
    }
    drop(null);
    let behind = if volume.is_some() { CONTROL + 2 } else { CONTROL + 1 };
    let control = control.map(|fd| sys::place(fd, CONTROL, false)).transpose()?;
    let volume = volume.map(|fd| sys::place(fd, CONTROL + 1, false)).transpose()?;
    let kept = Kept {
        handed: [control, volume],
        program: program.map(|fd| sys::place(fd, behind, true)).transpose()?,
        complaints: sys::place(complaints, behind + 1, true)?,
    };
    sys::close_from(behind + 2)?;
    Ok(kept)
}

/// The same file at a number that nothing is about to be put at.
pub(crate) fn away(fd: OwnedFd) -> Result<OwnedFd, Errno> {
    fcntl_dupfd_cloexec(&fd, OUT_OF_THE_WAY)
}

/// No program executed from here on, whoever owns it, gets a capability. Asks the kernel how many there are.
pub(crate) fn drop_bounding_set() -> Result<(), Errno> {
    bound(CapabilitySet::empty())
}

/// No program executed from here on gets a capability beside `kept`.
fn bound(kept: CapabilitySet) -> Result<(), Errno> {
    clear_ambient_capability_set()?;
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if kept.contains(capability) {
            continue;
        }
        match remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // The first number that the kernel does not know.
            Err(Errno::INVAL) if number > 0 => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Becomes user and group, with no group beside it. All ids at once: none is left to return to. The capabilities stay, for
/// what the plan has still to do, and with them nobody else of this user may look inside meanwhile (ptrace(2)).
pub(crate) fn become_user(uid: u32, gid: u32) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    let dies_with_parent = parent_process_death_signal()?;
    set_thread_groups(&[])?;
    set_thread_res_gid(gid, gid, gid)?;
    let before = capabilities(None)?;
    set_keep_capabilities(true)?;
    set_thread_res_uid(uid, uid, uid)?;
    // They were kept as permitted only; and it was for this one change of user.
    set_capabilities(None, before)?;
    set_keep_capabilities(false)?;
    // Cleared by the change: whoever was to die with its parent still is.
    set_parent_process_death_signal(dies_with_parent)?;
    // The change made /proc/self root's, in which the user is about to write his map.
    set_dumpable_behavior(DumpableBehavior::Dumpable)
}

/// Keeps what a volume's server needs: it reads files of several owners and changes its root once; where the volume is
/// writable it also makes files in the name of the guest's users, and changes owner and mode. Root gets at its execution what
/// both the bounding and the permitted set hold (capabilities(7)).
pub(crate) fn keep_serving_capabilities(writable: bool) -> Result<(), Errno> {
    let mut kept = CapabilitySet::DAC_READ_SEARCH | CapabilitySet::SYS_CHROOT;
    if writable {
        kept |= CapabilitySet::DAC_OVERRIDE
            | CapabilitySet::FOWNER
            | CapabilitySet::CHOWN
            | CapabilitySet::SETUID
            | CapabilitySet::SETGID;
    }
    bound(kept)?;
    let inheritable = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable })
}

/// Empties the effective, permitted and inheritable sets.
pub(crate) fn drop_capabilities() -> Result<(), Errno> {
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
}
