//! The connections of one device, by number and by ports, and the line in which they wait to be served.
//!
//! Owns every connection with its socket. Refuses more than [`MOST_PEERS`]. Invariant: an id names one connection for
//! ever (a late event for a connection that is gone finds nothing), and what the guest may have buffered on the host
//! is at most [`POOL_BYTES`] and [`LEAST_WINDOW`] for each connection: 128 MiB. No step costs more where there are more
//! connections, but for the logarithm of their number.

use super::backlog::Backlog;
use super::connection::{Connection, Phase};
use super::packet::Key;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// Most connections at a time, of either side's asking. Each has a descriptor: the jailer's limit of open files leaves room
/// for all of them.
pub(super) const MOST_PEERS: usize = 8192;
/// Window of a connection while there are few.
const MOST_WINDOW: u32 = 1 << 20;
/// Window of a connection while there are many.
const LEAST_WINDOW: u32 = 8 << 10;
/// What all windows above the least come out of.
const POOL_BYTES: u64 = 64 << 20;
/// The part of what is left of the pool that one connection gets.
const SHARE: u64 = 64;

/// Names a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PeerId {
    pub(super) index: u32,
    /// Of 24 bits, so that an event's data can carry it.
    pub(super) generation: u32,
}

/// A connection with what the host has for it.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) connection: Connection,
    /// Absent while the host has not answered.
    pub(super) socket: Option<OwnedFd>,
    pub(super) backlog: Backlog,
    /// The socket may have bytes, or an end of file, that were not read.
    pub(super) readable: bool,
    /// The other end sends no more: after the bytes there is an end of file.
    pub(super) ending: bool,
    /// The other end is gone altogether.
    pub(super) hung_up: bool,
    /// The socket is full; an event says when it is not.
    pub(super) awaits_room: bool,
    /// The host asked by `CONNECT`, and is owed an `OK`.
    pub(super) owed_greeting: bool,
    /// The number under which husk was asked for the socket.
    pub(super) request: Option<u32>,
    /// When the connection has to be open.
    deadline: Option<Instant>,
    /// Buffers of the guest's that the next read is offered.
    pub(super) appetite: usize,
    in_line: bool,
}

impl Peer {
    pub(super) fn new(connection: Connection) -> Self {
        Self {
            connection,
            socket: None,
            backlog: Backlog::default(),
            readable: false,
            ending: false,
            hung_up: false,
            awaits_room: false,
            owed_greeting: false,
            request: None,
            deadline: None,
            appetite: 2,
            in_line: false,
        }
    }

    /// It has to be open by `deadline`.
    pub(super) fn by(mut self, deadline: Instant) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Whether there is something for the guest that it can take, given a buffer.
    pub(super) fn has_work(&self) -> bool {
        self.connection.has_control() || self.readable && self.connection.credit() > 0
    }

    /// Whether nothing is left to do for it.
    pub(super) fn is_over(&self) -> bool {
        self.connection.phase() == Phase::Closed && !self.connection.has_control() && self.backlog.is_empty()
    }
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    peer: Option<Peer>,
}

#[derive(Debug, Default)]
pub(super) struct Peers {
    slots: Vec<Slot>,
    free: Vec<u32>,
    by_key: BTreeMap<Key, u32>,
    line: VecDeque<PeerId>,
    /// Of the connections that are not open yet, the earliest first.
    deadlines: BTreeSet<(Instant, u32)>,
    /// Sum of the windows above the least.
    promised: u64,
}

