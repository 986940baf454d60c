//! A volume on an event loop: chains become messages, answers find their chains.
//!
//! Owns the requests in flight, each with the buffers for its answer. Refuses to hold the loop: after [`MESSAGES`] messages
//! or [`BYTES`] bytes the others come first; and to take chains while a message waits for room in the socket or [`IN_FLIGHT`]
//! requests wait for the server. Invariant: each chain goes back once: with its answer, with an error when the server is
//! gone, or unused because it made no sense.

use super::link::Link;
use super::message::{self, IN_HEADER, LONGEST, OUT_HEADER, Request};
use crate::devices::virtio::guest_io::GuestIo;
use crate::devices::virtio::queue::{Buffer, Chain, Popped, QueueError, Virtqueue};
use crate::devices::virtio::{ActivateError, Activation, Busy, DeviceError, Memory, Token, Worker};
use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use virtio_queue::Queue;
use vm_memory::Permissions;

/// The token of the server's answers; those of the queues' kicks are their indexes.
const ANSWERS: Token = Token(2);
/// The token of room in the socket.
const ROOM: Token = Token(3);
/// Most messages each way per event.
const MESSAGES: u32 = 64;
/// Most bytes per event, give or take the last message.
const BYTES: u64 = 4 << 20;
/// Most requests that the server has not answered yet.
const IN_FLIGHT: usize = 64;

/// A request that the server has.
struct Pending {
    queue: usize,
    head: u16,
    unique: u64,
    room: Vec<Buffer>,
}

/// What becomes of a chain at once; none: it is in flight.
type Done = Option<u32>;

pub(super) struct FsWorker {
    events: [(Token, RawFd); 4],
    link: Arc<Mutex<Link>>,
    queues: [Virtqueue; 2],
    chain: Chain,
    bytes: Vec<u8>,
    pending: BTreeMap<u64, Pending>,
    dropped: Arc<AtomicU64>,
    draining: bool,
}

