//! The keys of a block device.
//!
//! Owns their names and defaults, which are Firecracker's where it has the key. Refuses unknown ones, by name. Invariant: a key that has
//! its default is not written.

use super::{FileRef, RawRateLimiter, is_false, is_one, one};
use serde::{Deserialize, Serialize};

/// One block device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawDrive {
    /// Name of the drive; the guest reads it as the disk's serial (first 20 bytes).
    pub drive_id: String,
    /// The raw file behind it.
    pub path_on_host: FileRef,
    /// Whether the guest kernel is told `root=` this drive.
    #[serde(default, skip_serializing_if = "is_false")]
    pub is_root_device: bool,
    /// Whether the host refuses writes.
    #[serde(default, skip_serializing_if = "is_false")]
    pub is_read_only: bool,
    /// Whether a flush reaches the disk.
    #[serde(default, skip_serializing_if = "CacheType::is_unsafe")]
    pub cache_type: CacheType,
    /// How the file is read and written.
    #[serde(default, skip_serializing_if = "IoEngine::is_sync")]
    pub io_engine: IoEngine,
    /// Husk: request queues, 1 to `vcpu_count`.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub queues: u64,
    /// How much is read and written in a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RawRateLimiter>,
    /// Husk: the disk is this part of the file; absent: all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<RawPart>,
}

/// A part of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawPart {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub bytes: u64,
}

/// What a guest's flush does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CacheType {
    /// Nothing; the feature is not offered.
    #[default]
    Unsafe,
    /// `fdatasync`.
    Writeback,
}

impl CacheType {
    fn is_unsafe(&self) -> bool {
        *self == Self::Unsafe
    }
}

/// How a drive's file is read and written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum IoEngine {
    /// One request after the other, by the drive's thread.
    #[default]
    Sync,
    /// Many at a time, through an `io_uring`; where the host gives none, as `Sync`.
    Async,
}

impl IoEngine {
    /// Most threads that the kernel makes for a drive that is `Async`, beside the drive's own.
    pub const WORKERS: u32 = 5;

    fn is_sync(&self) -> bool {
        *self == Self::Sync
    }
}
