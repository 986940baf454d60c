//! The loop of a running sandbox: streams, control messages, processes, signals and deadlines, until it has ended.
//!
//! Owns the decision to end it. Refuses to block on any one of them. Invariant: from the moment of [`Pump::end`] the
//! loop ends within bounded time, whatever guest and cell do; only a reader of output who takes his time is waited for,
//! and not after a kill.

use crate::control::{Control, ControlError, Received};
use crate::outcome::{Cause, Evidence};
use crate::poll_set::{PollSet, Token};
use crate::session::{Session, SessionError};
use crate::signals::{Meaning, Signals};
use crate::spawn::Process;
use crate::terminal::RawTerminal;
use crate::timeline::Timeline;
use husk_protocol::control::{CONSOLE_TAIL_LINE_BYTES, CONSOLE_TAIL_LINES, Ended, Fault, FromCell, Stage};
use husk_protocol::exec::Frame;
use rustix::event::PollFlags;
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A command may take this long over a signal.
const SIGNAL_PATIENCE: Duration = Duration::from_secs(10);
/// A guest may take this long to unmount its drives when its time is up.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(2);
/// A cell may take this long to explain itself after its channel or machine has ended.
const EXPLANATION_PATIENCE: Duration = Duration::from_secs(3);
/// Processes may take this long to die after SIGKILL.
const DEATH_PATIENCE: Duration = Duration::from_secs(10);
/// Output may take this long to reach its reader after a kill.
const FLUSH_PATIENCE: Duration = Duration::from_millis(500);
/// Control messages per turn, so that a cell that talks without end does not keep the streams from moving.
const MESSAGES_A_TURN: usize = 32;
/// Bytes of the jailer's standard error that are kept.
const JAILER_WORDS: usize = 4096;

/// Time limits, counted from the loop's start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) boot: Duration,
    pub(crate) total: Option<Duration>,
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
    pub(crate) timeline: Timeline,
    pub(crate) evidence: Evidence,
    jailer_words: Vec<u8>,
    clock: Clock,
}

