//! What fuzzing calls: see `fuzz/`. The tests here replay `tests/corpus/session` and random bytes on any compiler.
//!
//! Owns the guest's end of an exec channel, and the far ends of the streams. Refuses, by a panic, what the session must
//! never do whatever a guest says: hold more than the streams' credit, print what the guest did not send or in another
//! order, send more than the guest takes, pass on what could steer a terminal, blame anybody but the guest, or not come to
//! rest. Invariant: the same bytes do the same. Not in release binaries: the module exists under `cfg(test)` and with the
//! feature `fuzzing`.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "what cannot be set up, and what the session must not do, ends the run by a panic"
)]

mod guest;

use crate::poll_set::PollSet;
use crate::session::{SESSION, Session, SessionError, Stdio};
use crate::timeline::{Timeline, now_ns};
use guest::Guest;
use husk_protocol::exec::{INITIAL_CREDIT, WindowSize};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::time::Instant;

/// Turns within which a session whose guest has left, and whose output is read, has nothing to do.
const PATIENCE: u32 = 200;
/// Most bytes of a text that is shown, and most lines of a report (see `text` and `session`).
const LONGEST_LINE: usize = 4 * 512 + 3;
const MOST_LINES: usize = 16;

/// What an operation is; its operands follow.
mod op {
    pub(super) const RAW: u8 = 0;
    pub(super) const FRAME: u8 = 1;
    pub(super) const TURN: u8 = 2;
    pub(super) const READ: u8 = 3;
    pub(super) const FEED: u8 = 4;
    pub(super) const HOST: u8 = 5;
    pub(super) const LEAVE: u8 = 6;
    pub(super) const COUNT: u8 = LEAVE + 1;
}

/// Bytes read as a sequence of choices; past the end each is zero.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn u8(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or(0)
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.u8(), self.u8()])
    }

    fn u32(&mut self) -> u32 {
        u32::from(self.u16()) | u32::from(self.u16()) << 16
    }

    /// The next `count` bytes, or as many as there are.
    fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        bytes
    }
}

/// husk's standard streams from the other side.
struct Streams {
    stdin: Option<PipeWriter>,
    stdout: Option<PipeReader>,
    stderr: Option<PipeReader>,
}

/// A guest that does what the input says to husk's session, and what happens to husk's streams meanwhile. Returns how many
/// frames of the guest's there were.
pub fn session(bytes: &[u8]) -> u32 {
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
    let pipe = || std::io::pipe().unwrap();
    let ((stdin, feeder), (out, stdout), (errors, stderr)) = (pipe(), pipe(), pipe());
    for end in [feeder.as_fd(), out.as_fd(), errors.as_fd()] {
        rustix::io::ioctl_fionbio(end, true).unwrap();
    }
    let stdio = Stdio { stdin: Some(stdin.as_fd()), stdout: stdout.as_fd(), stderr: stderr.as_fd() };
    let streams = Streams { stdin: Some(feeder), stdout: Some(out), stderr: Some(errors) };
    let session = Session::new(ours, &stdio, false).unwrap();
    let timeline = Timeline::starting_at(now_ns());
    let mut rig = Rig { session, timeline, guest: Guest::new(theirs), streams, broken: false };
    let mut input = Input(bytes);
    while !input.0.is_empty() {
        rig.step(&mut input);
    }
    rig.finish()
}

struct Rig<'a> {
    session: Session<'a>,
    timeline: Timeline,
    guest: Guest,
    streams: Streams,
    /// The guest broke the protocol: husk ends the sandbox.
    broken: bool,
}

