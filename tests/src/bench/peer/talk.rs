//! The conversation with the peer's guest: hello, a command, the first byte of its output.
//!
//! Owns the connection, which keeps the guest alive; dropping it makes the guest stop. Refuses output that is not what
//! the command was told to print. Invariant: both stamps are taken at the return of the read that brought the bytes.

use std::io::{self, Read};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::cell::Cell;
use super::{LIMIT, PeerError, wire};
use crate::bench::stages::now_ns;

/// How long a command that is no echo may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(600);
/// Most bytes of its line.
const MOST_OUTPUT: usize = 4096;

/// What the guest said.
pub(super) struct Talk {
    /// Held open as long as the guest shall live.
    pub(super) stream: UnixStream,
    pub(super) hello: wire::Hello,
    /// The hello arrived; ns of `CLOCK_MONOTONIC`.
    pub(super) ready: u64,
    /// The first byte of output arrived.
    pub(super) first_byte: u64,
}

impl Talk {
    const SAID: &str = "hello from the guest";

    /// Waits for the guest and has it run `echo`.
    pub(super) fn with(cell: &mut Cell, listener: &UnixListener) -> Result<Self, PeerError> {
        let mut stream = accept(cell, listener)?;
        let exchange = || -> io::Result<(Self, String)> {
            stream.set_read_timeout(Some(LIMIT))?;
            // The command is on its way before the guest has said that it wants one: nobody waits for anybody.
            wire::send_command(&mut stream, &["/bin/busybox", "echo", Self::SAID])?;
            let hello = wire::Hello::receive(&mut stream)?;
            let ready = now_ns();
            let mut output = [0; 128];
            let mut got = stream.read(&mut output)?;
            let first_byte = now_ns();
            while got > 0 && got < output.len() && output[got - 1] != b'\n' {
                match stream.read(&mut output[got..])? {
                    0 => break,
                    more => got += more,
                }
            }
            let output = String::from_utf8_lossy(&output[..got]).into_owned();
            Ok((Self { stream, hello, ready, first_byte }, output))
        };
        let (talk, output) = exchange().map_err(|source| cell.failed("guest", source))?;
        if output.trim_end() != Self::SAID {
            return Err(PeerError::Output(output));
        }
        Ok(talk)
    }
}

/// Has the guest run a command; what it printed, up to its first line's end. The guest stops then.
pub(super) fn output_of(
    cell: &mut Cell,
    listener: &UnixListener,
    command: &[&str],
) -> Result<String, PeerError> {
    let mut stream = accept(cell, listener)?;
    let mut exchange = || -> io::Result<String> {
        stream.set_read_timeout(Some(COMMAND_LIMIT))?;
        wire::send_command(&mut stream, command)?;
        wire::Hello::receive(&mut stream)?;
        let mut output = Vec::new();
        let mut byte = [0];
        while stream.read(&mut byte)? == 1 && byte != *b"\n" && output.len() < MOST_OUTPUT {
            output.extend_from_slice(&byte);
        }
        String::from_utf8(output).map_err(io::Error::other)
    };
    exchange().map_err(|source| cell.failed("guest", source))
}

/// The guest's connection; a peer that ended first is an error at once.
fn accept(cell: &mut Cell, listener: &UnixListener) -> Result<UnixStream, PeerError> {
    let deadline = Instant::now() + LIMIT;
    let slice = Timespec { tv_sec: 0, tv_nsec: 250_000_000 };
    loop {
        let ready = poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&slice));
        match ready {
            Ok(0) if Instant::now() > deadline => {
                return Err(
                    cell.failed("guest", io::Error::new(io::ErrorKind::TimedOut, "it never connected"))
                );
            }
            Ok(0) => cell.still_runs()?,
            Ok(_) => break,
            Err(error) => return Err(cell.failed("vsock", error.into())),
        }
    }
    listener.accept().map(|(stream, _)| stream).map_err(|source| cell.failed("vsock", source))
}
