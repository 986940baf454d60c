//! What concerns the kernel as a whole: modules, clocks, names, keys, programs in it. Each ends in an error behind the permission,
//! or sets what is set already.

use super::call::{at, call, done, int, past, text};
use super::{Attempt, World};
use std::io::Result;

pub(super) const ALL: &[Attempt] = &[
    Attempt::out("load-a-module", |_, _| {
        past(&[libc::ENOEXEC, libc::EFAULT, libc::EINVAL], call(libc::SYS_init_module, &[1, 16, text(c"")]))
    })
    .where_built(),
    Attempt::out("load-a-module-file", |w, _| {
        let result = call(libc::SYS_finit_module, &[int(w.image), text(c""), 0]);
        past(&[libc::ENOEXEC, libc::EINVAL, libc::EKEYREJECTED], result)
    })
    .where_built(),
    Attempt::out("unload-a-module", |_, _| {
        let flags = int(libc::O_NONBLOCK);
        past(&[libc::ENOENT], call(libc::SYS_delete_module, &[text(c"husk_no_such_module"), flags]))
    })
    .where_built(),
    Attempt::out("load-a-kernel", |_, _| {
        past(&[libc::EINVAL], call(libc::SYS_kexec_load, &[0, 0, 0, 0xffff]))
    })
    .where_built(),
    Attempt::out("load-a-kernel-file", |_, _| {
        past(
            &[libc::EINVAL, libc::EBADF],
            call(libc::SYS_kexec_file_load, &[usize::MAX, usize::MAX, 0, 0, 0xffff]),
        )
    })
    .where_built(),
    Attempt::out("restart-the-machine", |_, _| {
        // Of no command that there is.
        past(&[libc::EINVAL], call(libc::SYS_reboot, &[0xfee1_dead, 672_274_793, 0x1234_5678]))
    }),
    Attempt::out("set-time-of-day", |_, _| {
        let mut time = now()?;
        time[1] /= 1000;
        done(libc::SYS_settimeofday, &[at(&mut time), 0])
    }),
    Attempt::out("set-clock", |_, _| done(libc::SYS_clock_settime, &[0, at(&mut now()?)])),
    Attempt::out("adjust-time", |_, _| done(libc::SYS_adjtimex, &[at(&mut by_nothing())])),
    Attempt::out("adjust-clock", |_, _| done(libc::SYS_clock_adjtime, &[0, at(&mut by_nothing())])),
    Attempt::out("set-hostname", |_, _| {
        let name = rustix::system::uname();
        let bytes = name.nodename();
        done(libc::SYS_sethostname, &[text(bytes), bytes.to_bytes().len()])
    }),
    Attempt::out("set-domain", |_, _| {
        let name = rustix::system::uname();
        let bytes = name.domainname();
        done(libc::SYS_setdomainname, &[text(bytes), bytes.to_bytes().len()])
    }),
    Attempt::out("swap-on", |_, _| {
        past(&[libc::ENOENT, libc::EINVAL], call(libc::SYS_swapon, &[text(c"/husk-no-such-file"), 0]))
    }),
    Attempt::out("swap-off", |_, _| {
        past(&[libc::ENOENT, libc::EINVAL], call(libc::SYS_swapoff, &[text(c"/husk-no-such-file")]))
    }),
    Attempt::out("account-processes", |_, _| {
        past(&[libc::ENOENT], call(libc::SYS_acct, &[text(c"/husk-no-such-file")]))
    })
    .where_built(),
    Attempt::out("read-the-kernels-log", |_, _| done(libc::SYS_syslog, &[int(10), 0, 0])),
    Attempt::out("empty-the-kernels-log", |_, _| {
        // Its size in bytes, then a read of nothing: the log stays.
        past(&[libc::EINVAL], call(libc::SYS_syslog, &[int(4), 0, 0]))
    }),
    Attempt::out("hang-the-terminal-up", |_, _| done(libc::SYS_vhangup, &[])).after(leave_terminal),
    Attempt::surface("set-a-quota", |_, _| {
        // Q_QUOTAON of a device that is none.
        let command = 0x80_0002_usize << 8;
        let result = call(libc::SYS_quotactl, &[command, text(c"/husk-no-such-device"), 0, 0]);
        // The device is looked for before any permission.
        past(&[libc::ENOENT, libc::ENOTBLK], result)
    })
    .where_built(),
    Attempt::out("load-a-program-into-it", |_, _| {
        // BPF_PROG_LOAD of a kprobe's: return 0.
        let (mut program, mut license) = ([0xb7_u64, 0x95], *b"GPL\0");
        let mut request = [2 | 2 << 32, at(&mut program) as u64, at(&mut license) as u64, 0, 0, 0, 0, 0, 0];
        done(libc::SYS_bpf, &[5, at(&mut request), size_of_val(&request)])
    }),
    Attempt::out("make-a-map-in-it", |_, _| {
        // BPF_MAP_CREATE: an array of one entry of four bytes.
        let mut request = [2_u32, 4, 4, 1, 0, 0, 0, 0];
        done(libc::SYS_bpf, &[0, at(&mut request), size_of_val(&request)])
    }),
    Attempt::out("measure-it", |_, _| measure(usize::MAX)),
    Attempt::surface("measure-oneself", |_, _| measure(0)).where_built(),
    Attempt::out("watch-all-files", |_, _| done(libc::SYS_fanotify_init, &[4, 0])).where_built(),
    Attempt::surface("watch-own-files", |_, _| done(libc::SYS_fanotify_init, &[0x200, 0])).where_built(),
    Attempt::surface("handle-own-faults", |_, _| done(libc::SYS_userfaultfd, &[1])).where_built(),
    Attempt::out("handle-the-kernels-faults", |_, _| done(libc::SYS_userfaultfd, &[0])).where_built(),
    Attempt::surface("add-a-key", |_, _| {
        let mut secret = *b"x";
        let arguments = [text(c"user"), text(c"husk"), at(&mut secret), 1, int(-2)];
        done(libc::SYS_add_key, &arguments)
    })
    .where_built(),
    Attempt::surface("look-for-a-key", |_, _| {
        let result = call(libc::SYS_request_key, &[text(c"user"), text(c"husk-none"), 0, 0]);
        past(&[libc::ENOKEY], result)
    })
    .where_built(),
    Attempt::surface("make-a-key-ring", |_, _| done(libc::SYS_keyctl, &[1, 0])).where_built(),
    Attempt::surface("see-a-users-keys", |_, _| done(libc::SYS_keyctl, &[0, int(-4), 1])).where_built(),
    Attempt::surface("rings", |_, _| {
        let mut parameters = [0_u32; 30];
        done(libc::SYS_io_uring_setup, &[1, at(&mut parameters)])
    })
    .where_built()
    .while_building(),
];

fn now() -> Result<[i64; 2]> {
    let mut time = [0_i64; 2];
    done(libc::SYS_clock_gettime, &[0, at(&mut time)])?;
    Ok(time)
}

/// A timex that moves the clock by nothing (`ADJ_SETOFFSET`).
fn by_nothing() -> [u64; 26] {
    let mut timex = [0; 26];
    timex[0] = 0x0100;
    timex
}

/// In a session of its own there is no terminal that could be hung up.
fn leave_terminal(_: &World) -> Result<usize> {
    call(libc::SYS_setsid, &[])
}

/// Counts a process's page faults, or with none the machine's.
pub(super) fn measure(pid: usize) -> Result<()> {
    // perf_event_attr: type SOFTWARE and size, then PAGE_FAULTS.
    let mut what = [0_u64; 16];
    what[0] = 1 | (size_of_val(&what) as u64) << 32;
    what[1] = 2;
    let cpu = if pid == usize::MAX { 0 } else { usize::MAX };
    done(libc::SYS_perf_event_open, &[at(&mut what), pid, cpu, usize::MAX, 0])
}
