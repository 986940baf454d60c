//! What the guest printed: a bounded ring, and a descriptor if one was given.
//!
//! Owns the last [`RING_BYTES`] bytes; forgets older ones. Refuses to let the serial port wait for a reader for longer than
//! [`OUTPUT_PATIENCE`] (then the descriptor is given up and the ring goes on), and the virtio console at all: what a slow
//! reader has not taken waits here up to [`WAITING_BYTES`], and the rest is lost, counted, and the reader told. Invariant:
//! memory use is bounded, whatever the guest prints.

use husk_protocol::control::{CONSOLE_TAIL_LINE_BYTES, CONSOLE_TAIL_LINES};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// Bytes that the ring keeps.
pub const RING_BYTES: usize = 64 * 1024;
/// Bytes that wait for a reader who takes his time.
pub const WAITING_BYTES: usize = 64 * 1024;
/// How long one write waits for the descriptor's reader.
pub const OUTPUT_PATIENCE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// The sink of the serial port and of the virtio console.
#[derive(Debug)]
pub struct Console {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    ring: VecDeque<u8>,
    output: Option<OwnedFd>,
    /// What was posted and not written yet.
    waiting: VecDeque<u8>,
    /// Bytes that there was no room for since the last that waits.
    lost: u64,
    /// Whether a virtio console prints here too, which may not wait, not even for whoever waits with the lock in hand.
    prompt: bool,
}

impl Console {
    /// An empty ring; what is pushed goes to `output` too.
    #[must_use]
    pub fn new(output: Option<OwnedFd>) -> Self {
        let (ring, waiting) = (VecDeque::new(), VecDeque::new());
        let inner = Inner { ring, output, waiting, lost: 0, prompt: false };
        Self { inner: Mutex::new(inner) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends `bytes`. Never fails; waits at most [`OUTPUT_PATIENCE`], once, for a reader that does not read, and not at all
    /// where a virtio console prints too.
    pub fn push(&self, bytes: &[u8]) {
        let mut inner = self.lock();
        if inner.prompt {
            return inner.post(bytes);
        }
        inner.keep(bytes);
        if let Some(output) = &inner.output
            && !write_patiently(output, bytes)
        {
            inner.give_up();
        }
    }

    /// Appends `bytes`. Never fails and, after [`Console::reader`], never waits.
    pub fn post(&self, bytes: &[u8]) {
        self.lock().post(bytes);
    }

    /// Whether something waits for the reader.
    #[must_use]
    pub fn waits(&self) -> bool {
        let inner = self.lock();
        !inner.waiting.is_empty() || inner.lost > 0
    }

    /// Writes what waits, as far as the reader takes it now.
    pub fn flush(&self) {
        self.lock().flush();
    }

    /// For a virtio console, after which nobody waits here: readable while the reader takes something; `None` if nobody reads,
    /// or a file does, which always takes it.
    ///
    /// # Errors
    /// No descriptor can be had.
    pub fn reader(&self) -> io::Result<Option<Epoll>> {
        let mut inner = self.lock();
        inner.prompt = true;
        let Some(output) = &inner.output else { return Ok(None) };
        let epoll = Epoll::new()?;
        let event = EpollEvent::new(EventSet::OUT, 0);
        match epoll.ctl(ControlOperation::Add, output.as_raw_fd(), event) {
            Ok(()) => Ok(Some(epoll)),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The last lines, printable: at most [`CONSOLE_TAIL_LINES`] of [`CONSOLE_TAIL_LINE_BYTES`] bytes.
    #[must_use]
    pub fn tail(&self) -> Vec<String> {
        let bytes: Vec<u8> = self.lock().ring.iter().copied().collect();
        last_lines(&bytes)
    }
}

impl Inner {
    fn keep(&mut self, bytes: &[u8]) {
        let kept = &bytes[bytes.len().saturating_sub(RING_BYTES)..];
        let excess = (self.ring.len() + kept.len()).saturating_sub(RING_BYTES);
        self.ring.drain(..excess);
        self.ring.extend(kept);
    }

    fn post(&mut self, bytes: &[u8]) {
        self.keep(bytes);
        // What is lost is lost in one piece: nothing follows it before the reader knows.
        let room = if self.lost == 0 { WAITING_BYTES.saturating_sub(self.waiting.len()) } else { 0 };
        let (taken, lost) = bytes.split_at(room.min(bytes.len()));
        self.waiting.extend(taken);
        self.lost += lost.len() as u64;
        self.flush();
    }

    fn flush(&mut self) {
        loop {
            let Some(output) = &self.output else { return self.give_up() };
            if self.waiting.is_empty() {
                let lost = std::mem::take(&mut self.lost);
                if lost == 0 {
                    return;
                }
                self.waiting.extend(format!("\n[{lost} bytes of the console are lost]\n").bytes());
            }
            match write_now(output, self.waiting.as_slices().0) {
                Some(0) => return,
                Some(written) => drop(self.waiting.drain(..written)),
                None => return self.give_up(),
            }
        }
    }

    /// Nobody reads any more.
    fn give_up(&mut self) {
        self.output = None;
        self.waiting.clear();
        self.lost = 0;
    }
}

/// The last lines of `text`, printable: at most [`CONSOLE_TAIL_LINES`] of [`CONSOLE_TAIL_LINE_BYTES`] bytes.
#[must_use]
pub fn last_lines(text: &[u8]) -> Vec<String> {
    let mut lines: Vec<String> = text
        .rsplit(|&byte| byte == b'\n')
        .map(printable)
        .filter(|line| !line.is_empty())
        .take(CONSOLE_TAIL_LINES)
        .collect();
    lines.reverse();
    lines
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

/// Writes the beginning of `bytes` if `output` takes something at once; how much. `None`: the reader is gone.
fn write_now(output: &OwnedFd, bytes: &[u8]) -> Option<usize> {
    let mut interest = [PollFd::new(output, PollFlags::OUT)];
    match poll(&mut interest, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
        Ok(0) | Err(rustix::io::Errno::INTR) => return Some(0),
        Ok(_) => {}
        Err(_) => return None,
    }
    // So much goes into a pipe that polls writable without waiting.
    match rustix::io::write(output, &bytes[..bytes.len().min(rustix::pipe::PIPE_BUF)]) {
        Ok(written) => Some(written),
        Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => Some(0),
        Err(_) => None,
    }
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
    fn where_a_virtio_console_prints_the_serial_port_does_not_wait_either() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let console = Console::new(Some(writer.into()));
        let takes = console.reader().unwrap().unwrap();
        let ready = || takes.wait(0, &mut [EpollEvent::default()]).unwrap() == 1;
        console.post(&[b'p'; 65_000]);
        console.post(&[b'q'; 1000]);
        assert!(console.waits() && !ready());
        let start = Instant::now();
        console.push(b"serial");
        assert!(start.elapsed() < Duration::from_millis(500), "{:?}", start.elapsed());
        reader.read_exact(&mut vec![0; 8192]).unwrap();
        assert!(ready());
        console.flush();
        let mut text = vec![0; 66_006 - 8192];
        reader.read_exact(&mut text).unwrap();
        assert!(text.ends_with(b"qqserial") && !console.waits());
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
