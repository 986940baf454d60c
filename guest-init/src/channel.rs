//! The connection to the host: frames in, frames out. Owns the bytes under way in both directions and bounds them;
//! refuses what the decoder refuses. Invariant: while [`Channel::has_room`] is false nobody reads from a command or from
//! the host, so what is queued stays under [`ROOM`] plus a frame per answer to one read.

use crate::poll::{Events, Poll, Token, Watch, timespec};
use crate::sys;
use husk_protocol::exec::{
    DecodeError, Decoder, EncodeError, Frame, HEADER_BYTES, INITIAL_CREDIT, MAX_PAYLOAD, Stream,
};
use rustix::event::{PollFd, PollFlags};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use std::time::Instant;

/// Bytes waiting to be sent above which nothing more is taken in.
const ROOM: usize = INITIAL_CREDIT as usize / 2;

/// The connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The host broke the protocol.
    #[error("the host broke the exec protocol: {0}")]
    Decode(#[from] DecodeError),
    /// Something is too long to be said.
    #[error("cannot tell the host: {0}")]
    Encode(#[from] EncodeError),
    /// The socket failed.
    #[error("the connection to the host failed: {0}")]
    Socket(Errno),
}

/// One end of the exec protocol.
#[derive(Debug)]
pub(crate) struct Channel {
    watch: Watch,
    decoder: Decoder,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
    /// Bytes of `outbox` that were sent.
    sent: usize,
    closed: bool,
}

impl Channel {
    /// Speaks over a connected, non-blocking stream socket.
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self {
            watch: Watch::new(socket, Token::Channel),
            decoder: Decoder::new(),
            inbox: vec![0; MAX_PAYLOAD],
            outbox: Vec::new(),
            sent: 0,
            closed: false,
        }
    }

    /// Whether the host is gone. What is sent from then on goes nowhere.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether the host takes what it is sent fast enough for more to be taken in.
    pub(crate) fn has_room(&self) -> bool {
        self.outbox.len() - self.sent < ROOM
    }

    /// Whether everything said is on its way.
    pub(crate) fn is_flushed(&self) -> bool {
        self.closed || self.outbox.len() == self.sent
    }

    /// Says something, sooner or later.
    ///
    /// # Errors
    /// It does not fit a frame.
    pub(crate) fn say(&mut self, frame: &Frame) -> Result<(), EncodeError> {
        if self.closed { Ok(()) } else { frame.encode(&mut self.outbox) }
    }

    /// Reads at most `most` bytes from a command straight into a data frame; returns how many came, 0 at the end.
    ///
    /// # Errors
    /// The read's; nothing was said then.
    pub(crate) fn relay(
        &mut self,
        session: u32,
        stream: Stream,
        from: impl AsFd,
        most: usize,
    ) -> Result<usize, Errno> {
        let start = self.outbox.len();
        self.outbox.resize(start + HEADER_BYTES, 0);
        let result = sys::read_append(from, &mut self.outbox, most.min(MAX_PAYLOAD));
        let header = result.ok().filter(|&count| count > 0 && !self.closed);
        match header.and_then(|count| Frame::data_header(session, stream, count).ok()) {
            Some(header) => self.outbox[start..start + HEADER_BYTES].copy_from_slice(&header),
            None => self.outbox.truncate(start),
        }
        result
    }

    /// Sends what can be sent now.
    ///
    /// # Errors
    /// The socket failed for another reason than that the host is gone.
    pub(crate) fn flush(&mut self) -> Result<(), ChannelError> {
        while !self.is_flushed() {
            match send(&self.watch, &self.outbox[self.sent..], SendFlags::NOSIGNAL) {
                Ok(count) => self.sent += count,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => self.hang_up(),
                Err(error) => return Err(ChannelError::Socket(error)),
            }
        }
        self.compact();
        Ok(())
    }

    fn compact(&mut self) {
        if self.sent == self.outbox.len() {
            self.outbox.clear();
            self.sent = 0;
        } else if self.sent >= MAX_PAYLOAD {
            self.outbox.drain(..self.sent);
            self.sent = 0;
        }
    }

    /// Takes in what has come, at most one read; [`Channel::next_frame`] hands it out.
    ///
    /// # Errors
    /// The socket failed for another reason than that the host is gone.
    pub(crate) fn receive(&mut self) -> Result<(), ChannelError> {
        match rustix::io::read(&self.watch, &mut self.inbox[..]) {
            Ok(0) | Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => self.hang_up(),
            Ok(count) => self.decoder.push(&self.inbox[..count]),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => return Err(ChannelError::Socket(error)),
        }
        Ok(())
    }

    /// The next frame that has come whole.
    ///
    /// # Errors
    /// The host broke the protocol.
    pub(crate) fn next_frame(&mut self) -> Result<Option<Frame>, ChannelError> {
        if self.closed { Ok(None) } else { Ok(self.decoder.next_frame()?) }
    }

    /// From now on as if the host had closed the connection.
    pub(crate) fn hang_up(&mut self) {
        self.closed = true;
        self.outbox = Vec::new();
        self.sent = 0;
    }

    /// Listens for what makes sense now.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn listen(&mut self, poll: &Poll) -> Result<(), Errno> {
        let mut wanted = Events::empty();
        if !self.closed {
            wanted.set(Events::IN, self.has_room());
            wanted.set(Events::OUT, !self.is_flushed());
        }
        self.watch.listen(poll, wanted)
    }

    /// Says a last thing and waits, until `deadline` at most, for the host to hang up.
    pub(crate) fn farewell(&mut self, frame: &Frame, deadline: Instant) {
        let _ = self.say(frame);
        while !self.closed {
            let events = if self.is_flushed() { PollFlags::IN } else { PollFlags::OUT };
            let left = deadline.saturating_duration_since(Instant::now());
            let mut polled = [PollFd::new(&self.watch, events)];
            if left.is_zero() || rustix::event::poll(&mut polled, Some(&timespec(left))).is_err() {
                return;
            }
            let progress = if self.is_flushed() { self.receive() } else { self.flush() };
            if progress.is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    fn pair() -> (Channel, UnixStream) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        let theirs = UnixStream::from(theirs);
        theirs.set_nonblocking(false).unwrap();
        (Channel::new(ours), theirs)
    }

    #[test]
    fn a_relayed_read_is_one_frame_and_never_more_than_asked_for() {
        let (mut channel, mut host) = pair();
        let (from, into) = rustix::pipe::pipe().unwrap();
        rustix::io::write(&into, b"hello").unwrap();
        assert_eq!(channel.relay(9, Stream::Stdout, &from, 4), Ok(4));
        drop(into);
        assert_eq!(channel.relay(9, Stream::Stdout, &from, 4), Ok(1));
        assert_eq!(channel.relay(9, Stream::Stdout, &from, 4), Ok(0));
        channel.flush().unwrap();
        drop(channel);
        let mut bytes = Vec::new();
        host.read_to_end(&mut bytes).unwrap();
        let mut decoder = Decoder::new();
        decoder.push(&bytes);
        let hell = Frame::Data(9, Stream::Stdout, b"hell".to_vec());
        assert_eq!(decoder.next_frame().unwrap(), Some(hell));
        assert_eq!(decoder.next_frame().unwrap(), Some(Frame::Data(9, Stream::Stdout, b"o".to_vec())));
        assert_eq!(decoder.next_frame().unwrap(), None);
    }

    #[test]
    fn a_host_that_does_not_read_stops_the_intake_and_loses_nothing() {
        let (mut channel, mut host) = pair();
        let data = Frame::Data(1, Stream::Stdout, vec![7; MAX_PAYLOAD]);
        let mut said = 0;
        while channel.has_room() {
            channel.say(&data).unwrap();
            channel.flush().unwrap();
            said += 1;
            assert!(said < 1000, "an unread connection must fill up");
        }
        let mut decoder = Decoder::new();
        let mut heard = 0;
        let mut bytes = vec![0; 1 << 20];
        while heard < said {
            let count = host.read(&mut bytes).unwrap();
            decoder.push(&bytes[..count]);
            while let Some(frame) = decoder.next_frame().unwrap() {
                assert_eq!(frame, data);
                heard += 1;
            }
            channel.flush().unwrap();
        }
        assert!(channel.is_flushed() && channel.has_room());
    }

    #[test]
    fn a_host_that_is_gone_closes_the_channel() {
        let (mut channel, host) = pair();
        drop(host);
        channel.say(&Frame::Ready).unwrap();
        channel.flush().unwrap();
        assert!(channel.is_closed() && channel.is_flushed());
    }

    #[test]
    fn garbage_is_named() {
        let (mut channel, mut host) = pair();
        host.write_all(&[0xff; HEADER_BYTES]).unwrap();
        channel.receive().unwrap();
        let error = channel.next_frame().unwrap_err().to_string();
        assert!(error.starts_with("the host broke the exec protocol: "), "{error}");
    }

    #[test]
    fn a_farewell_ends_with_the_host_or_the_deadline() {
        let (mut channel, host) = pair();
        let start = Instant::now();
        channel.farewell(&Frame::Fatal("x".into()), start + Duration::from_millis(30));
        assert!(start.elapsed() >= Duration::from_millis(30));
        drop(host);
        channel.farewell(&Frame::Fatal("x".into()), start + Duration::from_secs(60));
        assert!(channel.is_closed());
    }
}
