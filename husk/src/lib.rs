//! Husk's front door as a library: a command in a microVM sandbox of its own, and a report of how that went.
//!
//! [`Sandbox::builder`] is the way in. The library opens every file that a sandbox needs, starts the jailer, speaks to
//! the cell over the control socket and to the guest over the exec channel, and removes every trace at the end. It
//! makes no threads, waits for no children but those of its own cells, and takes signals only when handed [`Signals`].

mod assets;
mod cgroup;
mod change;
pub mod cli;
mod config;
mod control;
mod cpio;
mod doctor;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod gc;
mod host;
mod image;
mod isolation;
mod limits;
mod memfile;
mod options;
mod outcome;
mod pack;
mod passt;
mod plan;
mod poll_set;
mod pool;
mod prepare;
mod pump;
mod report;
mod rootless;
mod sandbox;
mod serving;
mod session;
mod signals;
mod spawn;
mod state;
mod sys;
mod tap;
mod terminal;
mod text;
mod timeline;
mod uids;
mod units;
mod volume;
mod vsock;

pub use husk_protocol::network::{AllowRule, GuestAddress};
pub use husk_protocol::spec::IoEngine;
pub use isolation::{Isolation, Walls};
pub use limits::{Device, IoDevice, Limit, LimitError, LimitName, LimitValue};
pub use options::{BOOT_TIMEOUT, DriveOption, NetworkOption, Options, PmemOption, VolumeOption};
pub use outcome::Outcome;
pub use report::{Report, Resources};
pub use sandbox::Sandbox;
pub use session::Stdio;
pub use signals::Signals;
pub use timeline::{Passed, Timeline, now_ns};
