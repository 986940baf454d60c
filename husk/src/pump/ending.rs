//! When and how a sandbox is ended.
//!
//! Owns the deadlines. Refuses to wait for ever for anything but a reader of output who takes his time. Invariant: the
//! first reason to end is the one that is told, and after a kill the loop is over within [`DEATH_PATIENCE`].

use super::Pump;
use crate::change::Desk;
use crate::outcome::Cause;
use crate::sys::ChildExit;
use crate::units::signal_name;
use husk_protocol::control::{Fault, Stage};
use husk_protocol::exec::Frame;
use std::time::{Duration, Instant};

/// A command may take this long over a signal.
const SIGNAL_PATIENCE: Duration = Duration::from_secs(10);
/// A guest may take this long to end in order when its time is up.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(2);
/// The same with writable drives, whose file systems have to reach the disk first.
const UNMOUNT_PATIENCE: Duration = Duration::from_secs(10);
/// A guest that cannot go on may take this long to unmount its drives and to end its machine, about which it says nothing
/// any more.
const FATAL_PATIENCE: Duration = Duration::from_secs(12);
/// A cell may take this long to explain itself after its channel or machine has ended.
const EXPLANATION_PATIENCE: Duration = Duration::from_secs(3);
/// Processes may take this long to die after SIGKILL.
const DEATH_PATIENCE: Duration = Duration::from_secs(10);
/// Output may take this long to reach its reader after a kill.
const FLUSH_PATIENCE: Duration = Duration::from_millis(500);

impl super::Limits {
    /// How long an orderly end may take.
    fn shutdown_patience(self) -> Duration {
        if self.unmounts { UNMOUNT_PATIENCE } else { SHUTDOWN_PATIENCE }
    }
}

/// What will happen when.
#[derive(Debug)]
pub(super) struct Clock {
    limits: super::Limits,
    boot: Instant,
    total: Option<Instant>,
    /// The first signal was sent on; the sandbox is ended then, with this as the reason.
    signal: Option<(Instant, i32)>,
    /// Asked to end in order; it is killed then.
    graceful: Option<Instant>,
    /// Killed; what is not dead or flushed by then is given up.
    killed: Option<Instant>,
    /// Something of it has ended; the rest is killed then.
    explanation: Option<Instant>,
}

impl Clock {
    pub(super) fn new(limits: super::Limits) -> Self {
        let now = Instant::now();
        Self {
            limits,
            boot: now + limits.boot,
            total: limits.total.map(|total| now + total),
            signal: None,
            graceful: None,
            killed: None,
            explanation: None,
        }
    }

    /// Stamps the kill, once.
    pub(super) fn stamp_kill(&mut self) {
        self.killed.get_or_insert_with(Instant::now);
    }

    pub(super) fn was_killed(&self) -> bool {
        self.killed.is_some()
    }
}

