//! Signals: handlers, and a signal to one thread.
//!
//! Owns the conversion of a Rust function into a kernel signal action. Invariant: a handler installed here runs on the
//! alternate stack if the thread has one, so that a stack overflow can still be reported.

use std::io;
use std::mem::MaybeUninit;
use std::ptr;

/// What the kernel tells a handler.
#[derive(Debug, Clone, Copy)]
pub struct Info {
    /// The signal's number.
    pub signal: i32,
    /// `si_code`.
    pub code: i32,
    /// The address of a fault (SIGSEGV, SIGBUS), of the call instruction (SIGSYS).
    pub address: usize,
    /// The number of the denied system call; only for SIGSYS.
    pub syscall: i32,
    /// The architecture whose number that is, `AUDIT_ARCH_…` of linux/audit.h; only for SIGSYS.
    pub arch: u32,
}

/// A function that may run as a signal handler: async-signal-safe calls only.
pub type Handler = extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void);

/// Makes `handler` the action for `signal`; system calls that it interrupts end with EINTR.
///
/// # Errors
/// What `sigaction(2)` says: `EINVAL` for a signal that cannot be caught.
pub fn handle(signal: i32, handler: Handler) -> io::Result<()> {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    #[expect(unsafe_code, reason = "sigaction(2) has no safe form")]
    // SAFETY: all-zero bytes are a valid `sigaction` (no flags, empty mask, default action).
    let action = unsafe { action.assume_init_mut() };
    action.sa_sigaction = handler as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    #[expect(unsafe_code, reason = "sigaction(2) has no safe form")]
    // SAFETY: `action` is initialized and outlives the call; the old action is not asked for.
    let result = unsafe { libc::sigaction(signal, ptr::from_ref(action), ptr::null_mut()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Reads the part of `info` that is defined for `signal`. Async-signal-safe.
///
/// `info` is what the kernel passed to a [`Handler`]; null gives zeros.
#[must_use]
pub fn info(signal: i32, info: *const libc::siginfo_t) -> Info {
    /// `siginfo_t` as the kernel fills it for `_sigsys` and `_sigfault` (`include/uapi/asm-generic/siginfo.h`).
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Fields {
        signo: i32,
        errno: i32,
        code: i32,
        padding: i32,
        address: usize,
        syscall: i32,
        arch: u32,
    }
    const { assert!(size_of::<Fields>() <= size_of::<libc::siginfo_t>()) };
    if info.is_null() {
        return Info { signal, code: 0, address: 0, syscall: -1, arch: 0 };
    }
    #[expect(unsafe_code, reason = "libc has no accessor for si_syscall and si_arch")]
    // SAFETY: not null, so it is the kernel's `siginfo_t`, which is larger than `Fields` and at least as aligned.
    let fields = unsafe { *info.cast::<Fields>() };
    let (syscall, arch) = if signal == libc::SIGSYS { (fields.syscall, fields.arch) } else { (-1, 0) };
    Info { signal, code: fields.code, address: fields.address, syscall, arch }
}

/// A thread of this process, to which signals can be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ThreadId(i32);

impl ThreadId {
    /// The calling thread.
    #[must_use]
    pub fn current() -> Self {
        Self(rustix::thread::gettid().as_raw_nonzero().get())
    }

    /// Sends `signal` to the thread.
    ///
    /// # Errors
    /// `ESRCH` if the thread has ended.
    pub fn signal(self, signal: i32) -> io::Result<()> {
        #[expect(unsafe_code, reason = "tkill(2) has no wrapper in rustix or libc")]
        // SAFETY: two integers; the thread is one of this process, which never outlives its threads' numbers in use.
        let result = unsafe { libc::syscall(libc::SYS_tkill, self.0, signal) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicI32, Ordering};

    static SEEN: AtomicI32 = AtomicI32::new(0);

    extern "C" fn note(signal: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
        SEEN.store(signal, Ordering::SeqCst);
    }

    #[test]
    fn a_signal_reaches_its_thread() {
        handle(libc::SIGUSR2, note).unwrap();
        ThreadId::current().signal(libc::SIGUSR2).unwrap();
        assert_eq!(SEEN.load(Ordering::SeqCst), libc::SIGUSR2);
    }

    #[test]
    fn kill_cannot_be_handled() {
        assert_eq!(handle(libc::SIGKILL, note).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }

    #[test]
    fn no_information_is_zeros() {
        assert_eq!(info(libc::SIGBUS, ptr::null()).address, 0);
    }
}
