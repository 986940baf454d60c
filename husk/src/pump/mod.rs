//! The loop of a running sandbox: streams, control messages, processes, signals and deadlines, until it has ended.
//!
//! Owns the decision to end it. Refuses to block on any one of them. Invariant: from the moment of [`Pump::end`] the
//! loop ends within bounded time, whatever guest and cell do; only a reader of output who takes his time is waited for,
//! and not after a kill.

mod ending;
mod hearing;

use crate::change::{Desk, Question, Wish};
use crate::control::Control;
use crate::limits::Live;
use crate::outcome::{Cause, Evidence};
use crate::passt::Passt;
use crate::poll_set::{PollSet, Token};
use crate::pool::Refill;
use crate::session::{Session, SessionError};
use crate::signals::{Meaning, Signals};
use crate::spawn::Process;
use crate::terminal::RawTerminal;
use crate::timeline::Timeline;
use crate::volume::Volumes;
use ending::Clock;
use husk_protocol::control::{Change, Changed, Fault, MemoryChange, Stage};
use rustix::event::PollFlags;
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

/// The number of what is asked of the cell without anybody having asked; the desk's count up from 0, one at a time.
const OWN_REQUEST: u32 = u32::MAX;
/// Bytes of the jailer's standard error that are kept.
const JAILER_WORDS: usize = 4096;

/// Time limits, counted from the loop's start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) boot: Duration,
    pub(crate) total: Option<Duration>,
    /// The guest has writable drives to unmount.
    pub(crate) unmounts: bool,
}

/// The processes of a cell and what they say outside the control socket.
#[derive(Debug)]
pub(crate) struct Cell {
    pub(crate) jailer: Process,
    pub(crate) jailer_stderr: Option<OwnedFd>,
    pub(crate) runtime: Option<Process>,
}

/// A running sandbox.
#[derive(Debug)]
pub(crate) struct Pump<'a> {
    pub(crate) session: Session<'a>,
    pub(crate) control: Control,
    pub(crate) cell: Cell,
    pub(crate) signals: Option<&'a Signals>,
    pub(crate) terminal: Option<RawTerminal<'a>>,
    /// Read end of the guest's console.
    pub(crate) console: Option<OwnedFd>,
    /// Path of the vsock socket; host ports are `<path>_<port>`.
    pub(crate) vsock: Option<PathBuf>,
    /// MiB of memory that the guest is to plug in when it is ready.
    pub(crate) memory: Option<u64>,
    /// Where the sandbox is asked for changes.
    pub(crate) desk: Option<Desk>,
    /// What its cgroup holds it to, to be changed.
    pub(crate) live: Option<Live<'a>>,
    /// Their servers are started when the sandbox's cgroup is there.
    pub(crate) volumes: Volumes,
    /// As is the passt that is its network, if one is.
    pub(crate) passt: Passt,
    /// What is made ready for sandboxes to come.
    pub(crate) refill: Refill,
    pub(crate) timeline: Timeline,
    pub(crate) evidence: Evidence,
    jailer_words: Vec<u8>,
    /// The guest said that it cannot go on, after it was ready, and ends by itself.
    ends_after_fatal: bool,
    clock: Clock,
}

impl<'a> Pump<'a> {
    /// A pump over a cell that was just started.
    pub(crate) fn new(
        session: Session<'a>,
        control: Control,
        cell: Cell,
        limits: Limits,
        timeline: Timeline,
    ) -> Self {
        Self {
            session,
            control,
            cell,
            signals: None,
            terminal: None,
            console: None,
            vsock: None,
            memory: None,
            desk: None,
            live: None,
            volumes: Volumes::default(),
            passt: Passt::default(),
            refill: Refill::default(),
            timeline,
            evidence: Evidence::default(),
            jailer_words: Vec::new(),
            ends_after_fatal: false,
            clock: Clock::new(limits),
        }
    }

    /// Runs to the end; nothing of the cell's processes is left then.
    pub(crate) fn run(&mut self) {
        while !self.is_over() {
            let mut set = PollSet::default();
            self.interests(&mut set);
            let deadlines = [self.next_deadline(), self.refill.deadline()];
            match set.wait(deadlines.into_iter().flatten().min()) {
                Ok(ready) => {
                    for token in ready {
                        self.ready(token);
                    }
                }
                Err(errno) => self.fail(Fault::Host, format!("poll: {}", std::io::Error::from(errno))),
            }
            self.draw_conclusions();
            self.check_deadlines();
            self.refill.turn(self.timeline.has(Stage::Ready));
        }
        self.terminal = None;
        self.refill.finish();
        self.evidence.heard = self.session.heard.clone();
        self.evidence.was_ready = self.timeline.has(Stage::Ready);
        self.evidence.jailer = self.cell.jailer.end().map(|end| end.how);
        self.evidence.runtime = self.cell.runtime.as_ref().and_then(Process::end).map(|end| end.how);
        self.evidence.jailer_said = crate::text::last_line(&self.jailer_words);
    }

