//! Our literals against what the target's headers say.

use crate::syscalls::SYSCALLS;
use crate::{TARGET, values::*};
use kvm_bindings as kvm;

/// The list, and each of it compared when the target's tests are compiled: what no machine here can run is checked as well.
macro_rules! same_numbers {
    ($list:ident: $($name:ident => $constant:ident),* $(,)?) => {
        const $list: &[(&str, libc::c_long)] = &[$((stringify!($name), libc::$constant)),*];
        $(const _: () = assert!(agrees(stringify!($name), libc::$constant), stringify!($name));)*
    };
}

/// Whether our table has this number for the call, on the target.
const fn agrees(name: &str, number: libc::c_long) -> bool {
    let mut at = 0;
    while at < SYSCALLS.len() {
        let call = &SYSCALLS[at];
        if same(call.name.as_bytes(), name.as_bytes()) {
            return matches!(call.number(TARGET), Some(ours) if ours as libc::c_long == number);
        }
        at += 1;
    }
    false
}

const fn same(a: &[u8], b: &[u8]) -> bool {
    let mut at = 0;
    while at < a.len() && at < b.len() && a[at] == b[at] {
        at += 1;
    }
    at == a.len() && at == b.len()
}

same_numbers! {
    OF_THE_C_LIBRARY:
    accept4 => SYS_accept4, brk => SYS_brk, clock_gettime => SYS_clock_gettime, clone => SYS_clone,
    close => SYS_close, epoll_create1 => SYS_epoll_create1, epoll_ctl => SYS_epoll_ctl,
    epoll_pwait => SYS_epoll_pwait, eventfd2 => SYS_eventfd2, exit => SYS_exit, exit_group => SYS_exit_group,
    fallocate => SYS_fallocate, fcntl => SYS_fcntl, fdatasync => SYS_fdatasync, fstat => SYS_fstat,
    fsync => SYS_fsync, futex => SYS_futex, getpid => SYS_getpid, getrandom => SYS_getrandom,
    getsockopt => SYS_getsockopt, gettid => SYS_gettid, ioctl => SYS_ioctl, lseek => SYS_lseek,
    madvise => SYS_madvise, mmap => SYS_mmap, mprotect => SYS_mprotect, mremap => SYS_mremap,
    munmap => SYS_munmap, newfstatat => SYS_newfstatat, ppoll => SYS_ppoll, prctl => SYS_prctl,
    pread64 => SYS_pread64, preadv => SYS_preadv, preadv2 => SYS_preadv2, pwrite64 => SYS_pwrite64,
    pwritev => SYS_pwritev, pwritev2 => SYS_pwritev2, read => SYS_read, readv => SYS_readv,
    recvfrom => SYS_recvfrom, recvmsg => SYS_recvmsg, rt_sigaction => SYS_rt_sigaction,
    restart_syscall => SYS_restart_syscall, rt_sigprocmask => SYS_rt_sigprocmask, rt_sigreturn => SYS_rt_sigreturn,
    sched_getaffinity => SYS_sched_getaffinity, sched_setaffinity => SYS_sched_setaffinity,
    sched_yield => SYS_sched_yield, seccomp => SYS_seccomp, sendmsg => SYS_sendmsg, sendto => SYS_sendto,
    shutdown => SYS_shutdown, sigaltstack => SYS_sigaltstack, statx => SYS_statx, tgkill => SYS_tgkill,
    timerfd_create => SYS_timerfd_create, timerfd_settime => SYS_timerfd_settime, tkill => SYS_tkill,
    write => SYS_write, writev => SYS_writev, dup => SYS_dup, fchmod => SYS_fchmod, fchmodat => SYS_fchmodat,
    fchownat => SYS_fchownat, fstatfs => SYS_fstatfs, ftruncate => SYS_ftruncate, getdents64 => SYS_getdents64,
    linkat => SYS_linkat, mkdirat => SYS_mkdirat, mknodat => SYS_mknodat, openat => SYS_openat,
    readlinkat => SYS_readlinkat, renameat2 => SYS_renameat2, setresgid => SYS_setresgid,
    setresuid => SYS_setresuid, symlinkat => SYS_symlinkat, umask => SYS_umask, unlinkat => SYS_unlinkat,
    utimensat => SYS_utimensat, io_uring_setup => SYS_io_uring_setup, io_uring_enter => SYS_io_uring_enter,
    io_uring_register => SYS_io_uring_register,
    bind => SYS_bind, bpf => SYS_bpf, capset => SYS_capset, chroot => SYS_chroot, clone3 => SYS_clone3, connect =>
    SYS_connect, execve => SYS_execve, execveat => SYS_execveat, keyctl => SYS_keyctl, kill => SYS_kill, memfd_create
    => SYS_memfd_create, mount => SYS_mount, open_by_handle_at => SYS_open_by_handle_at, openat2 => SYS_openat2,
    perf_event_open => SYS_perf_event_open, pidfd_open => SYS_pidfd_open, pivot_root => SYS_pivot_root,
    process_vm_readv => SYS_process_vm_readv, process_vm_writev => SYS_process_vm_writev, ptrace => SYS_ptrace, setns
    => SYS_setns, socket => SYS_socket, socketpair => SYS_socketpair, unshare => SYS_unshare, userfaultfd =>
    SYS_userfaultfd,
}

