//! From the host to the guest.
//!
//! Owns the guest's receive queue and the budget of one event. Refuses buffers that hold not even a header: they go
//! back empty. Invariant: data goes from the socket into guest memory without a copy, many buffers by one system call,
//! and never more than the guest granted; buffers that were offered to a socket and not filled go back into the queue
//! in their order.

use super::exchange::Exchange;
use super::packet::{HEADER_BYTES, HEADER_LEN, Header, SHUT_BOTH, SHUT_SEND};
use super::peers::{Peer, PeerId};
use crate::devices::virtio::Memory;
use crate::devices::virtio::guest_io::GuestIo;
use crate::devices::virtio::queue::{Chain, Popped, QueueError, Virtqueue};
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use vm_memory::Permissions;

/// Most looks at the queue per event.
const BUDGET: u32 = 512;
/// Most buffers that one read from a socket is offered.
const BATCH: usize = 64;
/// Most bytes that one connection is given before others come.
const BYTES: u32 = 256 << 10;

/// The guest's receive queue.
pub(super) struct Inbound {
    pub(super) queue: Virtqueue,
    /// Chains taken out of the queue and not yet given back; reused.
    batch: Vec<Chain>,
    budget: u32,
    dropped: Arc<AtomicU64>,
}

/// Whether there was a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Room {
    /// It was used.
    Used,
    /// The guest offers none, or the budget is used up.
    None,
}

impl Inbound {
    pub(super) fn new(queue: Virtqueue, dropped: Arc<AtomicU64>) -> Self {
        Self { queue, batch: (0..BATCH).map(|_| Chain::default()).collect(), budget: BUDGET, dropped }
    }

    /// Takes a chain into place `at` of the batch whose buffers lie in memory and hold a header; returns its pieces.
    /// Only the first chain of a batch may be given back as useless, or those after it would come out of order.
    fn take<'m>(&mut self, memory: &'m Memory, at: usize) -> Result<Option<GuestIo<'m>>, QueueError> {
        while self.budget > 0 {
            self.budget -= 1;
            let Some(chain) = self.batch.get_mut(at) else { return Ok(None) };
            let popped = self.queue.pop(chain)?;
            if popped == Popped::Empty {
                if self.queue.want_kicks()? {
                    continue;
                }
                return Ok(None);
            }
            let pieces = GuestIo::new(memory, &chain.writable, Permissions::Write).ok();
            let usable = pieces.filter(|pieces| popped == Popped::Chain && pieces.len() >= HEADER_BYTES);
            if usable.is_some() {
                return Ok(usable);
            }
            if at > 0 {
                self.queue.unpop(1);
                return Ok(None);
            }
            self.dropped.fetch_add(1, Ordering::Relaxed);
            self.queue.add_used(chain.head, 0)?;
        }
        Ok(None)
    }

    /// Sends a packet without data: `header` is asked for it when there is a buffer.
    fn put(&mut self, memory: &Memory, header: impl FnOnce() -> Option<Header>) -> Result<Room, QueueError> {
        let Some(mut pieces) = self.take(memory, 0)? else { return Ok(Room::None) };
        let Some(header) = header() else {
            self.queue.unpop(1);
            return Ok(Room::Used);
        };
        pieces.fill_from(&header.encode());
        self.queue.add_used(self.batch[0].head, HEADER_LEN)?;
        Ok(Room::Used)
    }

    /// Reads from the peer's socket into as many buffers as it fills.
    fn put_data(&mut self, memory: &Memory, peer: &mut Peer) -> Result<Room, QueueError> {
        let Some(socket) = &peer.socket else {
            peer.readable = false;
            return Ok(Room::Used);
        };
        let limit = peer.connection.credit().min(BYTES) as usize;
        let mut space = GuestIo::with_capacity(BATCH);
        let mut rooms = Vec::with_capacity(peer.appetite);
        while rooms.len() < peer.appetite && space.len() < limit {
            let Some(mut pieces) = self.take(memory, rooms.len())? else { break };
            pieces.advance(HEADER_BYTES);
            rooms.push(pieces.len());
            space.append(pieces);
        }
        if rooms.is_empty() {
            return Ok(Room::None);
        }
        space.truncate(limit);
        let offered = space.len();
        let received =
            if offered == 0 { Err(io::ErrorKind::Unsupported.into()) } else { space.receive(socket.as_fd()) };
        let used = match received {
            Ok(count) if count > 0 => {
                // A short read means that there was no more, but for an end of file.
                peer.readable = count == offered || peer.ending;
                self.deliver(memory, peer, &rooms, count)?
            }
            // Buffers for headers only: useless for data, and the guest gets them back.
            Err(_) if offered == 0 => self.deliver(memory, peer, &rooms, 0)?,
            end => {
                end_of_data(peer, &end);
                0
            }
        };
        peer.appetite = if used == rooms.len() { (used * 4).min(BATCH) } else { (used + 1).min(BATCH) };
        let unused = rooms.len() - used;
        self.queue.unpop(u16::try_from(unused).unwrap_or(0));
        Ok(Room::Used)
    }

    /// Gives back the first chains of the batch with `count` bytes in them; returns how many they were.
    fn deliver(
        &mut self,
        memory: &Memory,
        peer: &mut Peer,
        rooms: &[usize],
        mut count: usize,
    ) -> Result<usize, QueueError> {
        let mut used = 0;
        for (chain, room) in self.batch.iter().zip(rooms) {
            let len = count.min(*room);
            if len == 0 && *room > 0 {
                break;
            }
            count -= len;
            used += 1;
            if len == 0 {
                self.dropped.fetch_add(1, Ordering::Relaxed);
                self.queue.add_used(chain.head, 0)?;
                continue;
            }
            // A read is at most BYTES long.
            let len = u32::try_from(len).unwrap_or(0);
            let header = peer.connection.next_data(len);
            // The buffers were found to lie in memory when they were taken.
            if let Ok(mut pieces) = GuestIo::new(memory, &chain.writable, Permissions::Write) {
                pieces.fill_from(&header.encode());
            }
            self.queue.add_used(chain.head, HEADER_LEN + len)?;
        }
        Ok(used)
    }
}

