//! The network card on an event loop.
//!
//! Owns the order of things. Refuses to hold the loop: after [`FRAMES`] frames or [`BYTES`] bytes the others come first.
//! Invariant: the wire is watched only while the driver has posted buffers to receive into, so a flood that nobody takes
//! keeps nobody busy; the driver's kick of that queue is what ends it. Neither is it, nor a queue's kick, while a rate
//! limiter has no tokens for that direction: its timer is what ends that, and the other direction goes on. While the rest of a
//! frame waits for room in a stream no other is taken from the guest.

use super::receive::Receiver;
use super::transmit::send;
use super::wire::Wire;
use super::{Card, HEADER_BYTES, LONGEST_FRAME, Limits};
use crate::devices::virtio::gate::{self, Gate};
use crate::devices::virtio::queue::{Chain, Popped, Virtqueue};
use crate::devices::virtio::{ActivateError, Activation, Busy, DeviceError, Interrupt, Token, Worker};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use virtio_bindings::virtio_net as net;
use virtio_queue::Queue;

/// The queues' indexes, which are also the tokens of their kicks (5.1.2).
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
/// The token of the tap or socket.
const WIRE: Token = Token(2);
/// The tokens of the limiters' timers.
const RECEIVE_TIMER: Token = Token(3);
const TRANSMIT_TIMER: Token = Token(4);
/// The token of room in the socket.
const ROOM: Token = Token(5);
/// Most frames sent per event.
const FRAMES: u32 = 64;
/// Most bytes sent per event, give or take the last frame.
const BYTES: u64 = 4 << 20;

pub(super) struct NetWorker {
    events: Vec<(Token, RawFd)>,
    card: Arc<Card>,
    features: u64,
    receiver: Receiver,
    transmit: Virtqueue,
    chain: Chain,
    dropped: Arc<AtomicU64>,
    /// The tap knows what this driver takes.
    told: bool,
    interrupt: Arc<dyn Interrupt>,
    /// What this driver was told of the link.
    link: bool,
    receive_gate: Option<Gate>,
    transmit_gate: Option<Gate>,
}

impl NetWorker {
    pub(super) fn new(
        mut activation: Activation,
        card: Arc<Card>,
        limits: Limits,
    ) -> Result<Self, ActivateError> {
        let [receive_gate, transmit_gate] = [limits.receive, limits.transmit].map(|it| it.map(Gate::new));
        let receive = activation.take_queue(RECEIVE)?;
        let transmit = activation.take_queue(TRANSMIT)?;
        let mut events = vec![
            (WIRE, card.wire.as_raw_fd()),
            (Token(RECEIVE.into()), receive.kick().as_raw_fd()),
            (Token(TRANSMIT.into()), transmit.kick().as_raw_fd()),
        ];
        events.extend(card.wire.room().map(|room| (ROOM, room)));
        events.extend(receive_gate.as_ref().map(|gate| (RECEIVE_TIMER, gate.timer())));
        events.extend(transmit_gate.as_ref().map(|gate| (TRANSMIT_TIMER, gate.timer())));
        let features = activation.features;
        let merges = features & super::bit(net::VIRTIO_NET_F_MRG_RXBUF) != 0;
        Ok(Self {
            events,
            link: !card.wire.is_dead(),
            card,
            features,
            receiver: Receiver::new(receive, merges),
            transmit,
            chain: Chain::default(),
            dropped: activation.dropped,
            interrupt: activation.interrupt,
            told: false,
            receive_gate,
            transmit_gate,
        })
    }

    fn send_all(&mut self) -> Result<(), DeviceError> {
        let failed = |source| DeviceError::Queue { index: TRANSMIT, source };
        self.transmit.acknowledge_kick();
        self.transmit.refuse_kicks().map_err(failed)?;
        let (mut looks, mut bytes) = (0, 0);
        loop {
            // Counts looks at the queue, not only frames: a second vCPU may flip the index under our eyes for ever.
            looks += 1;
            match self.transmit.pop(&mut self.chain).map_err(failed)? {
                Popped::Empty if self.transmit.want_kicks().map_err(failed)? => {}
                Popped::Empty => break,
                popped => {
                    let length = self.chain.readable_bytes();
                    if self.card.wire.is_full() || !self.may_send(length)? {
                        self.transmit.unpop(1);
                        self.transmit.kick_again();
                        break;
                    }
                    self.send_one(popped)?;
                    bytes += length;
                }
            }
            if looks >= FRAMES || bytes >= BYTES {
                self.transmit.kick_again();
                break;
            }
        }
        self.transmit.signal().map_err(failed)
    }

    /// Whether a chain of so many bytes may go on now, and pays for it: sent or refused, it is work.
    fn may_send(&mut self, length: u64) -> Result<bool, DeviceError> {
        let Some(gate) = &mut self.transmit_gate else { return Ok(true) };
        let frame = length.saturating_sub(HEADER_BYTES as u64).min(LONGEST_FRAME as u64);
        let open = gate.admits(frame)?;
        if open {
            gate.took(frame);
        }
        Ok(open)
    }

    fn send_one(&mut self, popped: Popped) -> Result<(), DeviceError> {
        let sent =
            popped == Popped::Chain && send(self.transmit.memory(), &self.chain, &self.card, self.features)?;
        if !sent {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        let used = self.transmit.add_used(self.chain.head, 0);
        used.map_err(|source| DeviceError::Queue { index: TRANSMIT, source })
    }
}

impl Worker for NetWorker {
    fn events(&self) -> &[(Token, RawFd)] {
        &self.events
    }

    fn wants(&self, token: Token) -> bool {
        let receives = gate::is_open(self.receive_gate.as_ref());
        let transmits = gate::is_open(self.transmit_gate.as_ref());
        match token {
            WIRE => receives && self.receiver.hungry && !self.card.wire.is_dead(),
            ROOM => self.card.wire.is_full(),
            RECEIVE_TIMER => !receives,
            TRANSMIT_TIMER => !transmits,
            kick if kick == Token(TRANSMIT.into()) => transmits && !self.card.wire.is_full(),
            _ => receives,
        }
    }

    fn ready(&mut self, token: Token) -> Result<(), DeviceError> {
        if !std::mem::replace(&mut self.told, true)
            && let Wire::Tap(tap) = &self.card.wire
        {
            tap.offload(self.features).map_err(DeviceError::host("setting the tap's offloads"))?;
        }
        let done = self.move_frames(token);
        if self.link && self.card.wire.is_dead() {
            self.link = false;
            self.interrupt.config();
        }
        done
    }

    fn drain(&mut self, _deadline: Instant) -> Result<Vec<(u16, Queue)>, Busy> {
        Ok(vec![self.receiver.take(), self.transmit.take()])
    }
}

impl NetWorker {
    fn move_frames(&mut self, token: Token) -> Result<(), DeviceError> {
        if token == ROOM {
            self.card.wire.flush();
            return Ok(());
        }
        let rang = match token {
            RECEIVE_TIMER => self.receive_gate.as_mut(),
            TRANSMIT_TIMER => self.transmit_gate.as_mut(),
            _ => None,
        };
        rang.into_iter().for_each(Gate::rang);
        if token == TRANSMIT_TIMER || token == Token(TRANSMIT.into()) {
            return self.send_all();
        }
        if token == Token(RECEIVE.into()) {
            self.receiver.queue.acknowledge_kick();
        }
        self.receiver.receive(&self.card, self.receive_gate.as_mut())?;
        let dropped = std::mem::take(&mut self.receiver.dropped);
        self.dropped.fetch_add(dropped, Ordering::Relaxed);
        Ok(())
    }
}
