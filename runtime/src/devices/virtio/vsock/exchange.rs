//! Where the two sides meet: the guest's queues and connections, and what happens to them.
//!
//! Owns the connections, the resets owed to packets of no connection, and the budget of one event. Refuses to take
//! packets from the guest while [`MOST_STRAYS`] resets wait for it to offer buffers. Invariant: after each step every
//! connection either stands in line, or waits for an event, credit or buffers; [`Exchange::settle`] sees to it.

use super::connection::{Connection, Phase};
use super::greeting::Line;
use super::host::{Answer, HostSide, PATIENCE, Source};
use super::packet::{Header, Key, Op, SHUT_BOTH, SHUT_RECEIVE, SHUT_SEND};
use super::peers::{Peer, PeerId, Peers};
use super::receive::Inbound;
use super::streams::Streams;
use crate::devices::virtio::queue::{Chain, Virtqueue};
use crate::devices::virtio::{DeviceError, Memory};
use rustix::net::{SendFlags, Shutdown};
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;
use vmm_sys_util::epoll::EventSet;

/// Most resets that wait for buffers of the guest's.
pub(super) const MOST_STRAYS: usize = 256;
/// Most questions to husk at a time.
pub(super) const MOST_QUESTIONS: usize = 64;

pub(super) struct Exchange {
    pub(super) memory: Arc<Memory>,
    pub(super) inbound: Inbound,
    pub(super) outbound: Virtqueue,
    pub(super) events: Option<Virtqueue>,
    pub(super) chain: Chain,
    pub(super) peers: Peers,
    pub(super) strays: VecDeque<Header>,
    /// Packets of the guest's wait because there are too many strays.
    pub(super) held_up: bool,
    /// The guest has to hear that the transport was reset.
    pub(super) reset_untold: bool,
    questions: BTreeMap<u32, PeerId>,
    pub(super) dropped: Arc<AtomicU64>,
}

impl Exchange {
    pub(super) fn new(
        memory: Memory,
        inbound: Virtqueue,
        outbound: Virtqueue,
        events: Option<Virtqueue>,
        dropped: Arc<AtomicU64>,
    ) -> Self {
        Self {
            memory: Arc::new(memory),
            inbound: Inbound::new(inbound, dropped.clone()),
            outbound,
            events,
            chain: Chain::default(),
            peers: Peers::default(),
            strays: VecDeque::new(),
            held_up: false,
            reset_untold: false,
            questions: BTreeMap::new(),
            dropped,
        }
    }

    /// Takes over what another worker's driver has with the host.
    pub(super) fn take_up(&mut self, streams: Streams) {
        let Streams { peers, strays, questions, reset_untold } = streams;
        (self.peers, self.strays) = (peers, strays);
        (self.questions, self.reset_untold) = (questions, reset_untold);
    }

    /// Gives it away, for another worker.
    pub(super) fn give_up(&mut self) -> Streams {
        Streams {
            peers: std::mem::take(&mut self.peers),
            strays: std::mem::take(&mut self.strays),
            questions: std::mem::take(&mut self.questions),
            reset_untold: std::mem::take(&mut self.reset_untold),
        }
    }

    /// Takes what happened on the host's side.
    pub(super) fn host_events(&mut self, host: &mut HostSide) -> Result<(), DeviceError> {
        for (source, events) in
            host.events().map_err(DeviceError::host("waiting for the vsock device's sockets"))?
        {
            match source {
                Source::Peer(id) => self.socket_event(host, id, events),
                Source::Greeting { index, generation } => self.greeting(host, index, generation),
                Source::Listener => host.accept(),
                Source::Answers => self.answers(host),
                Source::Timer => self.expire(host),
            }
        }
        Ok(())
    }

