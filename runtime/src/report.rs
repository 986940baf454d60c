//! What the runtime says to husk, in good days and in its last moment.
//!
//! Owns the number of the control descriptor, for handlers that have nothing else, and the handlers themselves: a panic, a
//! denied system call and a memory fault each become one `failed` message and a documented exit status, because a PID 1
//! would neither be killed by default actions nor abort. Refuses messages over the protocol's bound. Invariant: what
//! runs in a signal handler allocates nothing and takes no lock.

use crate::sys::{exit_now, monotonic_ns, send_raw, signal};
use husk_protocol::control::{Fault, FromCell, MAX_MESSAGE, Stage};
use husk_protocol::exit::RuntimeExit;
use husk_seccomp::Denied;
use rustix::net::SendFlags;
use std::cell::Cell;
use std::fmt::{self, Write};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, PoisonError};

/// The control descriptor, for handlers; -1 before it is known.
static CONTROL: AtomicI32 = AtomicI32::new(-1);

thread_local! {
    /// What the thread is for. A constant without a destructor: reading it in a handler touches nothing else.
    static ROLE: Cell<&'static str> = const { Cell::new("start") };
}

/// Longest text of a panic that is passed on, in bytes.
const MAX_PANIC_TEXT: usize = 1024;

/// The writing side of the control socket. Clones share the descriptor.
#[derive(Debug)]
pub struct Reporter {
    control: OwnedFd,
    /// What is told with the next message.
    held: Mutex<Vec<FromCell>>,
}

impl Reporter {
    /// Reports on `control`.
    #[must_use]
    pub fn new(control: OwnedFd) -> Self {
        Self { control, held: Mutex::new(Vec::new()) }
    }

    /// Sends one message, after those that were held; waits while husk does not read.
    ///
    /// # Errors
    /// `EPIPE` if husk is gone, `EMSGSIZE` if the message is over the protocol's bound.
    pub fn send(&self, message: &FromCell) -> io::Result<()> {
        let held = std::mem::take(&mut *self.held.lock().unwrap_or_else(PoisonError::into_inner));
        for message in &held {
            self.send_with(message, SendFlags::NOSIGNAL)?;
        }
        self.send_with(message, SendFlags::NOSIGNAL)
    }

