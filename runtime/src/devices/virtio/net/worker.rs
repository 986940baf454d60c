//! The network card on an event loop.
//!
//! Owns the order of things. Refuses to hold the loop: after [`FRAMES`] frames or [`BYTES`] bytes the others come first.
//! Invariant: the tap is watched only while the driver has posted buffers to receive into, so a flood that nobody takes
//! keeps nobody busy; the driver's kick of that queue is what ends it. Neither is it, nor a queue's kick, while a rate
//! limiter has no tokens for that direction: its timer is what ends that, and the other direction goes on.

use super::receive::Receiver;
use super::transmit::send;
use super::{Card, HEADER_BYTES, LONGEST_FRAME, Limits};
use crate::devices::virtio::gate::{self, Gate};
use crate::devices::virtio::queue::{Chain, Popped, Virtqueue};
use crate::devices::virtio::{ActivateError, Activation, Busy, DeviceError, Token, Worker};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use virtio_bindings::virtio_net as net;
use virtio_queue::Queue;

/// The queues' indexes, which are also the tokens of their kicks (5.1.2).
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
/// The token of the tap.
const TAP: Token = Token(2);
/// The tokens of the limiters' timers.
const RECEIVE_TIMER: Token = Token(3);
const TRANSMIT_TIMER: Token = Token(4);
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
            (TAP, card.tap.as_fd().as_raw_fd()),
            (Token(RECEIVE.into()), receive.kick().as_raw_fd()),
            (Token(TRANSMIT.into()), transmit.kick().as_raw_fd()),
        ];
        events.extend(receive_gate.as_ref().map(|gate| (RECEIVE_TIMER, gate.timer())));
        events.extend(transmit_gate.as_ref().map(|gate| (TRANSMIT_TIMER, gate.timer())));
        let features = activation.features;
        let merges = features & super::bit(net::VIRTIO_NET_F_MRG_RXBUF) != 0;
        Ok(Self {
            events,
            card,
            features,
            receiver: Receiver::new(receive, merges),
            transmit,
            chain: Chain::default(),
            dropped: activation.dropped,
            told: false,
            receive_gate,
            transmit_gate,
        })
    }

    fn send_all(&mut self) -> Result<(), DeviceError> {
        let failed = |source| DeviceError::Queue { index: TRANSMIT, source };
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
                    if !self.may_send(length)? {
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
            TAP => receives && self.receiver.hungry,
            RECEIVE_TIMER => !receives,
            TRANSMIT_TIMER => !transmits,
            kick if kick == Token(TRANSMIT.into()) => transmits,
            _ => receives,
        }
    }

    fn by_edge(&self, token: Token) -> bool {
        [RECEIVE, TRANSMIT].map(|index| Token(index.into())).contains(&token)
    }

    fn ready(&mut self, token: Token) -> Result<(), DeviceError> {
        if !self.told {
            self.card.tap.offload(self.features).map_err(DeviceError::host("setting the tap's offloads"))?;
            self.told = true;
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
        self.receiver.receive(&self.card, self.receive_gate.as_mut())?;
        let dropped = std::mem::take(&mut self.receiver.dropped);
        self.dropped.fetch_add(dropped, Ordering::Relaxed);
        Ok(())
    }

    fn drain(&mut self, _deadline: Instant) -> Result<Vec<(u16, Queue)>, Busy> {
        Ok(vec![self.receiver.take(), self.transmit.take()])
    }
}