/// Nothing came: for now, or for ever.
fn end_of_data(peer: &mut Peer, end: &io::Result<usize>) {
    peer.readable = match end {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => return,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
        // End of file; or the other end was closed with bytes unread, which is an end all the same.
        _ => {
            peer.connection.shut_by_host(if peer.hung_up || end.is_err() { SHUT_BOTH } else { SHUT_SEND });
            false
        }
    };
}

impl Exchange {
    /// Sends the guest what it has buffers and credit for, until others have to come first. The caller signals.
    pub(super) fn receive(&mut self) -> Result<(), QueueError> {
        self.inbound.budget = BUDGET;
        while self.serve_one()? {}
        if self.inbound.budget == 0 {
            self.inbound.queue.kick_again();
        }
        if self.held_up && self.strays.len() < super::exchange::MOST_STRAYS {
            self.outbound.kick_again();
        }
        Ok(())
    }

    /// Serves the first that waits; false if nobody does, or there is no buffer.
    fn serve_one(&mut self) -> Result<bool, QueueError> {
        if !self.strays.is_empty() {
            return Ok(self.inbound.put(&self.memory, || self.strays.pop_front())? == Room::Used);
        }
        let Some(id) = self.peers.next_in_line() else { return Ok(false) };
        let room = self.serve(id)?;
        if room == Room::None {
            self.peers.back_in_line(id);
        } else {
            self.settle(id);
        }
        Ok(room == Room::Used)
    }

    fn serve(&mut self, id: PeerId) -> Result<Room, QueueError> {
        let Some(peer) = self.peers.get_mut(id) else { return Ok(Room::Used) };
        if peer.connection.has_control() {
            return self.inbound.put(&self.memory, || peer.connection.next_control());
        }
        self.inbound.put_data(&self.memory, peer)
    }
}
