//! One command, from its fork to its exit. Owns the process (until it is reaped), its streams and the order in which
//! the host hears of them; refuses stdin beyond the credit. Invariant: a signal goes only to a process that was not
//! reaped, so never to another that was given its number.
//!
//! ```text
//! starting ──executed──► running ──reaped──► draining ──streams at their end──► finished(exit)
//!     └──────failed──────────────────────────────────reaped───────────────────► finished(failure)
//! ```

use crate::channel::Channel;
use crate::command::Command;
use crate::poll::{Events, Poll, Slot, Token, Watch};
use crate::spawn::{self, Outcome, setup};
use crate::stdio;
use crate::stream::{Inlet, Outlet, Overrun};
use crate::sys;
use husk_protocol::exec::{EncodeError, Exec, ExecFailure, Exit, Frame, Stream, WindowSize};
use rustix::io::Errno;
use rustix::process::{Pid, WaitStatus};
use std::time::{Duration, Instant};

/// How long output is waited for, after a command's exit, that processes which it left behind may still write.
const PATIENCE: Duration = Duration::from_millis(200);

/// One command.
#[derive(Debug)]
pub(crate) struct Session {
    id: u32,
    last: bool,
    command: Command,
    pid: Pid,
    /// While it is not known whether the command was executed.
    status: Option<Watch>,
    failure: Option<ExecFailure>,
    inlet: Option<Inlet>,
    outlets: Vec<Outlet>,
    terminal: bool,
    /// How it ended; it is reaped then.
    exit: Option<Exit>,
    /// When its output is settled, whoever still holds it.
    deadline: Option<Instant>,
}

impl Session {
    /// Forks what `exec` asks for.
    ///
    /// # Errors
    /// It could not even be tried.
    pub(crate) fn start(id: u32, exec: &Exec) -> Result<Self, ExecFailure> {
        let command = Command::plan(exec).map_err(|error| setup(error.to_string()))?;
        let what = if exec.terminal.is_some() { "a terminal" } else { "pipes" };
        let failed = |error: Errno| setup(format!("cannot make {what} for the command: {error}"));
        let (theirs, ours) = stdio::open(exec, command.account.uid).map_err(failed)?;
        let failed = |error: Errno| setup(format!("cannot start a process for the command: {error}"));
        let (pid, status) = spawn::spawn(&command, theirs).map_err(failed)?;
        let watch = |fd, slot| Watch::new(fd, Token::Session(id, slot));
        let inlet = ours.stdin.map(|fd| Inlet::new(id, watch(fd, Slot::Stdin), ours.terminal));
        let outlet = |stream, watch| Outlet::new(id, stream, watch, ours.terminal);
        let mut outlets = vec![outlet(Stream::Stdout, watch(ours.stdout, Slot::Stdout))];
        outlets.extend(ours.stderr.map(|fd| outlet(Stream::Stderr, watch(fd, Slot::Stderr))));
        Ok(Self {
            id,
            last: exec.last,
            command,
            pid,
            status: Some(watch(status, Slot::Status)),
            failure: None,
            inlet,
            outlets,
            terminal: ours.terminal,
            exit: None,
            deadline: None,
        })
    }

    /// The command's process, as long as it is not reaped.
    pub(crate) fn pid(&self) -> Option<Pid> {
        self.exit.is_none().then_some(self.pid)
    }

    /// Whether the sandbox ends with this session.
    pub(crate) fn is_last(&self) -> bool {
        self.last
    }

    /// When [`Session::tick`] is due.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// A descriptor is ready.
    ///
    /// # Errors
    /// What was to be said cannot be.
    pub(crate) fn ready(
        &mut self,
        slot: Slot,
        channel: &mut Channel,
        poll: &Poll,
    ) -> Result<(), EncodeError> {
        match slot {
            Slot::Status => self.learn_outcome(channel, poll),
            Slot::Stdin => self.inlet.as_mut().map_or(Ok(()), |inlet| inlet.pump(channel, poll)),
            Slot::Stdout => self.pump(Stream::Stdout, channel, poll),
            Slot::Stderr => self.pump(Stream::Stderr, channel, poll),
        }
    }

    fn pump(&mut self, stream: Stream, channel: &mut Channel, poll: &Poll) -> Result<(), EncodeError> {
        let outlet = self.outlets.iter_mut().find(|it| it.stream() == stream);
        outlet.map_or(Ok(()), |outlet| outlet.pump(channel, poll))
    }

    fn learn_outcome(&mut self, channel: &mut Channel, poll: &Poll) -> Result<(), EncodeError> {
        let Some(status) = self.status.take() else { return Ok(()) };
        match spawn::outcome(&self.command, &status) {
            Outcome::Pending => {
                self.status = Some(status);
                return Ok(());
            }
            Outcome::Executed => channel.say(&Frame::Started(self.id))?,
            Outcome::Failed(failure) => {
                self.failure = Some(failure);
                self.inlet = None;
                self.outlets.iter_mut().for_each(|outlet| outlet.forget(poll));
            }
        }
        status.close(poll);
        Ok(())
    }