impl Peers {
    /// The window that the next connection gets: generous while there is much left.
    pub(super) fn next_window(&self) -> u32 {
        let share = POOL_BYTES.saturating_sub(self.promised) / SHARE;
        u32::try_from(share).unwrap_or(MOST_WINDOW).clamp(LEAST_WINDOW, MOST_WINDOW)
    }

    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.len() >= MOST_PEERS
    }

    /// Adds a connection whose ports are free; none if there are too many, or the ports are taken.
    pub(super) fn insert(&mut self, peer: Peer) -> Option<PeerId> {
        let key = peer.connection.key();
        if self.is_full() || self.by_key.contains_key(&key) {
            return None;
        }
        self.promised += extra(&peer);
        let index = self.free.pop().or_else(|| {
            self.slots.push(Slot::default());
            u32::try_from(self.slots.len() - 1).ok()
        })?;
        self.by_key.insert(key, index);
        self.deadlines.extend(peer.deadline.map(|deadline| (deadline, index)));
        let slot = self.slots.get_mut(index as usize)?;
        slot.peer = Some(peer);
        Some(PeerId { index, generation: slot.generation })
    }

    pub(super) fn remove(&mut self, id: PeerId) -> Option<Peer> {
        let slot = self.slots.get_mut(id.index as usize).filter(|slot| slot.generation == id.generation)?;
        let peer = slot.peer.take()?;
        slot.generation = (slot.generation + 1) & 0xff_ffff;
        self.by_key.remove(&peer.connection.key());
        if let Some(deadline) = peer.deadline {
            self.deadlines.remove(&(deadline, id.index));
        }
        self.free.push(id.index);
        self.promised = self.promised.saturating_sub(extra(&peer));
        Some(peer)
    }

    pub(super) fn get_mut(&mut self, id: PeerId) -> Option<&mut Peer> {
        self.slots.get_mut(id.index as usize).filter(|slot| slot.generation == id.generation)?.peer.as_mut()
    }

    pub(super) fn find(&self, key: Key) -> Option<PeerId> {
        let &index = self.by_key.get(&key)?;
        Some(PeerId { index, generation: self.slots.get(index as usize)?.generation })
    }

    /// The connection is open, or over: it has no deadline any more.
    pub(super) fn in_time(&mut self, id: PeerId) {
        let deadline = self.get_mut(id).and_then(|peer| peer.deadline.take());
        if let Some(deadline) = deadline {
            self.deadlines.remove(&(deadline, id.index));
        }
    }

    /// Takes the deadline of one that is too late, if there is one.
    pub(super) fn next_late(&mut self, now: Instant) -> Option<PeerId> {
        let &(deadline, index) = self.deadlines.first()?;
        if deadline > now {
            return None;
        }
        self.deadlines.pop_first();
        let id = self.id_at(index)?;
        self.get_mut(id)?.deadline = None;
        Some(id)
    }

    /// The earliest deadline.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// So much time has passed that counts for nothing.
    pub(super) fn put_off(&mut self, pause: Duration) {
        for (deadline, index) in std::mem::take(&mut self.deadlines) {
            let deadline = deadline + pause;
            if let Some(peer) = self.slots.get_mut(index as usize).and_then(|slot| slot.peer.as_mut()) {
                peer.deadline = Some(deadline);
                self.deadlines.insert((deadline, index));
            }
        }
    }

    fn id_at(&self, index: u32) -> Option<PeerId> {
        Some(PeerId { index, generation: self.slots.get(index as usize)?.generation })
    }

    /// Puts the connection into the line if it has something for the guest and does not stand there already.
    pub(super) fn line_up(&mut self, id: PeerId) {
        if let Some(peer) = self.get_mut(id)
            && peer.has_work()
            && !std::mem::replace(&mut peer.in_line, true)
        {
            self.line.push_back(id);
        }
    }

    /// Takes the first of the line; connections that are gone are skipped.
    pub(super) fn next_in_line(&mut self) -> Option<PeerId> {
        while let Some(id) = self.line.pop_front() {
            if let Some(peer) = self.get_mut(id) {
                peer.in_line = false;
                if peer.has_work() {
                    return Some(id);
                }
            }
        }
        None
    }

    /// Puts one that was taken out, and could not be served, back to the front.
    pub(super) fn back_in_line(&mut self, id: PeerId) {
        if let Some(peer) = self.get_mut(id)
            && !std::mem::replace(&mut peer.in_line, true)
        {
            self.line.push_front(id);
        }
    }
}

