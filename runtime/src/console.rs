//! What the guest printed on its serial port: a bounded ring, and a descriptor if one was given.
//!
//! Owns the last [`RING_BYTES`] bytes; forgets older ones. Refuses to wait for a reader for longer than
//! [`OUTPUT_PATIENCE`]: then the descriptor is given up and the ring goes on. Invariant: memory use is fixed at
//! creation, whatever the guest prints.

use husk_protocol::control::{CONSOLE_TAIL_LINE_BYTES, CONSOLE_TAIL_LINES};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

/// Bytes that the ring keeps.
pub const RING_BYTES: usize = 64 * 1024;
/// How long one write waits for the descriptor's reader.
pub const OUTPUT_PATIENCE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// The sink of the serial port.
#[derive(Debug)]
pub struct Console {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    ring: VecDeque<u8>,
    output: Option<OwnedFd>,
}

impl Console {
    /// An empty ring; what is pushed goes to `output` too.
    #[must_use]
    pub fn new(output: Option<OwnedFd>) -> Self {
        Self { inner: Mutex::new(Inner { ring: VecDeque::new(), output }) }
    }

    /// Appends `bytes`. Never fails; waits at most [`OUTPUT_PATIENCE`], once, for a reader that does not read.
    pub fn push(&self, bytes: &[u8]) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = &bytes[bytes.len().saturating_sub(RING_BYTES)..];
        let excess = (inner.ring.len() + kept.len()).saturating_sub(RING_BYTES);
        inner.ring.drain(..excess);
        inner.ring.extend(kept);
        if let Some(output) = &inner.output
            && !write_patiently(output, bytes)
        {
            inner.output = None;
        }
    }

    /// The last lines, printable: at most [`CONSOLE_TAIL_LINES`] of [`CONSOLE_TAIL_LINE_BYTES`] bytes.
    #[must_use]
    pub fn tail(&self) -> Vec<String> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: Vec<u8> = inner.ring.iter().copied().collect();
        let mut lines: Vec<String> = bytes
            .rsplit(|&byte| byte == b'\n')
            .map(printable)
            .filter(|line| !line.is_empty())
            .take(CONSOLE_TAIL_LINES)
            .collect();
        lines.reverse();
        lines
    }
}

/// One line without what could steer a terminal: printable ASCII stays, tabs become spaces, the rest `?`; carriage
/// returns and trailing spaces go.
fn printable(line: &[u8]) -> String {
    let text: String = line
        .iter()
        .filter(|&&byte| byte != b'\r')
        .take(CONSOLE_TAIL_LINE_BYTES)
        .map(|&byte| match byte {
            b'\t' => ' ',
            b' '..=b'~' => char::from(byte),
            _ => '?',
        })
        .collect();
    text.trim_end().to_owned()
}

/// Writes all of `bytes`, a piece at a time so that a pipe that polls writable does not block; false if the reader is
/// gone or does not read.
fn write_patiently(output: &OwnedFd, bytes: &[u8]) -> bool {
    bytes.chunks(rustix::pipe::PIPE_BUF).all(|piece| {
        let mut rest = piece;
        while !rest.is_empty() {
            let mut interest = [PollFd::new(output, PollFlags::OUT)];
            match poll(&mut interest, Some(&OUTPUT_PATIENCE)) {
                Ok(0) => return false,
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(_) => return false,
            }
            match rustix::io::write(output, rest) {
                Ok(written) => rest = &rest[written..],
                Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
                Err(_) => return false,
            }
        }
        true
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::time::{Duration, Instant};

    #[test]
    fn the_ring_is_bounded_and_keeps_the_end() {
        let console = Console::new(None);
        for number in 0..20_000 {
            console.push(format!("line {number}\n").as_bytes());
        }
        let inner = console.inner.lock().unwrap();
        assert_eq!(inner.ring.len(), RING_BYTES);
        drop(inner);
        let tail = console.tail();
        assert_eq!(tail.len(), CONSOLE_TAIL_LINES);
        assert_eq!(tail.last().unwrap(), "line 19999");
    }

    #[test]
    fn one_push_larger_than_the_ring_keeps_its_end() {
        let console = Console::new(None);
        let mut bytes = vec![b'a'; RING_BYTES];
        bytes.extend(b"\nend");
        console.push(&bytes);
        assert_eq!(console.tail().last().unwrap(), "end");
        assert_eq!(console.inner.lock().unwrap().ring.len(), RING_BYTES);
    }

    #[test]
    fn the_tail_cannot_steer_a_terminal() {
        let console = Console::new(None);
        console.push(b"\x1b[2Jred\r\n\xff\xfe\tx\n");
        assert_eq!(console.tail(), ["?[2Jred", "?? x"]);
    }

    #[test]
    fn a_line_is_cut() {
        let console = Console::new(None);
        console.push(&[b'y'; 1000]);
        assert_eq!(console.tail()[0].len(), CONSOLE_TAIL_LINE_BYTES);
    }

    #[test]
    fn the_descriptor_gets_everything() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let console = Console::new(Some(writer.into()));
        console.push(b"hello ");
        console.push(b"world");
        drop(console);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello world");
    }

    #[test]
    fn a_reader_that_does_not_read_is_given_up() {
        let (reader, writer) = std::io::pipe().unwrap();
        let console = Console::new(Some(writer.into()));
        let start = Instant::now();
        console.push(&vec![b'z'; 1 << 20]);
        console.push(&vec![b'z'; 1 << 20]);
        assert!(start.elapsed() < Duration::from_secs(3));
        drop(reader);
    }

    #[test]
    fn a_reader_that_is_gone_is_given_up() {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let console = Console::new(Some(writer.into()));
        console.push(b"nobody");
        assert!(console.inner.lock().unwrap().output.is_none());
        assert_eq!(console.tail(), ["nobody"]);
    }
}
