//! Namespaces: of one's own, and other people's.

use super::call::{at, born, call, done, int};
use super::files::open;
use super::{Attempt, World};
use std::io::Result;

/// `CLONE_NEWTIME` of linux/sched.h.
const CLONE_NEWTIME: i32 = 0x80;

pub(super) const ALL: &[Attempt] = &[
    Attempt::out("unshare-mounts", |_, _| unshare(libc::CLONE_NEWNS)),
    Attempt::out("unshare-processes", |_, _| unshare(libc::CLONE_NEWPID)),
    Attempt::out("unshare-network", |_, _| unshare(libc::CLONE_NEWNET)),
    Attempt::out("unshare-ipc", |_, _| unshare(libc::CLONE_NEWIPC)),
    Attempt::out("unshare-names", |_, _| unshare(libc::CLONE_NEWUTS)),
    Attempt::out("unshare-cgroups", |_, _| unshare(libc::CLONE_NEWCGROUP)),
    Attempt::out("unshare-clocks", |_, _| unshare(CLONE_NEWTIME)).where_built(),
    Attempt::surface("new-user-namespace", |_, _| unshare(libc::CLONE_NEWUSER)),
    Attempt::surface("unshare-descriptors", |_, _| unshare(libc::CLONE_FILES)),
    Attempt::surface("unshare-directories", |_, _| unshare(libc::CLONE_FS)),
    Attempt::surface("unshare-semaphores", |_, _| unshare(libc::CLONE_SYSVSEM)),
    Attempt::surface("mounts-of-a-new-user", |_, _| unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS)),
    Attempt::surface("network-of-a-new-user", |_, _| unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET)),
    Attempt::out("clone-mounts", |_, _| clone(libc::CLONE_NEWNS)),
    Attempt::out("clone-processes", |_, _| clone(libc::CLONE_NEWPID)),
    Attempt::out("clone-network", |_, _| clone(libc::CLONE_NEWNET)),
    Attempt::out("clone-ipc", |_, _| clone(libc::CLONE_NEWIPC)),
    Attempt::out("clone-names", |_, _| clone(libc::CLONE_NEWUTS)),
    Attempt::out("clone-cgroups", |_, _| clone(libc::CLONE_NEWCGROUP)),
    Attempt::surface("clone-a-user-namespace", |_, _| clone(libc::CLONE_NEWUSER)),
    Attempt::surface("clone3-a-user-namespace", |_, _| clone3(libc::CLONE_NEWUSER)),
    Attempt::out("clone3-mounts", |_, _| clone3(libc::CLONE_NEWNS)),
    Attempt::out("join-by-handle", |w, _| {
        let handle = call(libc::SYS_pidfd_open, &[int(w.targets.pid), 0])?;
        done(libc::SYS_setns, &[handle, int(libc::CLONE_NEWUTS)])
    }),
    Attempt::out("join-the-first-ones-mounts", |_, _| join("/proc/1/ns/mnt")),
    Attempt::out("join-the-first-ones-network", |_, _| join("/proc/1/ns/net")),
    Attempt::out("join-anothers-processes", |w, _| join(&format!("/proc/{}/ns/pid", w.targets.pid))),
    Attempt::out("host-file-of-a-new-user", |w: &World, _| {
        unshare(libc::CLONE_NEWUSER)?;
        open(&w.targets.file, libc::O_RDONLY).map(drop)
    }),
];

fn unshare(flags: i32) -> Result<()> {
    done(libc::SYS_unshare, &[int(flags)])
}

fn clone(flags: i32) -> Result<()> {
    born(call(libc::SYS_clone, &[int(flags | libc::SIGCHLD), 0, 0, 0, 0]))
}

fn clone3(flags: i32) -> Result<()> {
    let mut arguments = [0_u64; 11];
    arguments[0] = u64::from(flags.cast_unsigned());
    arguments[4] = u64::from(libc::SIGCHLD.cast_unsigned());
    born(call(libc::SYS_clone3, &[at(&mut arguments), size_of_val(&arguments)]))
}

fn join(name: &str) -> Result<()> {
    done(libc::SYS_setns, &[open(name, libc::O_RDONLY)?, 0])
}
