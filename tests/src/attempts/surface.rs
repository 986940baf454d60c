//! Calls that do no harm by themselves, of parts of the kernel that no runtime needs: each is code that could have a hole.

use super::Attempt;
use super::call::{at, call, done, int, past, text};

pub(super) const ALL: &[Attempt] = &[
    Attempt::surface("files-of-events-by-epoll", |_, _| {
        // epoll_create1 is what rules allow, without a size.
        done(libc::SYS_epoll_pwait2, &[usize::MAX, at(&mut [0_u64; 2]), 1, 0, 0, 8])
            .or_else(past_bad_descriptor)
    }),
    Attempt::surface("timer-of-a-process", |_, _| done(libc::SYS_timer_create, &[0, 0, at(&mut 0_i32)])),
    Attempt::surface("interval-timer", |_, _| done(libc::SYS_setitimer, &[1, at(&mut [0_u64; 4]), 0])),
    Attempt::surface("which-cpu", |_, _| done(libc::SYS_getcpu, &[at(&mut 0_u32), 0, 0])),
    Attempt::surface("name-of-the-kernel", |_, _| done(libc::SYS_uname, &[at(&mut [0_u8; 390])])),
    Attempt::surface("memory-of-the-machine", |_, _| done(libc::SYS_sysinfo, &[at(&mut [0_u64; 14])])),
    Attempt::surface("own-groups", |_, _| done(libc::SYS_getgroups, &[0, 0])),
    Attempt::surface("own-times", |_, _| done(libc::SYS_times, &[at(&mut [0_u64; 4])])),
    Attempt::surface("own-directory", |_, _| done(libc::SYS_getcwd, &[at(&mut [0_u8; 4096]), 4096])),
    Attempt::surface("own-parent", |_, _| done(libc::SYS_getppid, &[])),
    Attempt::surface("barrier-on-all-cpus", |_, _| {
        past(&[libc::EINVAL], call(libc::SYS_membarrier, &[1, 0, 0]))
    })
    .where_built(),
    Attempt::surface("wake-by-the-new-futex", |_, _| {
        past(&[libc::EINVAL], call(454, &[at(&mut 0_u32), 1, 1, 2]))
    })
    .where_built(),
    Attempt::surface("wait-for-many-futexes", |_, _| {
        past(&[libc::EINVAL], call(libc::SYS_futex_waitv, &[0, 0, 0, 0, 0]))
    })
    .where_built(),
    Attempt::surface("restart-sequences", |_, _| {
        past(&[libc::EINVAL, libc::EBUSY, libc::EPERM], call(libc::SYS_rseq, &[0, 32, 1, 0]))
    })
    .where_built(),
    Attempt::surface("wait-for-anybody", |_, _| {
        past(&[libc::ECHILD], call(libc::SYS_wait4, &[int(-1), 0, int(libc::WNOHANG), 0]))
    }),
    Attempt::surface("handler-for-a-signal", |_, _| {
        done(libc::SYS_rt_sigaction, &[10, 0, at(&mut [0_u64; 4]), 8])
    }),
    Attempt::surface("wait-for-a-signal", |_, _| {
        let result = call(libc::SYS_rt_sigtimedwait, &[at(&mut 0_u64), 0, at(&mut [0_u64; 2]), 8]);
        past(&[libc::EAGAIN], result)
    }),
    Attempt::surface("sleep-by-select", |_, _| {
        done(libc::SYS_pselect6, &[0, 0, 0, 0, at(&mut [0_u64; 2]), 0])
    }),
    Attempt::surface("cache-of-names", |_, _| {
        past(
            &[libc::ENOENT, libc::EACCES],
            call(libc::SYS_readlinkat, &[int(-100), text(c"/none"), at(&mut [0_u8; 8]), 8]),
        )
    }),
    Attempt::surface("write-all-file-systems", |_, _| {
        done(libc::SYS_sync_file_range, &[usize::MAX, 0, 0, 0]).or_else(past_bad_descriptor)
    }),
    Attempt::surface("map-of-a-shadow-stack", |_, _| {
        past(&[libc::EOPNOTSUPP, libc::ENOTSUP, libc::EINVAL], call(453, &[0, 4096, 0]))
    })
    .where_built(),
    Attempt::surface("attributes-of-the-security-module", |_, _| {
        past(&[libc::EOPNOTSUPP, libc::E2BIG], call(461, &[at(&mut [0_u64; 8]), at(&mut 64_u32), 0]))
    })
    .where_built(),
    Attempt::surface("seal-own-memory", |_, _| done(462, &[0x1000, 0, 0])).where_built(),
    Attempt::out("a-number-that-is-no-call", |_, _| done(9_999, &[])).nobody(
        "ENOSYS: no kernel has it; a filter that lets unknown numbers through lets new calls through",
    ),
    Attempt::out("a-number-beyond-all", |_, _| done(0x3fff_ffff, &[])).nobody("ENOSYS, as before"),
];

/// EBADF says that the call is there and looked at its arguments.
fn past_bad_descriptor(error: std::io::Error) -> std::io::Result<()> {
    past(&[libc::EBADF], Err(error))
}
