//! System calls that rustix has no safe function for: signal masks, signalfd, wait4, taps.
//!
//! Owns no state. Refuses nothing: errors are the kernel's. Invariant: every call here hands the kernel either plain
//! numbers or pointers to live, correctly sized locals.

pub(crate) mod probe;

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};

/// How a child ended, and what it cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ChildEnd {
    /// Exit status or signal.
    pub(crate) how: ChildExit,
    /// CPU time in user mode (guest code included), microseconds.
    pub(crate) user_us: u64,
    /// CPU time in the kernel, microseconds.
    pub(crate) system_us: u64,
    /// Largest resident set, KiB.
    pub(crate) max_rss_kib: u64,
}

/// Exit status or signal of a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChildExit {
    /// It exited with this status.
    Status(i32),
    /// This signal killed it.
    Signal(i32),
}

/// Lets a failure that the standard library ends a process for (no memory) end it with `status`, as every other failure does. The
/// library has said which it is.
#[expect(unsafe_code, reason = "signal handlers have no safe interface")]
pub(crate) fn exit_on_abort(status: u8) {
    extern "C" fn exit(_signal: i32) {
        // SAFETY: it ends the process and touches nothing of it.
        unsafe { libc::_exit(ABORTED.load(Ordering::Relaxed)) }
    }
    ABORTED.store(i32::from(status), Ordering::Relaxed);
    let handler: extern "C" fn(i32) = exit;
    // SAFETY: the handler is async-signal-safe: it loads a number and ends the process.
    unsafe { libc::signal(libc::SIGABRT, handler as libc::sighandler_t) };
}

/// The status of [`exit_on_abort`].
static ABORTED: AtomicI32 = AtomicI32::new(0);

/// Reaps the child `pid`, which must have ended already or be about to: this waits for it.
#[expect(unsafe_code, reason = "rustix has no wait4, the one call that tells what a single child cost")]
pub(crate) fn reap(pid: i32) -> io::Result<ChildEnd> {
    let mut status = 0;
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    loop {
        // SAFETY: both pointers are to locals of the right type that outlive the call; the kernel only writes them.
        let result = unsafe { libc::wait4(pid, &raw mut status, 0, usage.as_mut_ptr()) };
        if result == pid {
            break;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    // SAFETY: the structure was zeroed, which is a valid value of it, and wait4 succeeded and filled it in.
    let usage = unsafe { usage.assume_init() };
    let how = if libc::WIFSIGNALED(status) {
        ChildExit::Signal(libc::WTERMSIG(status))
    } else {
        ChildExit::Status(libc::WEXITSTATUS(status))
    };
    Ok(ChildEnd {
        how,
        user_us: microseconds(usage.ru_utime),
        system_us: microseconds(usage.ru_stime),
        max_rss_kib: u64::try_from(usage.ru_maxrss).unwrap_or(0),
    })
}

fn microseconds(time: libc::timeval) -> u64 {
    u64::try_from(time.tv_sec * 1_000_000 + time.tv_usec).unwrap_or(0)
}

/// A thread's signal mask as it was before [`block`].
#[derive(Clone, Copy)]
pub(crate) struct Mask(libc::sigset_t);

impl std::fmt::Debug for Mask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Mask")
    }
}

#[expect(unsafe_code, reason = "libc's signal sets are filled in through pointers")]
fn set_of(signals: &[i32]) -> libc::sigset_t {
    let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: the pointer is to a local of the right type; sigemptyset initializes it.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    for &signal in signals {
        // SAFETY: as above; a number that is no signal is refused by the call and changes nothing.
        unsafe { libc::sigaddset(set.as_mut_ptr(), signal) };
    }
    // SAFETY: initialized by sigemptyset.
    unsafe { set.assume_init() }
}