fn lock(link: &Mutex<Link>) -> MutexGuard<'_, Link> {
    link.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FsWorker {
    pub(super) fn new(mut activation: Activation, link: Arc<Mutex<Link>>) -> Result<Self, ActivateError> {
        let queues = [activation.take_queue(0)?, activation.take_queue(1)?];
        let server = lock(&link);
        let events = [
            (Token(0), queues[0].kick().as_raw_fd()),
            (Token(1), queues[1].kick().as_raw_fd()),
            (ANSWERS, server.socket()),
            (ROOM, server.room()),
        ];
        drop(server);
        Ok(Self {
            events,
            link,
            queues,
            chain: Chain::default(),
            bytes: Vec::new(),
            pending: BTreeMap::new(),
            dropped: activation.dropped,
            draining: false,
        })
    }

    /// Whether chains have to wait. The dead take all, to refuse them.
    fn is_blocked(&self) -> bool {
        let link = lock(&self.link);
        self.draining || (!link.is_dead() && (link.is_full() || self.pending.len() >= IN_FLIGHT))
    }

    fn serve(&mut self, place: usize) -> Result<(), QueueError> {
        self.queues[place].acknowledge_kick();
        self.queues[place].refuse_kicks()?;
        let (mut looks, mut bytes) = (0, 0);
        loop {
            if self.is_blocked() || looks >= MESSAGES || bytes >= BYTES {
                self.queues[place].kick_again();
                break;
            }
            // Counts looks at the queue, not only requests: a second vCPU may flip the index under our eyes for ever.
            looks += 1;
            let done = match self.queues[place].pop(&mut self.chain)? {
                Popped::Empty if self.queues[place].want_kicks()? => continue,
                Popped::Empty => break,
                Popped::Chain => self.take(place),
                Popped::Malformed => self.nonsense(),
            };
            bytes += self.chain.readable_bytes().min(LONGEST as u64);
            if let Some(written) = done {
                self.queues[place].add_used(self.chain.head, written)?;
            }
        }
        self.queues[place].signal()
    }

    fn nonsense(&self) -> Done {
        self.dropped.fetch_add(1, Ordering::Relaxed);
        Some(0)
    }

    /// Sends what the chain says to the server.
    fn take(&mut self, place: usize) -> Done {
        let memory = self.queues[place].memory();
        let Ok(mut said) = GuestIo::new(memory, &self.chain.readable, Permissions::Read) else {
            return self.nonsense();
        };
        if GuestIo::new(memory, &self.chain.writable, Permissions::Write).is_err() || said.len() < IN_HEADER {
            return self.nonsense();
        }
        let (length, room) = (said.len(), self.chain.writable_bytes());
        said.truncate(if length > LONGEST { IN_HEADER } else { length });
        self.bytes.clear();
        said.append_to(&mut self.bytes);
        let request = Request::parse(&self.bytes).filter(|_| length <= LONGEST);
        let Some(request) = request else {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return Some(self.refuse(place));
        };
        if request.is_answered() && room < OUT_HEADER as u64 {
            return self.nonsense();
        }
        let mut link = lock(&self.link);
        match (request.is_answered(), link.is_dead()) {
            (true, true) => {
                drop(link);
                Some(self.refuse(place))
            }
            (true, false) => {
                let (head, room) = (self.chain.head, std::mem::take(&mut self.chain.writable));
                let tag = link.send(&mut self.bytes);
                self.pending.insert(tag, Pending { queue: place, head, unique: request.unique, room });
                None
            }
            (false, dead) => {
                if request.is_carried() && !dead {
                    link.send(&mut self.bytes);
                }
                Some(0)
            }
        }
    }

    /// Writes an error as the answer to the chain in hand, if there is room; returns the bytes written.
    fn refuse(&self, place: usize) -> u32 {
        let unique =
            self.bytes.get(8..16).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes);
        if self.chain.writable_bytes() < OUT_HEADER as u64 {
            return 0;
        }
        write(self.queues[place].memory(), &self.chain.writable, &message::refusal(unique), &[])
    }

    /// Puts the server's answers where they belong.
    fn answer(&mut self) -> Result<(), DeviceError> {
        let (mut messages, mut bytes) = (0, 0);
        let link = Arc::clone(&self.link);
        let mut link = lock(&link);
        while messages < MESSAGES && bytes < BYTES {
            let Some(answer) = link.receive() else { break };
            messages += 1;
            bytes += answer.len() as u64;
            // Without one it is the answer to a driver that is gone, or nobody's.
            if let Some(pending) = message::answer_tag(answer).and_then(|tag| self.pending.remove(&tag)) {
                let room = pending.room.iter().map(|buffer| u64::from(buffer.len)).sum();
                let (head, body) = message::answer_for(answer, pending.unique, room);
                self.give_back(&pending, &head, body)?;
            }
        }
        Ok(())
    }

    fn give_back(&mut self, pending: &Pending, head: &[u8], body: &[u8]) -> Result<(), DeviceError> {
        let queue = &mut self.queues[pending.queue];
        let written = write(queue.memory(), &pending.room, head, body);
        let index = queue.index();
        queue.add_used(pending.head, written).map_err(|source| DeviceError::Queue { index, source })
    }

    /// A server that is gone answers nothing: what it had is refused.
    fn bury(&mut self) -> Result<(), DeviceError> {
        if lock(&self.link).is_dead() {
            while let Some((_, pending)) = self.pending.pop_first() {
                self.give_back(&pending, &message::refusal(pending.unique), &[])?;
            }
        }
        Ok(())
    }

    fn signal(&mut self) -> Result<(), DeviceError> {
        for queue in &mut self.queues {
            let index = queue.index();
            queue.signal().map_err(|source| DeviceError::Queue { index, source })?;
        }
        Ok(())
    }
}

/// Writes an answer into the buffers that were found good when the request was taken; returns the bytes written.
fn write(memory: &Memory, room: &[Buffer], head: &[u8], body: &[u8]) -> u32 {
    let Ok(mut room) = GuestIo::new(memory, room, Permissions::Write) else { return 0 };
    let written = room.fill_from(head) + room.fill_from(body);
    // LONGEST bounds it.
    u32::try_from(written).unwrap_or(0)
}

impl Worker for FsWorker {
    fn events(&self) -> &[(Token, RawFd)] {
        &self.events
    }

    fn wants(&self, token: Token) -> bool {
        match token {
            ANSWERS => !lock(&self.link).is_dead(),
            ROOM => {
                let link = lock(&self.link);
                link.is_full() && !link.is_dead()
            }
            _ => !self.is_blocked(),
        }
    }

    fn ready(&mut self, token: Token) -> Result<(), DeviceError> {
        match token {
            ANSWERS => self.answer()?,
            ROOM => lock(&self.link).flush(),
            Token(place) => {
                let place = usize::from(place != 0);
                let index = self.queues[place].index();
                self.serve(place).map_err(|source| DeviceError::Queue { index, source })?;
            }
        }
        self.bury()?;
        self.signal()
    }

    /// What the server still has after the deadline nobody waits for any more: its answers find no chain. Before that nothing
    /// is given up: a request that the server has may have been done, and cannot be done twice.
    fn drain(&mut self, deadline: Instant) -> Result<Vec<(u16, Queue)>, Busy> {
        self.draining = true;
        if !self.pending.is_empty() && Instant::now() < deadline {
            return Err(Busy);
        }
        Ok(self.queues.iter_mut().map(Virtqueue::take).collect())
    }
}
