//! The promises, one module each. They start husk as a user would and boot real guests.
//!
//! Run by `husk-test-runner`, one process a test, in the lab or on a machine with hardware virtualization.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot set up what it needs has failed")]

mod bad_input;
mod boot;
mod cgroups;
mod clocks;
mod command;
mod config;
mod density;
mod devices;
mod doctor;
mod drives;
mod drop_in;
mod faults;
mod filters;
mod jail;
mod kills;
mod limits;
mod memory;
mod net;
mod net_user;
mod pci;
mod placement;
mod pmem;
mod pool;
mod refused;
mod rootless;
mod shares;
mod state;
mod stdio;
mod terminal;
mod time;
mod troubles;
mod volumes;
mod vsock;