impl Rig<'_> {
    fn step(&mut self, input: &mut Input<'_>) {
        match input.u8() % op::COUNT {
            op::RAW => {
                let count = input.u8();
                self.guest.send(input.bytes(count.into()));
            }
            op::FRAME => self.guest.say(input),
            op::TURN => drop(self.turn()),
            op::READ => self.read_output(input.u16().into()),
            op::FEED => {
                let bytes = vec![b'i'; input.u16().into()];
                // A pipe that is full takes no more.
                drop(self.streams.stdin.as_mut().map(|stdin| stdin.write(&bytes)));
            }
            op::HOST => self.act(input),
            _ => self.guest.leave(),
        }
    }

    /// Something happens on husk's side.
    fn act(&mut self, input: &mut Input<'_>) {
        let said = match input.u8() % 6 {
            0 => self.session.signal(i32::from(input.u8())),
            1 => self.session.resize(WindowSize { rows: input.u16(), cols: input.u16() }),
            2 => {
                self.session.hang_up();
                Ok(())
            }
            3 => {
                self.streams.stdin = None;
                Ok(())
            }
            4 => {
                self.streams.stdout = None;
                Ok(())
            }
            _ => {
                self.streams.stderr = None;
                Ok(())
            }
        };
        self.take(said);
    }

    /// Only a guest may be at fault here, and with it all ends.
    fn take(&mut self, result: Result<(), SessionError>) {
        match result {
            Ok(()) => {}
            Err(SessionError::Protocol(_) | SessionError::Unexpected(_)) => self.broken = true,
            Err(error) => panic!("the guest brought about: {error}"),
        }
    }

    /// One turn of husk's loop; whether there was anything to do.
    fn turn(&mut self) -> bool {
        if self.broken {
            return false;
        }
        let exit = self.session.heard.exit;
        let mut set = PollSet::default();
        self.session.interests(&mut set);
        let ready = set.wait(Some(Instant::now())).unwrap();
        for &token in &ready {
            if !self.broken {
                let result = self.session.ready(token, &mut self.timeline);
                self.take(result);
            }
        }
        self.guest.hear();
        self.check();
        assert!(exit.is_none() || self.session.heard.exit == exit, "a second exit was believed");
        !ready.is_empty()
    }

    fn check(&self) {
        for waiting in self.session.backlogs() {
            assert!(waiting <= INITIAL_CREDIT as usize, "{waiting} bytes of a stream are held");
        }
        let heard = &self.session.heard;
        let failure = heard.exec_failed.as_ref().map(|failure| &failure.message);
        let unclean = heard.report.iter().flat_map(|report| &report.unclean);
        assert!(heard.report.as_ref().is_none_or(|report| report.unclean.len() <= MOST_LINES));
        for text in heard.fatal.iter().chain(failure).chain(unclean) {
            let tame = text.len() <= LONGEST_LINE && !text.contains(char::is_control);
            assert!(tame, "{text:?} would be shown");
        }
    }

    /// Reads up to so many bytes of both outputs, which must be what the guest sent.
    fn read_output(&mut self, most: usize) {
        let mut bytes = vec![0; most];
        let streams = [&mut self.streams.stdout, &mut self.streams.stderr];
        for (stream, sent) in streams.into_iter().zip(&mut self.guest.sent) {
            let Some(Ok(count)) = stream.as_mut().map(|stream| stream.read(&mut bytes)) else { continue };
            assert!(count <= sent.len(), "{count} bytes were printed, of which {} were sent", sent.len());
            let same = sent.drain(..count).eq(bytes[..count].iter().copied());
            assert!(same, "other bytes were printed than were sent");
        }
    }

    /// The guest leaves and all is read: then it is over, in a few turns.
    fn finish(mut self) -> u32 {
        self.guest.leave();
        self.streams.stdin = None;
        for _ in 0..PATIENCE {
            let busy = self.turn();
            self.read_output(1 << 16);
            if !busy && (self.broken || self.session.is_flushed()) {
                assert!(self.broken || self.session.heard.ended, "nobody noticed that the guest has left");
                return self.guest.frames;
            }
        }
        panic!("the session does not come to rest: {:?}", self.session.heard);
    }
}

#[cfg(test)]
mod tests;
