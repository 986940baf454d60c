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

/// Does what `data`, the ranges of a request, asks for. Adds to `zeroed` the bytes that the host may have had to write for
/// it: those of ranges whose blocks it was not asked to, or could not, let go of.
pub(super) fn apply(disk: &Disk, kind: Kind, data: &mut GuestIo<'_>, zeroed: &mut u64) -> Status {
    if disk.read_only {
        return Status::IoError;
    }
    let mut ranges = [None; DISCARD_SEGMENTS as usize];
    let most = if kind == Kind::Discard { DISCARD_SEGMENTS } else { ZEROES_SEGMENTS };
    let count = data.len() / SEGMENT_BYTES;
    if !data.len().is_multiple_of(SEGMENT_BYTES) || count == 0 || count > most as usize {
        return Status::IoError;
    }
    for range in &mut ranges[..count] {
        let mut segment = [0; SEGMENT_BYTES];
        data.copy_into(&mut segment);
        match check(disk, kind, segment) {
            Ok(sound) => *range = Some(sound),
            Err(status) => return status,
        }
    }
    let mut zero = |range: Range| {
        let done = zero(disk, range);
        *zeroed += if done == Err(Errno::OPNOTSUPP) { 0 } else { range.len };
        done
    };
    let refused = ranges.into_iter().flatten().filter(|range| range.len > 0).find_map(|range| {
        let done = match kind {
            Kind::Discard => punch(disk, range),
            // Blocks that may go need not be zeros on the disk; a host that cannot let them go writes zeros after all.
            Kind::WriteZeroes if range.unmap => match punch(disk, range) {
                Err(Errno::OPNOTSUPP) => zero(range),
                done => done,
            },
            Kind::WriteZeroes => zero(range),
        };
        done.err()
    });
    match refused {
        None => Status::Ok,
        Some(Errno::OPNOTSUPP) => Status::Unsupported,
        Some(_) => Status::IoError,
    }
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

/// Gives the blocks back; they read as zeros.
fn punch(disk: &Disk, range: Range) -> Result<(), Errno> {
    call(disk, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, range)
}

/// Makes the blocks read as zeros and keeps them.
fn zero(disk: &Disk, range: Range) -> Result<(), Errno> {
    call(disk, FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE, range)
}

fn call(disk: &Disk, mode: FallocateFlags, range: Range) -> Result<(), Errno> {
    loop {
        match fallocate(&disk.file, mode, range.offset, range.len) {
            Err(Errno::INTR) => {}
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests;
