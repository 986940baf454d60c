//! The loop that PID 1 lives in: frames from the host, output of commands, children that end. Owns the sessions and
//! what has been agreed with the host so far; refuses frames out of their order. Invariant: nothing here blocks but the
//! one wait, and the mounts before [`Frame::Ready`].

use crate::channel::Channel;
use crate::ending::{Cause, Ending, Stage};
use crate::fault::ServeError;
use crate::identity;
use crate::network;
use crate::poll::{Events, Poll, Slot, Token, Watch};
use crate::root::{self, WritableDrive};
use crate::session::Session;
use crate::spawn::setup;
use crate::sys;
use husk_protocol::exec::{
    EncodeError, Exec, Frame, GuestHello, Hello, Identity, MAX_SESSIONS, Mounts, Network, Stream, VERSION,
};
use rustix::buffer::spare_capacity;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, WaitStatus};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long the host may take to read that the guest cannot go on.
const FAREWELL: Duration = Duration::from_secs(2);

/// What PID 1 may do to the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// The machine is its own: it mounts and takes on identities.
    Guest,
    /// The first process of a PID namespace in somebody else's machine: mounts and identities are acknowledged and left
    /// as they are.
    Namespace,
}

/// What the host has said so far.
#[derive(Debug, Default)]
struct Agreed {
    hello: bool,
    mounts: bool,
    network: bool,
    identity: bool,
}

/// PID 1 at work.
#[derive(Debug)]
pub(crate) struct Server {
    place: Place,
    channel: Channel,
    poll: Poll,
    children: Watch,
    sessions: BTreeMap<u32, Session>,
    drives: Vec<WritableDrive>,
    agreed: Agreed,
    ending: Option<Ending>,
}

impl Server {
    /// Speaks over `socket` (connected, or about to be) and introduces itself.
    ///
    /// # Errors
    /// The event loop cannot be made.
    pub(crate) fn new(socket: OwnedFd, place: Place, init_ticks: u64) -> Result<Self, ServeError> {
        let poll = Poll::new().map_err(ServeError::Loop)?;
        let mut children = Watch::new(sys::child_signals().map_err(ServeError::Loop)?, Token::Children);
        children.listen(&poll, Events::IN).map_err(ServeError::Loop)?;
        let mut channel = Channel::new(socket);
        channel.say(&Frame::GuestHello(GuestHello { version: VERSION, features: 0, init_ticks }))?;
        Ok(Self {
            place,
            channel,
            poll,
            children,
            sessions: BTreeMap::new(),
            drives: Vec::new(),
            agreed: Agreed::default(),
            ending: None,
        })
    }

    /// Serves until the sandbox has ended and the host has had its time to end the machine. What makes it impossible to
    /// go on is told to the host and logged; then, too, everything is ended in order.
    pub(crate) fn run(mut self) {
        let Err(error) = self.serve() else { return };
        crate::console::log(&error);
        self.channel.farewell(&Frame::Fatal(error.to_string()), Instant::now() + FAREWELL);
        self.channel.hang_up();
        if let Err(error) = self.serve() {
            crate::console::log(&error);
        }
    }

    fn serve(&mut self) -> Result<(), ServeError> {
        loop {
            if self.channel.is_closed() {
                self.end(Cause::NoHost)?;
            }
            if self.advance()? {
                return Ok(());
            }
            self.channel.flush()?;
            self.listen().map_err(ServeError::Loop)?;
            for token in self.poll.wait(self.deadline()).map_err(ServeError::Loop)? {
                self.handle(token)?;
            }
            self.pass_time()?;
        }
    }

    fn handle(&mut self, token: Token) -> Result<(), ServeError> {
        match token {
            Token::Channel => {
                self.channel.receive()?;
                while let Some(frame) = self.channel.next_frame()? {
                    self.obey(frame)?;
                }
            }
            Token::Children => {
                self.clear_child_signals();
                self.reap()?;
            }
            Token::Unmounter => {}
            Token::Session(id, slot) => {
                if let Some(session) = self.sessions.get_mut(&id) {
                    session.ready(slot, &mut self.channel, &self.poll)?;
                }
                self.conclude(id)?;
            }
        }
        Ok(())
    }

