//! Signals as events on a descriptor, for as long as a sandbox lives.
//!
//! Owns the thread's signal mask while it exists. Refuses nothing. Invariant: the mask is put back when it is dropped,
//! and what was read from the descriptor is not delivered again.

use crate::sys;
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// "End the sandbox at once": what `husk kill --signal KILL` sends, because SIGKILL itself would leave things behind.
/// A real-time signal that neither libc uses.
pub(crate) const END_AT_ONCE: i32 = 44;

/// What is read from the descriptor.
pub(crate) const TAKEN: [i32; 8] = [
    libc::SIGINT,
    libc::SIGTERM,
    libc::SIGHUP,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGWINCH,
    END_AT_ONCE,
];

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// Tell the command; end the sandbox if it is said twice or nothing comes of it.
    End(i32),
    /// Tell the command.
    Pass(i32),
    /// The window has another size.
    Resized,
    /// Do not ask the command.
    AtOnce,
}

/// The signals of [`TAKEN`], taken from their default actions.
#[derive(Debug)]
pub struct Signals {
    fd: OwnedFd,
    mask: sys::Mask,
}

impl Signals {
    /// Takes the signals in the calling thread. Other threads of the process should have been started afterwards, or
    /// block them too.
    ///
    /// # Errors
    /// No descriptor can be had.
    pub fn take() -> io::Result<Self> {
        let mask = sys::block(&TAKEN)?;
        match sys::signalfd(&TAKEN) {
            Ok(fd) => Ok(Self { fd, mask }),
            Err(error) => {
                sys::restore(&mask);
                Err(error)
            }
        }
    }

    /// The next signal that came, if one did.
    pub(crate) fn next(&self) -> Option<Meaning> {
        // struct signalfd_siginfo is 128 bytes and begins with the number.
        let mut info = [0_u8; 128];
        loop {
            match rustix::io::read(&self.fd, &mut info) {
                Ok(length) if length == info.len() => break,
                Err(Errno::INTR) => {}
                _ => return None,
            }
        }
        let number = i32::from_ne_bytes([info[0], info[1], info[2], info[3]]);
        Some(match number {
            libc::SIGWINCH => Meaning::Resized,
            libc::SIGUSR1 | libc::SIGUSR2 => Meaning::Pass(number),
            END_AT_ONCE => Meaning::AtOnce,
            _ => Meaning::End(number),
        })
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        sys::restore(&self.mask);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{Pid, Signal};

    #[test]
    fn a_signal_becomes_an_event() {
        let signals = Signals::take().unwrap();
        assert_eq!(signals.next(), None);
        // To this thread: the other tests' threads have not blocked it.
        let thread = rustix::thread::gettid();
        tgkill(thread, Signal::WINCH);
        assert_eq!(signals.next(), Some(Meaning::Resized));
        assert_eq!(signals.next(), None);
    }

    #[expect(unsafe_code, reason = "rustix has no tgkill")]
    fn tgkill(thread: Pid, signal: Signal) {
        // SAFETY: plain numbers only.
        let result = unsafe {
            libc::syscall(
                libc::SYS_tgkill,
                std::process::id(),
                thread.as_raw_nonzero().get(),
                signal.as_raw(),
            )
        };
        assert_eq!(result, 0);
    }
}