#[cfg(target_arch = "x86_64")]
same_numbers! {
    OF_THE_TARGET_ALONE:
    poll => SYS_poll, fork => SYS_fork, open => SYS_open, vfork => SYS_vfork,
}
#[cfg(target_arch = "aarch64")]
const OF_THE_TARGET_ALONE: &[(&str, libc::c_long)] = &[];

#[test]
fn call_numbers_are_the_c_librarys() {
    let mut compared = 0;
    for (name, number) in OF_THE_C_LIBRARY.iter().chain(OF_THE_TARGET_ALONE) {
        let ours = SYSCALLS.iter().find(|call| call.name == *name).unwrap().number(TARGET);
        assert_eq!(ours.map(libc::c_long::from), Some(*number), "{name}");
        compared += 1;
    }
    assert_eq!(
        compared,
        SYSCALLS.iter().filter(|call| call.number(TARGET).is_some()).count(),
        "a call is not compared"
    );
}

/// `_IOC`: direction (1 writes to the kernel, 2 reads from it), KVM's type, number, size of the argument.
#[expect(clippy::cast_possible_truncation, reason = "no argument is longer than 2^14 bytes")]
const fn request(direction: u32, number: u32, size: usize) -> u32 {
    (direction << 30) | ((size as u32) << 16) | (0xae << 8) | number
}

const NONE: u32 = 0;
const WRITE: u32 = 1;
const READ: u32 = 2;
const BOTH: u32 = 3;

/// Compared when compiled, and when run.
macro_rules! same_requests {
    ($($name:ident = $direction:ident $number:literal $type:ty;)*) => {
        $(
            const _: () = assert!($name == request($direction, $number, size_of::<$type>()), stringify!($name));
            assert_eq!($name, request($direction, $number, size_of::<$type>()), stringify!($name));
        )*
    };
}

