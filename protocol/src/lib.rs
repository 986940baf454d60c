//! What the pieces of Husk say to each other, and nothing else.
//!
//! Three languages live here. [`exec`] is spoken between the host and guest-init over vsock: framed, many sessions
//! side by side, credit per stream. [`control`] is spoken between husk and the cell (jailer, then runtime) over one
//! `SOCK_SEQPACKET` socket: one JSON object a message, open files beside it. [`spec`] is the machine that the cell is
//! asked to be: Firecracker's configuration file with Husk's own keys. [`network`] is how both write addresses and rules.
//!
//! This crate makes no system call. What arrives from a guest is an allegation until the decoder has bounded it.

pub mod control;
pub mod exec;
pub mod exit;
pub mod network;
pub mod spec;

#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
