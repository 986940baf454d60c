//! What a sandbox says of itself, for other husks to read.
//!
//! Owns the keys of `state.json`. Refuses nothing: what cannot be read is no record. Invariant: a key that came later has a
//! default, so that a newer husk understands what an older one's sandbox wrote.

use crate::vsock::SocketName;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// What `husk ps` tells about a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The sandbox's name.
    pub id: String,
    /// Process id of the husk that waits for it.
    pub pid: i32,
    /// User and group id that its runtime has.
    pub uid: u32,
    /// `CLOCK_REALTIME` of its start, milliseconds since 1970.
    pub started_ms: u64,
    /// vCPUs.
    pub vcpus: u64,
    /// The most memory that the guest can have, in MiB.
    pub memory_mib: u64,
    /// What it booted in, in MiB; the rest is plugged in.
    #[serde(default)]
    pub booted_mib: u64,
    /// The command; what is not UTF-8 is replaced.
    pub command: Vec<String>,
    /// Its drives, in the guest's order.
    #[serde(default)]
    pub drives: Vec<DriveRecord>,
    /// The cgroup below which its own is, if not the state directory's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    /// Its vsock socket on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock: Option<SocketName>,
    /// What its cgroup holds it to, each `NAME=VALUE`.
    #[serde(default)]
    pub limits: Vec<String>,
}

/// What must be known of a drive to open another file for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DriveRecord {
    /// The drive's id.
    pub id: String,
    /// The guest may write to it.
    pub writable: bool,
    /// It is a part of its file.
    pub part: bool,
}

/// The record in a sandbox's directory.
pub(super) fn read(directory: &Path) -> Option<Record> {
    serde_json::from_slice(&std::fs::read(directory.join("state.json")).ok()?).ok()
}
