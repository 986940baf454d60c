//! One wait for everything.
//!
//! Owns the list of descriptors of one wait. Refuses nothing. Invariant: a descriptor is polled for exactly what was
//! asked for, and an error or hang-up on it counts as ready.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

/// What a descriptor is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Token {
    /// The exec channel.
    Channel,
    /// husk's standard input.
    Stdin,
    /// husk's standard output.
    Stdout,
    /// husk's standard error.
    Stderr,
    /// The control socket.
    Control,
    /// The jailer's end.
    Jailer,
    /// The jailer's standard error.
    JailerStderr,
    /// The runtime's end.
    Runtime,
    /// The guest's console.
    Console,
    /// husk's standard error, for the console.
    ConsoleOut,
    /// Signals to husk.
    Signals,
    /// Who asks for a change.
    Desk,
}

/// Descriptors to wait for.
#[derive(Debug, Default)]
pub(crate) struct PollSet<'a> {
    tokens: Vec<Token>,
    fds: Vec<PollFd<'a>>,
}

impl<'a> PollSet<'a> {
    /// Adds a descriptor; without flags it is left out.
    pub(crate) fn add(&mut self, token: Token, fd: BorrowedFd<'a>, flags: PollFlags) {
        if !flags.is_empty() {
            self.tokens.push(token);
            self.fds.push(PollFd::from_borrowed_fd(fd, flags));
        }
    }

    /// Waits until one is ready or `deadline` has come; the ready ones.
    pub(crate) fn wait(mut self, deadline: Option<Instant>) -> Result<Vec<Token>, Errno> {
        let timeout = deadline.map(|deadline| {
            let rest = deadline.saturating_duration_since(Instant::now());
            // Longer than an hour is as good as an hour: the caller looks at its deadlines each time.
            Timespec::try_from(rest.min(Duration::from_secs(3600)))
                .unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 })
        });
        match poll(&mut self.fds, timeout.as_ref()) {
            Err(Errno::INTR) => return Ok(Vec::new()),
            result => result?,
        };
        let ready = self.tokens.iter().zip(&self.fds).filter(|(_, fd)| !fd.revents().is_empty());
        Ok(ready.map(|(&token, _)| token).collect())
    }
}