    fn interests<'s>(&'s self, set: &mut PollSet<'s>) {
        self.session.interests(set);
        let mut control = PollFlags::empty();
        control.set(PollFlags::IN, self.control.wants_to_read());
        control.set(PollFlags::OUT, self.control.wants_to_write());
        set.add(Token::Control, self.control.as_fd(), control);
        if self.cell.jailer.end().is_none() {
            set.add(Token::Jailer, self.cell.jailer.as_fd(), PollFlags::IN);
        }
        if let Some(runtime) = self.cell.runtime.as_ref().filter(|runtime| runtime.end().is_none()) {
            set.add(Token::Runtime, runtime.as_fd(), PollFlags::IN);
        }
        if let Some(stderr) = &self.cell.jailer_stderr {
            set.add(Token::JailerStderr, stderr.as_fd(), PollFlags::IN);
        }
        if let Some(console) = self.console.as_ref().filter(|_| self.session.takes_console()) {
            set.add(Token::Console, console.as_fd(), PollFlags::IN);
        }
        if let Some(desk) = &self.desk {
            let (fd, flags) = desk.interest();
            set.add(Token::Desk, fd, flags);
        }
        if let Some(signals) = self.signals {
            set.add(Token::Signals, signals.as_fd(), PollFlags::IN);
        }
    }

    fn ready(&mut self, token: Token) {
        match token {
            Token::Control => self.read_control(),
            Token::Jailer => {
                let _ = self.cell.jailer.reap();
                // What it said last may have come after this turn's look at the socket.
                self.read_control();
            }
            Token::Runtime => {
                if let Some(runtime) = &mut self.cell.runtime {
                    let _ = runtime.reap();
                }
                // As of the jailer; and one that never became the runtime has complained as the jailer does.
                self.read_control();
                self.read_jailer();
            }
            Token::JailerStderr => self.read_jailer(),
            Token::Console => self.read_console(),
            Token::Signals => self.read_signals(),
            Token::Desk => self.serve_desk(),
            Token::Channel | Token::Stdin | Token::Stdout | Token::Stderr | Token::ConsoleOut => {
                let result = self.session.ready(token, &mut self.timeline);
                self.check(result);
                self.grow();
            }
        }
    }

    /// Asks for the memory that the guest is to have beside what it booted in.
    fn grow(&mut self) {
        let Some(requested_size_mib) = self.memory.take_if(|_| self.timeline.has(Stage::Ready)) else {
            return;
        };
        let change = Change::Memory(MemoryChange { requested_size_mib });
        if let Err(error) = self.control.change(OWN_REQUEST, change, None) {
            self.fail(Fault::Host, error.to_string());
        }
    }

    fn check(&mut self, result: Result<(), SessionError>) {
        let Err(error) = result else { return };
        let fault = match error {
            SessionError::Protocol(_) | SessionError::Unexpected(_) => Fault::Guest,
            SessionError::TooLong(_) => Fault::Operator,
            SessionError::Output { .. } | SessionError::Channel(_) => Fault::Host,
        };
        // Nothing more can be understood or delivered: the channel counts as ended.
        self.session.heard.ended = true;
        self.fail(fault, error.to_string());
    }

    /// Ends the sandbox because of a failure.
    fn fail(&mut self, fault: Fault, line: String) {
        self.end(Cause::Failure(fault, line));
    }

    /// Decides to end the sandbox, and kills it. The first reason is the one that is told.
    fn end(&mut self, cause: Cause) {
        self.evidence.cause.get_or_insert(cause);
        self.kill();
    }

    fn kill(&mut self) {
        self.clock.stamp_kill();
        self.control.hang_up();
        self.cell.jailer.kill();
        if let Some(runtime) = &self.cell.runtime {
            runtime.kill();
        }
    }

    /// Passes a question on to the cell, once its guest runs: before that nobody there would hear it.
    pub(super) fn serve_desk(&mut self) {
        let Some(desk) = &mut self.desk else { return };
        let Some(Question { number, wish, file }) = desk.ready() else { return };
        if !self.timeline.has(Stage::Ready) {
            let line = "the guest is not ready yet; ask again when it is";
            desk.answer(number, &Changed::refused(Fault::Operator, line));
            return;
        }
        match wish {
            Wish::Cell(change) => {
                if let Some(live) = &mut self.live {
                    live.asked(number, &change, file.as_ref());
                }
                if let Err(error) = self.control.change(number, change, file) {
                    self.fail(Fault::Host, error.to_string());
                }
            }
            Wish::Limits(words) => {
                let changed = self.live.as_mut().map_or(Ok(()), |live| live.change(&words));
                let refused = changed.map_err(|error| {
                    Changed::refused(error.fault(), crate::text::message(&error.to_string()))
                });
                desk.answer(number, &refused.err().unwrap_or_default());
            }
        }
    }

    fn read_jailer(&mut self) {
        let Some(stderr) = &self.cell.jailer_stderr else { return };
        let mut bytes = [0; JAILER_WORDS];
        match rustix::io::read(stderr, &mut bytes) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            Ok(0) | Err(_) => self.cell.jailer_stderr = None,
            Ok(count) => {
                self.jailer_words.extend_from_slice(bytes.get(..count).unwrap_or_default());
                let excess = self.jailer_words.len().saturating_sub(JAILER_WORDS);
                self.jailer_words.drain(..excess);
            }
        }
    }

    fn read_console(&mut self) {
        let Some(console) = &self.console else { return };
        let mut bytes = [0; 4096];
        match rustix::io::read(console, &mut bytes) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            Ok(0) | Err(_) => self.console = None,
            Ok(count) => self.session.console(bytes.get(..count).unwrap_or_default()),
        }
    }

    fn read_signals(&mut self) {
        let Some(signals) = self.signals else { return };
        while let Some(meaning) = signals.next() {
            match meaning {
                Meaning::Resized => {
                    if let Some(size) = self.terminal.as_ref().and_then(RawTerminal::size) {
                        let result = self.session.resize(size);
                        self.check(result);
                    }
                }
                Meaning::Pass(number) => {
                    let result = self.session.signal(number);
                    self.check(result);
                }
                Meaning::End(number) => self.first_or_second(number),
                Meaning::AtOnce => self.end(Cause::Signal(libc::SIGKILL)),
            }
        }
    }
}

#[cfg(test)]
mod tests;
