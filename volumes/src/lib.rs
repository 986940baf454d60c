//! Serves one directory of the host to one guest: FUSE messages in on a socket, FUSE messages out.
//!
//! Owns the policy that lies over fuse-backend-rs's file system ([`Volume`]), the bounds of a message ([`serve`]) and what
//! the process gives up before the first one ([`confine`]). No memory of the guest's is shared with it: what the guest says
//! comes as bytes, through the runtime, and is an allegation until it is checked. Invariant: whatever is opened is opened
//! below the process's root, which is the directory itself.

pub mod confine;
pub mod inherited;
pub mod report;
mod serve;
mod volume;

pub use serve::{ServeError, serve};
pub use volume::Volume;
