//! The control socket: husk at one end, the cell at the other.
//!
//! A `SOCK_SEQPACKET` pair; each message is one JSON object of at most [`MAX_MESSAGE`] bytes. husk's first message is
//! [`ToCell::Start`], sent before the jailer is even started; the open files that its spec names (`{"fd": 3}` is the
//! fourth) travel with it as one `SCM_RIGHTS` list. The jailer reports on the same socket before it executes the
//! runtime. End of file, seen by the runtime, ends the sandbox.
//!
//! JSON, because a signal handler can write a line of it without an allocator, and because a person can read it.

mod balloon;
mod change;

pub use balloon::{BalloonReport, BalloonStatistics};
pub use change::{CHANGE_PATIENCE_S, Change, Changed, DriveChange, MAX_CHANGE, MemoryChange, Refusal};

use crate::spec::RawSpec;
use serde::{Deserialize, Serialize};

/// Largest message in bytes, either way.
pub const MAX_MESSAGE: usize = 64 * 1024;
/// Most open files beside a message (the kernel's limit is 253).
pub const MAX_FILES: usize = 64;
/// Most console lines in an [`Ended`] report.
pub const CONSOLE_TAIL_LINES: usize = 20;
/// The newest version of landlock's interface whose rights a runtime denies itself.
pub const LANDLOCK_ABI: u32 = 9;
/// Longest console line in an [`Ended`] report, in bytes; a longer one is cut.
pub const CONSOLE_TAIL_LINE_BYTES: usize = 256;

/// From husk to the cell.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ToCell {
    /// Be this machine. The first message, and sent once.
    Start {
        /// The machine; files in it are indexes into the message's descriptors.
        spec: Box<RawSpec>,
    },
    /// End the machine now; answered with [`FromCell::Ended`].
    Stop,
    /// The answer to [`FromCell::VsockConnect`]: one descriptor beside it (a connected stream socket) if `connected`.
    VsockConnected {
        /// The request that this answers.
        request: u32,
        /// Whether a descriptor came along; if not, the guest's connection is reset.
        connected: bool,
    },
    /// Change the machine that runs; answered with [`FromCell::Changed`]. One at a time.
    Change {
        /// Chosen by husk; comes back with the answer.
        request: u32,
        /// What; files in it are indexes into the message's descriptors.
        change: Change,
    },
}

/// From the cell to husk. Everything in it is an allegation: the process that wrote it may be hostile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum FromCell {
    /// Written by the jailer after it cloned the runtime's process.
    Cloned {
        /// Process id as husk sees it.
        pid: i32,
    },
    /// A point on the way was passed.
    Stage {
        /// Which.
        stage: Stage,
        /// When: `CLOCK_MONOTONIC`, nanoseconds.
        at_ns: u64,
    },
    /// The runtime has denied itself files, before it heeds the guest.
    Confined {
        /// How much of it the kernel enforces.
        landlock: Landlock,
    },
    /// The guest's time stamp counter ran since its vCPU was made; with this the guest's own stamps become host times.
    GuestClock {
        /// Counter value in the guest at `at_ns`.
        ticks: u64,
        /// Ticks per second.
        hz: u64,
        /// `CLOCK_MONOTONIC`, nanoseconds.
        at_ns: u64,
    },
    /// The guest asks for a stream to a host port; answered with [`ToCell::VsockConnected`].
    VsockConnect {
        /// Chosen by the cell, unique while unanswered.
        request: u32,
        /// The port that the guest wants on CID 2.
        port: u32,
    },
    /// What the guest said of its memory; at most once an interval of the balloon's, the last one counts.
    Balloon(Box<BalloonReport>),
    /// The answer to [`ToCell::Change`].
    Changed {
        /// The request that this answers.
        request: u32,
        /// How it went.
        changed: Changed,
    },
    /// Something that was asked for is not to be had here, and the machine does without. At most once a device.
    Degraded {
        /// One line that names the thing, and what is instead of it.
        message: String,
    },
    /// A wall of the cell that the host does not permit, and that the sandbox does without.
    Missing {
        /// Which: a few words.
        part: String,
        /// One line.
        why: String,
    },
    /// The sandbox cannot be, or cannot go on.
    Failed {
        /// Who is to blame.
        fault: Fault,
        /// One line that names the thing, the value and what is allowed.
        message: String,
    },
    /// The machine has ended; the last message.
    Ended(Ended),
}

