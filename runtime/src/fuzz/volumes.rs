//! The other side of a volume: a server that is as wrong as the input wants it.
//!
//! Owns its end of the stream. Refuses, by a panic, a message that no carrier may send: one whose length is not that of its
//! bytes, one under a number that was given before, one that is not for the server. Invariant: nothing here waits, and no
//! more than [`MOST_TAGS`] numbers are kept.

use super::input::Input;
use super::script::Host;
use crate::devices::virtio::fs::Fs;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use std::os::unix::net::UnixStream;

/// Bytes of a request's header and of an answer's, and the longest of either (linux/fuse.h, and 33 pages).
const REQUEST: usize = 40;
const ANSWER: u32 = 16;
const LONGEST: usize = 33 << 12;
/// What is never carried: there is nothing to interrupt.
const INTERRUPT: u32 = 36;
const ENOENT: u32 = 2_u32.wrapping_neg();
/// Numbers of requests that may be answered yet.
const MOST_TAGS: usize = 128;

/// How the server begins: bit 0, it answers each request by itself; bit 1, it reads.
pub(super) const ANSWERS: u8 = 1;
pub(super) const READS: u8 = 2;

/// What the host's operation of the input does there; its operands follow.
pub(super) mod act {
    pub(crate) const SAY: u8 = 0;
    pub(crate) const LIE: u8 = 1;
    pub(crate) const NOISE: u8 = 2;
    pub(crate) const LEAVE: u8 = 3;
    pub(crate) const MANNER: u8 = 4;
    pub(super) const COUNT: usize = MANNER as usize + 1;
}

pub(super) struct Server {
    stream: Option<UnixStream>,
    manner: u8,
    /// The beginning of a message.
    heard: Vec<u8>,
    tags: Vec<u64>,
    last_tag: u64,
}

pub(super) fn device(manner: u8) -> (Fs, Server) {
    let (ours, stream) = UnixStream::pair().unwrap();
    let server = Server { stream: Some(stream), manner, heard: Vec::new(), tags: Vec::new(), last_tag: 0 };
    (Fs::new("fuzz", ours.into()).unwrap(), server)
}

impl Server {
    /// Says something, or as much of it as the stream takes.
    fn say(&mut self, bytes: &[u8]) {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let _ = self.stream.as_ref().map(|stream| send(stream, bytes, flags));
    }

    fn answer(&mut self, (length, error, tag): (u32, u32, u64), body: &[u8]) {
        let mut bytes = [length, error].map(u32::to_le_bytes).concat();
        bytes.extend(tag.to_le_bytes());
        bytes.extend(body);
        self.say(&bytes);
    }

    /// A number that a request had, which is forgotten unless it is `kept`; or one that none had.
    fn tag(&mut self, input: &mut Input<'_>, kept: bool) -> u64 {
        match self.tags.len() {
            0 => input.u8().into(),
            count if kept => self.tags[input.below(count)],
            count => self.tags.swap_remove(input.below(count)),
        }
    }

    fn read(&mut self) {
        let mut bytes = vec![0; 1 << 16];
        while let Some(Ok((count @ 1.., _))) =
            self.stream.as_ref().map(|stream| recv(stream, &mut bytes[..], RecvFlags::DONTWAIT))
        {
            self.heard.extend(&bytes[..count]);
            self.hear();
        }
    }

    fn hear(&mut self) {
        let mut heard = std::mem::take(&mut self.heard);
        let mut rest = &heard[..];
        while rest.len() >= REQUEST {
            let word = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().unwrap());
            let (length, operation) = (word(0) as usize, word(4));
            assert!((REQUEST..=LONGEST).contains(&length), "a message of {length} bytes");
            assert_ne!(operation, INTERRUPT, "an interrupt of nothing");
            let tag = u64::from(word(8)) | u64::from(word(12)) << 32;
            if rest.len() < length {
                break;
            }
            assert!(tag > self.last_tag, "number {tag} after {}", self.last_tag);
            self.last_tag = tag;
            if self.manner & ANSWERS != 0 {
                self.answer((ANSWER, ENOENT, tag), &[]);
            } else if self.tags.len() < MOST_TAGS {
                self.tags.push(tag);
            }
            rest = &rest[length..];
        }
        let read = heard.len() - rest.len();
        heard.drain(..read);
        self.heard = heard;
    }
}

impl Host for Server {
    fn act(&mut self, input: &mut Input<'_>) {
        match input.below(act::COUNT) as u8 {
            act::SAY => {
                let (tag, body) = (self.tag(input, false), vec![5; usize::from(input.u16())]);
                self.answer((ANSWER + body.len() as u32, 0, tag), &body);
            }
            act::LIE => {
                let tag = self.tag(input, true);
                let (length, error, count) = (input.u32(), input.u32(), input.u8());
                self.answer((length, error, tag), &vec![6; count.into()]);
            }
            act::NOISE => {
                let count = input.u8();
                self.say(input.bytes(count.into()));
            }
            act::LEAVE => self.stream = None,
            _ => self.manner = input.u8(),
        }
    }

    fn check(&mut self) {
        if self.manner & READS != 0 {
            self.read();
        }
    }

    fn restarted(&mut self) {
        self.check();
    }
}
