//! The network card on an event loop.
//!
//! Owns the order of things. Refuses to hold the loop: after [`FRAMES`] frames or [`BYTES`] bytes of a queue the others come
//! first. Invariant: the wire is watched only while the driver has posted buffers to receive into, so a flood that nobody
//! takes keeps nobody busy; the driver's kick of that queue is what ends it. Neither is it, nor a queue's kick, while a rate
//! limiter has no tokens for that direction: its timer is what ends that, and the other direction goes on. While the rest of a
//! frame waits for room in a stream no other is taken from the guest.
//!
//! Of several pairs of queues the driver uses the first so many that it said last, and one at the start. The host spreads
//! flows over all queues of a tap, whatever the driver uses: what comes in queue N of the tap goes to pair N modulo their
//! number, so nothing has to be told to the tap and nothing is stranded.

use super::control::Control;
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

/// The token of the tap's first queue, or of the socket; the tap's others follow. Below are those of kicks: the queues'
/// indexes, of which pair N has 2N to receive and 2N + 1 to transmit (5.1.2).
const WIRE: u32 = 0x100;
/// The tokens of the limiters' timers.
const RECEIVE_TIMER: Token = Token(0x200);
const TRANSMIT_TIMER: Token = Token(0x201);
/// The token of room in the socket.
const ROOM: Token = Token(0x202);
/// Most frames sent per event.
const FRAMES: u32 = 64;
/// Most bytes sent per event, give or take the last frame.
const BYTES: u64 = 4 << 20;

/// What a token is of.
enum Event {
    Receive(usize),
    Transmit(usize),
    Control,
    Wire(usize),
    ReceiveTimer,
    TransmitTimer,
    Room,
}

struct Pair {
    receiver: Receiver,
    transmit: Virtqueue,
}

pub(super) struct NetWorker {
    events: Vec<(Token, RawFd)>,
    card: Arc<Card>,
    features: u64,
    pairs: Vec<Pair>,
    /// How many of them the driver receives from.
    active: usize,
    control: Option<Control>,
    /// Queues that the driver set up and cannot use.
    idle: Vec<(u16, Queue)>,
    chain: Chain,
    dropped: Arc<AtomicU64>,
    /// The tap knows what this driver takes.
    told: bool,
    interrupt: Arc<dyn Interrupt>,
    receive_gate: Option<Gate>,
    transmit_gate: Option<Gate>,
    /// The pair that sends first when tokens have come.
    turn: usize,
}

impl NetWorker {
    pub(super) fn new(
        mut activation: Activation,
        card: Arc<Card>,
        limits: Limits,
    ) -> Result<Self, ActivateError> {
        let [receive_gate, transmit_gate] = [limits.receive, limits.transmit].map(|it| it.map(Gate::new));
        let features = activation.features;
        let has = |feature: u32| features & super::bit(feature) != 0;
        let merges = has(net::VIRTIO_NET_F_MRG_RXBUF);
        let pair = |receive, transmit| Pair { receiver: Receiver::new(receive, merges), transmit };
        let mut pairs = vec![pair(activation.take_queue(0)?, activation.take_queue(1)?)];
        // Without one of the two features there is one pair, and the control queue comes right behind it.
        let controlled = has(net::VIRTIO_NET_F_CTRL_VQ);
        let most = if controlled && has(net::VIRTIO_NET_F_MQ) { card.wire.queues() } else { 1 };
        let control = if controlled { activation.take_queue(2 * index(most)).ok() } else { None };
        // A driver that sets fewer up has fewer, from the first on.
        for number in 1..index(most) {
            let (receive, transmit) =
                (activation.take_queue(2 * number), activation.take_queue(2 * number + 1));
            match (receive, transmit) {
                (Ok(receive), Ok(transmit)) => pairs.push(pair(receive, transmit)),
                (one, other) => {
                    activation.queues.extend([one.ok(), other.ok()]);
                    break;
                }
            }
        }
        let control = control.map(|queue| Control::new(queue, Arc::clone(&activation.dropped)));
        let idle = activation.queues.into_iter().flatten().map(Virtqueue::into_parts).collect();
        let mut worker = Self {
            events: Vec::new(),
            active: usize::from(card.talk.pairs.load(Ordering::Relaxed)).clamp(1, pairs.len()),
            card,
            features,
            pairs,
            control,
            idle,
            chain: Chain::default(),
            dropped: activation.dropped,
            interrupt: activation.interrupt,
            told: false,
            receive_gate,
            transmit_gate,
            turn: 0,
        };
        worker.events = worker.all_events();
        Ok(worker)
    }

