//! Requests about ranges without data: discard and write-zeroes (virtio 1.2, 5.2.6).
//!
//! Owns their bounds. Refuses all of a request if one of its ranges is not on the disk, is longer than the configuration
//! says, or has a flag that its kind does not know; refuses, as unsupported, what the host's file system cannot do, for a
//! driver then writes zeros itself. Invariant: the file's length never changes, and nothing is done before all ranges
//! are found sound.

use super::request::{Disk, SECTOR_BYTES, Status};
use crate::devices::virtio::guest_io::GuestIo;
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use virtio_bindings::virtio_blk as blk;

/// Most ranges in a discard.
pub(super) const DISCARD_SEGMENTS: u32 = 16;
/// Longest range of a discard in sectors (256 MiB): its cost is the host file system's, by extents.
pub(super) const DISCARD_SECTORS: u32 = 1 << 19;
/// What discards are best aligned to, in sectors: host file systems give back whole blocks, most have 4 KiB.
pub(super) const DISCARD_ALIGNMENT: u32 = 8;
/// Most ranges in a write of zeros.
pub(super) const ZEROES_SEGMENTS: u32 = 1;
/// Longest range of a write of zeros in sectors (32 MiB): a host's disk may have to write them all, so it is bounded as
/// a request with data is.
pub(super) const ZEROES_SECTORS: u32 = 1 << 16;
/// Bytes of `virtio_blk_discard_write_zeroes`.
const SEGMENT_BYTES: usize = 16;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// What is in the ranges is not needed any more.
    Discard,
    /// The ranges read as zeros afterwards.
    WriteZeroes,
}

/// A range that lies on the disk.
#[derive(Debug, Clone, Copy)]
struct Range {
    /// In bytes.
    offset: u64,
    /// In bytes.
    len: u64,
    /// The host may give the blocks back.
    unmap: bool,
}

/// What a request about ranges asks for, and how far it has come: one call after the other, until one fails.
#[derive(Debug)]
pub(super) struct Calls {
    kind: Kind,
    ranges: [Option<Range>; DISCARD_SEGMENTS as usize],
    next: usize,
    /// The host could not let the next range's blocks go, so zeros are written after all.
    fallback: bool,
    /// Bytes that the host may have had to write: of ranges whose blocks it was not asked to, or could not, let go of.
    pub(super) zeroed: u64,
}

impl Calls {
    /// The ranges in `data`, if all of them are sound and the disk may be written to.
    pub(super) fn of(disk: &Disk, kind: Kind, data: &mut GuestIo<'_>) -> Result<Self, Status> {
        if disk.read_only {
            return Err(Status::IoError);
        }
        let mut ranges = [None; DISCARD_SEGMENTS as usize];
        let most = if kind == Kind::Discard { DISCARD_SEGMENTS } else { ZEROES_SEGMENTS };
        let count = data.len() / SEGMENT_BYTES;
        if !data.len().is_multiple_of(SEGMENT_BYTES) || count == 0 || count > most as usize {
            return Err(Status::IoError);
        }
        for range in &mut ranges[..count] {
            let mut segment = [0; SEGMENT_BYTES];
            data.copy_into(&mut segment);
            *range = Some(check(disk, kind, segment)?);
        }
        Ok(Self { kind, ranges, next: 0, fallback: false, zeroed: 0 })
    }

    /// The next call: mode, and bytes of the disk's file. `None`: all is done.
    pub(super) fn call(&mut self) -> Option<(FallocateFlags, std::ops::Range<u64>)> {
        let range = loop {
            match self.ranges.get(self.next).copied().flatten()? {
                range if range.len > 0 => break range,
                _ => self.next += 1,
            }
        };
        let mode = if self.punches(range) { FallocateFlags::PUNCH_HOLE } else { FallocateFlags::ZERO_RANGE };
        Some((mode | FallocateFlags::KEEP_SIZE, range.offset..range.offset + range.len))
    }

    /// Blocks that may go need not be zeros on the disk.
    fn punches(&self, range: Range) -> bool {
        self.kind == Kind::Discard || range.unmap && !self.fallback
    }

    /// The next call was made. A status if it was the last.
    pub(super) fn done(&mut self, result: Result<(), Errno>) -> Option<Status> {
        let range = self.ranges.get(self.next).copied().flatten()?;
        if !self.punches(range) && result != Err(Errno::OPNOTSUPP) {
            self.zeroed += range.len;
        }
        match result {
            Err(Errno::INTR) => None,
            Err(Errno::OPNOTSUPP) if self.kind == Kind::WriteZeroes && self.punches(range) => {
                self.fallback = true;
                None
            }
            Err(Errno::OPNOTSUPP) => Some(Status::Unsupported),
            Err(_) => Some(Status::IoError),
            Ok(()) => {
                (self.next, self.fallback) = (self.next + 1, false);
                None
            }
        }
    }
}

/// Does what `data`, the ranges of a request, asks for. Adds to `zeroed` the bytes that the host may have had to write for
/// it.
pub(super) fn apply(disk: &Disk, kind: Kind, data: &mut GuestIo<'_>, zeroed: &mut u64) -> Status {
    let mut calls = match Calls::of(disk, kind, data) {
        Ok(calls) => calls,
        Err(status) => return status,
    };
    let mut status = None;
    while let (None, Some((mode, range))) = (status, calls.call()) {
        status = calls.done(fallocate(&disk.file, mode, range.start, range.end - range.start));
    }
    *zeroed += calls.zeroed;
    status.unwrap_or(Status::Ok)
}

fn check(disk: &Disk, kind: Kind, segment: [u8; SEGMENT_BYTES]) -> Result<Range, Status> {
    let [a, b, c, d, e, f, g, h, i, j, k, l, flags @ ..] = segment;
    let sector = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
    let sectors = u32::from_le_bytes([i, j, k, l]);
    let (flags, unmap) = (u32::from_le_bytes(flags), blk::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP);
    // 5.2.6.2: an unknown flag, and unmap in a discard, are answered with UNSUPP.
    if flags & !unmap != 0 || kind == Kind::Discard && flags != 0 {
        return Err(Status::Unsupported);
    }
    let longest = if kind == Kind::Discard { DISCARD_SECTORS } else { ZEROES_SECTORS };
    let end = sector.checked_add(sectors.into());
    if sectors > longest || end.is_none_or(|end| end > disk.sectors) {
        return Err(Status::IoError);
    }
    // On the disk, whose length in bytes is a file's: neither product overflows.
    Ok(Range { offset: sector * SECTOR_BYTES, len: u64::from(sectors) * SECTOR_BYTES, unmap: flags != 0 })
}

#[cfg(test)]
mod tests;
