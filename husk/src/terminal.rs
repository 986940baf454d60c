//! husk's own terminal while a command in the guest has it.
//!
//! Owns the terminal's settings between raw and restored. Refuses what is not a terminal. Invariant: as soon as the
//! settings were changed, dropping this (or a panic, through [`restore_now`]) puts back exactly what was found.

use husk_protocol::exec::WindowSize;
use rustix::io::Errno;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

/// The terminal cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TerminalError {
    /// Not a terminal.
    #[error("-t needs a terminal on standard input, and there is none; leave -t out")]
    None,
    /// Its settings cannot be changed.
    #[error("the terminal's settings cannot be changed: {source}", source = std::io::Error::from(*.0))]
    Settings(Errno),
}

/// For a panic: the terminal that is raw now, and its settings before.
static RAW: Mutex<Option<(OwnedFd, Termios)>> = Mutex::new(None);

/// A terminal in raw mode.
#[derive(Debug)]
pub(crate) struct RawTerminal<'a> {
    fd: BorrowedFd<'a>,
}

/// The size of the terminal `fd`.
pub(crate) fn size(fd: BorrowedFd<'_>) -> Result<WindowSize, TerminalError> {
    if !isatty(fd) {
        return Err(TerminalError::None);
    }
    let size = tcgetwinsize(fd).map_err(TerminalError::Settings)?;
    Ok(WindowSize { rows: size.ws_row, cols: size.ws_col })
}

impl<'a> RawTerminal<'a> {
    /// Makes `fd` raw: every key goes to the guest, whose own terminal gives keys their meaning.
    pub(crate) fn new(fd: BorrowedFd<'a>) -> Result<Self, TerminalError> {
        let before = tcgetattr(fd).map_err(TerminalError::Settings)?;
        let own = fd.try_clone_to_owned().map_err(|_| TerminalError::Settings(Errno::MFILE))?;
        let mut raw = before.clone();
        raw.make_raw();
        *RAW.lock().unwrap_or_else(PoisonError::into_inner) = Some((own, before));
        let terminal = Self { fd };
        tcsetattr(fd, OptionalActions::Now, &raw).map_err(TerminalError::Settings)?;
        Ok(terminal)
    }

    pub(crate) fn size(&self) -> Option<WindowSize> {
        size(self.fd).ok()
    }
}

impl Drop for RawTerminal<'_> {
    fn drop(&mut self) {
        restore_now();
    }
}

/// Puts the terminal back, if it is raw. For a panic hook; does nothing otherwise.
pub(crate) fn restore_now() {
    // try_lock: a panic with the lock held must not hang.
    let Ok(mut raw) = RAW.try_lock() else { return };
    if let Some((fd, before)) = raw.take() {
        // Not DRAIN: a terminal that was stopped would keep husk for ever.
        let _ = tcsetattr(fd.as_fd(), OptionalActions::Now, &before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
    use rustix::termios::{LocalModes, Winsize, tcsetwinsize};

    #[test]
    fn raw_and_back() {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let slave = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        tcsetwinsize(&slave, Winsize { ws_row: 30, ws_col: 90, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
        let before = tcgetattr(&slave).unwrap();
        assert!(before.local_modes.contains(LocalModes::ICANON));
        let terminal = RawTerminal::new(slave.as_fd()).unwrap();
        assert_eq!(terminal.size(), Some(WindowSize { rows: 30, cols: 90 }));
        assert!(!tcgetattr(&slave).unwrap().local_modes.contains(LocalModes::ICANON));
        drop(terminal);
        let after = tcgetattr(&slave).unwrap();
        assert_eq!(after.local_modes, before.local_modes);
        assert_eq!(after.input_modes, before.input_modes);
        assert_eq!(after.output_modes, before.output_modes);
    }

    #[test]
    fn a_pipe_is_no_terminal() {
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        assert!(matches!(size(reader.as_fd()), Err(TerminalError::None)));
    }
}
