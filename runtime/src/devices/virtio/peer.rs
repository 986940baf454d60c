//! A process that serves a device, at the other end of a stream socket.
//!
//! Owns the socket, what waits to be sent and whether the peer lives. Refuses to wait. Invariant: a peer that is gone once is gone for
//! good, and what waits is never more than its caller put there, for it puts nothing there while the peer [`Peer::is_full`].

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// See the module.
pub(super) struct Peer {
    socket: OwnedFd,
    /// Readable when the socket is writable.
    room: Epoll,
    outgoing: Vec<u8>,
    sent: usize,
    dead: bool,
}

impl std::fmt::Debug for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peer").field("socket", &self.socket).field("dead", &self.dead).finish_non_exhaustive()
    }
}

impl Peer {
    /// Makes a descriptor.
    pub(super) fn new(socket: OwnedFd) -> io::Result<Self> {
        let room = Epoll::new()?;
        room.ctl(ControlOperation::Add, socket.as_raw_fd(), EpollEvent::new(EventSet::OUT, 0))?;
        Ok(Self { socket, room, outgoing: Vec::new(), sent: 0, dead: false })
    }

    /// The socket, readable when something comes or the peer is gone.
    pub(super) fn socket(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Readable when what waits can go on.
    pub(super) fn room(&self) -> RawFd {
        self.room.as_raw_fd()
    }

    /// Whether the peer is gone, for good.
    pub(super) fn is_dead(&self) -> bool {
        self.dead
    }

    /// From here on it is gone.
    pub(super) fn give_up(&mut self) {
        self.dead = true;
    }

    /// Whether something waits for room in the socket; nothing else can be sent then.
    pub(super) fn is_full(&self) -> bool {
        self.sent < self.outgoing.len()
    }

    /// An empty place for what is to be sent next; not while the peer [`Self::is_full`].
    pub(super) fn outgoing(&mut self) -> &mut Vec<u8> {
        self.outgoing.clear();
        self.sent = 0;
        &mut self.outgoing
    }

    /// Goes on with what waits.
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

    /// Takes what is there, into `bytes`, of which there is one at least. How many came: 0 if there are none now, or never again.
    pub(super) fn receive(&mut self, bytes: &mut [u8]) -> usize {
        while !self.dead {
            match recv(&self.socket, &mut *bytes, RecvFlags::DONTWAIT) {
                Ok((0, _)) => self.dead = true,
                Ok((count, _)) => return count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return 0,
                Err(_) => self.dead = true,
            }
        }
        0
    }
}

impl AsFd for Peer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
