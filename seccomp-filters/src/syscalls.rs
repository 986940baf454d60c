//! System call numbers of each target, for the calls that occur in the tables.
//!
//! Our own, because the C library's constants in a build script are those of the host. A test built for the target
//! compares each with the C library's. Sources: arch/x86/entry/syscalls/syscall_64.tbl, asm-generic/unistd.h.

use crate::rule::Arch;

/// One call: its name and its numbers; `None` where the architecture has no such call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Syscall {
    /// As in the kernel's table.
    pub(crate) name: &'static str,
    x86_64: Option<u32>,
    aarch64: Option<u32>,
}

impl Syscall {
    /// The number on `arch`; none for [`Arch::Any`].
    #[must_use]
    pub(crate) const fn number(&self, arch: Arch) -> Option<u32> {
        match arch {
            Arch::Any => None,
            Arch::X86_64 => self.x86_64,
            Arch::Aarch64 => self.aarch64,
        }
    }
}

const fn both(name: &'static str, x86_64: u32, aarch64: u32) -> Syscall {
    Syscall { name, x86_64: Some(x86_64), aarch64: Some(aarch64) }
}

/// All calls that a table may name, and those of which a report is the more telling with their name.
pub(crate) const SYSCALLS: &[Syscall] = &[
    both("accept4", 288, 242),
    both("brk", 12, 214),
    both("clock_gettime", 228, 113),
    both("clone", 56, 220),
    both("close", 3, 57),
    both("dup", 32, 23),
    both("epoll_create1", 291, 20),
    both("epoll_ctl", 233, 21),
    both("epoll_pwait", 281, 22),
    both("eventfd2", 290, 19),
    both("exit", 60, 93),
    both("exit_group", 231, 94),
    both("fallocate", 285, 47),
    both("fchmod", 91, 52),
    both("fchmodat", 268, 53),
    both("fchownat", 260, 54),
    both("fcntl", 72, 25),
    both("fdatasync", 75, 83),
    both("fstat", 5, 80),
    both("fstatfs", 138, 44),
    both("fsync", 74, 82),
    both("ftruncate", 77, 46),
    both("futex", 202, 98),
    both("getdents64", 217, 61),
    both("getpid", 39, 172),
    both("getrandom", 318, 278),
    both("getsockopt", 55, 209),
    both("gettid", 186, 178),
    both("io_uring_enter", 426, 426),
    both("io_uring_register", 427, 427),
    both("io_uring_setup", 425, 425),
    both("ioctl", 16, 29),
    both("linkat", 265, 37),
    both("lseek", 8, 62),
    both("madvise", 28, 233),
    both("mkdirat", 258, 34),
    both("mknodat", 259, 33),
    both("mmap", 9, 222),
    both("mprotect", 10, 226),
    both("mremap", 25, 216),
    both("munmap", 11, 215),
    both("newfstatat", 262, 79),
    both("openat", 257, 56),
    both("ppoll", 271, 73),
    both("prctl", 157, 167),
    both("pread64", 17, 67),
    both("preadv", 295, 69),
    both("preadv2", 327, 286),
    both("pwrite64", 18, 68),
    both("pwritev", 296, 70),
    both("pwritev2", 328, 287),
    both("read", 0, 63),
    both("readlinkat", 267, 78),
    both("readv", 19, 65),
    both("recvfrom", 45, 207),
    both("recvmsg", 47, 212),
    both("renameat2", 316, 276),
    both("rt_sigaction", 13, 134),
    both("rt_sigprocmask", 14, 135),
    both("restart_syscall", 219, 128),
    both("rt_sigreturn", 15, 139),
    both("sched_getaffinity", 204, 123),
    both("sched_setaffinity", 203, 122),
    both("sched_yield", 24, 124),
    both("seccomp", 317, 277),
    both("sendmsg", 46, 211),
    both("sendto", 44, 206),
    both("setresgid", 119, 149),
    both("setresuid", 117, 147),
    both("shutdown", 48, 210),
    both("sigaltstack", 131, 132),
    both("statx", 332, 291),
    both("symlinkat", 266, 36),
    both("tgkill", 234, 131),
    both("timerfd_create", 283, 85),
    both("timerfd_settime", 286, 86),
    both("tkill", 200, 130),
    both("umask", 95, 166),
    both("unlinkat", 263, 35),
    both("utimensat", 280, 88),
    both("write", 1, 64),
    both("writev", 20, 66),
    Syscall { name: "poll", x86_64: Some(7), aarch64: None },
    // In no table.
    Syscall { name: "fork", x86_64: Some(57), aarch64: None },
    Syscall { name: "open", x86_64: Some(2), aarch64: None },
    Syscall { name: "vfork", x86_64: Some(58), aarch64: None },
    both("bind", 49, 200),
    both("bpf", 321, 280),
    both("capset", 126, 91),
    both("chroot", 161, 51),
    both("clone3", 435, 435),
    both("connect", 42, 203),
    both("execve", 59, 221),
    both("execveat", 322, 281),
    both("keyctl", 250, 219),
    both("kill", 62, 129),
    both("memfd_create", 319, 279),
    both("mount", 165, 40),
    both("open_by_handle_at", 304, 265),
    both("openat2", 437, 437),
    both("perf_event_open", 298, 241),
    both("pidfd_open", 434, 434),
    both("pivot_root", 155, 41),
    both("process_vm_readv", 310, 270),
    both("process_vm_writev", 311, 271),
    both("ptrace", 101, 117),
    both("setns", 308, 268),
    both("socket", 41, 198),
    both("socketpair", 53, 199),
    both("unshare", 272, 97),
    both("userfaultfd", 323, 282),
];
