//! What `make bench` measures: the stages of a cold run and what a device's byte costs, in instructions.
//!
//! In the lab's deterministic mode the clock is the count of executed instructions, one a nanosecond, so a stage's
//! nanoseconds are quoted as instructions there, and as time on real hardware. Nothing here judges speed in a test.

pub mod cells;
pub mod cpio;
pub mod guest_clock;
pub mod host;
pub mod peer;
pub mod stages;
pub mod throughput;
pub mod trace;