    /// Sends `message` before the next one that is sent: nobody waits for it, and waking husk takes time from the boot.
    pub fn hold(&self, message: FromCell) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).push(message);
    }

    /// Sends one message if it can be sent at once: for what a guest can cause.
    ///
    /// # Errors
    /// As [`Reporter::send`], and `EAGAIN` if husk does not read.
    pub fn try_send(&self, message: &FromCell) -> io::Result<()> {
        self.send_with(message, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
    }

    /// Notes that `stage` is passed now; told with the next message.
    pub fn stage(&self, stage: Stage) {
        self.hold(FromCell::Stage { stage, at_ns: monotonic_ns() });
    }

    fn send_with(&self, message: &FromCell, flags: SendFlags) -> io::Result<()> {
        let json = serde_json::to_vec(message)?;
        if json.len() > MAX_MESSAGE {
            return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
        }
        loop {
            match rustix::net::send(&self.control, &json, flags) {
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for Reporter {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.control.as_fd()
    }
}

/// Names the calling thread's role in reports from now on.
pub fn set_role(name: &'static str) {
    ROLE.set(name);
}

/// Installs the panic hook and the handlers for SIGSYS, SIGSEGV, SIGBUS, SIGILL, SIGFPE and SIGABRT.
///
/// # Errors
/// What `sigaction(2)` says.
pub fn install_handlers(control: &impl AsFd) -> io::Result<()> {
    CONTROL.store(control.as_fd().as_raw_fd(), Ordering::Relaxed);
    std::panic::set_hook(Box::new(|panic| {
        let mut text = panic.to_string().replace('\n', " ");
        text.truncate((0..=MAX_PANIC_TEXT).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0));
        let message = FromCell::Failed { fault: Fault::Bug, message: format!("husk-runtime: {text}") };
        if let Ok(json) = serde_json::to_vec(&message) {
            write_raw(&json);
        }
        exit_now(RuntimeExit::Bug as u8);
    }));
    signal::handle(libc::SIGSYS, on_denied_call)?;
    for fatal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT] {
        signal::handle(fatal, on_fatal_signal)?;
    }
    Ok(())
}

extern "C" fn on_denied_call(number: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let info = signal::info(number, info);
    let mut line = Line::failed("bug");
    let denied = Denied { role: ROLE.get(), call: info.syscall.cast_unsigned(), arch: info.arch };
    // A line takes what fits and never fails.
    let _ = write!(line, "{denied}");
    line.send();
    exit_now(RuntimeExit::Seccomp as u8);
}

extern "C" fn on_fatal_signal(number: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let info = signal::info(number, info);
    // A file or huge page behind guest memory that is gone is the host's doing, not a bug.
    let host = number == libc::SIGBUS;
    let mut line = Line::failed(if host { "host" } else { "bug" });
    line.text(match number {
        libc::SIGSEGV => b"SIGSEGV".as_slice(),
        libc::SIGBUS => {
            b"SIGBUS: memory went away (no huge page left, a cgroup's limit, or a pmem image cut short)"
        }
        libc::SIGILL => b"SIGILL",
        libc::SIGFPE => b"SIGFPE",
        _ => b"abort",
    });
    line.text(b" in a thread (role ");
    line.role();
    line.text(b") at address 0x");
    line.hexadecimal(info.address as u64, 16);
    line.send();
    exit_now(if host { RuntimeExit::Host } else { RuntimeExit::Bug } as u8);
}

fn write_raw(bytes: &[u8]) {
    let control: RawFd = CONTROL.load(Ordering::Relaxed);
    if control < 0 {
        return;
    }
    let _nobody_left = send_raw(control, bytes);
}

/// One JSON message, built without an allocator.
struct Line {
    bytes: [u8; 256],
    length: usize,
}

impl Line {
    fn failed(fault: &str) -> Self {
        let mut line = Self { bytes: [0; 256], length: 0 };
        line.text(br#"{"failed":{"fault":""#);
        line.text(fault.as_bytes());
        line.text(br#"","message":"husk-runtime: "#);
        line
    }

    /// Appends what fits, leaving room for the end of the message; quotes, backslashes and what is not printable are
    /// left out.
    fn raw(&mut self, text: &[u8], limit: usize) {
        for &byte in text {
            if self.length < limit {
                self.bytes[self.length] = byte;
                self.length += 1;
            }
        }
    }

    fn text(&mut self, text: &[u8]) {
        self.raw(text, 253);
    }

    fn role(&mut self) {
        self.text(ROLE.get().as_bytes());
    }

    /// The last `digits` digits of `number`.
    fn hexadecimal(&mut self, number: u64, digits: u32) {
        for shift in (0..digits).rev() {
            self.text(&[DIGITS[((number >> (4 * shift)) & 0xf) as usize]]);
        }
    }

    fn finish(&mut self) -> &[u8] {
        self.raw(b"\"}}", 256);
        &self.bytes[..self.length]
    }

    fn send(&mut self) {
        write_raw(self.finish());
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.text(text.as_bytes());
        Ok(())
    }
}

const DIGITS: &[u8; 16] = b"0123456789abcdef";

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, socketpair};

    fn parse(bytes: &[u8]) -> FromCell {
        serde_json::from_slice(bytes).unwrap()
    }

    #[test]
    fn a_line_by_hand_is_the_protocols_json() {
        let mut line = Line::failed("bug");
        write!(line, "call {}", 231).unwrap();
        line.text(b" at 0x");
        line.hexadecimal(0x7fff_1234, 16);
        let expected = "husk-runtime: call 231 at 0x000000007fff1234";
        assert_eq!(parse(line.finish()), FromCell::Failed { fault: Fault::Bug, message: expected.into() });
    }

    #[test]
    fn a_line_that_is_too_long_is_cut_and_still_json() {
        let mut line = Line::failed("host");
        line.text(&[b'x'; 1000]);
        assert!(matches!(parse(line.finish()), FromCell::Failed { fault: Fault::Host, .. }));
    }

    #[test]
    fn messages_arrive_whole() {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let reporter = Reporter::new(ours);
        let mut buffer = [0; 256];
        let mut next = |flags| {
            rustix::net::recv(&theirs, &mut buffer[..], flags).map(|(length, _)| parse(&buffer[..length]))
        };
        reporter.stage(Stage::Runtime);
        assert_eq!(next(RecvFlags::DONTWAIT), Err(rustix::io::Errno::AGAIN), "held until something is sent");
        let request = FromCell::VsockConnect { request: 1, port: 2 };
        reporter.send(&request).unwrap();
        assert!(matches!(next(RecvFlags::empty()), Ok(FromCell::Stage { stage: Stage::Runtime, .. })));
        assert_eq!(next(RecvFlags::empty()), Ok(request));
    }

    #[test]
    fn a_message_over_the_bound_is_refused() {
        let (ours, _theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let message = FromCell::Failed { fault: Fault::Guest, message: "x".repeat(MAX_MESSAGE) };
        let error = Reporter::new(ours).send(&message).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
    }
}
