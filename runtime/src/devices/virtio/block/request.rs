//! What a block request does: a function of memory, chain and file.
//!
//! Owns the meaning of requests (virtio 1.2, 5.2.6). Refuses, with a status, what lies outside the disk, is not whole
//! sectors, is larger than the device allows, or writes to a read-only disk; refuses, as [`Nonsense`], a chain that has
//! no header or no room for a status. Invariant: data moves between file and guest memory directly, and no more than
//! [`MAX_BYTES`] of it per request.

use super::ranges::{self, Kind};
use super::{ID_BYTES, SEGMENT_BYTES, SEGMENTS};
use crate::devices::virtio::Memory;
use crate::devices::virtio::guest_io::{BadBuffer, GuestIo};
use crate::devices::virtio::queue::{Buffer, Chain};
use crate::devices::virtio::service::Answer;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use virtio_bindings::virtio_blk as blk;
use vm_memory::{Bytes, Permissions};

/// The unit of addresses on a disk.
pub(super) const SECTOR_BYTES: u64 = 512;
/// Most data in one request: what a driver that keeps to the configuration can ask for.
pub(super) const MAX_BYTES: u64 = SEGMENTS as u64 * SEGMENT_BYTES as u64;
/// Bytes of `virtio_blk_req` before the data.
pub(super) const HEADER_BYTES: usize = 16;

/// The file and what may be done to it.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) file: File,
    /// Where the disk begins in the file, in bytes; 0 of one that is written.
    pub(super) start: u64,
    pub(super) sectors: u64,
    pub(super) read_only: bool,
    /// Whether a flush reaches the medium.
    pub(super) writeback: bool,
    pub(super) serial: [u8; ID_BYTES],
}

impl Disk {
    /// The same disk with all of another file in place of its own.
    pub(super) fn with_file(&self, file: File, sectors: u64) -> Self {
        let Self { read_only, writeback, serial, .. } = *self;
        Self { file, start: 0, sectors, read_only, writeback, serial }
    }
}

/// The status byte at a request's end (`VIRTIO_BLK_S_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// A chain that is no request: there is nothing to answer it with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Nonsense;

impl From<BadBuffer> for Nonsense {
    fn from(_: BadBuffer) -> Self {
        Self
    }
}

/// Does what `chain` asks for and writes the status. The cost is bytes: those that were read from the disk or written to
/// it, and those that were zeroed there.
pub(super) fn handle(memory: &Memory, chain: &Chain, disk: &Disk) -> Result<Answer, Nonsense> {
    let (mut readable, mut writable) =
        (GuestIo::with_capacity(chain.readable.len()), GuestIo::with_capacity(chain.writable.len()));
    let header = match header_alone(memory, chain) {
        Some(header) => header,
        None => {
            readable.extend(memory, &chain.readable, Permissions::Read)?;
            taken(&mut readable)?
        }
    };
    writable.extend(memory, &chain.writable, Permissions::Write)?;
    let status = writable.split_last_byte().ok_or(Nonsense)?;
    let (given, room, mut zeroed) = (readable.len(), writable.len(), 0);

    let (kind, _reserved, sector) = split(header);
    let outcome = match kind {
        blk::VIRTIO_BLK_T_IN => transfer(disk, sector, &mut writable, GuestIo::read_file),
        blk::VIRTIO_BLK_T_OUT if disk.read_only => Status::IoError,
        blk::VIRTIO_BLK_T_OUT => transfer(disk, sector, &mut readable, GuestIo::write_file),
        blk::VIRTIO_BLK_T_FLUSH if disk.writeback => match disk.file.sync_data() {
            Ok(()) => Status::Ok,
            Err(_) => Status::IoError,
        },
        blk::VIRTIO_BLK_T_DISCARD => ranges::apply(disk, Kind::Discard, &mut readable, &mut zeroed),
        blk::VIRTIO_BLK_T_WRITE_ZEROES => ranges::apply(disk, Kind::WriteZeroes, &mut readable, &mut zeroed),
        blk::VIRTIO_BLK_T_GET_ID => {
            writable.fill_from(&disk.serial);
            Status::Ok
        }
        _ => Status::Unsupported,
    };
    let (read, written) = (given - readable.len(), room - writable.len());
    // One byte, at the start of what has one.
    let _ = status.write(&[outcome as u8], 0);
    // A chain has fewer than 2^32 bytes, and MAX_BYTES bounds what was written further.
    let answered = u32::try_from(written + 1).unwrap_or(u32::MAX);
    Ok(Answer { written: answered, cost: (read + written) as u64 + zeroed })
}

/// What kind of request `chain` says that it is, and the sector.
pub(super) fn header(memory: &Memory, chain: &Chain) -> Result<(u32, u64), Nonsense> {
    let header = match header_alone(memory, chain) {
        Some(header) => header,
        None => taken(&mut GuestIo::new(memory, &chain.readable, Permissions::Read)?)?,
    };
    let (kind, _reserved, sector) = split(header);
    Ok((kind, sector))
}

/// The header of a chain in which nothing else is readable, as of all that only read; `None` of others, and where it does not
/// lie in guest memory.
#[inline]
fn header_alone(memory: &Memory, chain: &Chain) -> Option<[u8; HEADER_BYTES]> {
    let [Buffer { addr, len }] = chain.readable[..] else { return None };
    (len as usize == HEADER_BYTES).then(|| memory.read_obj(addr).ok()).flatten()
}

/// The header in front of what is readable.
fn taken(readable: &mut GuestIo<'_>) -> Result<[u8; HEADER_BYTES], Nonsense> {
    let mut header = [0; HEADER_BYTES];
    if readable.copy_into(&mut header) == HEADER_BYTES { Ok(header) } else { Err(Nonsense) }
}

fn split(header: [u8; HEADER_BYTES]) -> (u32, u32, u64) {
    let [a, b, c, d, e, f, g, h, sector @ ..] = header;
    (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]), u64::from_le_bytes(sector))
}

/// Where in the file `bytes` bytes at `sector` are, if they may be moved in one request and lie on the disk.
pub(super) fn place(disk: &Disk, sector: u64, bytes: usize) -> Option<u64> {
    let bytes = bytes as u64;
    let end = sector.checked_add(bytes / SECTOR_BYTES)?;
    let sound = bytes.is_multiple_of(SECTOR_BYTES) && bytes <= MAX_BYTES && end <= disk.sectors;
    // The end is on the disk, so its offset in the file does not overflow.
    sound.then(|| disk.start + sector * SECTOR_BYTES)
}

/// Moves all of `data` from or to the disk at `sector`, if it lies there.
fn transfer<'m>(
    disk: &Disk,
    sector: u64,
    data: &mut GuestIo<'m>,
    step: fn(&mut GuestIo<'m>, BorrowedFd<'_>, u64) -> io::Result<usize>,
) -> Status {
    let Some(mut offset) = place(disk, sector, data.len()) else { return Status::IoError };
    while !data.is_empty() {
        match step(data, disk.file.as_fd(), offset) {
            // The file has shrunk under the disk.
            Ok(0) => return Status::IoError,
            Ok(moved) => offset += moved as u64,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Status::IoError,
        }
    }
    Status::Ok
}

#[cfg(test)]
pub(super) mod tests;
