//! Bytes in, frames out. Owns at most one frame's bytes beyond what it was given, and refuses a header before it
//! buffers the payload that the header claims.

use super::frame::kind;
use super::{Frame, HEADER_BYTES, MAX_PAYLOAD, Stream};
use serde::Deserialize;

/// The other side broke the protocol.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A length over the bound.
    #[error("a frame of kind {kind} claims {length} bytes; at most {MAX_PAYLOAD} are allowed")]
    TooLong {
        /// The frame's kind.
        kind: u8,
        /// What it claims.
        length: u32,
    },
    /// A kind that this version does not know, or bytes set that must be zero.
    #[error("a frame has the unknown kind {kind}")]
    UnknownKind {
        /// The kind.
        kind: u8,
    },
    /// A payload that is not what its kind asks for.
    #[error("a frame of kind {kind} has a malformed payload of {length} bytes")]
    Malformed {
        /// The frame's kind.
        kind: u8,
        /// Its payload's size.
        length: usize,
    },
}

/// Takes a stream apart into frames.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// Bytes of `buffer` that are consumed already.
    consumed: usize,
}

impl Decoder {
    /// An empty decoder.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in bytes as they came. Call [`Decoder::next_frame`] until `None` before pushing more: then no more than a
    /// frame is ever held.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.consumed > 0 {
            self.buffer.drain(..self.consumed);
            self.consumed = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, if there is one.
    ///
    /// # Errors
    /// The other side broke the protocol; nothing after it can be trusted, so the connection must end.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, DecodeError> {
        let pending = &self.buffer[self.consumed..];
        let Some((header, rest)) = pending.split_at_checked(HEADER_BYTES) else { return Ok(None) };
        let length = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let kind = header[4];
        let session = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
        if header[5..8] != [0; 3] {
            return Err(DecodeError::UnknownKind { kind });
        }
        let size = length as usize;
        if size > MAX_PAYLOAD {
            return Err(DecodeError::TooLong { kind, length });
        }
        let Some(payload) = rest.get(..size) else { return Ok(None) };
        let frame = decode(kind, session, payload)?;
        self.consumed += HEADER_BYTES + size;
        Ok(Some(frame))
    }
}

fn decode(kind: u8, session: u32, payload: &[u8]) -> Result<Frame, DecodeError> {
    Ok(match kind {
        kind::HELLO => Frame::Hello(body(kind, payload)?),
        kind::GUEST_HELLO => Frame::GuestHello(body(kind, payload)?),
        kind::MOUNTS => Frame::Mounts(body(kind, payload)?),
        kind::NETWORK => Frame::Network(body(kind, payload)?),
        kind::IDENTITY => Frame::Identity(body(kind, payload)?),
        kind::READY => empty(kind, payload, Frame::Ready)?,
        kind::FATAL => Frame::Fatal(String::from_utf8_lossy(payload).into_owned()),
        kind::EXEC => Frame::Exec(session, body(kind, payload)?),
        kind::STARTED => empty(kind, payload, Frame::Started(session))?,
        kind::EXEC_FAILED => Frame::ExecFailed(session, body(kind, payload)?),
        kind::STDIN => data(kind, session, Stream::Stdin, payload)?,
        kind::STDOUT => data(kind, session, Stream::Stdout, payload)?,
        kind::STDERR => data(kind, session, Stream::Stderr, payload)?,
        kind::CLOSE => Frame::Close(session, body(kind, payload)?),
        kind::CREDIT => {
            let (stream, bytes) = body(kind, payload)?;
            Frame::Credit(session, stream, bytes)
        }
        kind::RESIZE => Frame::Resize(session, body(kind, payload)?),
        kind::SIGNAL => Frame::Signal(session, body(kind, payload)?),
        kind::EXIT => Frame::Exit(session, body(kind, payload)?),
        kind::SHUTDOWN => empty(kind, payload, Frame::Shutdown)?,
        kind::REPORT => Frame::Report(body(kind, payload)?),
        _ => return Err(DecodeError::UnknownKind { kind }),
    })
}

/// A postcard structure that takes up the whole payload.
fn body<'a, T: Deserialize<'a>>(kind: u8, payload: &'a [u8]) -> Result<T, DecodeError> {
    match postcard::take_from_bytes(payload) {
        Ok((value, [])) => Ok(value),
        _ => Err(DecodeError::Malformed { kind, length: payload.len() }),
    }
}

fn empty(kind: u8, payload: &[u8], frame: Frame) -> Result<Frame, DecodeError> {
    if payload.is_empty() { Ok(frame) } else { Err(DecodeError::Malformed { kind, length: payload.len() }) }
}

fn data(kind: u8, session: u32, stream: Stream, payload: &[u8]) -> Result<Frame, DecodeError> {
    if payload.is_empty() {
        return Err(DecodeError::Malformed { kind, length: 0 });
    }
    Ok(Frame::Data(session, stream, payload.to_vec()))
}

#[cfg(test)]
pub(crate) mod tests;
