//! Bytes on their way to the guest.
//!
//! Owns at most one read of standard input and some small frames. Refuses nothing; whoever fills it asks
//! [`Outbox::has_room`] first where the amount is not bounded otherwise. Invariant: frames leave whole and in order.

use husk_protocol::exec::{EncodeError, Frame, HEADER_BYTES, MAX_PAYLOAD, Stream};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use std::os::fd::BorrowedFd;

/// Data is taken in only below this many waiting bytes.
const FULL: usize = 2 * MAX_PAYLOAD;

#[derive(Debug, Default)]
pub(super) struct Outbox {
    bytes: Vec<u8>,
    sent: usize,
    /// The other side is gone; what is put in goes nowhere.
    closed: bool,
}

impl Outbox {
    pub(super) fn put(&mut self, frame: &Frame) -> Result<(), EncodeError> {
        if self.closed { Ok(()) } else { frame.encode(&mut self.bytes) }
    }

    /// Drops what waits, and whatever is put in from now on.
    pub(super) fn close(&mut self) {
        self.closed = true;
        self.bytes.clear();
        self.sent = 0;
    }

    /// Puts a frame of standard input in, read by `read` into at most `most` bytes; how many there were.
    pub(super) fn put_stdin(
        &mut self,
        session: u32,
        most: usize,
        read: impl FnOnce(&mut [u8]) -> Result<usize, Errno>,
    ) -> Result<usize, Errno> {
        let start = self.bytes.len();
        let payload = start + HEADER_BYTES;
        self.bytes.resize(payload + most.min(MAX_PAYLOAD), 0);
        let result = read(self.bytes.get_mut(payload..).unwrap_or_default());
        let count = result.unwrap_or(0);
        match Frame::data_header(session, Stream::Stdin, count) {
            Ok(header) if count > 0 => {
                self.bytes.truncate(payload + count);
                if let Some(place) = self.bytes.get_mut(start..payload) {
                    place.copy_from_slice(&header);
                }
            }
            _ => self.bytes.truncate(start),
        }
        result
    }

    pub(super) fn has_room(&self) -> bool {
        !self.closed && self.bytes.len() - self.sent < FULL
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.len() == self.sent
    }

    /// Sends as much as the socket takes.
    pub(super) fn flush(&mut self, socket: BorrowedFd<'_>) -> Result<(), Errno> {
        while let Some(rest) = self.bytes.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match send(socket, rest, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(count) => self.sent += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(Errno::PIPE | Errno::CONNRESET) => {
                    self.closed = true;
                    self.sent = self.bytes.len();
                }
                Err(errno) => return Err(errno),
            }
        }
        if self.is_empty() {
            self.bytes.clear();
            self.sent = 0;
        } else if self.sent > FULL {
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
        Ok(())
    }
}
