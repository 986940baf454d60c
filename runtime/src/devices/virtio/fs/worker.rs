//! A volume on an event loop: chains become messages, answers find their chains.
//!
//! Owns the requests in flight, each with the buffers for its answer. Refuses to hold the loop: after [`MESSAGES`] messages
//! or [`BYTES`] bytes the others come first; and to take chains while a message waits for room in the socket or [`IN_FLIGHT`]
//! requests wait for the server, or the rate limiter has no tokens for the next one, its answer and the answers that are still
//! to come. Invariant: each chain goes back once: with its answer, with an error when the server is
//! gone, or unused because it made no sense.

use super::link::Link;
use super::message::{self, IN_HEADER, LONGEST, OUT_HEADER, Request};
use crate::devices::virtio::gate::{self, Gate};
use crate::devices::virtio::guest_io::GuestIo;
use crate::devices::virtio::queue::{Buffer, Chain, Popped, Virtqueue};
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
/// The token of the limiter's timer.
const TIMER: Token = Token(4);
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
    events: Vec<(Token, RawFd)>,
    link: Arc<Mutex<Link>>,
    queues: [Virtqueue; 2],
    chain: Chain,
    bytes: Vec<u8>,
    pending: BTreeMap<u64, Pending>,
    gate: Option<Gate>,
    dropped: Arc<AtomicU64>,
    draining: bool,
}

fn lock(link: &Mutex<Link>) -> MutexGuard<'_, Link> {
    link.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FsWorker {
    pub(super) fn new(
        mut activation: Activation,
        link: Arc<Mutex<Link>>,
        gate: Option<Gate>,
    ) -> Result<Self, ActivateError> {
        let queues = [activation.take_queue(0)?, activation.take_queue(1)?];
        let server = lock(&link);
        let mut events = vec![
            (Token(0), queues[0].kick().as_raw_fd()),
            (Token(1), queues[1].kick().as_raw_fd()),
            (ANSWERS, server.peer.socket()),
            (ROOM, server.peer.room()),
        ];
        events.extend(gate.as_ref().map(|gate| (TIMER, gate.timer())));
        drop(server);
        Ok(Self {
            events,
            link,
            queues,
            chain: Chain::default(),
            bytes: Vec::new(),
            pending: BTreeMap::new(),
            gate,
            dropped: activation.dropped,
            draining: false,
        })
    }

    /// Whether chains have to wait. The dead take all, to refuse them.
    fn is_blocked(&self) -> bool {
        let link = lock(&self.link);
        self.draining || (!link.peer.is_dead() && (link.peer.is_full() || self.pending.len() >= IN_FLIGHT))
    }

    /// Whether the chain in hand may go on now, as far as it looks: its message and its answer fit the tokens, and so do the
    /// answers that are not here yet. It pays for the message at once.
    fn may_go_on(&mut self) -> Result<bool, DeviceError> {
        let Some(gate) = &mut self.gate else { return Ok(true) };
        let most = |bytes: u64| bytes.min(LONGEST as u64);
        let message = most(self.chain.readable_bytes());
        let answers: u64 = self.pending.values().map(|pending| most(bytes_of(&pending.room))).sum();
        let goes_on = gate.admits(message + most(self.chain.writable_bytes()) + answers)?;
        if goes_on {
            gate.took(message);
        }
        Ok(goes_on)
    }

    fn serve(&mut self, place: usize) -> Result<(), DeviceError> {
        let index = self.queues[place].index();
        let failed = |source| DeviceError::Queue { index, source };
        self.queues[place].acknowledge_kick();
        self.queues[place].refuse_kicks().map_err(failed)?;
        let (mut looks, mut bytes) = (0, 0);
        loop {
            if self.is_blocked() || looks >= MESSAGES || bytes >= BYTES {
                self.queues[place].kick_again();
                break;
            }
            // Counts looks at the queue, not only requests: a second vCPU may flip the index under our eyes for ever.
            looks += 1;
            let popped = self.queues[place].pop(&mut self.chain).map_err(failed)?;
            if popped == Popped::Empty {
                if self.queues[place].want_kicks().map_err(failed)? {
                    continue;
                }
                break;
            }
            if !self.may_go_on()? {
                self.queues[place].unpop(1);
                self.queues[place].kick_again();
                break;
            }
            let done = if popped == Popped::Chain { self.take(place) } else { self.nonsense() };
            bytes += self.chain.readable_bytes().min(LONGEST as u64);
            if let Some(written) = done {
                self.queues[place].add_used(self.chain.head, written).map_err(failed)?;
            }
        }
        self.queues[place].signal().map_err(failed)
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
        match (request.is_answered(), link.peer.is_dead()) {
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
                if let Some(gate) = &self.gate {
                    gate.took_more(answer.len() as u64);
                }
                let (head, body) = message::answer_for(answer, pending.unique, bytes_of(&pending.room));
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
        if lock(&self.link).peer.is_dead() {
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

fn bytes_of(room: &[Buffer]) -> u64 {
    room.iter().map(|buffer| u64::from(buffer.len)).sum()
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
            ANSWERS => !lock(&self.link).peer.is_dead(),
            ROOM => {
                let link = lock(&self.link);
                link.peer.is_full() && !link.peer.is_dead()
            }
            TIMER => !gate::is_open(self.gate.as_ref()),
            _ => gate::is_open(self.gate.as_ref()) && !self.is_blocked(),
        }
    }

    fn ready(&mut self, token: Token) -> Result<(), DeviceError> {
        match token {
            ANSWERS => self.answer()?,
            ROOM => lock(&self.link).peer.flush(),
            // The queues' kicks are pending still.
            TIMER => self.gate.iter_mut().for_each(Gate::rang),
            Token(place) => self.serve(usize::from(place != 0))?,
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
