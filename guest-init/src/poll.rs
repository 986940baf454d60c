//! The event loop's eyes: an epoll set and the descriptors in it. Owns what is listened for on each descriptor;
//! refuses nothing. Invariant: a [`Watch`] that wants nothing is not in the set, because epoll reports a hang-up even
//! to those who asked for no event, and the loop would spin.

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use std::fmt;
use std::time::{Duration, Instant};

pub(crate) use epoll::EventFlags as Events;

/// Who is meant by an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Token {
    /// The connection to the host.
    Channel,
    /// A child changed its state.
    Children,
    /// The process that unmounts has something to say.
    Unmounter,
    /// A descriptor of a session.
    Session(u32, Slot),
}

/// Which descriptor of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Slot {
    /// Says whether the command was executed.
    Status,
    /// The command's standard input.
    Stdin,
    /// Its standard output, or its terminal's.
    Stdout,
    /// Its standard error.
    Stderr,
}

impl Token {
    fn to_u64(self) -> u64 {
        match self {
            Self::Channel => 0,
            Self::Children => 1,
            Self::Unmounter => 2,
            Self::Session(session, slot) => u64::from(session) << 8 | (3 + slot as u64),
        }
    }

    fn from_u64(value: u64) -> Option<Self> {
        let slot = match value & 0xff {
            0 => return Some(Self::Channel),
            1 => return Some(Self::Children),
            2 => return Some(Self::Unmounter),
            3 => Slot::Status,
            4 => Slot::Stdin,
            5 => Slot::Stdout,
            6 => Slot::Stderr,
            _ => return None,
        };
        Some(Self::Session(u32::try_from(value >> 8).ok()?, slot))
    }
}

/// An epoll set.
pub(crate) struct Poll {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
}

impl fmt::Debug for Poll {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Poll").field("epoll", &self.epoll).finish_non_exhaustive()
    }
}

impl Poll {
    /// An empty set.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn new() -> Result<Self, Errno> {
        Ok(Self { epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?, events: Vec::with_capacity(32) })
    }

    /// Waits until something happens or `deadline` passes, and hands over what happened.
    ///
    /// # Errors
    /// The kernel's; an interruption is no error.
    pub(crate) fn wait(&mut self, deadline: Option<Instant>) -> Result<Vec<Token>, Errno> {
        let timeout = deadline.map(|at| timespec(at.saturating_duration_since(Instant::now())));
        self.events.clear();
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        Ok(self.events.iter().filter_map(|event| Token::from_u64(event.data.u64())).collect())
    }
}

/// A duration as the kernel takes it.
pub(crate) fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

/// A descriptor, and what is listened for on it.
#[derive(Debug)]
pub(crate) struct Watch {
    fd: OwnedFd,
    token: Token,
    wanted: Events,
}

impl Watch {
    /// Not listening yet.
    pub(crate) fn new(fd: OwnedFd, token: Token) -> Self {
        Self { fd, token, wanted: Events::empty() }
    }

    /// Listens for these events from now on; for none, if `wanted` is empty.
    ///
    /// # Errors
    /// The kernel's: `ENOSPC`, `ENOMEM`.
    pub(crate) fn listen(&mut self, poll: &Poll, wanted: Events) -> Result<(), Errno> {
        if self.wanted == wanted {
            return Ok(());
        }
        let data = epoll::EventData::new_u64(self.token.to_u64());
        if wanted.is_empty() {
            epoll::delete(&poll.epoll, &self.fd)?;
        } else if self.wanted.is_empty() {
            epoll::add(&poll.epoll, &self.fd, data, wanted)?;
        } else {
            epoll::modify(&poll.epoll, &self.fd, data, wanted)?;
        }
        self.wanted = wanted;
        Ok(())
    }

    /// Closes the descriptor. Taken out of the set first: a command that is being executed right now holds a copy, and
    /// as long as it does epoll would report it.
    pub(crate) fn close(mut self, poll: &Poll) {
        let _ = self.listen(poll, Events::empty());
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_the_kernel() {
        let slots = [Slot::Status, Slot::Stdin, Slot::Stdout, Slot::Stderr];
        let sessions = slots.map(|slot| Token::Session(u32::MAX, slot));
        for token in [Token::Channel, Token::Children, Token::Unmounter].into_iter().chain(sessions) {
            assert_eq!(Token::from_u64(token.to_u64()), Some(token));
        }
        assert_eq!(Token::from_u64(7), None);
    }

    #[test]
    fn a_watch_that_wants_nothing_does_not_wake_the_loop() {
        let mut poll = Poll::new().unwrap();
        let (ours, theirs) = rustix::pipe::pipe().unwrap();
        let mut watch = Watch::new(ours, Token::Children);
        watch.listen(&poll, Events::IN).unwrap();
        drop(theirs);
        let soon = || Some(Instant::now() + Duration::from_millis(1));
        assert_eq!(poll.wait(soon()).unwrap(), [Token::Children]);
        watch.listen(&poll, Events::empty()).unwrap();
        assert_eq!(poll.wait(soon()).unwrap(), []);
    }
}
