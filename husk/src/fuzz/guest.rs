//! The guest's end of the channel: frames, right and wrong, and a record of both directions.
//!
//! Owns what was sent and not printed yet, and the credit either way. Refuses, by a panic, a frame of husk's that cannot be
//! read, more input than there was credit for, and more credit than there was output. Invariant: what a full channel did
//! not take was not sent.

use super::{Input, SESSION};
use husk_protocol::exec::{
    Decoder, ExecFailure, ExecFailureKind, Exit, Frame, GuestHello, GuestReport, INITIAL_CREDIT, MAX_PAYLOAD,
    Stream,
};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use std::collections::VecDeque;
use std::os::fd::OwnedFd;

pub(super) struct Guest {
    channel: Option<OwnedFd>,
    /// Reads what was sent, as husk does.
    mirror: Decoder,
    /// What was sent cannot be read any further.
    broken: bool,
    /// Frames sent.
    pub(super) frames: u32,
    /// Output that was sent and is not printed: standard output, standard error.
    pub(super) sent: [VecDeque<u8>; 2],
    /// Bytes of output for which no credit came back.
    owed: [u64; 2],
    heard: Decoder,
    /// Bytes of input that may come yet.
    credit: u64,
}

impl Guest {
    pub(super) fn new(channel: OwnedFd) -> Self {
        Self {
            channel: Some(channel),
            mirror: Decoder::new(),
            broken: false,
            frames: 0,
            sent: Default::default(),
            owed: [0; 2],
            heard: Decoder::new(),
            credit: INITIAL_CREDIT.into(),
        }
    }

    pub(super) fn leave(&mut self) {
        self.channel = None;
    }

    pub(super) fn send(&mut self, bytes: &[u8]) {
        let Some(channel) = &self.channel else { return };
        let count = send(channel, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL).unwrap_or(0);
        self.mirror.push(&bytes[..count]);
        while !self.broken {
            match self.mirror.next_frame() {
                Ok(Some(frame)) => self.note(frame),
                Ok(None) => return,
                Err(_) => self.broken = true,
            }
        }
    }

    fn note(&mut self, frame: Frame) {
        self.frames += 1;
        match frame {
            Frame::Data(SESSION, Stream::Stdout, bytes) => self.note_output(0, &bytes),
            Frame::Data(SESSION, Stream::Stderr, bytes) => self.note_output(1, &bytes),
            Frame::Credit(SESSION, Stream::Stdin, bytes) => self.credit += u64::from(bytes),
            _ => {}
        }
    }

    fn note_output(&mut self, stream: usize, bytes: &[u8]) {
        self.sent[stream].extend(bytes);
        self.owed[stream] += bytes.len() as u64;
    }

    /// Sends a frame that can be read, whatever it means.
    pub(super) fn say(&mut self, input: &mut Input<'_>) {
        let kind = input.u8();
        let session = if kind & 0x80 == 0 { SESSION } else { u32::from(input.u8()) };
        let frame = frame(kind & 0xf, session, input);
        let mut bytes = Vec::new();
        if frame.encode(&mut bytes).is_ok() {
            self.send(&bytes);
        }
    }

    /// Reads what husk says.
    pub(super) fn hear(&mut self) {
        let mut bytes = [0; 1 << 14];
        while let Some(Ok((count @ 1.., _))) =
            self.channel.as_ref().map(|channel| recv(channel, &mut bytes[..], RecvFlags::DONTWAIT))
        {
            self.heard.push(&bytes[..count]);
            while let Some(frame) = self.heard.next_frame().unwrap() {
                self.judge(&frame);
            }
        }
    }

    fn judge(&mut self, frame: &Frame) {
        match frame {
            Frame::Data(SESSION, Stream::Stdin, bytes) => {
                assert!(bytes.iter().all(|&byte| byte == b'i'), "other bytes than the input's");
                let left = self.credit.checked_sub(bytes.len() as u64);
                self.credit = left.unwrap_or_else(|| panic!("{} bytes of input too many", bytes.len()));
            }
            Frame::Credit(SESSION, stream @ (Stream::Stdout | Stream::Stderr), bytes) => {
                let owed = &mut self.owed[usize::from(*stream == Stream::Stderr)];
                let left = owed.checked_sub(u64::from(*bytes));
                *owed = left.unwrap_or_else(|| panic!("{bytes} bytes of credit for nothing"));
            }
            Frame::Close(SESSION, Stream::Stdin) | Frame::Resize(SESSION, _) | Frame::Signal(SESSION, _) => {}
            other => panic!("husk says {}", other.name()),
        }
    }
}

fn text(input: &mut Input<'_>) -> String {
    let count = input.u8();
    String::from_utf8_lossy(input.bytes(count.into())).into_owned()
}

fn frame(kind: u8, session: u32, input: &mut Input<'_>) -> Frame {
    let stream = |choice: u8| [Stream::Stdout, Stream::Stderr, Stream::Stdin][usize::from(choice % 3)];
    match kind {
        0 => Frame::GuestHello(GuestHello {
            version: input.u8().into(),
            features: 0,
            init_ticks: input.u32().into(),
        }),
        1 => Frame::Ready,
        2 => Frame::Fatal(text(input)),
        3 => Frame::Started(session),
        4 => {
            Frame::ExecFailed(session, ExecFailure { kind: ExecFailureKind::NotFound, message: text(input) })
        }
        5 | 6 => {
            let (stream, length) = (stream(input.u8()), usize::from(input.u16()).clamp(1, MAX_PAYLOAD));
            // Each frame's bytes are its own, or a mix-up would not show.
            let bytes = (0..length).map(|at| (at as u8).wrapping_add(length as u8)).collect();
            Frame::Data(session, stream, bytes)
        }
        7 => Frame::Close(session, stream(input.u8())),
        8 | 9 => Frame::Credit(session, stream(input.u8()), input.u32()),
        10 => {
            let (count, line) = (input.u8(), text(input));
            let unclean = vec![line; count.into()];
            Frame::Report(GuestReport { unclean, ..GuestReport::default() })
        }
        11 => Frame::Exit(session, Exit::Status(input.u8())),
        12 => Frame::Exit(session, Exit::Signal(input.u8())),
        13 => Frame::Shutdown,
        14 => Frame::Signal(session, input.u32()),
        _ => Frame::Started(input.u32()),
    }
}
