//! The mounts of Firecracker's layout: the directory as a root, and the device nodes on a file system of their own.
//!
//! The nodes are those that Firecracker opens: /dev/kvm and /dev/net/tun, /dev/urandom (MMDS version 2 needs it) and, where the host has
//! one, /dev/userfaultfd. They are the user's, nobody else's, and cannot be added to, renamed or removed. Invariant: nothing in the
//! directory is made or changed, so nothing is left in it.

use super::directory::DEV;
use crate::caller::Caller;
use crate::host;
use crate::jail::open_below;
use crate::sys;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Uid, chmodat, chownat, makedev, mkdirat, mknodat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount_change, move_mount, open_tree,
};

/// admin-guide/devices.txt of Linux: name, major and minor number.
const NODES: [(&str, u32, u32); 3] = [("kvm", 10, 232), ("net/tun", 10, 200), ("urandom", 1, 9)];
/// Major number of the devices that /proc/misc lists.
const MISC: u32 = 10;
const NET: &str = "net";

/// What the mounts of the root have, and those that the operator makes below it later have not: they are as he makes them.
fn strict() -> MountAttrFlags {
    MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC
}

/// Makes a mount of `directory`, with what is mounted below it, that is attached to nothing. What the operator mounts there later is
/// seen in it; what is mounted in it is not his.
pub(super) fn take(directory: &OwnedFd) -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(directory, "", flags)?;
    sys::follow_tree(tree.as_fd(), strict())?;
    Ok(tree)
}

/// Attaches `tree` to the working directory, with nodes for `user` in it. It can become the root then.
pub(super) fn mount(tree: &OwnedFd, user: Caller) -> Result<(), Errno> {
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
    let itself = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(tree.as_fd(), "", CWD, ".", itself)?;
    let nodes = nodes(user, strict())?;
    move_mount(
        nodes.as_fd(),
        "",
        open_below(tree, DEV)?.as_fd(),
        "",
        itself | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH,
    )
}

fn nodes(user: Caller, strict: MountAttrFlags) -> Result<OwnedFd, Errno> {
    let filesystem = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in [("size", "4096"), ("nr_inodes", "8"), ("mode", "0700")] {
        fsconfig_set_string(filesystem.as_fd(), key, value)?;
    }
    fsconfig_create(filesystem.as_fd())?;
    let dev = fsmount(filesystem.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, strict)?;
    mkdirat(&dev, NET, Mode::from_raw_mode(0o700))?;
    let own = |name: &str, mode| {
        chmodat(&dev, name, Mode::from_raw_mode(mode), AtFlags::empty())?;
        chownat(&dev, name, Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(user.gid)), AtFlags::empty())
    };
    let misc = host::read("/proc/misc").unwrap_or_default();
    let faults = minor(&misc, "userfaultfd").map(|minor| ("userfaultfd", MISC, minor));
    for (name, major, minor) in NODES.into_iter().chain(faults) {
        let kind = FileType::CharacterDevice;
        mknodat(&dev, name, kind, Mode::from_raw_mode(0o600), makedev(major, minor))?;
        own(name, 0o600)?;
    }
    own(NET, 0o700)?;
    own(".", 0o700)?;
    sys::set_mount_attributes(dev.as_fd(), strict | MountAttrFlags::MOUNT_ATTR_RDONLY)?;
    Ok(dev)
}

/// The minor number of `device` in the text of /proc/misc.
fn minor(misc: &str, device: &str) -> Option<u32> {
    misc.lines().find_map(|line| {
        let (number, name) = line.trim().split_once(' ')?;
        (name == device).then(|| number.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misc_device_is_found_by_its_whole_name() {
        let misc = "259 cpu_dma_latency\n 57 userfaultfd\n1 userfaultfd2\nnonsense\n";
        assert_eq!(minor(misc, "userfaultfd"), Some(57));
        assert_eq!(minor(misc, "cpu"), None);
        assert_eq!(minor("x userfaultfd", "userfaultfd"), None);
    }
}
