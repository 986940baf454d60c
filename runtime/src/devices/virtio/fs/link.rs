//! The connection to a volume's server: whole messages over a stream that never blocks.
//!
//! Owns the socket, one message on its way out and one on its way in, and the tags that tell answers apart. Refuses an
//! answer of impossible length: the server is dead from then on, as it is when the stream ends. Invariant: a tag is given
//! once, so an answer to a driver that was reset meanwhile is nobody's; nothing here holds more than two messages.

use super::message::{self, LONGEST, OUT_HEADER};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// See the module.
pub(super) struct Link {
    socket: OwnedFd,
    /// Readable when the socket is writable.
    room: Epoll,
    outgoing: Vec<u8>,
    sent: usize,
    incoming: Vec<u8>,
    filled: usize,
    next_tag: u64,
    /// The server knows files from an earlier driver.
    used: bool,
    dead: bool,
}

impl Link {
    pub(super) fn new(socket: OwnedFd) -> io::Result<Self> {
        let room = Epoll::new()?;
        room.ctl(ControlOperation::Add, socket.as_raw_fd(), EpollEvent::new(EventSet::OUT, 0))?;
        Ok(Self {
            socket,
            room,
            outgoing: Vec::new(),
            sent: 0,
            incoming: Vec::new(),
            filled: 0,
            next_tag: 0,
            used: false,
            dead: false,
        })
    }

    /// The socket, readable when there is an answer or an end.
    pub(super) fn socket(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Readable when a message that waits can go on.
    pub(super) fn room(&self) -> RawFd {
        self.room.as_raw_fd()
    }

    /// Whether the server is gone, for good.
    pub(super) fn is_dead(&self) -> bool {
        self.dead
    }

    /// Whether a message waits for room in the socket; another cannot be sent then.
    pub(super) fn is_full(&self) -> bool {
        self.sent < self.outgoing.len()
    }

    /// A new driver: what the server was told by another has to be forgotten before the next message.
    pub(super) fn new_driver(&mut self) {
        self.used = self.next_tag != 0;
    }

    /// Sends `request`, of at most [`LONGEST`] bytes, under a tag of its own, which is returned; not while [`Self::is_full`].
    pub(super) fn send(&mut self, request: &mut [u8]) -> u64 {
        self.outgoing.clear();
        self.sent = 0;
        if std::mem::take(&mut self.used) {
            let tag = self.tag();
            self.outgoing.extend(message::destroy(tag));
        }
        let tag = self.tag();
        message::renumber(request, tag);
        self.outgoing.extend_from_slice(request);
        self.flush();
        tag
    }

    fn tag(&mut self) -> u64 {
        // Not even in a hundred years of one a nanosecond does it wrap.
        self.next_tag += 1;
        self.next_tag
    }

    /// Goes on with the message that waits.
    pub(super) fn flush(&mut self) {
        while !self.dead && self.is_full() {
            match send(&self.socket, &self.outgoing[self.sent..], SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(count) => self.sent += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => self.dead = true,
            }
        }
    }

    /// The next whole answer, if it is there. The server may have died instead.
    pub(super) fn receive(&mut self) -> Option<&[u8]> {
        self.incoming.resize(LONGEST, 0);
        let mut whole = OUT_HEADER;
        while !self.dead {
            if self.filled >= OUT_HEADER {
                match message::answer_length(&self.incoming) {
                    Some(length) => whole = length,
                    None => self.dead = true,
                }
            }
            if self.filled == whole && !self.dead {
                self.filled = 0;
                return Some(&self.incoming[..whole]);
            }
            match recv(&self.socket, &mut self.incoming[self.filled..whole], RecvFlags::DONTWAIT) {
                Ok((0, _)) => self.dead = true,
                Ok((count, _)) => self.filled += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return None,
                Err(_) => self.dead = true,
            }
        }
        None
    }
}
