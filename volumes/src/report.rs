//! The server's last word when its filter denies a call: one message on the control socket, then the end.
//!
//! Owns the number of the control descriptor, for the handler, which has nothing else. A call that is denied is a bug here, or
//! somebody else's code; as PID 1 of its namespace the server would otherwise end without a word. Invariant: what runs in the
//! handler allocates nothing, takes no lock and makes two calls, which every filter allows.

#![expect(unsafe_code, reason = "a signal handler, and what the kernel hands it")]

use husk_seccomp::{Denied, Role};
use std::io::{self, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

/// The control descriptor; -1 before it is known.
static CONTROL: AtomicI32 = AtomicI32::new(-1);
/// Which of the two filters it is.
static WRITABLE: AtomicBool = AtomicBool::new(false);

/// Bytes of a message: its fixed part, a role, a call's number and name are less.
const MOST: usize = 256;

/// `siginfo_t` as the kernel fills it for `_sigsys` (include/uapi/asm-generic/siginfo.h).
#[repr(C)]
#[derive(Clone, Copy)]
struct Info {
    /// `si_signo`, `si_errno`, `si_code`, padding.
    head: [i32; 4],
    address: usize,
    call: u32,
    arch: u32,
}
const _: () = assert!(size_of::<Info>() <= size_of::<libc::siginfo_t>());

/// From now on a denied call is told on `control`, and ends the process. `control` stays open until then. Before the filter.
///
/// # Errors
/// What `sigaction(2)` says.
pub fn tell(control: BorrowedFd<'_>, writable: bool) -> io::Result<()> {
    CONTROL.store(control.as_raw_fd(), Ordering::Relaxed);
    WRITABLE.store(writable, Ordering::Relaxed);
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: all-zero bytes are a valid `sigaction` (no flags, empty mask, default action).
    let action = unsafe { action.assume_init_mut() };
    action.sa_sigaction = on_denied_call as extern "C" fn(_, _, _) as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: `action` is initialized and outlives the call; the old action is not asked for.
    let result = unsafe { libc::sigaction(libc::SIGSYS, action, std::ptr::null_mut()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

extern "C" fn on_denied_call(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a `siginfo_t`, which is larger than `Info` and at least as aligned.
    let Info { call, arch, .. } = unsafe { *info.cast::<Info>() };
    let role = if WRITABLE.load(Ordering::Relaxed) { Role::VolumeWritable } else { Role::Volume };
    let mut bytes = [0; MOST];
    let length = message(&mut bytes, &Denied { role: role.name(), call, arch });
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    // SAFETY: the kernel reads `length` bytes, at most `MOST`, from a live array; a number that is no socket gives an error.
    let _nobody_left =
        unsafe { libc::send(CONTROL.load(Ordering::Relaxed), bytes.as_ptr().cast(), length, flags) };
    // SAFETY: takes any integer and does not return.
    unsafe { libc::_exit(1) }
}

/// Writes the message; its length.
fn message(bytes: &mut [u8; MOST], denied: &Denied<'_>) -> usize {
    let mut rest = &mut bytes[..];
    let written = write!(rest, r#"{{"failed":{{"fault":"bug","message":"volume server: {denied}"}}}}"#);
    let left = rest.len();
    // One that is cut is none; there is no call and no role for which it would be.
    if written.is_ok() { MOST - left } else { 0 }
}

#[cfg(test)]
mod tests;
