//! Processes outside, and processes of one's own.

use super::call::{at, born, call, done, int, past};
use super::{Attempt, World};
use std::io::Result;

/// `KCMP_FILES`: whether two processes share their descriptors.
const KCMP_FILES: usize = 2;

pub(super) const ALL: &[Attempt] = &[
    Attempt::out("signal-process", |w, _| done(libc::SYS_kill, &[pid(w), 0])),
    Attempt::out("signal-everybody", |_, _| done(libc::SYS_kill, &[int(-1), 0])),
    Attempt::out("signal-thread", |w, _| done(libc::SYS_tkill, &[pid(w), 0])),
    Attempt::out("signal-thread-of-process", |w, _| done(libc::SYS_tgkill, &[pid(w), pid(w), 0])),
    Attempt::out("queue-signal", |w, _| queue(w, libc::SYS_rt_sigqueueinfo, &[pid(w), 0])),
    Attempt::out("queue-signal-to-thread", |w, _| {
        queue(w, libc::SYS_rt_tgsigqueueinfo, &[pid(w), pid(w), 0])
    }),
    Attempt::out("handle-of-process", |w, _| handle(w).map(drop)),
    Attempt::out("signal-by-handle", |w, _| done(libc::SYS_pidfd_send_signal, &[handle(w)?, 0, 0, 0])),
    Attempt::out("steal-descriptor", |w, _| done(libc::SYS_pidfd_getfd, &[handle(w)?, 0, 0])),
    Attempt::out("advise-anothers-memory", |w, _| {
        let mut range = [0x40_0000_usize, 4096];
        let arguments = [handle(w)?, at(&mut range), 1, int(libc::MADV_COLD), 0];
        past(&[libc::ENOMEM], call(libc::SYS_process_madvise, &arguments))
    }),
    Attempt::out("reap-anothers-memory", |w, _| {
        past(&[libc::EINVAL], call(libc::SYS_process_mrelease, &[handle(w)?, 0]))
    }),
    Attempt::out("wait-by-handle", |w, _| {
        let mut status = [0_u8; 128];
        let flags = int(libc::WEXITED | libc::WNOHANG);
        // It is nobody's child here, which is said once it was found.
        past(&[libc::ECHILD], call(libc::SYS_waitid, &[3, handle(w)?, at(&mut status), flags]))
    }),
    Attempt::out("trace-process", |w, _| ptrace(libc::PTRACE_SEIZE, w)),
    Attempt::out("attach-to-process", |w, _| ptrace(libc::PTRACE_ATTACH, w)),
    Attempt::surface("be-traced", |_, _| done(libc::SYS_ptrace, &[int(libc::PTRACE_TRACEME), 0, 0, 0])),
    Attempt::out("read-process-memory", |w, _| memory(w, libc::SYS_process_vm_readv)),
    Attempt::out("write-process-memory", |w, _| memory(w, libc::SYS_process_vm_writev)),
    Attempt::out("compare-processes", |w, _| {
        done(libc::SYS_kcmp, &[pid(w), call(libc::SYS_getpid, &[])?, KCMP_FILES, 0, 0])
    }),
    Attempt::out("see-anothers-pages", |w, _| {
        let (mut page, mut status) = ([0x40_0000_usize], [0_i32]);
        done(libc::SYS_move_pages, &[pid(w), 1, at(&mut page), 0, at(&mut status), 0])
    })
    .where_built(),
    Attempt::out("move-anothers-memory", |w, _| {
        let mut nodes = [1_usize];
        done(libc::SYS_migrate_pages, &[pid(w), 2, at(&mut nodes), at(&mut nodes.clone())])
    })
    .where_built(),
    Attempt::out("see-anothers-cpus", |w, _| {
        let mut cpus = [0_u64; 128];
        done(libc::SYS_sched_getaffinity, &[pid(w), size_of_val(&cpus), at(&mut cpus)])
    }),
    Attempt::out("pin-another", |w, _| {
        let mut cpus = [u64::MAX; 16];
        done(libc::SYS_sched_setaffinity, &[pid(w), size_of_val(&cpus), at(&mut cpus)])
    }),
    Attempt::out("schedule-another", |w, _| {
        done(libc::SYS_sched_setscheduler, &[pid(w), int(libc::SCHED_BATCH), at(&mut [0_i32])])
    }),
    Attempt::out("see-anothers-schedule", |w, _| done(libc::SYS_sched_getscheduler, &[pid(w)])),
    Attempt::out("see-anothers-attributes", |w, _| {
        let mut room = [0_u8; 64];
        done(libc::SYS_sched_getattr, &[pid(w), at(&mut room), 64, 0])
    }),
    Attempt::out("slow-another", |w, _| done(libc::SYS_setpriority, &[0, pid(w), 1])),
    Attempt::out("see-anothers-priority", |w, _| done(libc::SYS_getpriority, &[0, pid(w)])),
    Attempt::out("slow-anothers-disk", |w, _| done(libc::SYS_ioprio_set, &[1, pid(w), 3 << 13])),
    Attempt::out("see-anothers-limits", |w, _| {
        done(libc::SYS_prlimit64, &[pid(w), int(0), 0, at(&mut [0_u64; 2])])
    }),
    Attempt::out("change-anothers-limits", |w, _| {
        done(libc::SYS_prlimit64, &[pid(w), 1, at(&mut [u64::MAX; 2]), 0])
    }),
    Attempt::out("see-anothers-group", |w, _| done(libc::SYS_getpgid, &[pid(w)])),
    Attempt::out("see-anothers-session", |w, _| done(libc::SYS_getsid, &[pid(w)])),
    Attempt::out("see-anothers-capabilities", |w, _| {
        let (mut header, mut room) = ([0x2008_0522_u32, w.targets.pid.cast_unsigned()], [0_u32; 6]);
        done(libc::SYS_capget, &[at(&mut header), at(&mut room)])
    }),
    Attempt::out("see-anothers-locks", |w, _| {
        let (mut head, mut size) = (0_usize, 0_usize);
        done(libc::SYS_get_robust_list, &[pid(w), at(&mut head), at(&mut size)])
    }),
    Attempt::out("share-a-core-with-another", |w, _| {
        let mut cookie = 0_u64;
        // PR_SCHED_CORE, PR_SCHED_CORE_GET. A machine without threads on its cores says ENODEV.
        past(&[libc::ENODEV], call(libc::SYS_prctl, &[62, 0, pid(w), 0, at(&mut cookie)]))
    })
    .where_built(),
    Attempt::out("measure-another", |w, _| super::kernel::measure(pid(w))),
    Attempt::surface("fork", |_, _| born(call(libc::SYS_clone, &[int(libc::SIGCHLD), 0, 0, 0, 0]))),
    Attempt::surface("clone3-a-process", |_, _| {
        let mut arguments = [0_u64; 11];
        arguments[4] = u64::from(libc::SIGCHLD.cast_unsigned());
        born(call(libc::SYS_clone3, &[at(&mut arguments), size_of_val(&arguments)]))
    }),
];

fn pid(world: &World) -> usize {
    int(world.targets.pid)
}

fn handle(world: &World) -> Result<usize> {
    call(libc::SYS_pidfd_open, &[pid(world), 0])
}

fn queue(_: &World, number: i64, to: &[usize]) -> Result<()> {
    let mut info = [0_i32; 32];
    // SI_QUEUE, the only kind that may be sent to others.
    info[2] = -1;
    let arguments: Vec<usize> = to.iter().copied().chain([at(&mut info)]).collect();
    done(number, &arguments)
}

fn ptrace(request: i32, world: &World) -> Result<()> {
    done(libc::SYS_ptrace, &[int(request), pid(world), 0, 0])
}

/// EFAULT says that the process was reached, and has nothing there.
fn memory(world: &World, number: i64) -> Result<()> {
    let mut byte = 0_u8;
    let mut local = [at(&mut byte), 1];
    let mut remote = [0x1000_usize, 1];
    past(&[libc::EFAULT], call(number, &[pid(world), at(&mut local), 1, at(&mut remote), 1, 0]))
}
