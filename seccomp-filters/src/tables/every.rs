//! What every thread does once the guest runs: allocate, wait, and report that it cannot go on. None of them ends before the
//! process does.
//!
//! Refuses by absence: opening, executing, making threads or processes, signal handlers, executable memory.

use crate::rule::Rule;
use crate::tables::form::{any, is, is_long, when, within, within_int};
use crate::values::{
    F_GETFD, MAP_PRIVATE_ANONYMOUS, MREMAP_MAYMOVE, MSG_FLAGS_SEND, PROT_READ_WRITE, SIGABRT,
};

/// See the module.
pub(crate) const RULES: &[Rule] = &[
    any("futex", "locks, parking, joining"),
    any("sched_yield", "a contended lock of the C library yields before it waits"),
    any(
        "clock_gettime",
        "deadlines and stage times where the vDSO cannot answer (its clock source is not usable there)",
    ),
    any("brk", "the allocator grows its heap"),
    when(
        "mmap",
        &[within(2, PROT_READ_WRITE), is_long(3, MAP_PRIVATE_ANONYMOUS)],
        "the allocator takes pages: private, anonymous, never executable",
    ),
    when(
        "mprotect",
        &[within(2, PROT_READ_WRITE)],
        "the allocator opens pages that it had reserved, the memory device blocks of guest memory; never executable",
    ),
    when(
        "mremap",
        &[within(3, MREMAP_MAYMOVE)],
        "the allocator grows a large allocation; not to a chosen address",
    ),
    any("munmap", "the allocator gives pages back; a thread's stack is freed"),
    any("close", "a descriptor goes out of scope"),
    when("fcntl", &[is(1, F_GETFD)], "debug builds check that a descriptor is open before they close it"),
    any("rt_sigprocmask", "the C library blocks signals around abort"),
    any("rt_sigreturn", "return from a handler"),
    any("write", "eventfds; the console; the last words of a bug"),
    when(
        "sendto",
        &[within_int(3, MSG_FLAGS_SEND), is_long(4, 0)],
        "reports on the control socket, also from a signal handler; the rest of a frame; only to a connected peer: no address",
    ),
    when("tkill", &[is(1, SIGABRT)], "abort: the C library signals the calling thread"),
    any("restart_syscall", "the kernel goes on with a wait of limited time after the process was stopped"),
    any("exit_group", "the process ends, and with it the machine"),
];