/// What will happen when.
#[derive(Debug)]
struct Clock {
    limits: Limits,
    boot: Instant,
    total: Option<Instant>,
    /// The first signal was sent on; the sandbox is killed then, with this as the reason.
    signal: Option<(Instant, i32)>,
    /// Asked to end in order; it is killed then.
    graceful: Option<Instant>,
    /// Killed; what is not dead or flushed by then is given up.
    killed: Option<Instant>,
    /// Something of it has ended; the rest is killed then.
    explanation: Option<Instant>,
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
        let now = Instant::now();
        let clock = Clock {
            limits,
            boot: now + limits.boot,
            total: limits.total.map(|total| now + total),
            signal: None,
            graceful: None,
            killed: None,
            explanation: None,
        };
        Self {
            session,
            control,
            cell,
            signals: None,
            terminal: None,
            console: None,
            vsock: None,
            timeline,
            evidence: Evidence::default(),
            jailer_words: Vec::new(),
            clock,
        }
    }

    /// Runs to the end; nothing of the cell's processes is left then.
    pub(crate) fn run(&mut self) {
        while !self.is_over() {
            let mut set = PollSet::default();
            self.interests(&mut set);
            match set.wait(self.next_deadline()) {
                Ok(ready) => {
                    for token in ready {
                        self.ready(token);
                    }
                }
                Err(errno) => self.fail(Fault::Host, format!("poll: {}", std::io::Error::from(errno))),
            }
            self.draw_conclusions();
            self.check_deadlines();
        }
        self.terminal = None;
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
            }
            Token::JailerStderr => self.read_jailer(),
            Token::Console => self.read_console(),
            Token::Signals => self.read_signals(),
            Token::Channel | Token::Stdin | Token::Stdout | Token::Stderr | Token::ConsoleOut => {
                let result = self.session.ready(token, &mut self.timeline);
                self.check(result);
            }
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
        if self.clock.killed.is_none() {
            self.clock.killed = Some(Instant::now());
        }
        self.control.hang_up();
        self.cell.jailer.kill();
        if let Some(runtime) = &self.cell.runtime {
            runtime.kill();
        }
    }

    fn read_control(&mut self) {
        for _ in 0..MESSAGES_A_TURN {
            match self.control.receive() {
                Ok(Received::Message(message)) => self.hear(message),
                Ok(Received::Nothing | Received::End) => break,
                Err(ControlError::Malformed(line)) => {
                    self.fail(
                        Fault::Bug,
                        format!("the cell sent a control message that is not understood: {line}"),
                    );
                    break;
                }
                Err(error) => {
                    self.fail(Fault::Host, error.to_string());
                    break;
                }
            }
        }
        if let Err(error) = self.control.flush() {
            self.fail(Fault::Host, error.to_string());
        }
    }

    fn hear(&mut self, message: FromCell) {
        match message {
            FromCell::Cloned { pid } if self.cell.runtime.is_none() => {
                self.cell.runtime = Process::child(pid);
                if self.clock.killed.is_some() {
                    self.kill();
                }
            }
            FromCell::Cloned { .. } => {}
            FromCell::Stage { stage, at_ns } => self.timeline.alleged(stage, at_ns),
            FromCell::GuestClock { ticks, hz, at_ns } => self.timeline.guest_clock(ticks, hz, at_ns),
            FromCell::VsockConnect { request, port } => {
                let stream = self.vsock.as_deref().and_then(|path| crate::vsock::connect(path, port));
                if let Err(error) = self.control.answer(request, stream) {
                    self.fail(Fault::Host, error.to_string());
                }
            }
            FromCell::Failed { fault, message } => {
                let line = crate::text::line(&message);
                self.evidence.failed.get_or_insert((fault, line));
            }
            FromCell::Ended(ended) => {
                self.evidence.ended.get_or_insert_with(|| tame(ended));
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

    /// A signal that asks for the end: the command's to heed once, and ours after that.
    fn first_or_second(&mut self, number: i32) {
        let nobody_to_ask = !self.timeline.has(Stage::Executed) || self.session.heard.exit.is_some();
        if self.clock.signal.is_some() || nobody_to_ask {
            self.end(Cause::Signal(number));
            return;
        }
        self.clock.signal = Some((Instant::now() + SIGNAL_PATIENCE, number));
        let result = self.session.signal(number);
        self.check(result);
    }

    /// What follows from what was seen in this turn.
    fn draw_conclusions(&mut self) {
        let heard = &self.session.heard;
        if heard.no_reader && self.clock.signal.is_none() && heard.exit.is_none() {
            // As in a pipeline: a command whose reader went away gets SIGPIPE.
            self.first_or_second(libc::SIGPIPE);
        }
        let heard = &self.session.heard;
        if heard.exit.is_some() || heard.fatal.is_some() || self.evidence.failed.is_some() {
            // All is said. A killed runtime frees the machine faster than an orderly one.
            self.control_is_done();
        } else if heard.exec_failed.is_some() {
            // The guest unmounts its drives all the same.
            self.clock.graceful.get_or_insert(Instant::now() + SHUTDOWN_PATIENCE);
        }
        let runtime_ended = self.cell.runtime.as_ref().is_some_and(|runtime| runtime.end().is_some());
        let jailer_failed = self.cell.jailer.end().is_some() && self.cell.runtime.is_none();
        if self.session.heard.ended || runtime_ended || jailer_failed || self.evidence.ended.is_some() {
            self.clock.explanation.get_or_insert(Instant::now() + EXPLANATION_PATIENCE);
        }
        if jailer_failed && self.control.has_ended() {
            self.kill();
        }
    }

    /// Nothing more is expected of the cell.
    fn control_is_done(&mut self) {
        if let Some(runtime) = &self.cell.runtime {
            runtime.kill();
        }
        self.clock.explanation.get_or_insert(Instant::now() + EXPLANATION_PATIENCE);
    }

    fn next_deadline(&self) -> Option<Instant> {
        let clock = &self.clock;
        let running = clock.killed.is_none();
        let booting = running && clock.graceful.is_none() && !self.timeline.has(Stage::Ready);
        let boot = Some(clock.boot).filter(|_| booting);
        let total = clock.total.filter(|_| running && clock.graceful.is_none() && !self.has_said_all());
        let signal = clock.signal.map(|(at, _)| at).filter(|_| running);
        let graceful = clock.graceful.filter(|_| running);
        let explanation = clock.explanation.filter(|_| running && !self.processes_are_gone());
        let killed = clock
            .killed
            .map(|at| at + if self.processes_are_gone() { FLUSH_PATIENCE } else { DEATH_PATIENCE });
        [boot, total, signal, graceful, explanation, killed].into_iter().flatten().min()
    }

    fn has_said_all(&self) -> bool {
        self.session.heard.exit.is_some()
    }

    fn check_deadlines(&mut self) {
        if self.clock.killed.is_some() {
            return;
        }
        let now = Instant::now();
        if let Some((at, number)) = self.clock.signal
            && now >= at
        {
            self.end(Cause::Signal(number));
        } else if self.clock.graceful.is_some_and(|at| now >= at) {
            self.kill();
        } else if self.clock.explanation.is_some_and(|at| now >= at) && !self.processes_are_gone() {
            self.end(Cause::Silence);
        } else if now >= self.clock.boot && !self.timeline.has(Stage::Ready) && self.clock.graceful.is_none()
        {
            self.never_ready();
        } else if let Some(total) = self.clock.limits.total
            && self.clock.total.is_some_and(|at| now >= at)
            && self.clock.graceful.is_none()
            && !self.has_said_all()
        {
            self.time_is_up(total);
        }
    }

    /// Ends the guest in order, so that its drives are clean.
    fn time_is_up(&mut self, total: Duration) {
        self.evidence.cause.get_or_insert(Cause::Timeout(total));
        if self.timeline.has(Stage::Ready) {
            self.clock.graceful = Some(Instant::now() + SHUTDOWN_PATIENCE);
            let result = self.session.say(&Frame::Shutdown);
            self.check(result);
        } else {
            self.kill();
        }
    }

    /// Ends a guest that does not boot; the runtime is asked for the console's last lines.
    fn never_ready(&mut self) {
        self.evidence.cause.get_or_insert(Cause::BootTimeout(self.clock.limits.boot));
        if self.cell.runtime.is_some() && self.control.stop().is_ok() {
            self.clock.graceful = Some(Instant::now() + SHUTDOWN_PATIENCE);
        } else {
            self.kill();
        }
    }

    fn processes_are_gone(&self) -> bool {
        let runtime = self.cell.runtime.as_ref().is_none_or(|runtime| runtime.end().is_some());
        runtime && self.cell.jailer.end().is_some() && (self.control.has_ended() || self.control_is_stuck())
    }

    /// After a kill, a control socket that still has another end is not waited for: a clone of the jailer that was
    /// never announced holds it, and is found by its cgroup.
    fn control_is_stuck(&self) -> bool {
        self.clock.killed.is_some() && self.cell.runtime.is_none()
    }

    fn is_over(&mut self) -> bool {
        if let Some(killed) = self.clock.killed {
            let patience = if self.processes_are_gone() { FLUSH_PATIENCE } else { DEATH_PATIENCE };
            if killed.elapsed() >= patience {
                return true;
            }
        }
        let heard = &self.session.heard;
        let said_all = heard.report.is_some() || heard.exit.is_some() || self.evidence.ended.is_some();
        if said_all && self.clock.graceful.is_some() && self.clock.killed.is_none() {
            // The orderly end is over before its time.
            self.kill();
        }
        let drained = self.session.heard.ended || self.session.heard.exit.is_some();
        self.processes_are_gone() && drained && self.session.is_flushed() && self.cell.jailer_stderr.is_none()
    }
}

/// What a cell says of its end, bounded and printable.
fn tame(ended: Ended) -> Ended {
    let lines = ended.console_tail.into_iter().rev().take(CONSOLE_TAIL_LINES);
    let mut console_tail: Vec<String> = lines
        .map(|line| crate::text::line(&line.chars().take(CONSOLE_TAIL_LINE_BYTES).collect::<String>()))
        .collect();
    console_tail.reverse();
    Ended { reason: ended.reason, console_tail }
}
