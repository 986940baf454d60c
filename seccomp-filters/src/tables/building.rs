//! What only the building phase does: map the machine's memory, make its devices, read kernel and initrd, make threads.
//!
//! Refuses by absence what the shell was there for: another virtual machine or vCPU, another interrupt controller, another
//! CPUID. Only here a ring is made and restricted: afterwards nobody makes another, or changes what one may do.

use crate::rule::Rule;
use crate::tables::form::{any, arm, is, is_long, kvm, when, within, within_int, within_with, x86};
use crate::values::*;

/// See the module.
pub(crate) const RULES: &[Rule] = &[
    kvm(&[is(1, KVM_CHECK_EXTENSION)], "can it do what the machine needs"),
    kvm(&[is(1, KVM_SET_USER_MEMORY_REGION)], "its memory"),
    kvm(&[is(1, KVM_IRQFD)], "the serial port raises its line"),
    kvm(&[is(1, KVM_IOEVENTFD)], "a queue's notification wakes the device thread, not the vCPU thread"),
    x86(&[is(1, KVM_SET_REGS)], "the entry point"),
    x86(&[is(1, KVM_GET_SREGS)], "segments at reset, changed for the entry protocol"),
    x86(&[is(1, KVM_SET_SREGS)], "segments and control registers of the entry protocol"),
    x86(&[is(1, KVM_GET_MSRS)], "the guest's time stamp counter, for the stage times"),
    x86(&[is(1, KVM_GET_TSC_KHZ)], "the rate of that counter"),
    arm(&[is(1, KVM_GET_ONE_REG)], "vCPU registers, the CPU's identity for the device tree"),
    arm(&[is(1, KVM_SET_ONE_REG)], "the entry point"),
    when(
        "mmap",
        &[within(2, PROT_READ_WRITE), within_with(3, MAP_WHILE_BUILDING, MAP_ANONYMOUS)],
        "guest memory, threads' stacks; no file, never executable",
    ),
    when(
        "mmap",
        &[is_long(2, PROT_READ), is_long(3, MAP_SHARED_FIXED)],
        "an image in the guest's memory: its file's own pages, never writable",
    ),
    any("io_uring_setup", "a drive's ring, disabled at first"),
    when("io_uring_register", &[is(1, IORING_REGISTER_FILES)], "its one file"),
    when("io_uring_register", &[is(1, IORING_REGISTER_EVENTFD)], "the bell of its completions"),
    when(
        "io_uring_register",
        &[is(1, IORING_REGISTER_IOWQ_MAX_WORKERS)],
        "how many threads wait for its disk",
    ),
    when(
        "io_uring_register",
        &[is(1, IORING_REGISTER_RESTRICTIONS)],
        "it takes four operations and no registration",
    ),
    when("io_uring_register", &[is(1, IORING_REGISTER_ENABLE_RINGS)], "from now on it does"),
    when(
        "mmap",
        &[within(1, SHARED_PAGES), within(2, PROT_READ_WRITE), is_long(3, MAP_SHARED_POPULATE)],
        "a ring's queues; too small for a file of any worth",
    ),
    when("madvise", &[is(2, MADV_HUGEPAGE)], "guest memory in transparent huge pages"),
    when("madvise", &[is(2, MADV_NOHUGEPAGE)], "but not low memory, of which a boot uses some KiB"),
    when("madvise", &[is(2, MADV_POPULATE_WRITE)], "pre-fault of guest memory"),
    when("clone", &[is_long(0, CLONE_OF_A_THREAD)], "threads, and nothing but threads"),
    any(
        "sigaltstack",
        "Rust's library gives a thread a signal stack, and takes it from one that could not be confined",
    ),
    any("exit", "such a thread ends"),
    any("sched_setaffinity", "each vCPU thread on the CPU that it is given"),
    when("prctl", &[is(0, PR_SET_NAME)], "threads' names"),
    when("prctl", &[is(0, PR_SET_NO_NEW_PRIVS), is_long(1, 1)], "before a filter; it cannot be taken back"),
    when(
        "seccomp",
        &[is(0, SECCOMP_SET_MODE_FILTER), is(1, 0)],
        "each thread narrows itself to its role; filters only add up",
    ),
    when("eventfd2", &[within_int(1, CLOEXEC_NONBLOCK)], "interrupts, notifications, the threads' ends"),
    when("epoll_create1", &[within_int(0, CLOEXEC_NONBLOCK)], "an event loop"),
    when("timerfd_create", &[within_int(1, CLOEXEC_NONBLOCK)], "connections' deadlines, rate limiters"),
    any("pread64", "kernel and initrd are read, the latter straight into guest memory"),
    when("fcntl", &[is(1, F_DUPFD_CLOEXEC)], "a descriptor for a second owner"),
    when("fcntl", &[is(1, F_SETFD), is(2, FD_CLOEXEC)], "the C library does so after F_DUPFD_CLOEXEC"),
    when("ioctl", &[is(1, FIONBIO)], "sockets that came along do not block"),
    any("gettid", "the thread that a kick goes to"),
];
