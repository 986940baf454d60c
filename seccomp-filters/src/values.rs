//! The arguments that the tables name, as literals of the target: ioctl requests, flags, one signal.
//!
//! Literals, because the build script runs on the host and must not take the host's numbers. A test built for the
//! target compares each with the headers' encoding. Sources: linux/kvm.h, asm-generic/mman-common.h, linux/sched.h.

/// The literals, and their names for the reader of a list.
macro_rules! literals {
    ($($(#[$about:meta])* $visibility:vis const $name:ident: $kind:ty = $value:expr;)*) => {
        $($(#[$about])* $visibility const $name: $kind = $value;)*

        /// Every literal by its name; a number may have several, for different calls.
        pub(crate) const NAMES: &[(&str, u64)] = &[$((stringify!($name), $name as u64)),*];
    };
}

literals! {
/// The signal that takes a vCPU thread out of `KVM_RUN`: musl's first real-time signal, free in every C library.
pub const VCPU_KICK_SIGNAL: u32 = 35;
/// What a failed assertion of the C library raises.
pub(crate) const SIGABRT: u32 = 6;

/// Flags of the one kind of `clone` that makes a thread (musl's `pthread_create`): everything shared, thread-local
/// storage set, the id stored and cleared. No namespace bit, no new process.
pub(crate) const CLONE_OF_A_THREAD: u64 = 0x007d_0f00;

/// `PROT_READ | PROT_WRITE`: all that memory of the runtime may be; never executable.
pub(crate) const PROT_READ_WRITE: u64 = 0x3;
/// `MAP_PRIVATE | MAP_ANONYMOUS`: what an allocator and a thread's stack ask for.
pub(crate) const MAP_PRIVATE_ANONYMOUS: u64 = 0x22;
/// `PROT_READ`: all that an image in memory may be.
pub(crate) const PROT_READ: u64 = 0x1;
/// `MAP_ANONYMOUS`.
pub(crate) const MAP_ANONYMOUS: u64 = 0x20;
/// Flags that guest memory and threads' stacks are mapped with: `MAP_PRIVATE`, `MAP_FIXED`, `MAP_ANONYMOUS`, `MAP_NORESERVE`,
/// `MAP_POPULATE`, `MAP_STACK`, `MAP_HUGETLB` and the size of its page.
pub(crate) const MAP_WHILE_BUILDING: u64 =
    0x02 | 0x10 | MAP_ANONYMOUS | 0x4000 | 0x8000 | 0x2_0000 | 0x4_0000 | (0x3f << 26);
/// `MAP_SHARED`: a vCPU's pages, which KVM writes to as well.
pub(crate) const MAP_SHARED: u64 = 0x01;
/// `MAP_SHARED | MAP_FIXED`: an image, over address space that was reserved for it.
pub(crate) const MAP_SHARED_FIXED: u64 = 0x11;
/// Bits of a length that pages shared with the kernel, a vCPU's or a ring's, may have: less than 64 KiB.
pub(crate) const SHARED_PAGES: u64 = 0xffff;
/// `MAP_SHARED | MAP_POPULATE`: the queues of a ring, which the kernel writes to as well.
pub(crate) const MAP_SHARED_POPULATE: u64 = 0x8001;
/// `IORING_REGISTER_FILES` of linux/io_uring.h.
pub(crate) const IORING_REGISTER_FILES: u32 = 2;
/// `IORING_REGISTER_EVENTFD`.
pub(crate) const IORING_REGISTER_EVENTFD: u32 = 4;
/// `IORING_REGISTER_RESTRICTIONS`.
pub(crate) const IORING_REGISTER_RESTRICTIONS: u32 = 11;
/// `IORING_REGISTER_ENABLE_RINGS`.
pub(crate) const IORING_REGISTER_ENABLE_RINGS: u32 = 12;
/// `IORING_REGISTER_IOWQ_MAX_WORKERS`.
pub(crate) const IORING_REGISTER_IOWQ_MAX_WORKERS: u32 = 19;
/// `MREMAP_MAYMOVE`.
pub(crate) const MREMAP_MAYMOVE: u64 = 1;
/// Guest memory goes back to the host.
pub(crate) const MADV_DONTNEED: u32 = 4;
/// Transparent huge pages for guest memory.
pub(crate) const MADV_HUGEPAGE: u32 = 14;
/// Small pages for guest memory of which little is used.
pub(crate) const MADV_NOHUGEPAGE: u32 = 15;
/// Populate page tables for writing.
pub(crate) const MADV_POPULATE_WRITE: u32 = 23;

/// `PR_SET_NAME`.
pub(crate) const PR_SET_NAME: u32 = 15;
/// `PR_SET_NO_NEW_PRIVS`.
pub(crate) const PR_SET_NO_NEW_PRIVS: u32 = 38;
/// `SECCOMP_SET_MODE_FILTER`.
pub(crate) const SECCOMP_SET_MODE_FILTER: u32 = 1;
/// `F_GETFD`.
pub(crate) const F_GETFD: u32 = 1;
/// `F_SETFD`.
pub(crate) const F_SETFD: u32 = 2;
/// `FD_CLOEXEC`.
pub(crate) const FD_CLOEXEC: u32 = 1;
/// `F_GETFL`.
pub(crate) const F_GETFL: u32 = 3;
/// `F_SETFL`.
pub(crate) const F_SETFL: u32 = 4;
/// `F_DUPFD_CLOEXEC`.
pub(crate) const F_DUPFD_CLOEXEC: u32 = 1030;
/// `FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE`.
pub(crate) const FALLOC_PUNCH_HOLE: u32 = 0x2 | 0x1;
/// `FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE`.
pub(crate) const FALLOC_ZERO_RANGE: u32 = 0x10 | 0x1;
/// `MSG_NOSIGNAL | MSG_DONTWAIT`.
pub(crate) const MSG_FLAGS_SEND: u32 = 0x4040;
/// `MSG_DONTWAIT | MSG_TRUNC | MSG_CMSG_CLOEXEC | MSG_PEEK`.
pub(crate) const MSG_FLAGS_RECEIVE: u32 = 0x40 | 0x20 | 0x4000_0000 | 0x2;
/// `SOCK_CLOEXEC | SOCK_NONBLOCK`, also `EFD_` and `TFD_`.
pub(crate) const CLOEXEC_NONBLOCK: u32 = 0x8_0800;
/// `SOL_SOCKET`.
pub(crate) const SOL_SOCKET: u32 = 1;
/// `SO_TYPE`.
pub(crate) const SO_TYPE: u32 = 3;
/// `SO_ACCEPTCONN`.
pub(crate) const SO_ACCEPTCONN: u32 = 30;
/// `SO_DOMAIN`.
pub(crate) const SO_DOMAIN: u32 = 39;
/// Set or clear `O_NONBLOCK`.
pub(crate) const FIONBIO: u32 = 0x5421;

/// Sets which unfinished frames a tap hands over: `_IOW('T', 208, unsigned int)` of linux/if_tun.h.
pub(crate) const TUNSETOFFLOAD: u32 = 0x4004_54d0;

/// Reads the API's version, 12 since 2007.
pub(crate) const KVM_GET_API_VERSION: u32 = 0xae00;
/// Makes a virtual machine.
pub(crate) const KVM_CREATE_VM: u32 = 0xae01;
/// Asks for a capability.
pub(crate) const KVM_CHECK_EXTENSION: u32 = 0xae03;
/// Asks for the size of a vCPU's shared page.
pub(crate) const KVM_GET_VCPU_MMAP_SIZE: u32 = 0xae04;
/// Makes a vCPU.
pub(crate) const KVM_CREATE_VCPU: u32 = 0xae41;
/// Puts host memory into the guest.
pub(crate) const KVM_SET_USER_MEMORY_REGION: u32 = 0x4020_ae46;
/// Makes an eventfd raise an interrupt.
pub(crate) const KVM_IRQFD: u32 = 0x4020_ae76;
/// Makes a guest's write signal an eventfd.
pub(crate) const KVM_IOEVENTFD: u32 = 0x4040_ae79;
/// Raises or lowers an interrupt line.
pub(crate) const KVM_IRQ_LINE: u32 = 0x4008_ae61;
/// Delivers a message-signalled interrupt.
pub(crate) const KVM_SIGNAL_MSI: u32 = 0x4020_aea5;
/// Enters the guest.
pub(crate) const KVM_RUN: u32 = 0xae80;

/// x86_64: which CPUID leaves KVM can offer.
pub(crate) const KVM_GET_SUPPORTED_CPUID: u32 = 0xc008_ae05;
/// x86_64: where Intel's real mode keeps its task state.
pub(crate) const KVM_SET_TSS_ADDR: u32 = 0xae47;
/// x86_64: the in-kernel interrupt controllers.
pub(crate) const KVM_CREATE_IRQCHIP: u32 = 0xae60;
/// x86_64: reads general registers.
pub(crate) const KVM_GET_REGS: u32 = 0x8090_ae81;
/// x86_64: writes general registers.
pub(crate) const KVM_SET_REGS: u32 = 0x4090_ae82;
/// x86_64: reads segment and control registers.
pub(crate) const KVM_GET_SREGS: u32 = 0x8138_ae83;
/// x86_64: writes segment and control registers.
pub(crate) const KVM_SET_SREGS: u32 = 0x4138_ae84;
/// x86_64: reads model-specific registers.
pub(crate) const KVM_GET_MSRS: u32 = 0xc008_ae88;
/// x86_64: writes model-specific registers.
pub(crate) const KVM_SET_MSRS: u32 = 0x4008_ae89;
/// x86_64: which CPUID leaves the guest sees.
pub(crate) const KVM_SET_CPUID2: u32 = 0x4008_ae90;
/// x86_64: reads the rate of the time stamp counter.
pub(crate) const KVM_GET_TSC_KHZ: u32 = 0xaea3;

/// aarch64: makes an in-kernel device (the interrupt controller).
pub(crate) const KVM_CREATE_DEVICE: u32 = 0xc00c_aee0;
/// aarch64: configures an in-kernel device.
pub(crate) const KVM_SET_DEVICE_ATTR: u32 = 0x4018_aee1;
/// aarch64: reads a vCPU's register.
pub(crate) const KVM_GET_ONE_REG: u32 = 0x4010_aeab;
/// aarch64: writes a vCPU's register.
pub(crate) const KVM_SET_ONE_REG: u32 = 0x4010_aeac;
/// aarch64: makes a vCPU of a kind.
pub(crate) const KVM_ARM_VCPU_INIT: u32 = 0x4020_aeae;
/// aarch64: asks which kind of vCPU this host makes.
pub(crate) const KVM_ARM_PREFERRED_TARGET: u32 = 0x8020_aeaf;
}
