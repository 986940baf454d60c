//! From the wire to the guest: whole frames into buffers that the driver posted.
//!
//! Owns the queue and the chains taken from it that no frame has filled yet. Refuses, as dropped, a frame that has no
//! room in what the driver posted, and a chain that takes no frame. Invariant: the wire is read only while at least one
//! chain is posted and the gate is open, so that a driver that posts none, or too many for its rate limiter, costs nothing;
//! frames wait in the socket, or wait and are lost in the tap's own queue.

use super::wire::{Wire, lock};
use super::{Card, HEADER_BYTES, LONGEST_FRAME};
use crate::devices::virtio::gate::Gate;
use crate::devices::virtio::guest_io::GuestIo;
use crate::devices::virtio::queue::{Buffer, Chain, Popped, QueueError, Virtqueue};
use crate::devices::virtio::{DeviceError, Memory};
use std::collections::VecDeque;
use std::io;
use vm_memory::Permissions;

/// Most frames per event.
const FRAMES: u32 = 64;
/// Most chains taken from the queue per event, give or take those of the last frame.
const CHAINS: u32 = 1024;
/// Bytes that hold any frame.
const ENOUGH_BYTES: usize = HEADER_BYTES + LONGEST_FRAME;
/// No further chain is added to so many pieces: with the longest chain (two pieces a descriptor) they fit one call.
const ENOUGH_PIECES: usize = 480;

/// A chain that waits for a frame.
struct Posted {
    head: u16,
    bytes: usize,
    buffers: Vec<Buffer>,
}

pub(super) struct Receiver {
    pub(super) queue: Virtqueue,
    posted: VecDeque<Posted>,
    /// Whether a frame may fill more than one chain.
    merges: bool,
    /// Whether the wire is worth a look: false while the driver has posted nothing.
    pub(super) hungry: bool,
    chain: Chain,
    /// Where the part of a frame goes that has no room.
    excess: Vec<u8>,
    pub(super) dropped: u64,
}

/// What became of one attempt.
enum Attempt {
    /// A frame of so many bytes, without its virtio header, was read.
    Frame(u64),
    NoFrame,
}

impl Receiver {
    pub(super) fn new(queue: Virtqueue, merges: bool) -> Self {
        Self {
            queue,
            posted: VecDeque::new(),
            merges,
            hungry: true,
            chain: Chain::default(),
            excess: vec![0; ENOUGH_BYTES],
            dropped: 0,
        }
    }

    /// Moves frames until there are none, or no buffers, or `gate` closes, or it is the others' turn. How long a frame is
    /// shows when it is read: so the gate lets any frame through that comes when there is no debt, and the frame may make one.
    /// From queue `wire.1` of the tap, if it is one.
    pub(super) fn receive(
        &mut self,
        wire: (&Card, usize),
        mut gate: Option<&mut Gate>,
    ) -> Result<(), DeviceError> {
        let index = self.queue.index();
        let failed = |source| DeviceError::Queue { index, source };
        self.hungry = true;
        self.queue.refuse_kicks().map_err(failed)?;
        let memory = self.queue.memory().clone();
        let mut room = self.room(&memory);
        let mut taken = 0;
        for _ in 0..FRAMES {
            self.gather(&memory, &mut room, &mut taken).map_err(failed)?;
            if self.posted.is_empty() && taken < CHAINS {
                // A second look after asking for kicks: the driver may have been faster.
                if self.queue.want_kicks().map_err(failed)? {
                    continue;
                }
                self.hungry = false;
                break;
            }
            let closed = match &mut gate {
                Some(gate) => !gate.admits(0)?,
                None => false,
            };
            if closed || taken >= CHAINS {
                break;
            }
            let Attempt::Frame(bytes) = self.one(&memory, &mut room, wire)? else { break };
            if let Some(gate) = &gate {
                gate.took(bytes);
            }
        }
        // Where it is still hungry, the wire's level brings it back, or the gate's timer; what a stream had beside the last
        // frame is no longer in the socket.
        if self.hungry && wire.0.wire.has_frame() {
            self.queue.kick_again();
        }
        self.queue.signal().map_err(failed)
    }