    /// Bytes from the host for the command's stdin.
    ///
    /// # Errors
    /// There was no credit for them.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<(), Overrun> {
        self.inlet.as_mut().map_or(Ok(()), |inlet| inlet.push(bytes))
    }

    /// No more bytes come for the command's stdin. [`Session::ready`] then passes it on.
    pub(crate) fn end_stdin(&mut self) {
        if let Some(inlet) = &mut self.inlet {
            inlet.end();
        }
    }

    /// The host takes more of a stream.
    pub(crate) fn grant(&mut self, stream: Stream, bytes: u32) {
        if let Some(outlet) = self.outlets.iter_mut().find(|it| it.stream() == stream) {
            outlet.grant(bytes);
        }
    }

    /// The host's window changed.
    pub(crate) fn resize(&self, size: WindowSize) {
        let master = self.outlets.first().filter(|_| self.terminal).and_then(Outlet::watch);
        if let Some(master) = master {
            // Fails only for what is no terminal.
            let _ = rustix::termios::tcsetwinsize(master, stdio::winsize(size));
        }
    }

    /// Sends a signal to the command's process group; one that the kernel does not know is not sent.
    pub(crate) fn signal(&self, number: u32) {
        let (Some(pid), Ok(number @ 1..=64)) = (self.pid(), i32::try_from(number)) else { return };
        let pid = pid.as_raw_nonzero().get();
        // Before its first steps the child has no group of its own yet.
        if sys::kill(-pid, number) == Err(Errno::SRCH) {
            let _ = sys::kill(pid, number);
        }
    }

    /// The command's process was reaped.
    ///
    /// # Errors
    /// What was to be said cannot be.
    pub(crate) fn reaped(
        &mut self,
        status: WaitStatus,
        channel: &mut Channel,
        poll: &Poll,
    ) -> Result<(), EncodeError> {
        self.learn_outcome(channel, poll)?;
        self.exit = Some(exit_of(status));
        self.deadline = Some(Instant::now() + PATIENCE);
        if let Some(inlet) = &mut self.inlet {
            inlet.close(poll);
        }
        self.pump_output(channel, poll)
    }

    /// Time has passed: output that is not there when the deadline comes is not waited for.
    ///
    /// # Errors
    /// What was to be said cannot be.
    pub(crate) fn tick(&mut self, channel: &mut Channel, poll: &Poll) -> Result<(), EncodeError> {
        if self.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return self.settle(channel, poll);
        }
        Ok(())
    }

    /// What is not there now is not waited for.
    ///
    /// # Errors
    /// What was to be said cannot be.
    pub(crate) fn settle(&mut self, channel: &mut Channel, poll: &Poll) -> Result<(), EncodeError> {
        self.deadline = None;
        self.outlets.iter_mut().for_each(Outlet::settle);
        self.pump_output(channel, poll)
    }

    /// For a last session: its output is waited for until those who hold it are killed.
    pub(crate) fn wait_for_all_output(&mut self) {
        self.deadline = None;
    }

    /// Sends what output is there.
    ///
    /// # Errors
    /// What was to be said cannot be.
    pub(crate) fn pump_output(&mut self, channel: &mut Channel, poll: &Poll) -> Result<(), EncodeError> {
        // What a command printed is not said before it is said that it was executed.
        if self.status.is_some() {
            return Ok(());
        }
        self.outlets.iter_mut().try_for_each(|outlet| outlet.pump(channel, poll))
    }

    /// Listens for what makes sense now.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn listen(&mut self, channel: &Channel, poll: &Poll) -> Result<(), Errno> {
        if let Some(inlet) = &mut self.inlet {
            inlet.listen(poll)?;
        }
        if let Some(status) = &mut self.status {
            return status.listen(poll, Events::IN);
        }
        self.outlets.iter_mut().try_for_each(|outlet| outlet.listen(channel, poll))
    }

    /// The last word on this session, when everything else was said.
    pub(crate) fn finished(&self) -> Option<Frame> {
        let exit = self.exit?;
        if let Some(failure) = &self.failure {
            return Some(Frame::ExecFailed(self.id, failure.clone()));
        }
        self.outlets.iter().all(Outlet::is_closed).then_some(Frame::Exit(self.id, exit))
    }
}

fn exit_of(status: WaitStatus) -> Exit {
    let number = |it: i32| u8::try_from(it).unwrap_or(u8::MAX);
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Exit::Status(number(code)),
        (None, signal) => Exit::Signal(signal.map_or(0, number)),
    }
}