/// Bytes that a connection takes here while nothing is on its way, about: its slot, and its places in table, line and set.
#[cfg(test)]
pub(super) const BYTES_EACH: usize = size_of::<Slot>()
    + size_of::<(Key, u32)>()
    + size_of::<PeerId>()
    + size_of::<(Instant, u32)>()
    + size_of::<u32>();

fn extra(peer: &Peer) -> u64 {
    u64::from(peer.connection.window().saturating_sub(LEAST_WINDOW))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(guest_port: u32, window: u32) -> Peer {
        Peer::new(Connection::requested(Key { host_port: 1, guest_port }, 3, window))
    }

    #[test]
    fn windows_shrink_before_memory_does() {
        let mut peers = Peers::default();
        let (mut total, mut ids) = (0, Vec::new());
        assert_eq!(peers.next_window(), MOST_WINDOW);
        for port in 0..u32::try_from(MOST_PEERS).unwrap() {
            let window = peers.next_window();
            total += u64::from(window);
            ids.push(peers.insert(peer(port, window)).unwrap());
        }
        assert_eq!(peers.next_window(), LEAST_WINDOW);
        assert!(total <= POOL_BYTES + MOST_PEERS as u64 * u64::from(LEAST_WINDOW), "{total}");
        assert!(peers.insert(peer(9999, LEAST_WINDOW)).is_none());
        for id in ids {
            peers.remove(id).unwrap();
        }
        assert_eq!((peers.len(), peers.promised, peers.next_window()), (0, 0, MOST_WINDOW));
    }

    #[test]
    fn a_late_event_does_not_reach_the_successor() {
        let mut peers = Peers::default();
        let first = peers.insert(peer(1, 1)).unwrap();
        assert!(peers.insert(peer(1, 1)).is_none(), "ports are taken");
        peers.remove(first).unwrap();
        let second = peers.insert(peer(2, 1)).unwrap();
        assert_eq!(first.index, second.index);
        assert!(peers.get_mut(first).is_none());
        assert!(peers.remove(first).is_none());
        assert!(peers.get_mut(second).is_some());
        assert_eq!(peers.find(Key { host_port: 1, guest_port: 2 }), Some(second));
    }

    #[test]
    fn the_late_come_out_in_order_and_once() {
        let mut peers = Peers::default();
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        let ids: Vec<_> = [3, 1, 2, 1]
            .iter()
            .zip(0..)
            .map(|(&time, port)| peers.insert(peer(port, 1).by(at(time))).unwrap())
            .collect();
        assert_eq!((peers.next_late(now), peers.next_deadline()), (None, Some(at(1))));
        peers.in_time(ids[1]);
        peers.remove(ids[2]).unwrap();
        assert_eq!((peers.next_late(at(2)), peers.next_late(at(2))), (Some(ids[3]), None));
        peers.put_off(Duration::from_secs(10));
        assert_eq!((peers.next_late(at(12)), peers.next_deadline()), (None, Some(at(13))));
        assert_eq!((peers.next_late(at(13)), peers.next_deadline()), (Some(ids[0]), None));
        assert!(peers.remove(ids[0]).is_some(), "it is still there: being late is for the caller to judge");
    }

    #[test]
    fn nobody_stands_in_line_twice_or_after_death() {
        let mut peers = Peers::default();
        let (a, b) = (peers.insert(peer(1, 1)).unwrap(), peers.insert(peer(2, 1)).unwrap());
        for id in [a, b, a, b] {
            peers.line_up(id);
        }
        assert_eq!(peers.line.len(), 2);
        peers.remove(a).unwrap();
        assert_eq!(peers.next_in_line(), Some(b));
        peers.back_in_line(b);
        peers.back_in_line(b);
        assert_eq!(peers.next_in_line(), Some(b));
        assert_eq!(peers.next_in_line(), None);
    }
}
