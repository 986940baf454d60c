//! What the jailer says on the control socket: the same JSON as the rest of Husk, written by hand.
//!
//! Owns the messages `stage`, `cloned`, `missing` and `failed`. Depends on no crate of Husk, so a test reads them back with the
//! protocol's own types. A message is one packet, never blocks and never raises SIGPIPE.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::AsFd;
use rustix::io::retry_on_intr;
use rustix::net::{SendFlags, send};
use rustix::time::{ClockId, clock_gettime};
use std::fmt::Write;

/// Longest text in a report, in bytes; the rest is cut.
const MAX_TEXT: usize = 4096;

/// Who is to blame for a cell that cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The machine.
    Host,
    /// Who called.
    Operator,
}

impl Fault {
    const fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Operator => "operator",
        }
    }
}

/// `CLOCK_MONOTONIC`, in nanoseconds.
#[must_use]
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(now.tv_nsec).unwrap_or_default())
}

/// `stage` was passed at `at_ns`.
#[must_use]
pub fn stage(stage: &str, at_ns: u64) -> String {
    format!(r#"{{"stage":{{"stage":"{stage}","at_ns":{at_ns}}}}}"#)
}

/// The runtime's process is there; `pid` as the caller sees it.
#[must_use]
pub fn cloned(pid: i32) -> String {
    format!(r#"{{"cloned":{{"pid":{pid}}}}}"#)
}

/// There is no cell.
#[must_use]
pub fn failed(fault: Fault, message: &str) -> String {
    let mut text = format!(r#"{{"failed":{{"fault":"{}","message":""#, fault.name());
    quote(message, &mut text);
    text.push_str("\"}}");
    text
}

/// The cell is without `part`.
#[must_use]
pub fn missing(part: &str, why: &str) -> String {
    let mut text = format!(r#"{{"missing":{{"part":"{part}","why":""#);
    quote(why, &mut text);
    text.push_str("\"}}");
    text
}

/// Appends `message`, cut, as the inside of a JSON string.
fn quote(message: &str, text: &mut String) {
    for character in cut(message).chars() {
        match character {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            control if control.is_control() && control.is_ascii() => {
                let _ = write!(text, "\\u{:04x}", u32::from(control));
            }
            other => text.push(other),
        }
    }
}

/// Sends one message.
///
/// # Errors
/// Nobody listens, or so late that the socket is full.
pub fn tell(control: impl AsFd, message: &str) -> rustix::io::Result<()> {
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    retry_on_intr(|| send(&control, message.as_bytes(), flags)).map(drop)
}

/// Whether nobody is left at the other end.
pub fn has_hung_up(control: impl AsFd) -> bool {
    let mut fds = [PollFd::new(&control, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&now)).is_ok() && fds[0].revents().contains(PollFlags::HUP)
}

fn cut(text: &str) -> &str {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use husk_protocol::control::{Fault as Theirs, FromCell, Stage};

    fn read(text: &str) -> FromCell {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn the_protocol_reads_what_is_written() {
        assert_eq!(read(&stage("jailer", 7)), FromCell::Stage { stage: Stage::Jailer, at_ns: 7 });
        assert_eq!(
            read(&stage("jailed", u64::MAX)),
            FromCell::Stage { stage: Stage::Jailed, at_ns: u64::MAX }
        );
        assert_eq!(read(&cloned(42)), FromCell::Cloned { pid: 42 });
    }

    #[test]
    fn any_text_arrives_as_it_is() {
        let message = "a \"quote\" \\ back\nline\u{1}\u{7f} ü".to_owned();
        let expected = FromCell::Failed { fault: Theirs::Host, message: message.clone() };
        assert_eq!(read(&failed(Fault::Host, &message)), expected);
        let expected = FromCell::Missing { part: "cgroup".into(), why: message.clone() };
        assert_eq!(read(&missing("cgroup", &message)), expected);
        let FromCell::Failed { fault, .. } = read(&failed(Fault::Operator, "x")) else { panic!() };
        assert_eq!(fault, Theirs::Operator);
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let FromCell::Failed { message, .. } = read(&failed(Fault::Host, &"ü".repeat(MAX_TEXT))) else {
            panic!()
        };
        assert_eq!(message.len(), MAX_TEXT);
        let FromCell::Failed { message, .. } =
            read(&failed(Fault::Host, &format!("x{}", "ü".repeat(MAX_TEXT))))
        else {
            panic!()
        };
        assert_eq!(message.len(), MAX_TEXT - 1);
    }
}