    fn socket_event(&mut self, host: &mut HostSide, id: PeerId, events: EventSet) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let gone = events.intersects(EventSet::HANG_UP | EventSet::ERROR);
        peer.hung_up |= gone;
        peer.ending |= gone || events.contains(EventSet::READ_HANG_UP);
        peer.readable |= peer.ending || events.contains(EventSet::IN);
        if gone && peer.connection.phase() == Phase::Requested {
            peer.connection.reset();
        }
        // Nothing is left to read, or nobody to read it for: then no read will find the end.
        let no_more =
            peer.connection.host_shut() & SHUT_SEND != 0 || peer.connection.guest_shut() & SHUT_RECEIVE != 0;
        if gone && no_more {
            peer.connection.shut_by_host(SHUT_BOTH);
        }
        if peer.awaits_room && (gone || events.contains(EventSet::OUT)) {
            flush(host, id, peer);
        }
        self.settle(id);
    }

    /// After anything happened to a connection: it is removed if nothing is left to do, else lined up if there is.
    pub(super) fn settle(&mut self, id: PeerId) {
        if self.peers.get_mut(id).is_some_and(|peer| peer.is_over()) {
            self.peers.remove(id);
        } else {
            self.peers.line_up(id);
        }
    }

    /// The guest asks for a connection.
    pub(super) fn open(&mut self, host: &mut HostSide, request: &Header) {
        let connection = Connection::asked(request, self.peers.next_window());
        if self.peers.is_full() {
            self.strays.push_back(request.reset());
            return;
        }
        if host.exec_port == Some(request.dst_port) {
            let Some(socket) = host.exec.take() else {
                self.strays.push_back(request.reset());
                return;
            };
            if let Some(id) = self.peers.insert(Peer::new(connection)) {
                self.connect(host, id, socket);
            }
            return;
        }
        let question = if self.questions.len() < MOST_QUESTIONS { host.ask(request.dst_port) } else { None };
        let Some(question) = question else {
            self.strays.push_back(request.reset());
            return;
        };
        let mut peer = Peer::new(connection).by(Instant::now() + PATIENCE);
        peer.request = Some(question);
        if let Some(id) = self.peers.insert(peer) {
            self.questions.insert(question, id);
        }
    }

    /// The host has a socket for a connection that the guest asked for.
    fn connect(&mut self, host: &mut HostSide, id: PeerId, socket: OwnedFd) {
        self.peers.in_time(id);
        let Some(peer) = self.peers.get_mut(id) else { return };
        if host.watch(id, &socket).is_ok() {
            peer.socket = Some(socket);
            peer.connection.agree();
        } else {
            peer.connection.reset();
        }
        self.settle(id);
    }

    fn answers(&mut self, host: &mut HostSide) {
        for answer in host.answers() {
            match answer {
                Answer::ResetTransport => {
                    self.reset(host);
                    self.reset_untold = true;
                }
                Answer::Connected { request, socket } => match (self.questions.remove(&request), socket) {
                    (Some(id), Some(socket)) => self.connect(host, id, socket),
                    (Some(id), None) => self.abandon(id),
                    // Too late: nobody waits any more, and the socket is closed.
                    (None, _) => {}
                },
            }
        }
    }

    /// Ends a connection that never opened, or that broke the protocol; what it still held is lost.
    pub(super) fn abandon(&mut self, id: PeerId) {
        if let Some(peer) = self.peers.get_mut(id) {
            peer.connection.reset();
            peer.backlog.clear();
            peer.socket = None;
            if let Some(request) = peer.request.take() {
                self.questions.remove(&request);
            }
            self.settle(id);
        }
    }

    fn greeting(&mut self, host: &mut HostSide, index: u32, generation: u32) {
        let line = host.greetings.look(index, generation);
        if line == Line::Incomplete {
            return;
        }
        let socket = host.greetings.take(index, generation);
        host.listen(true);
        let (Line::Port(guest_port), Some(socket)) = (line, socket) else { return };
        if self.peers.is_full() {
            return;
        }
        // There are more ports than connections, so one is free.
        let key = loop {
            let key = Key { host_port: host.next_port(), guest_port };
            if self.peers.find(key).is_none() {
                break key;
            }
        };
        let connection = Connection::requested(key, host.guest_cid, self.peers.next_window());
        let mut peer = Peer::new(connection).by(Instant::now() + PATIENCE);
        peer.owed_greeting = true;
        host.set_timer(PATIENCE);
        let Some(id) = self.peers.insert(peer) else { return };
        if host.watch_on(id, &socket).is_err() {
            self.peers.remove(id);
        } else if let Some(peer) = self.peers.get_mut(id) {
            peer.socket = Some(socket);
            self.settle(id);
        }
    }

    /// The guest agreed to the host's request.
    pub(super) fn established(&mut self, id: PeerId) {
        self.peers.in_time(id);
        let Some(peer) = self.peers.get_mut(id) else { return };
        if !std::mem::take(&mut peer.owed_greeting) {
            return;
        }
        let line = format!("OK {}\n", peer.connection.key().host_port);
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        // Nothing was sent on this socket before, so the line fits, or the program is gone.
        let sent =
            peer.socket.as_ref().and_then(|socket| rustix::net::send(socket, line.as_bytes(), flags).ok());
        if sent != Some(line.len()) {
            self.abandon(id);
        }
    }

    fn expire(&mut self, host: &mut HostSide) {
        host.timer_rang();
        let now = Instant::now();
        let greeting = host.greetings.expire(now);
        host.listen(true);
        while let Some(id) = self.peers.next_late(now) {
            self.abandon(id);
        }
        if let Some(next) = greeting.into_iter().chain(self.peers.next_deadline()).min() {
            host.set_timer(next - now);
        }
    }

    /// Ends everything at once, without a word to the guest.
    pub(super) fn reset(&mut self, host: &mut HostSide) {
        self.peers = Peers::default();
        self.questions.clear();
        self.strays.clear();
        host.reset();
    }
}

/// Sends what waits in the backlog as far as the socket takes it.
pub(super) fn flush(host: &HostSide, id: PeerId, peer: &mut Peer) {
    let Some(socket) = &peer.socket else { return };
    match peer.backlog.flush(socket.as_fd()) {
        Ok(count) => peer.connection.forwarded(wrap(count)),
        Err(_) => host_is_deaf(peer),
    }
    let wanted = !peer.backlog.is_empty();
    host.await_room(id, peer, wanted);
    pass_on_shutdown(peer);
}

/// The host's program takes no more: what waits is lost, and the guest hears of it.
pub(super) fn host_is_deaf(peer: &mut Peer) {
    let lost = peer.backlog.clear();
    peer.connection.forwarded(wrap(lost));
    peer.connection.shut_by_host(SHUT_RECEIVE);
}

/// What the guest has shut is shut on the socket too, after the data.
pub(super) fn pass_on_shutdown(peer: &mut Peer) {
    let shut = peer.connection.guest_shut();
    if let Some(socket) = &peer.socket {
        // It fails only if the other end is gone, which an event tells anyway.
        if shut & SHUT_SEND != 0 && peer.backlog.is_empty() {
            let _ = rustix::net::shutdown(socket, Shutdown::Write);
        }
        if shut & SHUT_RECEIVE != 0 {
            let _ = rustix::net::shutdown(socket, Shutdown::Read);
        }
    }
    if shut == SHUT_BOTH {
        // The guest waits for this to close its end; what it sent still goes to the host.
        peer.connection.reset();
    }
}

/// A count of bytes as the protocol's counters take it; a connection never holds 4 GiB.
pub(super) fn wrap(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// Whether a packet of no connection is to be answered.
pub(super) fn deserves_reset(header: &Header) -> bool {
    header.op() != Some(Op::Reset)
}