/// How much of what a runtime denies itself by landlock the kernel enforces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Landlock {
    /// Every right of interface [`LANDLOCK_ABI`].
    Full,
    /// What this older kernel knows.
    Partial,
    /// Nothing: the kernel has no landlock, or it is off. The cell has no files all the same.
    Absent,
}

impl Landlock {
    /// The word for people, the same as in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Partial => "partial",
            Self::Absent => "absent",
        }
    }
}

/// How a machine ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ended {
    /// Why.
    pub reason: EndReason,
    /// The console's last lines, printable; at most [`CONSOLE_TAIL_LINES`] of [`CONSOLE_TAIL_LINE_BYTES`].
    #[serde(default)]
    pub console_tail: Vec<String>,
}

/// Why a machine ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// husk asked for it.
    Requested,
    /// The guest reset itself through a device.
    GuestReset,
    /// A vCPU shut down (a triple fault; Linux resets so too).
    GuestShutdown,
    /// The vCPUs cannot run on: an exit that no guest may cause, named in a [`FromCell::Failed`] before.
    GuestFault,
}

/// Who is at fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// What runs in the sandbox.
    Guest,
    /// The machine that Husk runs on.
    Host,
    /// Who asked: a wrong option, a missing file.
    Operator,
    /// Husk.
    Bug,
}

/// The points on the way from command to answer, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// `husk` entered `main`.
    Start,
    /// Everything is opened and planned; the jailer is about to be spawned.
    Planned,
    /// The jailer entered `main`.
    Jailer,
    /// The cell is complete; the runtime is about to be executed.
    Jailed,
    /// The runtime entered `main`.
    Runtime,
    /// The virtual machine with its devices exists, at reset.
    Built,
    /// Kernel, initrd and boot parameters are in guest memory, and memory is populated if asked for.
    Loaded,
    /// The first vCPU is about to execute its first guest instruction.
    KernelEntry,
    /// PID 1 of the guest entered `main`.
    Init,
    /// The guest is ready to execute commands.
    Ready,
    /// The command was executed in the guest.
    Executed,
    /// The command's first byte of output reached husk.
    FirstOutput,
    /// The command ended.
    Exited,
    /// Nothing of the sandbox is left.
    Gone,
}

impl Stage {
    /// The name that users see, the same as in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Planned => "planned",
            Self::Jailer => "jailer",
            Self::Jailed => "jailed",
            Self::Runtime => "runtime",
            Self::Built => "built",
            Self::Loaded => "loaded",
            Self::KernelEntry => "kernel_entry",
            Self::Init => "init",
            Self::Ready => "ready",
            Self::Executed => "executed",
            Self::FirstOutput => "first_output",
            Self::Exited => "exited",
            Self::Gone => "gone",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_is_called_alike_in_json_and_in_print() {
        for stage in [Stage::Start, Stage::KernelEntry, Stage::FirstOutput, Stage::Gone] {
            let json = serde_json::to_string(&stage).unwrap();
            assert_eq!(json, format!("\"{}\"", stage.name()));
        }
    }

    #[test]
    fn a_level_of_landlock_is_called_alike_in_json_and_in_print() {
        for level in [Landlock::Full, Landlock::Partial, Landlock::Absent] {
            assert_eq!(serde_json::to_string(&level).unwrap(), format!("\"{}\"", level.name()));
        }
    }

    #[test]
    fn messages_survive_the_wire() {
        let message = FromCell::Failed { fault: Fault::Host, message: "no space".into() };
        let json = serde_json::to_vec(&message).unwrap();
        assert_eq!(serde_json::from_slice::<FromCell>(&json).unwrap(), message);
        assert_eq!(json, br#"{"failed":{"fault":"host","message":"no space"}}"#);
    }
}
