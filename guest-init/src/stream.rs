//! The streams of a session, each with its credit. Owns the bytes between a frame and a pipe (or a terminal's master);
//! refuses data beyond the credit. Invariant: an [`Inlet`] holds at most [`INITIAL_CREDIT`] bytes, an [`Outlet`] none:
//! what cannot be sent yet stays in the command's pipe, and blocks the command.

use crate::channel::Channel;
use crate::poll::{Events, Poll, Watch};
use husk_protocol::exec::{EncodeError, Frame, INITIAL_CREDIT, Stream};
use rustix::io::Errno;
use rustix::termios::{LocalModes, SpecialCodeIndex, tcgetattr};
use std::collections::VecDeque;

/// Credit is returned in portions of this many bytes.
const PORTION: u32 = INITIAL_CREDIT / 4;

/// More than the kernel buffers for a terminal.
const TERMINAL_BYTES: u64 = 128 * 1024;

/// The host sent more than it had credit for.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("session {session}: {bytes} bytes of stdin beyond the credit of {INITIAL_CREDIT}")]
pub struct Overrun {
    /// The session.
    pub session: u32,
    /// Bytes over.
    pub bytes: u64,
}

/// From the host to the command.
#[derive(Debug)]
pub(crate) struct Inlet {
    session: u32,
    /// `None`: the command (or the host) closed it; what still comes is dropped.
    watch: Option<Watch>,
    terminal: bool,
    queue: VecDeque<u8>,
    /// Bytes that came and for which credit was not returned; those in `queue` among them.
    owed: u32,
    /// The host said that nothing more comes.
    ending: bool,
    /// The last byte that a terminal was given.
    last_byte: u8,
}

impl Inlet {
    /// Writes to `watch`.
    pub(crate) fn new(session: u32, watch: Watch, terminal: bool) -> Self {
        let queue = VecDeque::new();
        Self { session, watch: Some(watch), terminal, queue, owed: 0, ending: false, last_byte: b'\n' }
    }

    /// Takes bytes from the host.
    ///
    /// # Errors
    /// There was no credit for them.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<(), Overrun> {
        let total = u64::from(self.owed) + bytes.len() as u64;
        let owed = u32::try_from(total).ok().filter(|&owed| owed <= INITIAL_CREDIT);
        let over = Overrun { session: self.session, bytes: total.saturating_sub(INITIAL_CREDIT.into()) };
        self.owed = owed.ok_or(over)?;
        if self.watch.is_some() && !self.ending {
            self.queue.extend(bytes);
        }
        Ok(())
    }

    /// Nothing more comes; what came is still written.
    pub(crate) fn end(&mut self) {
        self.ending = true;
    }

    /// Writes what can be written, and returns credit for it.
    ///
    /// # Errors
    /// The credit could not be said.
    pub(crate) fn pump(&mut self, channel: &mut Channel, poll: &Poll) -> Result<(), EncodeError> {
        if !self.write_queue() || (self.ending && self.queue.is_empty() && self.write_end()) {
            self.close(poll);
        }
        let held = u32::try_from(self.queue.len()).unwrap_or(u32::MAX);
        let disposed = self.owed.saturating_sub(held);
        if disposed >= PORTION {
            self.owed -= disposed;
            channel.say(&Frame::Credit(self.session, Stream::Stdin, disposed))?;
        }
        Ok(())
    }

    /// False if the other side is gone.
    fn write_queue(&mut self) -> bool {
        let Some(watch) = &self.watch else { return true };
        while let (front @ [.., _], _) = self.queue.as_slices() {
            match rustix::io::write(watch, front) {
                Ok(count) => {
                    self.last_byte = front.get(count.wrapping_sub(1)).copied().unwrap_or(self.last_byte);
                    self.queue.drain(..count);
                }
                Err(Errno::AGAIN) => return true,
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
        true
    }

    /// Says "end of file" to the command; true if that is done by closing. A terminal is told with its end-of-file
    /// character: once at the start of a line, twice within one (the first only hands over the line so far).
    fn write_end(&self) -> bool {
        let Some(watch) = self.watch.as_ref().filter(|_| self.terminal) else { return true };
        let Ok(modes) = tcgetattr(watch) else { return true };
        if !modes.local_modes.contains(LocalModes::ICANON) {
            return true;
        }
        let eof = [modes.special_codes[SpecialCodeIndex::VEOF]; 2];
        let at_start = matches!(self.last_byte, b'\n' | b'\r') || self.last_byte == eof[0];
        let eof = if at_start { &eof[..1] } else { &eof[..] };
        !matches!(rustix::io::write(watch, eof), Err(Errno::AGAIN | Errno::INTR))
    }

    /// Listens for what makes sense now.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn listen(&mut self, poll: &Poll) -> Result<(), Errno> {
        let blocked = !self.queue.is_empty() || self.ending;
        let wanted = if blocked { Events::OUT } else { Events::empty() };
        self.watch.as_mut().map_or(Ok(()), |watch| watch.listen(poll, wanted))
    }

    /// Closes the command's input; what it did not read is dropped.
    pub(crate) fn close(&mut self, poll: &Poll) {
        self.queue = VecDeque::new();
        if let Some(watch) = self.watch.take() {
            watch.close(poll);
        }
    }
}

