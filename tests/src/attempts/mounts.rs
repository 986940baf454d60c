//! Mounts and roots, by the old calls and the new ones. Outside each is made in mounts of its own, which end with it.

use super::call::{CWD, at, call, done, int, past, text};
use super::{Attempt, World};
use std::ffi::CStr;
use std::io::Result;

const ROOT: &CStr = c"/";
/// `FSCONFIG_CMD_CREATE`.
const CREATE: usize = 6;
/// `OPEN_TREE_CLONE`.
const TREE: usize = 1;
/// `MOVE_MOUNT_F_EMPTY_PATH`.
const MOVE_OPEN: usize = 4;
/// `statmount` and `listmount`, since Linux 6.8.
const STATMOUNT: i64 = 457;
const LISTMOUNT: i64 = 458;

pub(super) const ALL: &[Attempt] = &[
    Attempt::out("mount", |_, _| mount(c"tmpfs", ROOT, 0)).after(own),
    Attempt::out("mount-proc", |_, _| mount(c"proc", ROOT, 0)).after(own),
    Attempt::out("mount-sysfs", |_, _| mount(c"sysfs", ROOT, 0)).after(own),
    Attempt::out("mount-cgroups", |_, _| mount(c"cgroup2", ROOT, 0)).after(own),
    Attempt::out("mount-bound", |_, _| mount(c"none", ROOT, libc::MS_BIND)).after(own),
    Attempt::out("mount-writable-again", |_, _| {
        // First a mount of its own, where there may be one: the root itself stays as it is.
        drop(mount(c"tmpfs", c"/tmp", 0));
        past(&[libc::EINVAL], remount(c"/tmp", 0).or_else(|_| remount(ROOT, 0)))
    })
    .after(own),
    Attempt::out("mount-shared", |_, _| mount(c"none", ROOT, libc::MS_PRIVATE | libc::MS_REC)).after(own),
    Attempt::out("unmount", |_, _| {
        past(&[libc::EINVAL, libc::EBUSY], call(libc::SYS_umount2, &[text(ROOT), int(libc::MNT_EXPIRE)]))
    })
    .after(own),
    Attempt::out("open-a-file-system", |_, _| fsopen().map(drop)),
    Attempt::out("create-a-file-system", |_, _| create().map(drop)),
    Attempt::out("pick-a-file-system", |_, _| done(libc::SYS_fspick, &[CWD, text(ROOT), 0])),
    Attempt::out("clone-a-tree", |_, _| tree().map(drop)),
    Attempt::surface("open-a-tree", |_, _| done(libc::SYS_open_tree, &[CWD, text(ROOT), 0])),
    Attempt::out("move-a-mount", |_, _| {
        done(libc::SYS_move_mount, &[tree()?, text(c""), CWD, text(ROOT), MOVE_OPEN])
    })
    .after(own),
    Attempt::out("change-a-mount", |_, _| {
        let mut attributes = [0_u64; 4];
        // MOUNT_ATTR_NOATIME is a value of its own field: access times are what they were.
        attributes[1] = 0;
        done(libc::SYS_mount_setattr, &[CWD, text(ROOT), 0, at(&mut attributes), size_of_val(&attributes)])?;
        attributes[0] = 2;
        done(libc::SYS_mount_setattr, &[CWD, text(ROOT), 0, at(&mut attributes), size_of_val(&attributes)])
    })
    .after(own),
    Attempt::surface("list-mounts", |_, _| {
        // All below the root of the namespace.
        let (mut request, mut room) = ([24_u64, u64::MAX, 0], [0_u64; 16]);
        done(LISTMOUNT, &[at(&mut request), at(&mut room), 16, 0])
    })
    .where_built(),
    Attempt::surface("describe-a-mount", |_, _| {
        let (mut request, mut room) = ([24_u64, 0x7fff_ffff_ffff, 2], [0_u64; 128]);
        past(&[libc::ENOENT], call(STATMOUNT, &[at(&mut request), at(&mut room), size_of_val(&room), 0]))
    })
    .where_built(),
    Attempt::out("change-root", |_, _| done(libc::SYS_chroot, &[text(ROOT)])),
    Attempt::out("swap-root", |_, _| {
        // The same directory twice is no root to swap, which is said after the permission.
        past(&[libc::EBUSY, libc::EINVAL], call(libc::SYS_pivot_root, &[text(ROOT), text(ROOT)]))
    })
    .after(own),
];

/// Mounts of one's own, and nothing that happens in them is seen outside.
fn own(_: &World) -> Result<usize> {
    done(libc::SYS_unshare, &[int(libc::CLONE_NEWNS)])?;
    mount(c"none", ROOT, libc::MS_PRIVATE | libc::MS_REC)?;
    Ok(0)
}

fn mount(kind: &CStr, on: &CStr, flags: u64) -> Result<()> {
    let flags = usize::try_from(flags).unwrap_or_default();
    let source = if flags == 0 { kind } else { ROOT };
    done(libc::SYS_mount, &[text(source), text(on), text(kind), flags, 0])
}

fn remount(on: &CStr, flags: u64) -> Result<usize> {
    let flags = usize::try_from(flags | libc::MS_REMOUNT | libc::MS_BIND).unwrap_or_default();
    call(libc::SYS_mount, &[text(c"none"), text(on), text(c"none"), flags, 0])
}

fn fsopen() -> Result<usize> {
    call(libc::SYS_fsopen, &[text(c"tmpfs"), 0])
}

fn create() -> Result<usize> {
    let system = fsopen()?;
    done(libc::SYS_fsconfig, &[system, CREATE, 0, 0, 0])?;
    call(libc::SYS_fsmount, &[system, 0, 0])
}

fn tree() -> Result<usize> {
    call(libc::SYS_open_tree, &[CWD, text(ROOT), TREE])
}