    fn obey(&mut self, frame: Frame) -> Result<(), ServeError> {
        if !self.agreed.hello && !matches!(frame, Frame::Hello(_)) {
            return Err(ServeError::order(&frame, "came before Hello"));
        }
        match frame {
            Frame::Hello(hello) => self.greet(&hello),
            Frame::Mounts(mounts) => self.mount(&mounts),
            Frame::Network(network) => self.network(&network),
            Frame::Identity(identity) => self.identify(&identity),
            Frame::Exec(id, exec) => self.execute(id, &exec),
            Frame::Data(id, Stream::Stdin, bytes) => self.with(id, |session| Ok(session.push(&bytes)?)),
            Frame::Close(id, Stream::Stdin) => self.with(id, |session| {
                session.end_stdin();
                Ok(())
            }),
            Frame::Credit(id, stream, bytes) => self.with(id, |session| {
                session.grant(stream, bytes);
                Ok(())
            }),
            Frame::Resize(id, size) => self.with(id, |session| {
                session.resize(size);
                Ok(())
            }),
            Frame::Signal(id, number) => self.with(id, |session| {
                session.signal(number);
                Ok(())
            }),
            Frame::Shutdown => self.end(Cause::Shutdown),
            other => Err(ServeError::order(&other, "is not the host's to say")),
        }
    }

    /// For a session that is over by now, what the host said is too late and means nothing.
    fn with(
        &mut self,
        id: u32,
        act: impl FnOnce(&mut Session) -> Result<(), ServeError>,
    ) -> Result<(), ServeError> {
        let Some(session) = self.sessions.get_mut(&id) else { return Ok(()) };
        act(session)?;
        Ok(session.ready(Slot::Stdin, &mut self.channel, &self.poll)?)
    }

    fn greet(&mut self, hello: &Hello) -> Result<(), ServeError> {
        if self.agreed.hello || hello.version == 0 {
            return Err(ServeError::Order { frame: "Hello", why: "came twice, or with version 0" });
        }
        self.agreed.hello = true;
        Ok(())
    }

    fn mount(&mut self, mounts: &Mounts) -> Result<(), ServeError> {
        if self.agreed.mounts {
            return Err(ServeError::Order { frame: "Mounts", why: "came twice" });
        }
        if self.place == Place::Guest {
            self.drives = root::assemble(mounts)?;
        }
        self.agreed.mounts = true;
        self.say_ready()
    }

    fn network(&mut self, network: &Network) -> Result<(), ServeError> {
        if self.agreed.network || !self.agreed.mounts || self.agreed.identity {
            let why = "came twice, or not between Mounts and Identity";
            return Err(ServeError::Order { frame: "Network", why });
        }
        if self.place == Place::Guest {
            network::configure(network)?;
        }
        self.agreed.network = true;
        Ok(())
    }

    fn identify(&mut self, identity: &Identity) -> Result<(), ServeError> {
        if self.place == Place::Guest {
            identity::take_on(identity)?;
        }
        self.agreed.identity = true;
        self.say_ready()
    }

    /// Sent at once, so that its arrival tells when the guest was ready.
    fn say_ready(&mut self) -> Result<(), ServeError> {
        if self.agreed.mounts && self.agreed.identity {
            self.channel.say(&Frame::Ready)?;
            self.channel.flush()?;
        }
        Ok(())
    }

    fn execute(&mut self, id: u32, exec: &Exec) -> Result<(), ServeError> {
        if !(self.agreed.mounts && self.agreed.identity) {
            return Err(ServeError::Order { frame: "Exec", why: "came before Mounts and Identity" });
        }
        if self.sessions.contains_key(&id) {
            return Err(ServeError::Order { frame: "Exec", why: "names a session that is there already" });
        }
        let started = if self.ending.is_some() {
            Err(setup("the sandbox is ending".to_owned()))
        } else if self.sessions.len() >= MAX_SESSIONS {
            Err(setup(format!("{MAX_SESSIONS} sessions are running; no more are allowed at one time")))
        } else {
            Session::start(id, exec)
        };
        match started {
            Ok(session) => {
                self.sessions.insert(id, session);
                Ok(())
            }
            Err(failure) if exec.last && self.ending.is_none() => {
                self.end(Cause::LastSession(id))?;
                self.keep_or_say(id, Frame::ExecFailed(id, failure))
            }
            Err(failure) => Ok(self.channel.say(&Frame::ExecFailed(id, failure))?),
        }
    }

