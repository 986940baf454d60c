//! Which system calls the threads of sandboxes make while tests run, and which rules of the filters nobody needed.
//!
//! The kernel's own tracepoint for system calls runs a small BPF program (`program`), after the filters: it keeps each call
//! that is made once, by thread, number of filters that the thread has put on, call, and those bits of its arguments that a
//! rule looks at. Nothing is slowed down that counts, nothing is lost, and the sandboxes are as they always are. `judge`
//! compares what was seen with the tables.

mod bpf;
mod judge;
mod program;

pub use judge::{Judgement, judge};

use bpf::{Map, MapKind};
use husk_seccomp::{Role, Width};
use std::collections::BTreeSet;

/// Most different calls that are kept; a run of all tests sees some hundreds.
const ROOM: u32 = 1 << 16;
/// Threads whose filters are counted at one time.
const THREADS: u32 = 1 << 16;
/// System calls with a number from here on have no rule.
const CALLS: u32 = 512;

/// A call that was made.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seen {
    /// The thread's name.
    pub thread: String,
    /// How many filters it has put on since it took that name.
    pub filters: u32,
    /// The call.
    pub number: u32,
    /// Its arguments, without the bits that no rule looks at.
    pub args: [u64; 6],
}

impl Seen {
    /// As a line: thread, filters, number and arguments, in words.
    #[must_use]
    pub fn line(&self) -> String {
        let args: Vec<String> = self.args.iter().map(|arg| format!("{arg:#x}")).collect();
        format!("{} {} {} {}", self.thread, self.filters, self.number, args.join(" "))
    }

    /// What [`Seen::line`] says.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let (thread, filters, number) =
            (words.next()?, words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let mut args = [0; 6];
        for arg in &mut args {
            *arg = u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok()?;
        }
        words.next().is_none().then(|| Self { thread: thread.into(), filters, number, args })
    }
}

/// What is being recorded, on the whole machine; ends when dropped.
pub struct Recorder {
    seen: Map,
    threads: Map,
    _attached: bpf::Attached,
}

impl Recorder {
    /// Begins to record. Needs root, and a kernel with BPF and tracepoints for system calls.
    ///
    /// # Errors
    /// Why it cannot be done here.
    pub fn start() -> Result<Self, String> {
        let seen = Map::new(MapKind::Hash, program::KEY_BYTES, 4, ROOM)?;
        let threads = Map::new(MapKind::LruHash, 4, 4, THREADS)?;
        let masks = Map::new(MapKind::Array, 4, 48, CALLS)?;
        for (number, mask) in (0..).zip(masks_of_tables()) {
            masks.set(&u32::to_ne_bytes(number), &mask.map(u64::to_ne_bytes).concat())?;
        }
        let code = program::code(&seen, &threads, &masks);
        let attached = bpf::attach(&code)?;
        Ok(Self { seen, threads, _attached: attached })
    }

    /// What was seen until now.
    ///
    /// # Errors
    /// There was more than there is room for, or the kernel's error.
    pub fn seen(&self) -> Result<BTreeSet<Seen>, String> {
        if self.threads.has(&program::LOST.to_ne_bytes()) {
            return Err(format!("more than {ROOM} different calls: some were not kept"));
        }
        Ok(self.seen.keys()?.iter().map(|key| program::read(key)).collect())
    }
}

/// Of each call, which bits of its arguments some rule looks at.
fn masks_of_tables() -> Vec<[u64; 6]> {
    let mut masks = vec![[0; 6]; CALLS as usize];
    for rule in Role::ALL.into_iter().flat_map(husk_seccomp::table) {
        let number = husk_seccomp::call_number(rule.call);
        let Some(mask) = number.and_then(|number| masks.get_mut(number as usize)) else { continue };
        for arg in rule.args {
            let width = if arg.width == Width::Low32 { u64::from(u32::MAX) } else { u64::MAX };
            mask[usize::from(arg.index)] |= arg.mask & width;
        }
    }
    masks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_survives_its_line() {
        let call = Seen {
            thread: "husk-vcpu0".into(),
            filters: 1,
            number: 16,
            args: [0, 0xae80, 0, u64::MAX, 0, 7],
        };
        assert_eq!(Seen::parse(&call.line()), Some(call));
        assert_eq!(Seen::parse("husk-vcpu0 1 16 0x0"), None);
    }

    #[test]
    fn only_what_rules_look_at_is_kept() {
        let masks = masks_of_tables();
        let ioctl = husk_seccomp::call_number("ioctl").unwrap() as usize;
        assert_eq!(masks[ioctl], [0, u64::from(u32::MAX), 0, 0, 0, 0]);
        let read = husk_seccomp::call_number("read").unwrap() as usize;
        assert_eq!(masks[read], [0; 6]);
    }
}
