//! Block devices, and their rules.
//!
//! Invariant: a part of a file is at least a sector, begins at one, and is only read.

use super::{LimiterSpec, SpecError, name};
use husk_protocol::spec::{CacheType, FileRef, IoEngine, RawDrive, RawPart};
use std::ops::Range;

/// The unit of a disk.
const SECTOR_BYTES: u64 = 512;

/// The bytes of a part of a file, at least a sector's, from a sector on. What is written to a disk is all of its file's.
fn bounds(part: RawPart, read_only: bool, index: usize) -> Result<Range<u64>, SpecError> {
    let wrong = |key: &str, value: u64, allowed: &str| SpecError::OutOfRange {
        key: format!("drives[{index}].part{key}"),
        value,
        allowed: allowed.to_owned(),
    };
    if !read_only {
        let allowed = "true: a drive that is written is a file of its own";
        return Err(SpecError::malformed(format!("drives[{index}].is_read_only"), "false", allowed));
    }
    if !part.offset.is_multiple_of(SECTOR_BYTES) {
        return Err(wrong(".offset", part.offset, "a multiple of 512"));
    }
    let end = part.offset.checked_add(part.bytes).filter(|_| part.bytes >= SECTOR_BYTES);
    let end = end.ok_or_else(|| wrong(".bytes", part.bytes, "512 to 2^64 - 1 less the offset"))?;
    Ok(part.offset..end)
}

/// One block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriveSpec {
    id: String,
    file: FileRef,
    root: bool,
    read_only: bool,
    cache: CacheType,
    engine: IoEngine,
    queues: u8,
    limiter: Option<LimiterSpec>,
    part: Option<Range<u64>>,
}

impl DriveSpec {
    pub(super) fn new(raw: RawDrive, index: usize, vcpus: u8) -> Result<Self, SpecError> {
        name::check(|| format!("drives[{index}].drive_id"), &raw.drive_id)?;
        let queues = u8::try_from(raw.queues).ok().filter(|queues| (1..=vcpus).contains(queues));
        let queues = queues.ok_or_else(|| SpecError::OutOfRange {
            key: format!("drives[{index}].queues"),
            value: raw.queues,
            allowed: format!("1 to {vcpus}, the number of vCPUs"),
        })?;
        Ok(Self {
            id: raw.drive_id,
            file: raw.path_on_host,
            root: raw.is_root_device,
            read_only: raw.is_read_only,
            cache: raw.cache_type,
            engine: raw.io_engine,
            queues,
            limiter: LimiterSpec::new(raw.rate_limiter, &format!("drives[{index}].rate_limiter"))?,
            part: raw.part.map(|part| bounds(part, raw.is_read_only, index)).transpose()?,
        })
    }

    /// Its name and the disk's serial number (its first 20): 1 to 64 bytes of letters, digits, `_`, `-` and `.`.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The raw file behind it.
    #[must_use]
    pub fn file(&self) -> &FileRef {
        &self.file
    }

    /// Whether the kernel is told `root=` this drive; at most one is.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.root
    }

    /// Whether writes are refused.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// What a flush does.
    #[must_use]
    pub fn cache(&self) -> CacheType {
        self.cache
    }

    /// How its file is read and written.
    #[must_use]
    pub fn engine(&self) -> IoEngine {
        self.engine
    }

    /// Request queues, 1 to the number of vCPUs.
    #[must_use]
    pub fn queues(&self) -> u8 {
        self.queues
    }

    /// The bytes of the file that are the disk, of a read-only one; `None`: all of it.
    #[must_use]
    pub fn part(&self) -> Option<Range<u64>> {
        self.part.clone()
    }

    /// How much is read and written in a time; `None`: no limit.
    #[must_use]
    pub fn limiter(&self) -> Option<LimiterSpec> {
        self.limiter
    }
}