    fn all_events(&self) -> Vec<(Token, RawFd)> {
        let kick = |queue: &Virtqueue| (Token(queue.index().into()), queue.kick().as_raw_fd());
        let mut events: Vec<_> = (WIRE..).map(Token).zip(self.card.wire.descriptors()).collect();
        events.extend(self.pairs.iter().flat_map(|pair| [kick(&pair.receiver.queue), kick(&pair.transmit)]));
        events.extend(self.control.as_ref().map(|control| kick(control.queue())));
        events.extend(self.card.wire.room().map(|room| (ROOM, room)));
        events.extend(self.receive_gate.as_ref().map(|gate| (RECEIVE_TIMER, gate.timer())));
        events.extend(self.transmit_gate.as_ref().map(|gate| (TRANSMIT_TIMER, gate.timer())));
        events
    }

    fn event(&self, token: Token) -> Event {
        let is_control = |control: &Control| token == Token(control.queue().index().into());
        match token {
            RECEIVE_TIMER => Event::ReceiveTimer,
            TRANSMIT_TIMER => Event::TransmitTimer,
            ROOM => Event::Room,
            _ if self.control.as_ref().is_some_and(is_control) => Event::Control,
            Token(number @ WIRE..) => Event::Wire((number - WIRE) as usize),
            Token(queue) if queue % 2 == 0 => Event::Receive(queue as usize / 2),
            Token(queue) => Event::Transmit(queue as usize / 2),
        }
    }

    fn send_all(&mut self, number: usize) -> Result<(), DeviceError> {
        let Some(pair) = self.pairs.get_mut(number) else { return Ok(()) };
        let index = pair.transmit.index();
        let failed = |source| DeviceError::Queue { index, source };
        pair.transmit.refuse_kicks().map_err(failed)?;
        let (mut looks, mut bytes) = (0, 0);
        loop {
            // Counts looks at the queue, not only frames: a second vCPU may flip the index under our eyes for ever.
            looks += 1;
            match pair.transmit.pop(&mut self.chain).map_err(failed)? {
                Popped::Empty if pair.transmit.want_kicks().map_err(failed)? => {}
                Popped::Empty => break,
                popped => {
                    let length = self.chain.readable_bytes();
                    if self.card.wire.is_full() || !may_send(&mut self.transmit_gate, length)? {
                        pair.transmit.unpop(1);
                        pair.transmit.kick_again();
                        break;
                    }
                    let memory = pair.transmit.memory();
                    let sent = popped == Popped::Chain
                        && send(memory, &self.chain, (&self.card, number), self.features)?;
                    self.dropped.fetch_add((!sent).into(), Ordering::Relaxed);
                    pair.transmit.add_used(self.chain.head, 0).map_err(failed)?;
                    bytes += length;
                }
            }
            if looks >= FRAMES || bytes >= BYTES {
                pair.transmit.kick_again();
                break;
            }
        }
        pair.transmit.signal().map_err(failed)
    }

    /// Takes frames from queue `wire` of the tap, for the pair that its frames go to.
    fn receive(&mut self, wire: usize) -> Result<(), DeviceError> {
        let Some(pair) = self.pairs.get_mut(wire % self.active) else { return Ok(()) };
        pair.receiver.receive((&self.card, wire), self.receive_gate.as_mut())?;
        let dropped = std::mem::take(&mut pair.receiver.dropped);
        self.dropped.fetch_add(dropped, Ordering::Relaxed);
        Ok(())
    }

