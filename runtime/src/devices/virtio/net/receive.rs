//! From the wire to the guest: whole frames into buffers that the driver posted.
//!
//! Owns the queue and the chains taken from it that no frame has filled yet. Refuses, as dropped, a frame that has no
//! room in what the driver posted, and a chain that takes no frame. Invariant: the wire is read only while at least one
//! chain is posted and the gate is open, so that a driver that posts none, or too many for its rate limiter, costs nothing;
//! frames wait in the socket, or wait and are lost in the tap's own queue.

use super::wire::{Wire, lock};
use super::{Card, HEADER_BYTES, LONGEST_FRAME};
use crate::devices::virtio::DeviceError;
use crate::devices::virtio::gate::Gate;
use crate::devices::virtio::guest_io::room::Room;
use crate::devices::virtio::queue::{Chain, Popped, QueueError, Virtqueue};
use std::collections::VecDeque;
use std::io;

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
}

pub(super) struct Receiver {
    pub(super) queue: Virtqueue,
    posted: VecDeque<Posted>,
    /// The memory of all of them.
    room: Room,
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
        let room = Room::new(queue.memory().clone());
        Self {
            queue,
            posted: VecDeque::new(),
            room,
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
        if self.room.is_stale() {
            self.put_back();
        }
        self.queue.refuse_kicks().map_err(failed)?;
        let mut taken = 0;
        for _ in 0..FRAMES {
            self.gather(&mut taken).map_err(failed)?;
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
            let Attempt::Frame(bytes) = self.one(wire)? else { break };
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

    /// Takes chains until any frame has room, or the driver has posted no more.
    fn gather(&mut self, taken: &mut u32) -> Result<(), QueueError> {
        while !self.has_enough() && *taken < CHAINS {
            let popped = self.queue.pop(&mut self.chain)?;
            if popped == Popped::Empty {
                break;
            }
            *taken += 1;
            let before = self.room.len();
            if self.takes_a_frame(popped) && self.room.push(&self.chain.writable).is_ok() {
                let bytes = self.room.len() - before;
                self.posted.push_back(Posted { head: self.chain.head, bytes });
            } else if self.posted.is_empty() {
                self.dropped += 1;
                self.queue.add_used(self.chain.head, 0)?;
            } else {
                // Behind others that wait it waits too: chains that were taken and not used go back in their order.
                self.queue.unpop(1);
                break;
            }
        }
        Ok(())
    }

    fn has_enough(&self) -> bool {
        self.room.len() >= ENOUGH_BYTES
            || self.room.pieces() >= ENOUGH_PIECES
            || (!self.merges && !self.posted.is_empty())
    }

    /// Virtio 1.2, 5.1.6.3.1: room for the header at least, and nothing to read.
    fn takes_a_frame(&self, popped: Popped) -> bool {
        popped == Popped::Chain
            && self.chain.readable.is_empty()
            && self.chain.writable_bytes() >= HEADER_BYTES as u64
    }

    /// Reads one frame into the first chains that wait.
    fn one(&mut self, wire: (&Card, usize)) -> Result<Attempt, DeviceError> {
        let mut header = [0; HEADER_BYTES];
        let Some(read) = self.read(wire, &mut header)? else { return Ok(Attempt::NoFrame) };
        let bytes = read.saturating_sub(HEADER_BYTES) as u64;
        if read < HEADER_BYTES || read > self.room.len() {
            self.dropped += 1;
            return Ok(Attempt::Frame(bytes));
        }
        let index = self.queue.index();
        self.deliver(header, read).map_err(|source| DeviceError::Queue { index, source })?;
        Ok(Attempt::Frame(bytes))
    }

    /// Reads one frame into `header` and the room; returns the bytes of both, though it may be more than there is room for.
    fn read(
        &mut self,
        (card, number): (&Card, usize),
        header: &mut [u8; HEADER_BYTES],
    ) -> Result<Option<usize>, DeviceError> {
        let tap = match &card.wire {
            Wire::Tap(tap) => tap,
            Wire::Stream(stream) => {
                let mut stream = lock(stream);
                let Some(frame) = stream.receive() else { return Ok(None) };
                if HEADER_BYTES + frame.len() <= self.room.len() {
                    self.room.write(HEADER_BYTES, frame);
                }
                return Ok(Some(HEADER_BYTES + frame.len()));
            }
        };
        loop {
            match self.room.read_frame(tap.queue(number), header, &mut self.excess) {
                Ok(read) => return Ok(Some(read)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(DeviceError::host("receiving from the tap")(error)),
            }
        }
    }

    /// Gives back the chains that the frame of `bytes`, header and all, lies in.
    fn deliver(&mut self, mut header: [u8; HEADER_BYTES], bytes: usize) -> Result<(), QueueError> {
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
        self.room.write(0, &header);
        // What the last chain has left over is lost to the next frame.
        self.room.advance(held);
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
        self.put_back();
        self.queue.take()
    }

    /// Puts the chains that wait back into the queue.
    fn put_back(&mut self) {
        self.queue.unpop(u16::try_from(self.posted.len()).unwrap_or(u16::MAX));
        self.posted.clear();
        self.room.clear();
    }
}
