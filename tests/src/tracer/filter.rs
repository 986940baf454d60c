//! Which calls are of interest, as a seccomp filter.

use super::Interest;

/// Calls that change something outside of the caller's memory and descriptors, or what it is and may do.
const STEPS: &[libc::c_long] = &[
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_mkdir,
    libc::SYS_mkdirat,
    libc::SYS_rmdir,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_symlink,
    libc::SYS_symlinkat,
    libc::SYS_flock,
    libc::SYS_bind,
    libc::SYS_socketpair,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_execveat,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_sethostname,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_mount_setattr,
    libc::SYS_pivot_root,
    libc::SYS_setsid,
    libc::SYS_setpgid,
    libc::SYS_close_range,
    libc::SYS_setrlimit,
    libc::SYS_prlimit64,
    libc::SYS_setgroups,
    libc::SYS_setresgid,
    libc::SYS_setresuid,
    libc::SYS_capset,
    libc::SYS_prctl,
    libc::SYS_seccomp,
    libc::SYS_landlock_restrict_self,
    libc::SYS_memfd_create,
    libc::SYS_pidfd_send_signal,
    libc::SYS_exit_group,
];

/// A filter that stops the calls of interest and lets all others pass.
pub(super) fn filter(interest: Interest) -> Vec<libc::sock_filter> {
    let op =
        |code: u32, jt, jf, k| libc::sock_filter { code: u16::try_from(code).unwrap_or_default(), jt, jf, k };
    let [load, equal, answer] = [
        libc::BPF_LD | libc::BPF_W | libc::BPF_ABS,
        libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
        libc::BPF_RET | libc::BPF_K,
    ];
    // The program's own execution, and all before it, come before there is a tracer.
    let (listed, hit, miss): (&[_], _, _) = match interest {
        Interest::Steps => (STEPS, libc::SECCOMP_RET_TRACE, libc::SECCOMP_RET_ALLOW),
        Interest::All => {
            (&[libc::SYS_execve, libc::SYS_rt_sigreturn], libc::SECCOMP_RET_ALLOW, libc::SECCOMP_RET_TRACE)
        }
    };
    let mut program = vec![op(load, 0, 0, 0)];
    for &number in listed {
        program.push(op(equal, 0, 1, u32::try_from(number).unwrap_or_default()));
        program.push(op(answer, 0, 0, hit));
    }
    program.push(op(answer, 0, 0, miss));
    program
}

/// Whether a call opens a file without making or emptying one.
pub(super) fn only_opens(number: libc::c_long, args: &[u64; 6]) -> bool {
    let flags = match number {
        libc::SYS_open => args[1],
        libc::SYS_openat => args[2],
        _ => return false,
    };
    flags & u64::from((libc::O_CREAT | libc::O_TRUNC).unsigned_abs()) == 0
}