    fn move_frames(&mut self, event: &Event) -> Result<(), DeviceError> {
        match *event {
            Event::Room => self.card.wire.flush(),
            Event::Wire(number) => self.receive(number)?,
            Event::Transmit(number) => self.send_all(number)?,
            Event::Receive(number) => {
                let mine = (0..self.card.wire.queues()).filter(|queue| queue % self.active == number);
                mine.collect::<Vec<_>>().into_iter().try_for_each(|queue| self.receive(queue))?;
            }
            Event::ReceiveTimer => {
                self.receive_gate.iter_mut().for_each(Gate::rang);
                (0..self.card.wire.queues()).try_for_each(|queue| self.receive(queue))?;
            }
            Event::TransmitTimer => {
                self.transmit_gate.iter_mut().for_each(Gate::rang);
                let count = self.pairs.len();
                self.turn = (self.turn + 1) % count;
                let turn = self.turn;
                (0..count).try_for_each(|number| self.send_all((turn + number) % count))?;
            }
            Event::Control => self.obey()?,
        }
        Ok(())
    }

    fn obey(&mut self) -> Result<(), DeviceError> {
        let Some(control) = &mut self.control else { return Ok(()) };
        if let Some(count) = control.serve(index(self.pairs.len()))? {
            self.active = usize::from(count).clamp(1, self.pairs.len());
            self.card.talk.pairs.store(index(self.active), Ordering::Relaxed);
            // Who gets what has changed: a tap that nobody wanted to hear of is worth another look.
            self.pairs.iter_mut().for_each(|pair| pair.receiver.hungry = true);
        }
        Ok(())
    }
}

/// At most as many as a tap has queues.
fn index(number: usize) -> u16 {
    u16::try_from(number).unwrap_or(u16::MAX / 4)
}

/// Whether a chain of so many bytes may go on now, and pays for it: sent or refused, it is work.
fn may_send(gate: &mut Option<Gate>, length: u64) -> Result<bool, DeviceError> {
    let Some(gate) = gate else { return Ok(true) };
    let frame = length.saturating_sub(HEADER_BYTES as u64).min(LONGEST_FRAME as u64);
    let open = gate.admits(frame)?;
    if open {
        gate.took(frame);
    }
    Ok(open)
}

impl Worker for NetWorker {
    fn events(&self) -> &[(Token, RawFd)] {
        &self.events
    }

    fn wants(&self, token: Token) -> bool {
        let receives = gate::is_open(self.receive_gate.as_ref());
        let transmits = gate::is_open(self.transmit_gate.as_ref());
        match self.event(token) {
            Event::Wire(number) => {
                let hungry = self.pairs.get(number % self.active).is_some_and(|pair| pair.receiver.hungry);
                receives && hungry && !self.card.wire.is_dead()
            }
            Event::Room => self.card.wire.is_full(),
            Event::ReceiveTimer => !receives,
            Event::TransmitTimer => !transmits,
            Event::Transmit(_) => transmits && !self.card.wire.is_full(),
            Event::Receive(_) => receives,
            Event::Control => true,
        }
    }

    fn by_edge(&self, token: Token) -> bool {
        matches!(self.event(token), Event::Receive(_) | Event::Transmit(_))
    }

    fn ready(&mut self, token: Token) -> Result<(), DeviceError> {
        if !std::mem::replace(&mut self.told, true)
            && let Wire::Tap(tap) = &self.card.wire
        {
            tap.offload(self.features).map_err(DeviceError::host("setting the tap's offloads"))?;
        }
        let done = self.move_frames(&self.event(token));
        // It goes down once. Up it goes only where a driver that knew it down was loaded, and there is a new peer.
        let link = !self.card.wire.is_dead();
        if self.card.talk.link.load(Ordering::Relaxed) != link {
            self.card.talk.link.store(link, Ordering::Relaxed);
            self.interrupt.config();
        }
        done
    }

    fn drain(&mut self, _deadline: Instant) -> Result<Vec<(u16, Queue)>, Busy> {
        let mut queues = std::mem::take(&mut self.idle);
        for pair in &mut self.pairs {
            queues.extend([pair.receiver.take(), pair.transmit.take()]);
        }
        queues.extend(self.control.as_mut().map(Control::take));
        Ok(queues)
    }
}
