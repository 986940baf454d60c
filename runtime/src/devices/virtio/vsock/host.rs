//! The host's side of the device: descriptors that the runtime was given, and one epoll set over them.
//!
//! Owns listener, exec channel, the questions to husk and a timer. Refuses to open anything: every socket comes from
//! husk or the listener. Invariant: everything that needs a new descriptor of its own is made in [`HostSide::new`],
//! before the machine runs; a connection's socket is watched edge-triggered, so that one that nobody can serve now
//! costs nothing.

use super::greeting::{Greetings, MOST_GREETINGS};
use super::peers::{Peer, PeerId};
use super::streams::Streams;
use super::{Ask, VsockHost};
use rustix::net::SocketFlags;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

/// How long a handshake, a question or a request may stay unanswered.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// How long nothing is accepted after the host could not.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);
/// Events taken from the kernel at once.
const BATCH: usize = 64;
/// Host ports of connections that the host asks for: above those that programs choose.
const FIRST_PORT: u32 = 1 << 30;

/// Comes from the control thread.
pub(super) enum Answer {
    /// To a question.
    Connected {
        request: u32,
        socket: Option<OwnedFd>,
    },
    ResetTransport,
}

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Peer(PeerId),
    Greeting { index: u32, generation: u32 },
    Listener,
    Answers,
    Timer,
}

impl Source {
    /// Class in the highest byte, generation in the next three, index in the lower half.
    fn pack(self) -> u64 {
        let (class, generation, index) = match self {
            Self::Peer(PeerId { index, generation }) => (0, generation, index),
            Self::Greeting { index, generation } => (1, generation, index),
            Self::Listener => (2, 0, 0),
            Self::Answers => (3, 0, 0),
            Self::Timer => (4, 0, 0),
        };
        class << 56 | u64::from(generation & 0xff_ffff) << 32 | u64::from(index)
    }

    #[expect(clippy::cast_possible_truncation, reason = "takes the parts apart")]
    fn unpack(data: u64) -> Self {
        let (generation, index) = ((data >> 32) as u32 & 0xff_ffff, data as u32);
        match data >> 56 {
            0 => Self::Peer(PeerId { index, generation }),
            1 => Self::Greeting { index, generation },
            2 => Self::Listener,
            3 => Self::Answers,
            _ => Self::Timer,
        }
    }
}

pub(super) struct HostSide {
    pub(super) guest_cid: u64,
    epoll: Epoll,
    timer: OwnedFd,
    timer_is_set: bool,
    listener: Option<OwnedFd>,
    /// Whether the listener's events are wanted: not while all places are taken.
    listening: bool,
    pub(super) exec_port: Option<u32>,
    /// Until the guest's first connection takes it.
    pub(super) exec: Option<OwnedFd>,
    ask: Option<Ask>,
    answers: Receiver<Answer>,
    wake: Arc<EventFd>,
    pub(super) greetings: Greetings,
    /// While no worker has them, and since when.
    parked: Option<(Streams, Instant)>,
    next_request: u32,
    next_port: u32,
}

