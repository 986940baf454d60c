//! The connection to a volume's server: whole messages over a stream that never blocks.
//!
//! Owns its peer, one message on its way out and one on its way in, and the tags that tell answers apart. Refuses an
//! answer of impossible length: the server is dead from then on, as it is when the stream ends. Invariant: a tag is given
//! once, so an answer to a driver that was reset meanwhile is nobody's; nothing here holds more than two messages.

use super::message::{self, LONGEST, OUT_HEADER};
use crate::devices::virtio::peer::Peer;
use std::io;
use std::os::fd::OwnedFd;

/// See the module.
pub(super) struct Link {
    /// The server.
    pub(super) peer: Peer,
    incoming: Vec<u8>,
    filled: usize,
    next_tag: u64,
    /// The server knows files from an earlier driver.
    used: bool,
}

impl Link {
    pub(super) fn new(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self { peer: Peer::new(socket)?, incoming: Vec::new(), filled: 0, next_tag: 0, used: false })
    }

    /// A new driver: what the server was told by another has to be forgotten before the next message.
    pub(super) fn new_driver(&mut self) {
        self.used = self.next_tag != 0;
    }

    /// Sends `request`, of at most [`LONGEST`] bytes, under a tag of its own, which is returned; not while the server
    /// [`Peer::is_full`].
    pub(super) fn send(&mut self, request: &mut [u8]) -> u64 {
        let forget = std::mem::take(&mut self.used).then(|| message::destroy(self.tag()));
        let tag = self.tag();
        message::renumber(request, tag);
        let outgoing = self.peer.outgoing();
        outgoing.extend(forget.unwrap_or_default());
        outgoing.extend_from_slice(request);
        self.peer.flush();
        tag
    }

    fn tag(&mut self) -> u64 {
        // Not even in a hundred years of one a nanosecond does it wrap.
        self.next_tag += 1;
        self.next_tag
    }

    /// The next whole answer, if it is there. The server may have died instead.
    pub(super) fn receive(&mut self) -> Option<&[u8]> {
        self.incoming.resize(LONGEST, 0);
        let mut whole = OUT_HEADER;
        while !self.peer.is_dead() {
            if self.filled >= OUT_HEADER {
                match message::answer_length(&self.incoming) {
                    Some(length) => whole = length,
                    None => self.peer.give_up(),
                }
            }
            if self.filled == whole && !self.peer.is_dead() {
                self.filled = 0;
                return Some(&self.incoming[..whole]);
            }
            match self.peer.receive(&mut self.incoming[self.filled..whole]) {
                0 => return None,
                count => self.filled += count,
            }
        }
        None
    }
}
