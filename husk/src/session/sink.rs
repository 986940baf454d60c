//! Where the command's output goes, without ever waiting for a slow reader.
//!
//! Owns what the reader has not taken yet, which the guest's credit bounds. Refuses data beyond that credit. Invariant:
//! bytes leave in the order in which they came, and each byte is credited exactly once, when it is disposed of.

use husk_protocol::exec::{INITIAL_CREDIT, MAX_PAYLOAD};
use rustix::fs::{FileType, Mode, OFlags, fstat, major, makedev, open};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use rustix::termios::isatty;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Credit is returned in portions of at least this, so that credits are few.
const PORTION: u32 = 64 * 1024;
/// A pipe that polls writable takes this much at once without blocking (PIPE_BUF).
const SURE: usize = 4096;
/// Major number of /dev/null, /dev/full and the like.
const MEMORY_DEVICES: u32 = 1;

/// How bytes are written without blocking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// The descriptor does not block: a file, or one that is in non-blocking mode.
    Straight,
    /// A socket: asked not to, call by call.
    Socket,
    /// It may block: only small pieces, each after poll said yes.
    Careful,
}

/// One output stream.
#[derive(Debug)]
pub(super) struct Sink {
    fd: OwnedFd,
    way: Way,
    waiting: Vec<u8>,
    written: usize,
    /// Bytes that the guest may still send.
    window: u32,
    /// Bytes disposed of and not credited yet.
    owed: u32,
    broken: bool,
}

/// What became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Written {
    /// All is out, or waits for the reader.
    Fine,
    /// Nobody reads any more; from now on everything is thrown away.
    NoReader,
    /// The device refuses (no space, I/O error).
    Failed(Errno),
}

/// The guest sent more than it may.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BeyondCredit;

impl Sink {
    pub(super) fn new(fd: BorrowedFd<'_>) -> Result<Self, Errno> {
        let (fd, way) = way_to(fd)?;
        Ok(Self { fd, way, waiting: Vec::new(), written: 0, window: INITIAL_CREDIT, owed: 0, broken: false })
    }

    /// Takes bytes of the guest.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<Written, BeyondCredit> {
        let length = u32::try_from(bytes.len()).map_err(|_| BeyondCredit)?;
        self.window = self.window.checked_sub(length).ok_or(BeyondCredit)?;
        Ok(self.put(bytes))
    }

    /// Takes bytes that are not under credit.
    pub(super) fn put(&mut self, bytes: &[u8]) -> Written {
        if self.broken {
            self.dispose(bytes.len());
            return Written::Fine;
        }
        if self.is_empty() && self.way != Way::Careful {
            // The usual case: the reader keeps up and nothing is copied.
            let (count, result) = self.write(bytes);
            self.dispose(count);
            if result != Written::Fine {
                return self.fail(result, bytes.len() - count);
            }
            self.waiting.extend_from_slice(bytes.get(count..).unwrap_or_default());
        } else {
            self.waiting.extend_from_slice(bytes);
        }
        Written::Fine
    }

    /// The reader has room: goes on with what waits.
    pub(super) fn flush(&mut self) -> Written {
        let waiting = std::mem::take(&mut self.waiting);
        let rest = waiting.get(self.written..).unwrap_or_default();
        let piece = if self.way == Way::Careful { rest.get(..SURE).unwrap_or(rest) } else { rest };
        let (count, result) = self.write(piece);
        let left = rest.len() - count;
        self.dispose(count);
        self.written += count;
        self.waiting = waiting;
        if result != Written::Fine {
            return self.fail(result, left);
        }
        if left == 0 {
            self.waiting.clear();
            self.written = 0;
        } else if self.written > MAX_PAYLOAD {
            self.waiting.drain(..self.written);
            self.written = 0;
        }
        Written::Fine
    }

    fn fail(&mut self, result: Written, left: usize) -> Written {
        self.broken = true;
        self.dispose(left);
        self.waiting = Vec::new();
        self.written = 0;
        result
    }

    fn dispose(&mut self, count: usize) {
        self.owed = self.owed.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
    }

    /// Writes until done, blocked or failed; how much went out.
    fn write(&self, bytes: &[u8]) -> (usize, Written) {
        let mut done = 0;
        while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
            let result = match self.way {
                Way::Socket => send(&self.fd, rest, SendFlags::NOSIGNAL | SendFlags::DONTWAIT),
                Way::Straight | Way::Careful => rustix::io::write(&self.fd, rest),
            };
            match result {
                Ok(count) => done += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(Errno::PIPE | Errno::CONNRESET) => return (done, Written::NoReader),
                Err(errno) => return (done, Written::Failed(errno)),
            }
            if self.way == Way::Careful {
                break;
            }
        }
        (done, Written::Fine)
    }

    /// Credit to return now, if it is worth a frame.
    pub(super) fn credit(&mut self) -> Option<u32> {
        if self.owed < PORTION {
            return None;
        }
        self.window = self.window.saturating_add(self.owed);
        Some(std::mem::take(&mut self.owed))
    }

    /// Whether nothing waits for the reader.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.len() == self.written
    }

    /// Bytes that wait.
    pub(super) fn backlog(&self) -> usize {
        self.waiting.len() - self.written
    }
}

impl AsFd for Sink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A way to write to `fd` without blocking, and without switching a description that others share to non-blocking.
fn way_to(fd: BorrowedFd<'_>) -> Result<(OwnedFd, Way), Errno> {
    let own = || rustix::io::fcntl_dupfd_cloexec(fd, 3);
    let status = fstat(fd)?;
    match FileType::from_raw_mode(status.st_mode) {
        FileType::Socket => Ok((own()?, Way::Socket)),
        FileType::Fifo => reopened(fd),
        FileType::CharacterDevice if major(status.st_rdev) == MEMORY_DEVICES => Ok((own()?, Way::Straight)),
        // Opened anew, a terminal's master end would be another terminal's, and other devices may have only one user.
        FileType::CharacterDevice if isatty(fd) && status.st_rdev != makedev(5, 2) => reopened(fd),
        FileType::CharacterDevice => Ok((own()?, Way::Careful)),
        _ => Ok((own()?, Way::Straight)),
    }
}

/// A description of our own for the same pipe or terminal. A regular file must not be opened so: it would lose its offset.
fn reopened(fd: BorrowedFd<'_>) -> Result<(OwnedFd, Way), Errno> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    match open(path, flags, Mode::empty()) {
        Ok(own) => Ok((own, Way::Straight)),
        Err(_) => Ok((rustix::io::fcntl_dupfd_cloexec(fd, 3)?, Way::Careful)),
    }
}