impl HostSide {
    pub(super) fn new(guest_cid: u64, host: VsockHost) -> io::Result<(Self, Sender<Answer>, Arc<EventFd>)> {
        let (sender, answers) = mpsc::channel();
        let wake = Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
        let timer = rustix::time::timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
        )?;
        let (exec_port, exec) = host.exec.unzip();
        let side = Self {
            guest_cid,
            epoll: Epoll::new()?,
            timer,
            timer_is_set: false,
            listener: host.listener,
            listening: true,
            exec_port,
            exec,
            ask: host.ask,
            answers,
            wake: wake.clone(),
            greetings: Greetings::default(),
            parked: None,
            next_request: 0,
            next_port: FIRST_PORT,
        };
        side.add(side.wake.as_raw_fd(), EventSet::IN, Source::Answers)?;
        side.add(side.timer.as_raw_fd(), EventSet::IN, Source::Timer)?;
        if let Some(listener) = &side.listener {
            rustix::io::ioctl_fionbio(listener, true)?;
            side.add(listener.as_raw_fd(), EventSet::IN, Source::Listener)?;
        }
        Ok((side, sender, wake))
    }

    /// Readable while anything here wants attention.
    pub(super) fn epoll_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    /// What happened, up to [`BATCH`] of it.
    pub(super) fn events(&self) -> io::Result<Vec<(Source, EventSet)>> {
        let mut events = [EpollEvent::default(); BATCH];
        let count = match self.epoll.wait(0, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        Ok(events[..count].iter().map(|event| (Source::unpack(event.data()), event.event_set())).collect())
    }

    fn add(&self, fd: RawFd, events: EventSet, source: Source) -> io::Result<()> {
        self.epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, source.pack()))
    }

    /// Watches a connection's socket from now on.
    pub(super) fn watch(&self, id: PeerId, socket: &OwnedFd) -> io::Result<()> {
        self.add(socket.as_raw_fd(), interest(false), Source::Peer(id))
    }

    /// A socket that was watched for its greeting is now a connection's.
    pub(super) fn watch_on(&self, id: PeerId, socket: &OwnedFd) -> io::Result<()> {
        let event = EpollEvent::new(interest(false), Source::Peer(id).pack());
        self.epoll.ctl(ControlOperation::Modify, socket.as_raw_fd(), event)
    }

    /// Watches for room in a connection's socket too, or no longer.
    pub(super) fn await_room(&self, id: PeerId, peer: &mut Peer, wanted: bool) {
        if peer.awaits_room == wanted {
            return;
        }
        peer.awaits_room = wanted;
        if let Some(socket) = &peer.socket {
            let event = EpollEvent::new(interest(wanted), Source::Peer(id).pack());
            // The socket is watched already: nothing is left that could fail.
            let _ = self.epoll.ctl(ControlOperation::Modify, socket.as_raw_fd(), event);
        }
    }

    /// Accepts one program from the listener.
    pub(super) fn accept(&mut self) {
        let Some(listener) = &self.listener else { return };
        let Some((index, generation)) = self.greetings.place() else {
            self.listen(false);
            return;
        };
        let socket = match rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(socket) => socket,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::CONNABORTED | rustix::io::Errno::INTR) => {
                return;
            }
            Err(_) => {
                // Out of descriptors or memory: the listener would be reported ready again at once, for ever. The timer
                // turns it on again.
                self.listen(false);
                self.set_timer(ACCEPT_PAUSE);
                return;
            }
        };
        let events = EventSet::IN | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        if self.add(socket.as_raw_fd(), events, Source::Greeting { index, generation }).is_ok() {
            self.greetings.put(index, socket, Instant::now() + PATIENCE);
            self.set_timer(PATIENCE);
        }
    }

    /// Whether new programs are accepted.
    pub(super) fn listen(&mut self, wanted: bool) {
        if self.listening == wanted {
            return;
        }
        self.listening = wanted;
        if let Some(listener) = &self.listener {
            let events = if wanted { EventSet::IN } else { EventSet::empty() };
            let event = EpollEvent::new(events, Source::Listener.pack());
            // The listener is watched already: nothing is left that could fail.
            let _ = self.epoll.ctl(ControlOperation::Modify, listener.as_raw_fd(), event);
        }
    }

    /// Asks husk for a socket to `port`; returns the question's number if it could be asked.
    pub(super) fn ask(&mut self, port: u32) -> Option<u32> {
        let ask = self.ask.as_ref()?;
        let request = self.next_request;
        self.next_request = self.next_request.wrapping_add(1);
        ask(request, port).then(|| {
            self.set_timer(PATIENCE);
            request
        })
    }

    /// The next port for a connection of the host's; the caller looks whether it is free.
    pub(super) fn next_port(&mut self) -> u32 {
        let port = self.next_port;
        self.next_port = FIRST_PORT | port.wrapping_add(1) & (FIRST_PORT - 1);
        port
    }

    /// Answers that have come.
    pub(super) fn answers(&self) -> Vec<Answer> {
        let _ = self.wake.read();
        self.answers.try_iter().collect()
    }

    /// Wakes the worker after `delay` at the latest.
    pub(super) fn set_timer(&mut self, delay: Duration) {
        if self.timer_is_set {
            return;
        }
        let delay = delay.clamp(Duration::from_millis(50), PATIENCE);
        let value = Timespec {
            tv_sec: i64::try_from(delay.as_secs()).unwrap_or(1),
            tv_nsec: delay.subsec_nanos().into(),
        };
        let time = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        // An armed timer or none: if the kernel refuses, patience is longer, nothing else.
        self.timer_is_set =
            rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &time).is_ok();
    }

    /// The timer has rung.
    pub(super) fn timer_rang(&mut self) {
        let mut expirations = [0; 8];
        let _ = rustix::io::read(&self.timer, &mut expirations);
        self.timer_is_set = false;
    }

    /// Keeps what a driver has with the host until the next worker.
    pub(super) fn park(&mut self, streams: Streams) {
        // On the device thread still; a reset without a worker is a vCPU's, which may not.
        self.listen(true);
        self.parked = Some((streams, Instant::now()));
    }

    /// What was kept.
    pub(super) fn unpark(&mut self) -> Streams {
        let Some((mut streams, since)) = self.parked.take() else { return Streams::default() };
        let pause = since.elapsed();
        streams.put_off(pause);
        self.greetings.put_off(pause);
        streams
    }

    /// Forgets all that belongs to a driver that is gone.
    pub(super) fn reset(&mut self) {
        self.parked = None;
        self.greetings = Greetings::default();
        self.listen(true);
        drop(self.answers());
    }
}

fn interest(room: bool) -> EventSet {
    let base = EventSet::IN | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
    if room { base | EventSet::OUT } else { base }
}

const _: () = assert!(MOST_GREETINGS <= 0xff_ffff, "an index fits into an event's data");
