//! A wire that is a stream socket: frames, each behind its length in four bytes, the most significant first, as passt and
//! `qemu -netdev stream` have them.
//!
//! Owns the socket, what was received and is not delivered yet, and the rest of a frame that is half sent. Refuses a length
//! that no frame has: the peer is dead from then on, as it is when the stream ends. Invariant: it never waits, and holds
//! [`INCOMING`] bytes and one frame at most; it outlives a driver's reset, for half a frame must be followed by its other
//! half.

use super::{ETHERNET_BYTES, LONGEST_FRAME};
use crate::devices::virtio::guest_io::GuestIo;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// Bytes of a length.
pub(super) const PREFIX_BYTES: usize = 4;
/// Bytes that one look at the socket may bring: the longest frame, or some dozens of Ethernet's.
const INCOMING: usize = 128 << 10;

/// See the module.
pub(super) struct Stream {
    socket: OwnedFd,
    /// Readable when the socket is writable.
    room: Epoll,
    incoming: Box<[u8]>,
    /// Where in `incoming` what is not delivered begins, and where it ends.
    start: usize,
    end: usize,
    outgoing: Vec<u8>,
    sent: usize,
    dead: bool,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream")
            .field("socket", &self.socket)
            .field("dead", &self.dead)
            .finish_non_exhaustive()
    }
}

impl Stream {
    /// Makes a descriptor.
    pub(super) fn new(socket: OwnedFd) -> io::Result<Self> {
        let room = Epoll::new()?;
        room.ctl(ControlOperation::Add, socket.as_raw_fd(), EpollEvent::new(EventSet::OUT, 0))?;
        let incoming = vec![0; INCOMING].into_boxed_slice();
        Ok(Self { socket, room, incoming, start: 0, end: 0, outgoing: Vec::new(), sent: 0, dead: false })
    }

    /// The socket, readable when something comes or the peer is gone.
    pub(super) fn socket(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Readable when the rest of a frame can go on.
    pub(super) fn room(&self) -> RawFd {
        self.room.as_raw_fd()
    }

    /// Whether the peer is gone, for good.
    pub(super) fn is_dead(&self) -> bool {
        self.dead
    }

    /// Whether the rest of a frame waits for room in the socket; another cannot be sent then.
    pub(super) fn is_full(&self) -> bool {
        self.sent < self.outgoing.len()
    }

    /// Whether a whole frame is here without a look at the socket.
    pub(super) fn has_frame(&self) -> bool {
        !self.dead && self.frame_bytes().is_some_and(|bytes| self.end - self.start >= PREFIX_BYTES + bytes)
    }

    /// What the next prefix says, if all of it is here.
    fn frame_bytes(&self) -> Option<usize> {
        let prefix = self.incoming[self.start..self.end].first_chunk()?;
        Some(usize::try_from(u32::from_be_bytes(*prefix)).unwrap_or(usize::MAX))
    }

    /// The next frame; none if there is none now, or never again. Looks at the socket once at most.
    pub(super) fn receive(&mut self) -> Option<&[u8]> {
        if !self.check() {
            return None;
        }
        if !self.has_frame() {
            self.fill();
            if !self.check() || !self.has_frame() {
                return None;
            }
        }
        let at = self.start + PREFIX_BYTES;
        let bytes = self.frame_bytes()?;
        self.start = at + bytes;
        Some(&self.incoming[at..self.start])
    }

    /// Whether the peer lives, and what it says next can be a frame.
    fn check(&mut self) -> bool {
        let possible = ETHERNET_BYTES..=LONGEST_FRAME;
        self.dead |= self.frame_bytes().is_some_and(|bytes| !possible.contains(&bytes));
        !self.dead
    }

    /// Takes what the socket has, as far as there is room: behind less than a frame there always is.
    fn fill(&mut self) {
        self.incoming.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        match recv(&self.socket, &mut self.incoming[self.end..], RecvFlags::DONTWAIT) {
            Ok((_, 0)) => self.dead = true,
            Ok((_, count)) => self.end += count,
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.dead = true,
        }
    }

    /// Sends a frame: `head`, which begins with its length, and all that is left of guest memory. What the socket has no
    /// room for waits here, a copy that no guest can change. False: the peer is gone, and the frame with it.
    pub(super) fn send(&mut self, head: &[u8], rest: &mut GuestIo<'_>) -> bool {
        if self.dead || self.is_full() {
            return false;
        }
        let length = head.len() + rest.len();
        let sent = loop {
            match rest.send_frame(self.socket.as_fd(), head) {
                Ok(sent) => break sent,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break 0,
                Err(_) => {
                    self.dead = true;
                    return false;
                }
            }
        };
        self.outgoing.clear();
        self.sent = 0;
        if sent < length {
            self.outgoing.extend_from_slice(head.get(sent..).unwrap_or_default());
            rest.append_to(&mut self.outgoing);
        }
        true
    }

    /// Goes on with the rest of a frame.
    pub(super) fn flush(&mut self) {
        while self.is_full() && !self.dead {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match send(&self.socket, &self.outgoing[self.sent..], flags) {
                Ok(count) => self.sent += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => self.dead = true,
            }
        }
    }
}