    /// The memory of all chains that wait.
    fn room<'m>(&self, memory: &'m Memory) -> GuestIo<'m> {
        let mut room = GuestIo::with_capacity(64);
        for buffer in self.posted.iter().flat_map(|posted| &posted.buffers) {
            // It was found to lie in guest memory when it was taken, and guest memory does not change.
            let _ = room.push(memory, *buffer, Permissions::Write);
        }
        room
    }

    /// Takes chains until any frame has room, or the driver has posted no more.
    fn gather<'m>(
        &mut self,
        memory: &'m Memory,
        room: &mut GuestIo<'m>,
        taken: &mut u32,
    ) -> Result<(), QueueError> {
        let enough = |this: &Self, room: &GuestIo<'_>| {
            room.len() >= ENOUGH_BYTES
                || room.pieces() >= ENOUGH_PIECES
                || (!this.merges && !this.posted.is_empty())
        };
        while !enough(self, room) && *taken < CHAINS {
            let popped = self.queue.pop(&mut self.chain)?;
            if popped == Popped::Empty {
                break;
            }
            *taken += 1;
            let pieces = GuestIo::new(memory, &self.chain.writable, Permissions::Write);
            match pieces {
                Ok(pieces) if self.takes_a_frame(popped, pieces.len()) => {
                    let posted = Posted {
                        head: self.chain.head,
                        bytes: pieces.len(),
                        buffers: self.chain.writable.clone(),
                    };
                    self.posted.push_back(posted);
                    room.append(pieces);
                }
                // Behind others that wait it waits too: chains that were taken and not used go back in their order.
                _ if !self.posted.is_empty() => {
                    self.queue.unpop(1);
                    break;
                }
                _ => {
                    self.dropped += 1;
                    self.queue.add_used(self.chain.head, 0)?;
                }
            }
        }
        Ok(())
    }

    /// Virtio 1.2, 5.1.6.3.1: room for the header at least, and nothing to read.
    fn takes_a_frame(&self, popped: Popped, bytes: usize) -> bool {
        popped == Popped::Chain && self.chain.readable.is_empty() && bytes >= HEADER_BYTES
    }

    /// Reads one frame into the first chains that wait.
    fn one<'m>(
        &mut self,
        memory: &'m Memory,
        room: &mut GuestIo<'m>,
        wire: (&Card, usize),
    ) -> Result<Attempt, DeviceError> {
        let mut header = [0; HEADER_BYTES];
        room.advance(HEADER_BYTES);
        let capacity = room.len();
        let Some(read) = self.read(room, wire, &mut header)? else { return Ok(Attempt::NoFrame) };
        let bytes = read.saturating_sub(HEADER_BYTES) as u64;
        if read < HEADER_BYTES || read - HEADER_BYTES > capacity {
            self.dropped += 1;
            *room = self.room(memory);
            return Ok(Attempt::Frame(bytes));
        }
        let index = self.queue.index();
        self.deliver(memory, room, header, read).map_err(|source| DeviceError::Queue { index, source })?;
        Ok(Attempt::Frame(bytes))
    }

    /// Reads one frame into `header` and `room`; returns the bytes of both, though it may be more than there is room for.
    fn read(
        &mut self,
        room: &mut GuestIo<'_>,
        (card, number): (&Card, usize),
        header: &mut [u8; HEADER_BYTES],
    ) -> Result<Option<usize>, DeviceError> {
        let tap = match &card.wire {
            Wire::Tap(tap) => tap,
            Wire::Stream(stream) => {
                let mut stream = lock(stream);
                let Some(frame) = stream.receive() else { return Ok(None) };
                if frame.len() <= room.len() {
                    room.fill_from(frame);
                }
                return Ok(Some(HEADER_BYTES + frame.len()));
            }
        };
        loop {
            match room.read_frame(tap.queue(number), header, &mut self.excess) {
                Ok(read) => return Ok(Some(read)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(DeviceError::host("receiving from the tap")(error)),
            }
        }
    }

    /// Gives back the chains that the frame of `bytes`, header and all, lies in.
    fn deliver<'m>(
        &mut self,
        memory: &'m Memory,
        room: &mut GuestIo<'m>,
        mut header: [u8; HEADER_BYTES],
        bytes: usize,
    ) -> Result<(), QueueError> {
        let (mut chains, mut held) = (0_u16, 0);
        for posted in &self.posted {
            chains += 1;
            held += posted.bytes;
            if held >= bytes {
                break;
            }
        }
        // The tap fills in ten bytes; how many chains there are is ours to say (5.1.6.4).
        header[10..].copy_from_slice(&chains.to_le_bytes());
        if let Some(first) = self.posted.front()
            && let Ok(mut place) = GuestIo::new(memory, &first.buffers, Permissions::Write)
        {
            place.fill_from(&header);
        }
        // What the last chain has left over is lost to the next frame.
        room.advance(held - bytes);
        let mut left = bytes;
        for posted in self.posted.drain(..usize::from(chains)) {
            let written = left.min(posted.bytes);
            left -= written;
            self.queue.add_used(posted.head, u32::try_from(written).unwrap_or(u32::MAX))?;
        }
        Ok(())
    }

    /// Gives the queue back, with the chains that wait still in it.
    pub(super) fn take(&mut self) -> (u16, virtio_queue::Queue) {
        self.queue.unpop(u16::try_from(self.posted.len()).unwrap_or(u16::MAX));
        self.posted.clear();
        self.queue.take()
    }
}
