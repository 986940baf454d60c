//! A wire that is a stream socket: frames, each behind its length in four bytes, the most significant first, as passt and
//! `qemu -netdev stream` have them.
//!
//! Owns its peer, what was received and is not delivered yet, and the rest of a frame that is half sent. Refuses a length
//! that no frame has: the peer is dead from then on, as it is when the stream ends. Invariant: it never waits, and holds
//! [`INCOMING`] bytes and one frame at most; it outlives a driver's reset, for half a frame must be followed by its other
//! half.

use super::{ETHERNET_BYTES, LONGEST_FRAME};
use crate::devices::virtio::guest_io::GuestIo;
use crate::devices::virtio::peer::Peer;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// Bytes of a length.
pub(super) const PREFIX_BYTES: usize = 4;
/// Bytes that one look at the socket may bring: the longest frame, or some dozens of Ethernet's.
const INCOMING: usize = 128 << 10;

/// See the module.
pub(super) struct Stream {
    /// Who has the other end.
    pub(super) peer: Peer,
    incoming: Box<[u8]>,
    /// Where in `incoming` what is not delivered begins, and where it ends.
    start: usize,
    end: usize,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl Stream {
    /// Makes a descriptor.
    pub(super) fn new(socket: OwnedFd) -> io::Result<Self> {
        let incoming = vec![0; INCOMING].into_boxed_slice();
        Ok(Self { peer: Peer::new(socket)?, incoming, start: 0, end: 0 })
    }

    /// Whether a whole frame is here without a look at the socket.
    pub(super) fn has_frame(&self) -> bool {
        !self.peer.is_dead()
            && self.frame_bytes().is_some_and(|bytes| self.end - self.start >= PREFIX_BYTES + bytes)
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
        if self.frame_bytes().is_some_and(|bytes| !possible.contains(&bytes)) {
            self.peer.give_up();
        }
        !self.peer.is_dead()
    }

    /// Takes what the socket has, as far as there is room: behind less than a frame there always is.
    fn fill(&mut self) {
        self.incoming.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        self.end += self.peer.receive(&mut self.incoming[self.end..]);
    }

    /// Sends a frame: `head`, which begins with its length, and all that is left of guest memory. What the socket has no
    /// room for waits here, a copy that no guest can change. False: the peer is gone, and the frame with it.
    pub(super) fn send(&mut self, head: &[u8], rest: &mut GuestIo<'_>) -> bool {
        if self.peer.is_dead() || self.peer.is_full() {
            return false;
        }
        let length = head.len() + rest.len();
        let sent = loop {
            match rest.send_frame(self.peer.as_fd(), head) {
                Ok(sent) => break sent,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break 0,
                Err(_) => {
                    self.peer.give_up();
                    return false;
                }
            }
        };
        let outgoing = self.peer.outgoing();
        if sent < length {
            outgoing.extend_from_slice(head.get(sent..).unwrap_or_default());
            rest.append_to(outgoing);
        }
        true
    }
}
