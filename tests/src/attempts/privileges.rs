//! Privileges: users, capabilities, limits, and what a process may say of itself.

use super::Attempt;
use super::call::{at, call, done, int, past};
use std::io::{Error, Result};

pub(super) const ALL: &[Attempt] = &[
    Attempt::out("become-root", |_, _| done(libc::SYS_setresuid, &[0, 0, 0])),
    Attempt::out("become-root-by-setuid", |_, _| done(libc::SYS_setuid, &[0])),
    Attempt::out("become-root-by-setreuid", |_, _| done(libc::SYS_setreuid, &[0, 0])),
    Attempt::out("become-somebody-else", |_, _| done(libc::SYS_setresuid, &[54_321, 54_321, 54_321])),
    Attempt::out("become-roots-group", |_, _| done(libc::SYS_setresgid, &[0, 0, 0])),
    Attempt::out("become-another-group", |_, _| done(libc::SYS_setgid, &[54_321])),
    Attempt::out("join-groups", |_, _| done(libc::SYS_setgroups, &[1, at(&mut 6_u32)])),
    Attempt::out("open-files-as-another", |_, _| {
        call(libc::SYS_setfsuid, &[54_321])?;
        // It tells who one was, and never fails.
        match call(libc::SYS_setfsuid, &[usize::MAX])? {
            54_321 => Ok(()),
            _ => Err(Error::from_raw_os_error(libc::EPERM)),
        }
    }),
    Attempt::out("take-capabilities", |_, _| {
        let (mut header, mut sets) = ([0x2008_0522_u32, 0], [1 << 21, 1 << 21, 0, 0, 0, 0_u32]);
        done(libc::SYS_capset, &[at(&mut header), at(&mut sets)])
    }),
    Attempt::out("raise-an-ambient-capability", |_, _| {
        // Of a capability that is permitted and inheritable, which root can make it.
        let (mut header, mut sets) = ([0x2008_0522_u32, 0], [1 << 21, 1 << 21, 1 << 21, 0, 0, 0_u32]);
        done(libc::SYS_capset, &[at(&mut header), at(&mut sets)])?;
        prctl(&[47, 2, 21])
    }),
    Attempt::out("drop-from-the-bounding-set", |_, _| prctl(&[24, 21])),
    Attempt::out("set-secure-bits", |_, _| prctl(&[28, 0])),
    Attempt::out("raise-own-limit", |_, _| {
        let mut limit = [u64::MAX; 2];
        done(libc::SYS_prlimit64, &[0, int(8), at(&mut limit), 0])
    }),
    Attempt::out("raise-own-limit-by-setrlimit", |_, _| {
        let mut limit = [u64::MAX; 2];
        done(libc::SYS_setrlimit, &[int(8), at(&mut limit)])
    }),
    Attempt::out("raise-own-priority", |_, _| done(libc::SYS_setpriority, &[0, 0, int(-20)])),
    Attempt::out("run-in-real-time", |_, _| {
        done(libc::SYS_sched_setscheduler, &[0, int(libc::SCHED_FIFO), at(&mut [1_i32])])
    })
    .where_built(),
    Attempt::out("use-disks-in-real-time", |_, _| done(libc::SYS_ioprio_set, &[1, 0, 1 << 13])),
    Attempt::surface("run-anywhere", |_, _| {
        let mut cpus = [u64::MAX; 16];
        done(libc::SYS_sched_setaffinity, &[0, size_of_val(&cpus), at(&mut cpus)])
    })
    .while_building(),
    Attempt::surface("allow-execution-of-data", |_, _| done(libc::SYS_personality, &[0x040_0000])),
    Attempt::surface("turn-off-address-randomization", |_, _| done(libc::SYS_personality, &[0x004_0000])),
    Attempt::surface("be-dumped", |_, _| prctl(&[4, 1])),
    Attempt::surface("outlive-the-parent", |_, _| prctl(&[1, 0])),
    Attempt::surface("be-traced-by-anybody", |_, _| prctl(&[0x5961_6d61, usize::MAX])).where_built(),
    Attempt::surface("adopt-orphans", |_, _| prctl(&[36, 1])),
    Attempt::surface("keep-capabilities", |_, _| prctl(&[8, 1])),
    Attempt::out("take-no-new-privileges-back", |_, _| prctl(&[38, 0]))
        .nobody("EINVAL: a kernel that let it would undo every filter's condition"),
    Attempt::out("change-own-memory-map", |_, _| {
        // PR_SET_MM_START_BRK to where no program may be, which is said after the capability.
        past(&[libc::EINVAL], call(libc::SYS_prctl, &[35, 6, 1, 0, 0]))
    })
    .where_built(),
    Attempt::surface("catch-own-calls", |_, _| prctl(&[59, 0])).where_built(),
    Attempt::surface("turn-speculation-on", |_, _| {
        past(&[libc::ENXIO, libc::EPERM, libc::ENODEV], call(libc::SYS_prctl, &[53, 0, 2, 0, 0]))
    }),
    Attempt::surface("name-own-memory", |_, _| {
        past(&[libc::ENOMEM, libc::EINVAL], call(libc::SYS_prctl, &[0x5356_4d41, 0, 0x1000, 0x1000, 0]))
    }),
    Attempt::surface("limit-to-strict-mode", |_, _| {
        // With an argument that it does not have, so that the process may still speak.
        past(&[libc::EINVAL], call(libc::SYS_seccomp, &[0, 1, 0]))
    }),
    Attempt::surface("allow-everything", |_, _| filter(0)).while_building(),
    Attempt::surface("answer-own-calls", |_, _| filter(8)),
    Attempt::surface("allow-everything-by-prctl", |_, _| {
        let mut allow = [0x7fff_0000_0000_0006_u64];
        let mut program = [1_usize, at(&mut allow)];
        prctl(&[22, 2, at(&mut program)])
    }),
    Attempt::surface("make-landlock-rules", |_, _| {
        let mut rights = [1_u64];
        done(libc::SYS_landlock_create_ruleset, &[at(&mut rights), 8, 0])
    })
    .where_built(),
    Attempt::surface("ask-for-landlock", |_, _| done(libc::SYS_landlock_create_ruleset, &[0, 0, 1]))
        .where_built(),
    Attempt::surface("new-session", |_, _| past(&[libc::EPERM], call(libc::SYS_setsid, &[]))),
    Attempt::surface("change-umask", |_, _| done(libc::SYS_umask, &[0])),
    Attempt::surface("read-own-capabilities", |_, _| {
        let (mut header, mut room) = ([0x2008_0522_u32, 0], [0_u32; 6]);
        done(libc::SYS_capget, &[at(&mut header), at(&mut room)])
    }),
];

fn prctl(arguments: &[usize]) -> Result<()> {
    done(libc::SYS_prctl, arguments)
}

/// A filter that allows every call. The kernel lets it be only beside those that are on already.
fn filter(flags: usize) -> Result<()> {
    let mut allow = [0x7fff_0000_0000_0006_u64];
    let mut program = [1_usize, at(&mut allow)];
    done(libc::SYS_seccomp, &[1, flags, at(&mut program)])
}
