//! What the integration tests stand on: husk as a user would start it, and a count of everything it might leave behind.
//!
//! Nothing here reaches into Husk's libraries to make a sandbox: the tests drive the built binaries. A test that cannot
//! run on a machine says so through [`skip!`], is counted and named, and must stand on `tests/skips.list`.

#![allow(
    clippy::panic,
    reason = "a test that cannot set up what it needs has failed, and says so by a panic"
)]

pub mod alive;
pub mod attempts;
pub mod bench;
pub mod calls;
pub mod cell;
#[cfg(test)]
mod documents;
pub mod footprint;
pub mod guest_vsock;
pub mod handed;
pub mod husk;
pub mod jailed_peer;
pub mod load;
pub mod loops;
pub mod ordinary;
pub mod payload;
pub mod processes;
pub mod ptrace;
pub mod rootfs;
pub mod scratch;
pub mod tap;
#[cfg(target_arch = "x86_64")]
pub mod tracer;

/// Ends a test as skipped: prints the line that the runner counts, and returns.
#[macro_export]
macro_rules! skip {
    ($($reason:tt)*) => {{
        println!("HUSK-SKIP {}", format_args!($($reason)*));
        return;
    }};
}