impl Pump<'_> {
    /// A signal that asks for the end: the command's to heed once, and ours after that.
    pub(super) fn first_or_second(&mut self, number: i32) {
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
    pub(super) fn draw_conclusions(&mut self) {
        let heard = &self.session.heard;
        if heard.no_reader && self.clock.signal.is_none() && heard.exit.is_none() {
            // As in a pipeline: a command whose reader went away gets SIGPIPE.
            self.first_or_second(libc::SIGPIPE);
        }
        let heard = &self.session.heard;
        let fatal = heard.fatal.is_some();
        if heard.exit.is_some() || (fatal && !self.timeline.has(Stage::Ready)) {
            // All is said. A killed runtime frees the machine faster than an orderly one.
            self.control_is_done();
        } else if fatal {
            if !self.ends_after_fatal {
                self.ends_after_fatal = true;
                // It waits for this before it begins to end.
                self.session.hang_up();
                self.clock.graceful = Some(Instant::now() + FATAL_PATIENCE);
            }
        } else if heard.exec_failed.is_some() {
            // The guest unmounts its drives all the same.
            let patience = self.clock.limits.shutdown_patience();
            self.clock.graceful.get_or_insert(Instant::now() + patience);
        }
        let runtime_ended = self.cell.runtime.as_ref().is_some_and(|runtime| runtime.end().is_some());
        let jailer_failed = self.cell.jailer.end().is_some() && self.cell.runtime.is_none();
        // A cell that has failed says how it ended, and ends, by itself.
        let cell_ended = self.evidence.failed.is_some() || self.evidence.ended.is_some();
        // After a fatal word the end of the channel is in order; the machine's is to follow.
        let fell_silent = self.session.heard.ended && !self.ends_after_fatal;
        if fell_silent || runtime_ended || jailer_failed || cell_ended {
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

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let clock = &self.clock;
        let running = clock.killed.is_none();
        let booting = running && clock.graceful.is_none() && !self.timeline.has(Stage::Ready);
        let boot = booting.then_some(clock.boot);
        let orderly = running && clock.graceful.is_none() && !self.has_said_all();
        let total = clock.total.filter(|_| orderly);
        let signal = clock.signal.map(|(at, _)| at).filter(|_| orderly);
        let graceful = clock.graceful.filter(|_| running);
        let explanation = clock.explanation.filter(|_| running && !self.processes_are_gone());
        let killed = clock
            .killed
            .map(|at| at + if self.processes_are_gone() { FLUSH_PATIENCE } else { DEATH_PATIENCE });
        let desk = self.desk.as_ref().and_then(Desk::deadline).filter(|_| running);
        [boot, total, signal, graceful, explanation, killed, desk].into_iter().flatten().min()
    }

    fn has_said_all(&self) -> bool {
        self.session.heard.exit.is_some()
    }

    pub(super) fn check_deadlines(&mut self) {
        if self.clock.killed.is_some() {
            return;
        }
        let now = Instant::now();
        if self.desk.as_ref().and_then(Desk::deadline).is_some_and(|at| now >= at) {
            self.serve_desk();
        }
        if let Some((at, number)) = self.clock.signal
            && now >= at
            && self.clock.graceful.is_none()
            && !self.has_said_all()
        {
            self.end_in_order(Cause::Signal(number));
        } else if self.clock.graceful.is_some_and(|at| now >= at) {
            self.kill();
        } else if self.clock.explanation.is_some_and(|at| now >= at) && !self.processes_are_gone() {
            self.end(self.silence());
        } else if now >= self.clock.boot && !self.timeline.has(Stage::Ready) && self.clock.graceful.is_none()
        {
            self.never_ready();
        } else if let Some(total) = self.clock.limits.total
            && self.clock.total.is_some_and(|at| now >= at)
            && self.clock.graceful.is_none()
            && !self.has_said_all()
        {
            self.end_in_order(Cause::Timeout(total));
        }
    }

    /// Why nothing was heard in time. A jailer that died before it said whom it had cloned took the sandbox's only voice
    /// with it, although a clone of it may live.
    fn silence(&self) -> Cause {
        match self.cell.jailer.end().map(|end| end.how) {
            Some(ChildExit::Signal(signal)) if self.cell.runtime.is_none() => {
                let line = format!("the jailer was killed by {}", signal_name(signal));
                Cause::Failure(Fault::Host, line)
            }
            _ => Cause::Silence,
        }
    }

    /// Ends the guest in order, so that its drives are clean.
    fn end_in_order(&mut self, cause: Cause) {
        self.evidence.cause.get_or_insert(cause);
        if self.timeline.has(Stage::Ready) {
            self.clock.graceful = Some(Instant::now() + self.clock.limits.shutdown_patience());
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

    /// Whether nothing of the cell runs or speaks any more. After a kill a control socket that still has another end is
    /// not waited for: a clone of the jailer that was never announced may hold it, and is found by its cgroup.
    fn processes_are_gone(&self) -> bool {
        let runtime = self.cell.runtime.as_ref().is_none_or(|runtime| runtime.end().is_some());
        runtime && self.cell.jailer.end().is_some() && (self.control.has_ended() || self.clock.was_killed())
    }

    pub(super) fn is_over(&mut self) -> bool {
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