/// Blocks `signals` in this thread; they wait until someone reads them.
#[expect(unsafe_code, reason = "rustix does not change signal masks")]
pub(crate) fn block(signals: &[i32]) -> io::Result<Mask> {
    let set = set_of(signals);
    let mut old = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: both pointers are to live locals of the right type.
    let result = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, old.as_mut_ptr()) };
    if result != 0 {
        return Err(io::Error::from_raw_os_error(result));
    }
    // SAFETY: zeroed is a valid value, and the call succeeded and wrote the old mask.
    Ok(Mask(unsafe { old.assume_init() }))
}

/// Puts back what [`block`] found.
#[expect(unsafe_code, reason = "rustix does not change signal masks")]
pub(crate) fn restore(mask: &Mask) {
    // SAFETY: the mask was filled in by pthread_sigmask; no old mask is asked for.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const mask.0, std::ptr::null_mut()) };
}

/// A descriptor from which blocked signals are read.
#[expect(unsafe_code, reason = "rustix has no signalfd")]
pub(crate) fn signalfd(signals: &[i32]) -> io::Result<OwnedFd> {
    let set = set_of(signals);
    // SAFETY: -1 asks for a new descriptor; the set is a live local.
    let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Undoes an inherited "ignore" of SIGCHLD, under which the kernel would reap our children for us and lose their status.
#[expect(unsafe_code, reason = "rustix does not change signal dispositions")]
pub(crate) fn keep_children() {
    // SAFETY: SIG_DFL installs no handler, so no code of ours can run in signal context.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

/// Sends the signal `number`, real-time ones included, to the process behind `pidfd`.
#[expect(unsafe_code, reason = "rustix's Signal has no real-time numbers")]
pub(crate) fn send_signal(pidfd: std::os::fd::BorrowedFd<'_>, number: i32) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    // SAFETY: a null siginfo means "as kill(2)"; the other arguments are plain numbers and a live descriptor.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            number,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `struct ifreq` with the name of an interface that is at most 15 bytes long.
#[expect(unsafe_code, reason = "a C structure with a union")]
fn request(name: &str) -> libc::ifreq {
    // SAFETY: all-zero bytes are a valid ifreq: a name of NULs and a union of integers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..room].iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request
}

/// Makes an open /dev/net/tun the end of tap `name`, which is made if it is not there: frames with virtio headers.
#[expect(unsafe_code, reason = "an ioctl without a safe wrapper")]
pub(crate) fn attach_tap(tun: std::os::fd::BorrowedFd<'_>, name: &str, several: bool) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let mut request = request(name);
    let queues = if several { libc::IFF_MULTI_QUEUE } else { 0 };
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | queues;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).unwrap_or(0);
    // SAFETY: `request` is an ifreq that lives through the call; its name is terminated.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sets an attached tap to virtio 1's header of 12 bytes, and to hand over frames whose checksum or segmentation is left
/// to their receiver.
#[expect(unsafe_code, reason = "ioctls without a safe wrapper")]
pub(crate) fn prepare_tap(tap: std::os::fd::BorrowedFd<'_>) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    const HEADER_BYTES: libc::c_int = 12;
    // TUN_F_CSUM, TUN_F_TSO4 and TUN_F_TSO6 of linux/if_tun.h.
    const OFFLOADS: libc::c_ulong = 1 | 2 | 4;
    let size = HEADER_BYTES;
    // SAFETY: the kernel reads an int, which lives through the call.
    let result = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const size) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the request takes its argument by value.
    let result = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETOFFLOAD, OFFLOADS) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Largest packet of interface `name`, in bytes.
#[expect(unsafe_code, reason = "an ioctl without a safe wrapper")]
#[allow(clippy::cast_possible_truncation, reason = "a request is an int in one C library, a long in another")]
pub(crate) fn mtu(socket: std::os::fd::BorrowedFd<'_>, name: &str) -> io::Result<u64> {
    use std::os::fd::AsRawFd;
    let mut request = request(name);
    // SAFETY: `request` is an ifreq that lives through the call; its name is terminated.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU as _, &raw mut request) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded and wrote this member; every bit pattern is a number.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    Ok(u64::try_from(mtu).unwrap_or(0))
}
