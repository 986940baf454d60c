//! How the sandbox ends. Owns the order: everything killed, output drained, writable drives unmounted, and only then
//! the last words. Refuses nothing. Invariant: each step has a deadline but one: output that the host does not take yet
//! is waited for, because the host decides how long it lets a sandbox live.
//!
//! ```text
//! killing ──nobody left──► draining ──streams at their end──► unmounting ──► gone
//! ```

use crate::poll::Poll;
use crate::root::WritableDrive;
use crate::sys::{self, Usage};
use crate::unmount::Unmounter;
use husk_protocol::exec::{Frame, GuestReport};
use std::time::{Duration, Instant};

/// How long killed processes may take to be gone; one that hangs in the kernel is left there.
const KILL_PATIENCE: Duration = Duration::from_secs(5);
/// How often survivors are killed again: a fork that was under way may have slipped through.
const KILL_AGAIN: Duration = Duration::from_millis(50);
/// How long the host may take to end the machine after the last word.
const HOST_PATIENCE: Duration = Duration::from_secs(10);

/// Why it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The session with this number was the last.
    LastSession(u32),
    /// The host said so.
    Shutdown,
    /// The host is gone, or cannot be talked to any more.
    NoHost,
}

/// What is to be done next.
#[derive(Debug)]
pub(crate) enum Stage {
    /// Leftovers are being killed.
    Killing {
        /// Until when.
        deadline: Instant,
        /// When they are killed again.
        again: Instant,
    },
    /// Sessions send what their commands printed.
    Draining,
    /// Drives are being unmounted.
    Unmounting(Unmounter),
    /// Everything is said.
    Gone {
        /// When the host has had its time.
        deadline: Instant,
    },
}

/// The end, as far as it has come.
#[derive(Debug)]
pub(crate) struct Ending {
    pub(crate) cause: Cause,
    pub(crate) stage: Stage,
    /// The last session's last word.
    last_word: Option<Frame>,
    killed: u32,
    usage: Usage,
    unclean: Vec<String>,
}

impl Ending {
    /// Begins it; `alone` if there is no other process.
    pub(crate) fn begin(cause: Cause, alone: bool) -> Self {
        let now = Instant::now();
        let stage = if alone {
            Stage::Draining
        } else {
            Stage::Killing { deadline: now + KILL_PATIENCE, again: now }
        };
        let usage = Usage::default();
        Self { cause, stage, last_word: None, killed: 0, usage, unclean: Vec::new() }
    }

    /// A process was reaped.
    pub(crate) fn count_reaped(&mut self) {
        if let Stage::Killing { .. } = self.stage {
            self.killed = self.killed.saturating_add(1);
        }
    }

    /// Kills, if it is time to; true once nobody is left or waiting any longer is no use.
    pub(crate) fn kill(&mut self, alone: bool) -> bool {
        let now = Instant::now();
        let Stage::Killing { deadline, again } = &mut self.stage else { return false };
        if alone || *deadline <= now {
            self.stage = Stage::Draining;
            return true;
        }
        if *again <= now {
            *again = now + KILL_AGAIN;
            // -1: everybody but PID 1 itself, which is who calls this.
            let _ = sys::kill(-1, libc::SIGKILL);
        }
        false
    }

    /// Whether `session` is the one whose last word ends everything.
    pub(crate) fn keeps(&self, session: u32) -> bool {
        self.cause == Cause::LastSession(session)
    }

    /// Keeps a word for the very end.
    pub(crate) fn keep(&mut self, word: Frame) {
        self.last_word = Some(word);
    }

    /// All output is sent: takes the account, and unmounts. With no drive to unmount, that is done at once.
    pub(crate) fn unmount(&mut self, drives: &[WritableDrive], poll: &Poll) {
        self.usage = sys::children_usage();
        if drives.is_empty() {
            return self.leave();
        }
        match Unmounter::start(drives, poll) {
            Ok(unmounter) => self.stage = Stage::Unmounting(unmounter),
            Err(unclean) => {
                self.unclean = unclean;
                self.leave();
            }
        }
    }

    /// Asks the process that unmounts; true once that is over.
    pub(crate) fn unmounted(&mut self) -> bool {
        let Stage::Unmounting(unmounter) = &mut self.stage else { return false };
        let Some(unclean) = unmounter.result() else { return false };
        self.unclean = unclean;
        self.leave();
        true
    }

    fn leave(&mut self) {
        self.stage = Stage::Gone { deadline: Instant::now() + HOST_PATIENCE };
    }

    /// The last words, in their order.
    pub(crate) fn last_words(&mut self) -> impl Iterator<Item = Frame> + use<> {
        let report = GuestReport {
            leftovers_killed: self.killed,
            unclean: std::mem::take(&mut self.unclean),
            user_us: self.usage.user_us,
            system_us: self.usage.system_us,
            max_rss_kib: self.usage.max_rss_kib,
        };
        std::iter::once(Frame::Report(report)).chain(self.last_word.take())
    }

    /// When something is due.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match &self.stage {
            Stage::Killing { deadline, again } => Some(*deadline.min(again)),
            Stage::Draining => None,
            Stage::Unmounting(unmounter) => Some(unmounter.deadline()),
            Stage::Gone { deadline } => Some(*deadline),
        }
    }
}
