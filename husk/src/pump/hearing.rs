//! What the cell says over the control socket, and what is done about it.
//!
//! Owns the bounds of what is believed and kept of it: it may be in hostile hands. Refuses what is not understood, which ends the sandbox.
//! Invariant: a cell that talks without end costs a bounded share of each turn, and bounded memory.

use super::Pump;
use crate::control::{ControlError, Received};
use crate::spawn::Process;
use husk_protocol::control::{CONSOLE_TAIL_LINE_BYTES, CONSOLE_TAIL_LINES, Ended, Fault, FromCell};

/// Control messages per turn, so that a cell that talks without end does not keep the streams from moving.
const MESSAGES_A_TURN: usize = 32;
/// Most lines of what the cell does without: one a device.
const MOST_DEGRADED: usize = 19;
/// Missing parts of the cell that are listened to.
const MISSING_PARTS: usize = 16;

impl Pump<'_> {
    pub(super) fn read_control(&mut self) {
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
                self.volumes.start();
                self.passt.start();
                if self.clock.was_killed() {
                    self.kill();
                }
            }
            FromCell::Cloned { .. } => {}
            FromCell::Stage { stage, at_ns } => self.timeline.alleged(stage, at_ns),
            FromCell::Confined { landlock } => self.evidence.landlock = Some(landlock),
            FromCell::GuestClock { ticks, hz, at_ns } => self.timeline.guest_clock(ticks, hz, at_ns),
            FromCell::VsockConnect { request, port } => {
                let stream = self.vsock.as_deref().and_then(|path| crate::vsock::connect(path, port));
                if let Err(error) = self.control.answer(request, stream) {
                    self.fail(Fault::Host, error.to_string());
                }
            }
            FromCell::Balloon(report) => self.evidence.balloon = Some(*report),
            FromCell::Changed { request, mut changed } => {
                if let Some(refusal) = &mut changed.refused {
                    refusal.message = crate::text::line(&refusal.message);
                }
                if let Some(live) = &mut self.live {
                    live.answered(request, changed.refused.is_none());
                }
                if let Some(desk) = &mut self.desk {
                    desk.answer(request, &changed);
                }
            }
            FromCell::Degraded { message } if self.evidence.degraded.len() < MOST_DEGRADED => {
                self.evidence.degraded.push(crate::text::line(&message));
            }
            FromCell::Degraded { .. } => {}
            FromCell::Missing { part, why } if self.evidence.missing.len() < MISSING_PARTS => {
                self.evidence.missing.push((part, why));
            }
            FromCell::Missing { .. } => {}
            FromCell::Failed { fault, message } => {
                let line = crate::text::line(&message);
                self.evidence.failed.get_or_insert((fault, line));
            }
            FromCell::Ended(ended) => {
                self.evidence.ended.get_or_insert_with(|| tame(ended));
            }
        }
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
