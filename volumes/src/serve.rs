//! The loop of the server: one message in, at most one out, in order.
//!
//! Owns the two buffers, made once. A message is as long as its first four bytes say (linux/fuse.h, `fuse_in_header` and
//! `fuse_out_header`), which is all the framing that there is. Refuses a length that is none by ending: whoever lost count
//! cannot be understood again, and the runtime never does. Invariant: nothing that a message says is believed beyond its bytes.

use crate::Volume;
use fuse_backend_rs::api::server::Server;
use fuse_backend_rs::transport::{FuseBuf, FuseDevWriter, Reader, Writer};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

/// Bytes of `fuse_in_header`.
const HEADER: usize = 40;
/// Bytes of `fuse_out_header`.
const OUT_HEADER: usize = 16;
/// Longest message: 32 pages of data and a page for what stands before them.
const LONGEST: usize = 33 << 12;
/// Opcodes without an answer: `FUSE_FORGET`, `FUSE_INTERRUPT`, `FUSE_BATCH_FORGET`.
const SILENT: [u32; 3] = [2, 36, 42];

/// Serving ended before the runtime did.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// No message has this length.
    #[error("a message of {0} bytes; {HEADER} to {LONGEST} are allowed")]
    Length(usize),
    /// The socket.
    #[error("the socket: {0}")]
    Socket(#[from] io::Error),
}

/// Answers what comes in on `socket` until it ends.
///
/// # Errors
/// See [`ServeError`].
pub fn serve(mut socket: UnixStream, volume: Volume) -> Result<(), ServeError> {
    let server = Server::new(volume);
    let (mut message, mut answer) = (vec![0; LONGEST], vec![0; LONGEST]);
    while let Some(length) = receive(&mut socket, &mut message)? {
        let request = &mut message[..length];
        let (opcode, unique) = (word(request, 4), request[8..16].to_owned());
        let reader = Reader::<()>::from_fuse_buffer(FuseBuf::new(request));
        let writer = FuseDevWriter::new(socket.as_raw_fd(), &mut answer);
        let (Ok(reader), Ok(writer)) = (reader, writer) else { continue };
        let done = server.handle_message(reader, Writer::FuseDev(writer), None, None);
        // What the crate could not read it may have left without an answer. A second one is nobody's, and ignored.
        if done.is_err() && !SILENT.contains(&opcode) {
            refuse(&mut socket, &unique)?;
        }
    }
    Ok(())
}

/// The next message into `buffer`; its length, or none at the end.
fn receive(socket: &mut UnixStream, buffer: &mut [u8]) -> Result<Option<usize>, ServeError> {
    match socket.read_exact(&mut buffer[..HEADER]) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let length = usize::try_from(word(buffer, 0)).unwrap_or(usize::MAX);
    if !(HEADER..=LONGEST).contains(&length) {
        return Err(ServeError::Length(length));
    }
    socket.read_exact(&mut buffer[HEADER..length])?;
    Ok(Some(length))
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn refuse(socket: &mut UnixStream, unique: &[u8]) -> io::Result<()> {
    let mut answer = Vec::with_capacity(OUT_HEADER);
    answer.extend_from_slice(&16_u32.to_le_bytes());
    answer.extend_from_slice(&(-libc::EIO).to_le_bytes());
    answer.extend_from_slice(unique);
    socket.write_all(&answer)
}

#[cfg(test)]
mod tests;