    /// Reaps whoever has ended: commands and what they left behind. True if there is no other process.
    fn reap(&mut self) -> Result<bool, ServeError> {
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => self.reaped(pid, status)?,
                Ok(None) | Err(Errno::INTR) => return Ok(false),
                Err(_) => return Ok(true),
            }
        }
    }

    fn reaped(&mut self, pid: Pid, status: WaitStatus) -> Result<(), ServeError> {
        if let Some(ending) = &mut self.ending {
            ending.count_reaped();
        }
        let mut sessions = self.sessions.iter_mut();
        let Some((&id, session)) = sessions.find(|(_, session)| session.pid() == Some(pid)) else {
            return Ok(());
        };
        session.reaped(status, &mut self.channel, &self.poll)?;
        if session.is_last() {
            session.wait_for_all_output();
            self.end(Cause::LastSession(id))?;
        }
        self.conclude(id)
    }

    /// A session that has nothing more to say goes.
    fn conclude(&mut self, id: u32) -> Result<(), ServeError> {
        let Some(word) = self.sessions.get(&id).and_then(Session::finished) else { return Ok(()) };
        self.sessions.remove(&id);
        self.keep_or_say(id, word)
    }

    fn keep_or_say(&mut self, id: u32, word: Frame) -> Result<(), ServeError> {
        match &mut self.ending {
            Some(ending) if ending.keeps(id) => ending.keep(word),
            _ => self.channel.say(&word)?,
        }
        Ok(())
    }

    /// Begins the end, unless it has begun.
    fn end(&mut self, cause: Cause) -> Result<(), ServeError> {
        if let Some(ending) = &mut self.ending {
            if cause == Cause::NoHost && ending.cause != cause {
                ending.cause = cause;
                self.pump_output()?;
            }
            return Ok(());
        }
        // Who has ended by himself is no leftover.
        let alone = self.reap()?;
        if self.ending.is_none() {
            self.ending = Some(Ending::begin(cause, alone));
        }
        self.pump_output()
    }

    /// Goes on with the end as far as that is possible now; true once it is over.
    fn advance(&mut self) -> Result<bool, ServeError> {
        let Some(ending) = &self.ending else { return Ok(false) };
        if let Stage::Killing { .. } = ending.stage {
            let alone = self.reap()?;
            let Some(ending) = &mut self.ending else { return Ok(false) };
            if ending.kill(alone) {
                self.settle()?;
            }
        }
        let all_said = self.sessions.is_empty();
        let Some(ending) = &mut self.ending else { return Ok(false) };
        if matches!(ending.stage, Stage::Draining) && all_said {
            ending.unmount(&self.drives, &self.poll);
            if matches!(ending.stage, Stage::Gone { .. }) {
                self.say_last_words()?;
            }
        } else if ending.unmounted() {
            self.say_last_words()?;
        }
        let Some(ending) = &self.ending else { return Ok(false) };
        let Stage::Gone { deadline } = ending.stage else { return Ok(false) };
        Ok(self.channel.is_closed() || deadline <= Instant::now())
    }

    fn say_last_words(&mut self) -> Result<(), ServeError> {
        let words = self.ending.as_mut().map(Ending::last_words);
        words.into_iter().flatten().try_for_each(|word| self.channel.say(&word))?;
        Ok(self.channel.flush()?)
    }

    /// Everybody is dead, or cannot be waited for: what is in the pipes now is all there is.
    fn settle(&mut self) -> Result<(), ServeError> {
        self.for_all(|session, channel, poll| session.settle(channel, poll))
    }

    fn pump_output(&mut self) -> Result<(), ServeError> {
        self.for_all(Session::pump_output)
    }

    fn pass_time(&mut self) -> Result<(), ServeError> {
        if self.sessions.values().all(|session| session.deadline().is_none()) {
            return Ok(());
        }
        self.for_all(Session::tick)
    }

    fn for_all(
        &mut self,
        act: impl Fn(&mut Session, &mut Channel, &Poll) -> Result<(), EncodeError>,
    ) -> Result<(), ServeError> {
        let ids: Vec<u32> = self.sessions.keys().copied().collect();
        for id in ids {
            if let Some(session) = self.sessions.get_mut(&id) {
                act(session, &mut self.channel, &self.poll)?;
            }
            self.conclude(id)?;
        }
        Ok(())
    }

    fn listen(&mut self) -> Result<(), Errno> {
        self.channel.listen(&self.poll)?;
        let sessions = &mut self.sessions;
        sessions.values_mut().try_for_each(|session| session.listen(&self.channel, &self.poll))
    }

    fn deadline(&self) -> Option<Instant> {
        let sessions = self.sessions.values().filter_map(Session::deadline);
        sessions.chain(self.ending.as_ref().and_then(Ending::deadline)).min()
    }

    fn clear_child_signals(&self) {
        // One read takes all: SIGCHLD does not queue.
        let mut info = Vec::with_capacity(size_of::<libc::signalfd_siginfo>());
        let _ = rustix::io::read(&self.children, spare_capacity(&mut info));
    }
}
