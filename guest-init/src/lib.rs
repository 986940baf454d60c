//! husk-init: PID 1 of the guest.
//!
//! It is told everything by the host over one vsock connection (`husk_protocol::exec`): what to mount, who the guest
//! is, which commands to execute. One thread, one event loop, no configuration. It trusts the host and none of the
//! processes that it starts: they inherit no descriptor of it, and nothing that they do blocks it.
//!
//! Read in this order: [`init`] (before and after the loop), `server` (the loop), `session` and `stream` (a command),
//! `command` and `spawn` (its start), `ending` and `unmount` (the end); `root`, `disk`, `mounts`, `network`, `identity` set the
//! machine up.

mod accounts;
mod channel;
mod command;
mod console;
mod disk;
mod ending;
mod fault;
mod identity;
pub mod init;
mod mounts;
mod network;
mod pmem;
mod poll;
mod root;
mod server;
mod session;
mod spawn;
mod stdio;
mod stream;
mod sys;
mod unmount;

pub use sys::{arguments, ticks};