#[test]
fn requests_are_encoded_as_the_headers_do() {
    same_requests! {
        KVM_GET_API_VERSION = NONE 0x00 ();
        KVM_CREATE_VM = NONE 0x01 ();
        KVM_CHECK_EXTENSION = NONE 0x03 ();
        KVM_GET_VCPU_MMAP_SIZE = NONE 0x04 ();
        KVM_CREATE_VCPU = NONE 0x41 ();
        KVM_SET_USER_MEMORY_REGION = WRITE 0x46 kvm::kvm_userspace_memory_region;
        KVM_IRQFD = WRITE 0x76 kvm::kvm_irqfd;
        KVM_IRQ_LINE = WRITE 0x61 kvm::kvm_irq_level;
        KVM_SIGNAL_MSI = WRITE 0xa5 kvm::kvm_msi;
        KVM_IOEVENTFD = WRITE 0x79 kvm::kvm_ioeventfd;
        KVM_RUN = NONE 0x80 ();
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn requests_of_x86_64_are_encoded_as_the_headers_do() {
    same_requests! {
        KVM_GET_SUPPORTED_CPUID = BOTH 0x05 kvm::kvm_cpuid2;
        KVM_SET_TSS_ADDR = NONE 0x47 ();
        KVM_CREATE_IRQCHIP = NONE 0x60 ();
        KVM_GET_REGS = READ 0x81 kvm::kvm_regs;
        KVM_SET_REGS = WRITE 0x82 kvm::kvm_regs;
        KVM_GET_SREGS = READ 0x83 kvm::kvm_sregs;
        KVM_SET_SREGS = WRITE 0x84 kvm::kvm_sregs;
        KVM_GET_MSRS = BOTH 0x88 kvm::kvm_msrs;
        KVM_SET_MSRS = WRITE 0x89 kvm::kvm_msrs;
        KVM_SET_CPUID2 = WRITE 0x90 kvm::kvm_cpuid2;
        KVM_GET_TSC_KHZ = NONE 0xa3 ();
    }
}

#[test]
fn requests_of_aarch64_are_encoded_as_the_headers_do() {
    same_requests! {
        KVM_CREATE_DEVICE = BOTH 0xe0 kvm::kvm_create_device;
        KVM_SET_DEVICE_ATTR = WRITE 0xe1 kvm::kvm_device_attr;
        KVM_GET_ONE_REG = WRITE 0xab kvm::kvm_one_reg;
        KVM_SET_ONE_REG = WRITE 0xac kvm::kvm_one_reg;
    }
    // `struct kvm_vcpu_init` (aarch64 only): a target and seven words of features.
    assert_eq!(KVM_ARM_VCPU_INIT, request(WRITE, 0xae, 32));
    assert_eq!(KVM_ARM_PREFERRED_TARGET, request(READ, 0xaf, 32));
}

#[test]
fn registrations_of_a_ring_are_the_headers() {
    use rustix::io_uring::IoringRegisterOp as Op;
    // 128 requests of 64 bytes; what completes has less.
    const { assert!(SHARED_PAGES > 128 * 64, "a ring's queues hold more than this") };
    assert_eq!(IORING_REGISTER_FILES, Op::RegisterFiles as u32);
    assert_eq!(IORING_REGISTER_EVENTFD, Op::RegisterEventfd as u32);
    assert_eq!(IORING_REGISTER_RESTRICTIONS, Op::RegisterRestrictions as u32);
    assert_eq!(IORING_REGISTER_ENABLE_RINGS, Op::RegisterEnableRings as u32);
    assert_eq!(IORING_REGISTER_IOWQ_MAX_WORKERS, Op::RegisterIowqMaxWorkers as u32);
}

fn word(constant: libc::c_int) -> u32 {
    u32::from_ne_bytes(constant.to_ne_bytes())
}

#[test]
fn flags_are_the_c_librarys() {
    assert_eq!(SIGABRT, word(libc::SIGABRT));
    assert!(VCPU_KICK_SIGNAL >= word(libc::SIGRTMIN()) && VCPU_KICK_SIGNAL <= word(libc::SIGRTMAX()));
    let thread = libc::CLONE_VM
        | libc::CLONE_FS
        | libc::CLONE_FILES
        | libc::CLONE_SIGHAND
        | libc::CLONE_THREAD
        | libc::CLONE_SYSVSEM
        | libc::CLONE_SETTLS
        | libc::CLONE_PARENT_SETTID
        | libc::CLONE_CHILD_CLEARTID
        | libc::CLONE_DETACHED;
    assert_eq!(CLONE_OF_A_THREAD, u64::from(word(thread)));
    assert_eq!(PROT_READ_WRITE, u64::from(word(libc::PROT_READ | libc::PROT_WRITE)));
    assert_eq!(MAP_PRIVATE_ANONYMOUS, u64::from(word(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS)));
    assert_eq!(PROT_READ, u64::from(word(libc::PROT_READ)));
    assert_eq!(MAP_ANONYMOUS, u64::from(word(libc::MAP_ANONYMOUS)));
    assert_eq!(MAP_SHARED, u64::from(word(libc::MAP_SHARED)));
    assert_eq!(MAP_SHARED_FIXED, u64::from(word(libc::MAP_SHARED | libc::MAP_FIXED)));
    assert_eq!(MAP_SHARED_POPULATE, u64::from(word(libc::MAP_SHARED | libc::MAP_POPULATE)));
    assert!(
        u128::from(SHARED_PAGES) > size_of::<kvm::kvm_run>() as u128,
        "a vCPU's pages hold more than this"
    );
    let building = libc::MAP_PRIVATE
        | libc::MAP_FIXED
        | libc::MAP_ANONYMOUS
        | libc::MAP_NORESERVE
        | libc::MAP_POPULATE
        | libc::MAP_STACK
        | libc::MAP_HUGETLB
        | (0x3f << 26);
    assert_eq!(MAP_WHILE_BUILDING, u64::from(word(building)));
    assert_eq!(MREMAP_MAYMOVE, u64::from(word(libc::MREMAP_MAYMOVE)));
    assert_eq!(MADV_DONTNEED, word(libc::MADV_DONTNEED));
    assert_eq!(MADV_HUGEPAGE, word(libc::MADV_HUGEPAGE));
    assert_eq!(MADV_POPULATE_WRITE, word(libc::MADV_POPULATE_WRITE));
    assert_eq!(F_SETFD, word(libc::F_SETFD));
    assert_eq!(FD_CLOEXEC, word(libc::FD_CLOEXEC));
    assert_eq!(SOL_SOCKET, word(libc::SOL_SOCKET));
    assert_eq!(SO_TYPE, word(libc::SO_TYPE));
    assert_eq!(SO_ACCEPTCONN, word(libc::SO_ACCEPTCONN));
    assert_eq!(SO_DOMAIN, word(libc::SO_DOMAIN));
    assert_eq!(MADV_NOHUGEPAGE, word(libc::MADV_NOHUGEPAGE));
    assert_eq!(PR_SET_NAME, word(libc::PR_SET_NAME));
    assert_eq!(PR_SET_NO_NEW_PRIVS, word(libc::PR_SET_NO_NEW_PRIVS));
    assert_eq!(SECCOMP_SET_MODE_FILTER, libc::SECCOMP_SET_MODE_FILTER);
    assert_eq!(F_GETFD, word(libc::F_GETFD));
    assert_eq!(F_GETFL, word(libc::F_GETFL));
    assert_eq!(F_SETFL, word(libc::F_SETFL));
    assert_eq!(F_DUPFD_CLOEXEC, word(libc::F_DUPFD_CLOEXEC));
    assert_eq!(FALLOC_PUNCH_HOLE, word(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE));
    assert_eq!(FALLOC_ZERO_RANGE, word(libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE));
    assert_eq!(MSG_FLAGS_SEND, word(libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT));
    let receive = libc::MSG_DONTWAIT | libc::MSG_TRUNC | libc::MSG_CMSG_CLOEXEC | libc::MSG_PEEK;
    assert_eq!(MSG_FLAGS_RECEIVE, word(receive));
    assert_eq!(CLOEXEC_NONBLOCK, word(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK));
    assert_eq!(CLOEXEC_NONBLOCK, word(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK));
    // `unsigned long` in one C library, `int` in another.
    assert_eq!(i128::from(TUNSETOFFLOAD), i128::from(libc::TUNSETOFFLOAD));
    assert_eq!(i128::from(FIONBIO), i128::from(libc::FIONBIO));
}
