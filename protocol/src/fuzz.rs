//! What fuzzing calls: see `fuzz/`. The tests here replay `tests/corpus/exec_frames` and random bytes on any compiler.
//!
//! Owns no bytes. Refuses, by a panic, a decoder that says something else when the bytes come in other pieces, and a frame
//! that does not survive being sent on. Invariant: the same bytes do the same. Not in release binaries: the module exists
//! under `cfg(test)` and with the feature `fuzzing`.

#![allow(clippy::panic, reason = "what a decoder must not do ends the run by a panic")]

use crate::exec::{DecodeError, Decoder, EncodeError, Frame};

/// A stream of frames as either end gets it: one byte that says in which pieces it comes, then the stream. Returns how many
/// frames it holds.
pub fn exec_frames(bytes: &[u8]) -> u32 {
    let Some((&piece, stream)) = bytes.split_first() else { return 0 };
    let whole = decode(stream, stream.len());
    assert!(whole == decode(stream, piece.into()), "pieces of {piece} bytes make other frames");
    let (frames, _) = whole;
    for frame in &frames {
        sent_on(frame);
    }
    u32::try_from(frames.len()).unwrap_or(u32::MAX)
}

/// The frames of a stream that comes in pieces of so many bytes, at least one, and how it ended.
fn decode(stream: &[u8], piece: usize) -> (Vec<Frame>, Result<(), DecodeError>) {
    let (mut decoder, mut frames) = (Decoder::new(), Vec::new());
    for bytes in stream.chunks(piece.max(1)) {
        decoder.push(bytes);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Err(error)),
            }
        }
    }
    (frames, Ok(()))
}

/// What was understood can be said again, and means the same.
fn sent_on(frame: &Frame) {
    let mut bytes = Vec::new();
    match frame.encode(&mut bytes) {
        // Bytes that are no UTF-8 took less room than what stands for them.
        Err(EncodeError::TooLong { .. }) if matches!(frame, Frame::Fatal(_)) => return,
        Err(error) => panic!("{} cannot be sent on: {error}", frame.name()),
        Ok(()) => {}
    }
    let (again, end) = decode(&bytes, bytes.len());
    assert!(end.is_ok() && again == [frame.clone()], "{} means something else when sent on", frame.name());
}

#[cfg(test)]
mod tests;
