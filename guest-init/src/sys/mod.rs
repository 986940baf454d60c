//! Kernel interfaces that have no safe wrapper elsewhere. Owns all `unsafe` of this crate but the entry point's
//! attribute; knows nothing of sessions, mounts or frames. Invariant: no pointer handed to the kernel here outlives
//! the call, save the argument vectors of [`execve`], which end with the process image.

use rustix::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use rustix::io::Errno;
use std::ffi::CStr;
use std::ptr;

mod exec;
pub(crate) use exec::{StringVector, execve, fork};

/// The counter that the host converts to its own time: `rdtsc`.
#[cfg(target_arch = "x86_64")]
#[must_use]
#[expect(unsafe_code, reason = "an instruction without a safe intrinsic")]
pub fn ticks() -> u64 {
    // SAFETY: every x86-64 CPU has the instruction, and nothing in the guest turns it off (CR4.TSD) before PID 1 runs.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// The counter that the host converts to its own time: `cntvct_el0`.
#[cfg(target_arch = "aarch64")]
#[must_use]
#[expect(unsafe_code, reason = "a system register without an intrinsic")]
pub fn ticks() -> u64 {
    let ticks: u64;
    // SAFETY: Linux lets EL0 read the virtual counter (CNTKCTL_EL1.EL0VCTEN); the read has no side effect.
    unsafe { core::arch::asm!("mrs {}, cntvct_el0", out(reg) ticks, options(nomem, nostack)) };
    ticks
}

/// `-1` to the error that the C library left behind.
pub(crate) fn check(result: i64) -> Result<i64, Errno> {
    if result >= 0 {
        return Ok(result);
    }
    Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
}

/// Starts to connect a stream of `AF_VSOCK` to `port` on the host; the socket is non-blocking and close-on-exec.
///
/// # Errors
/// `ENODEV` while there is no vsock device; `EAFNOSUPPORT` if the kernel has no vsock.
#[expect(unsafe_code, reason = "no safe wrapper knows vsock addresses")]
#[expect(clippy::cast_possible_truncation, reason = "constants and the size of a small structure")]
pub(crate) fn vsock_to_host(port: u32) -> Result<OwnedFd, Errno> {
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: plain numbers; the kernel returns a descriptor that nobody else has.
    let raw = check(i64::from(unsafe { libc::socket(libc::AF_VSOCK, kind, 0) }))?;
    // SAFETY: `raw` came from socket() just now and is owned by nobody.
    let socket = unsafe { OwnedFd::from_raw_fd(raw as i32) };
    // SAFETY: all-zero bytes are a valid sockaddr_vm: it is made of integers.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = libc::VMADDR_CID_HOST;
    address.svm_port = port;
    let size = size_of::<libc::sockaddr_vm>() as libc::socklen_t;
    // SAFETY: `address` lives through the call and `size` is its size.
    let connected = unsafe { libc::connect(socket.as_raw_fd(), ptr::from_ref(&address).cast(), size) };
    match check(i64::from(connected)) {
        Ok(_) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error),
    }
}

/// Puts `entropy` into the kernel's generator, credits it in full, and makes the generator take it up at once.
///
/// # Errors
/// The kernel's; `EPERM` without CAP_SYS_ADMIN.
#[expect(unsafe_code, reason = "ioctls without a safe wrapper")]
#[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "sizes of a 32-byte array")]
pub(crate) fn add_entropy(device: impl AsFd, entropy: &[u8; 32]) -> Result<(), Errno> {
    #[repr(C)]
    struct RandPoolInfo {
        bits: libc::c_int,
        bytes: libc::c_int,
        data: [u8; 32],
    }
    // linux/random.h: RNDADDENTROPY is _IOW('R', 3, int[2]), RNDRESEEDCRNG is _IO('R', 7).
    const ADD_ENTROPY: u32 = 0x4008_5203;
    const RESEED: u32 = 0x5207;
    let info = RandPoolInfo { bits: 8 * entropy.len() as i32, bytes: entropy.len() as i32, data: *entropy };
    let fd = device.as_fd().as_raw_fd();
    // SAFETY: `info` is a rand_pool_info with `bytes` bytes of data behind its two counters; it lives through the call.
    check(i64::from(unsafe { libc::ioctl(fd, ADD_ENTROPY as _, ptr::from_ref(&info)) }))?;
    // SAFETY: the request takes no argument.
    check(i64::from(unsafe { libc::ioctl(fd, RESEED as _, 0) }))?;
    Ok(())
}

/// Brings the loopback interface up; the kernel then gives it 127.0.0.1 and ::1 by itself.
///
/// # Errors
/// The kernel's; `ENODEV` without a loopback interface.
#[expect(unsafe_code, reason = "an ioctl without a safe wrapper")]
#[expect(clippy::cast_possible_truncation, reason = "a flag that fits")]
pub(crate) fn loopback_up(socket: impl AsFd) -> Result<(), Errno> {
    // SAFETY: all-zero bytes are a valid ifreq: a name of NULs and a union of integers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(c"lo".to_bytes()) {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: `request` is an ifreq that lives through the call; its name is terminated.
    let set = unsafe {
        libc::ioctl(socket.as_fd().as_raw_fd(), libc::SIOCSIFFLAGS as _, ptr::from_mut(&mut request))
    };
    check(i64::from(set)).map(drop)
}