/// From the command to the host.
#[derive(Debug)]
pub(crate) struct Outlet {
    session: u32,
    stream: Stream,
    /// `None`: at its end, and the host was told.
    watch: Option<Watch>,
    terminal: bool,
    /// Bytes that the host takes.
    credit: u32,
    /// Bytes after which this is its end, whoever still holds the other side.
    left: Option<u64>,
}

impl Outlet {
    /// Reads from `watch`.
    pub(crate) fn new(session: u32, stream: Stream, watch: Watch, terminal: bool) -> Self {
        Self { session, stream, watch: Some(watch), terminal, credit: INITIAL_CREDIT, left: None }
    }

    /// Which stream this is.
    pub(crate) fn stream(&self) -> Stream {
        self.stream
    }

    /// Whether the host was told that nothing more comes.
    pub(crate) fn is_closed(&self) -> bool {
        self.watch.is_none()
    }

    /// The host takes this many bytes more.
    pub(crate) fn grant(&mut self, bytes: u32) {
        self.credit = self.credit.saturating_add(bytes);
    }

    /// Whatever is written from now on is not waited for. A terminal does not say how much is there: it is read until
    /// nothing is, but no further than it could hold.
    pub(crate) fn settle(&mut self) {
        if let (None, Some(watch)) = (self.left, &self.watch) {
            let there = if self.terminal { Ok(TERMINAL_BYTES) } else { rustix::io::ioctl_fionread(watch) };
            self.left = Some(there.unwrap_or(0));
        }
    }

    /// Sends what is there, as far as the credit goes and the connection takes it.
    ///
    /// # Errors
    /// It could not be said.
    pub(crate) fn pump(&mut self, channel: &mut Channel, poll: &Poll) -> Result<(), EncodeError> {
        while let Some(watch) = &self.watch {
            if channel.is_closed() || self.left == Some(0) {
                return self.close(channel, poll);
            }
            if self.credit == 0 || !channel.has_room() {
                return Ok(());
            }
            let most = self.left.unwrap_or(u64::MAX).min(self.credit.into());
            let most = usize::try_from(most).unwrap_or(usize::MAX);
            match channel.relay(self.session, self.stream, watch, most) {
                Ok(count) if count > 0 => {
                    self.credit -= u32::try_from(count).unwrap_or(self.credit);
                    self.left = self.left.map(|left| left.saturating_sub(count as u64));
                }
                Err(Errno::AGAIN) if self.left.is_none() => return Ok(()),
                Err(Errno::INTR) => {}
                // End of file; or EIO, which is a terminal's way to say that nobody holds it any more.
                _ => return self.close(channel, poll),
            }
        }
        Ok(())
    }

    fn close(&mut self, channel: &mut Channel, poll: &Poll) -> Result<(), EncodeError> {
        if let Some(watch) = self.watch.take() {
            watch.close(poll);
            channel.say(&Frame::Close(self.session, self.stream))?;
        }
        Ok(())
    }

    /// Drops the stream without a word: the command was never executed.
    pub(crate) fn forget(&mut self, poll: &Poll) {
        if let Some(watch) = self.watch.take() {
            watch.close(poll);
        }
    }

    /// Listens for what makes sense now.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn listen(&mut self, channel: &Channel, poll: &Poll) -> Result<(), Errno> {
        let wanted = if self.credit > 0 && channel.has_room() { Events::IN } else { Events::empty() };
        self.watch.as_mut().map_or(Ok(()), |watch| watch.listen(poll, wanted))
    }

    /// The terminal's master, to set its window.
    pub(crate) fn watch(&self) -> Option<&Watch> {
        self.watch.as_ref()
    }
}
