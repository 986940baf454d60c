//! Thin wrappers over system calls that `rustix` does not have in safe form.
//!
//! Owns no state and knows no word of virtual machines. Refuses nothing: it reports what the kernel said. Invariant:
//! every `unsafe` here is one call whose arguments are checked by its own signature.

pub mod signal;

use rustix::time::{ClockId, clock_gettime};
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// `CLOCK_MONOTONIC` in nanoseconds.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    // The clock starts at boot and is never negative.
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

/// Ends the process with `status`, running no destructor and no exit handler; async-signal-safe.
pub fn exit_now(status: u8) -> ! {
    #[expect(unsafe_code, reason = "ends the process without unwinding")]
    // SAFETY: `_exit` takes any integer and does not return.
    unsafe {
        libc::_exit(i32::from(status))
    }
}

/// Takes over a descriptor that the process was started with; it gets close-on-exec. Once per number.
///
/// # Errors
/// `EBADF` if there is none with that number, `ENOTSOCK` if it is no socket.
pub fn adopt(number: RawFd) -> io::Result<OwnedFd> {
    if number < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    #[expect(unsafe_code, reason = "a number on the command line is all there is")]
    // SAFETY: only looked at; a number that is not open gives EBADF.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::net::sockopt::socket_type(borrowed)?;
    rustix::io::fcntl_setfd(borrowed, rustix::io::FdFlags::CLOEXEC)?;
    #[expect(unsafe_code, reason = "a number on the command line is all there is")]
    // SAFETY: it is open, and at the start of the process nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Sends one message on a socket of which only the number is known, without waiting; async-signal-safe.
///
/// # Errors
/// What `send(2)` says.
pub fn send_raw(socket: RawFd, message: &[u8]) -> io::Result<()> {
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    #[expect(unsafe_code, reason = "a signal handler has no owned descriptor")]
    // SAFETY: the kernel reads `message.len()` bytes from a live slice; a number that is no socket gives an error.
    let sent = unsafe { libc::send(socket, message.as_ptr().cast(), message.len(), flags) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_socket_is_adopted() {
        assert_eq!(adopt(-1).unwrap_err().raw_os_error(), Some(libc::EBADF));
        assert_eq!(adopt(1_000_000).unwrap_err().raw_os_error(), Some(libc::EBADF));
        let null = std::fs::File::open("/dev/null").unwrap();
        let error = adopt(std::os::fd::AsRawFd::as_raw_fd(&null)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTSOCK));
    }

    #[test]
    fn a_number_that_is_no_socket_is_an_error() {
        assert_eq!(send_raw(-1, b"x").unwrap_err().raw_os_error(), Some(libc::EBADF));
    }

    #[test]
    fn time_goes_on() {
        let before = monotonic_ns();
        assert!(before > 0);
        assert!(monotonic_ns() >= before);
    }
}