/// Reads at most `most` bytes and appends them; returns how many, 0 at the end.
///
/// # Errors
/// The read's; `buffer` is as before then.
#[expect(unsafe_code, reason = "to read into memory that was not cleared, and so not touched, before")]
pub(crate) fn read_append(from: impl AsFd, buffer: &mut Vec<u8>, most: usize) -> Result<usize, Errno> {
    buffer.reserve(most);
    let filled = buffer.len();
    let (read, _) = rustix::io::read(from, &mut buffer.spare_capacity_mut()[..most])?;
    let count = read.len();
    // SAFETY: the kernel wrote the first `count` bytes behind `filled`, which `reserve` made part of the capacity.
    unsafe { buffer.set_len(filled + count) };
    Ok(count)
}

/// Blocks SIGCHLD and SIGPIPE for this process and returns a descriptor that is readable when SIGCHLD is pending.
///
/// # Errors
/// The kernel's.
#[expect(unsafe_code, reason = "signal sets have no safe wrapper")]
#[expect(clippy::cast_possible_truncation, reason = "a descriptor number")]
pub(crate) fn child_signals() -> Result<OwnedFd, Errno> {
    // SAFETY: all-zero bytes are a valid (empty) signal set on Linux.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is an initialized set and the number is a signal's.
    unsafe { libc::sigaddset(&raw mut set, libc::SIGCHLD) };
    let flags = libc::SFD_NONBLOCK | libc::SFD_CLOEXEC;
    // SAFETY: `set` lives through the call; -1 asks for a new descriptor.
    let raw = check(i64::from(unsafe { libc::signalfd(-1, &raw const set, flags) }))?;
    // SAFETY: signalfd() returned `raw` just now; nobody else owns it.
    let signals = unsafe { OwnedFd::from_raw_fd(raw as i32) };
    // SAFETY: as above.
    unsafe { libc::sigaddset(&raw mut set, libc::SIGPIPE) };
    // SAFETY: `set` lives through the call; the old mask is not asked for.
    let masked = unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()) };
    check(i64::from(masked))?;
    Ok(signals)
}

/// Undoes [`child_signals`] for the process that is about to become a command: no signal blocked, SIGPIPE default.
#[expect(unsafe_code, reason = "signal sets have no safe wrapper")]
pub(crate) fn default_signals() {
    // SAFETY: a number and a constant; no handler of ours is replaced, there are none.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    // SAFETY: all-zero bytes are a valid (empty) signal set on Linux.
    let set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` lives through the call; the old mask is not asked for.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const set, ptr::null_mut()) };
}

/// Sends a signal; `target` as for kill(2): a process, `-group`, or -1.
///
/// # Errors
/// `ESRCH` if there is nobody, `EINVAL` for a number that is no signal's.
#[expect(unsafe_code, reason = "numbers that no safe wrapper takes: -1, and signals without a name")]
pub(crate) fn kill(target: i32, signal: i32) -> Result<(), Errno> {
    // SAFETY: plain numbers.
    check(i64::from(unsafe { libc::kill(target, signal) })).map(drop)
}

/// What all processes that were waited for have cost.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    /// CPU time in user mode, microseconds.
    pub(crate) user_us: u64,
    /// CPU time in the kernel, microseconds.
    pub(crate) system_us: u64,
    /// Largest resident set of one of them, KiB.
    pub(crate) max_rss_kib: u64,
}

/// `getrusage(RUSAGE_CHILDREN)`.
#[expect(unsafe_code, reason = "no safe wrapper in rustix")]
pub(crate) fn children_usage() -> Usage {
    // SAFETY: all-zero bytes are a valid rusage: it is made of integers.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: `usage` is a rusage that lives through the call. It can fail only for a bad pointer or number.
    unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage) };
    let micros = |time: libc::timeval| {
        u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000 + u64::try_from(time.tv_usec).unwrap_or(0)
    };
    Usage {
        user_us: micros(usage.ru_utime),
        system_us: micros(usage.ru_stime),
        max_rss_kib: u64::try_from(usage.ru_maxrss).unwrap_or(0),
    }
}

/// Ends this process without running anything more of it: what a forked child must do in place of returning.
#[expect(unsafe_code, reason = "_exit has no safe wrapper")]
pub(crate) fn exit_now(status: i32) -> ! {
    // SAFETY: never returns and touches no memory of ours.
    unsafe { libc::_exit(status) }
}

/// Takes over a descriptor that the command line names.
///
/// # Errors
/// `EBADF` if it is not open.
#[expect(unsafe_code, reason = "the only way from a number to a descriptor")]
pub(crate) fn adopt(raw: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: plain numbers; asks for the flags of a descriptor that may not exist.
    check(i64::from(unsafe { libc::fcntl(raw, libc::F_SETFD, libc::FD_CLOEXEC) }))?;
    // SAFETY: it is open, as the call above showed, and main hands the number over once, before anything else opens.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// The kernel's arguments to PID 1, without the first.
///
/// # Safety
/// `argv` must hold `argc` pointers to terminated strings that live as long as the process.
#[expect(unsafe_code, reason = "the arguments of main")]
#[must_use]
pub unsafe fn arguments(argc: i32, argv: *const *const libc::c_char) -> Vec<&'static CStr> {
    let count = usize::try_from(argc).unwrap_or(0).min(64);
    let mut arguments = Vec::new();
    for at in 1..count {
        // SAFETY: `at < argc`, and the caller promises that many pointers.
        let place = unsafe { argv.add(at) };
        // SAFETY: as above.
        let pointer = unsafe { *place };
        // SAFETY: the caller promises terminated strings that live as long as the process.
        arguments.push(unsafe { CStr::from_ptr(pointer) });
    }
    arguments
}
