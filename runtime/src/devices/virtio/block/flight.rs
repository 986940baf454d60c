//! Requests on a ring: what is left to do of each until it is answered.
//!
//! Owns a request from its start to its status byte. Refuses nothing itself: what may be started was judged by the rules of
//! `request` and `ranges`, and what they refuse is answered at once. Invariant: one operation of a request is in flight at a
//! time, and no buffer of it is touched after its status was written.

use super::ranges::{Calls, Kind};
use super::request::{self, Disk, HEADER_BYTES, Nonsense, Status};
use crate::devices::virtio::Memory;
use crate::devices::virtio::guest_io::{BadBuffer, GuestIo};
use crate::devices::virtio::guest_ring::{GuestRing, Part, Pinned};
use crate::devices::virtio::queue::{Buffer, Chain};
use crate::devices::virtio::service::{Answer, Reply};
use rustix::io::Errno;
use std::io;
use virtio_bindings::virtio_blk as blk;
use vm_memory::Permissions;

/// A request that is in flight.
#[derive(Debug)]
pub(super) struct Job {
    /// Place of its queue in the worker.
    pub(super) place: usize,
    /// What goes back into the used ring.
    pub(super) head: u16,
    /// One byte.
    status: Buffer,
    work: Work,
}

#[derive(Debug)]
enum Work {
    Transfer(Transfer),
    Flush,
    /// In a box, for it is large and rare.
    Ranges(Box<Calls>),
}

#[derive(Debug)]
struct Transfer {
    /// From the disk into the buffers.
    reads: bool,
    buffers: Vec<Buffer>,
    /// Bytes of the buffers before the data.
    start: usize,
    /// Bytes of data.
    bytes: usize,
    moved: usize,
    /// Of the data, in the file.
    offset: u64,
}

impl Transfer {
    /// The buffers that are left.
    fn rest(&self, memory: &Memory) -> Result<Pinned, BadBuffer> {
        let bytes = self.start + self.moved..self.start + self.bytes;
        let access = if self.reads { Permissions::Write } else { Permissions::Read };
        Pinned::new(memory, &Part { buffers: &self.buffers, bytes }, access)
    }
}

/// A request that is done: its head, and the bytes written into its buffers.
pub(super) type Done = (u16, u32);

/// Starts what `chain` of the queue at `place` asks for, or answers it at once. Without `ranges`, requests about ranges are
/// answered at once, and their cost is what they did.
pub(super) fn begin(
    memory: &Memory,
    (place, chain): (usize, &Chain),
    disk: &Disk,
    ring: &mut GuestRing<Job>,
    ranges: bool,
) -> Reply {
    if !ring.has_room() {
        return Reply::Full;
    }
    match Job::of(memory, (place, chain), disk, ranges) {
        Err(Nonsense) => Reply::Nonsense,
        Ok(None) => request::handle(memory, chain, disk).map_or(Reply::Nonsense, Reply::Answered),
        Ok(Some(job)) => {
            let cost = job.bytes();
            match job.start(memory, ring) {
                None => Reply::Later(cost),
                Some((_, written)) => Reply::Answered(Answer { written, cost }),
            }
        }
    }
}

impl Job {
    /// `None`: there is nothing to wait for.
    fn of(
        memory: &Memory,
        (place, chain): (usize, &Chain),
        disk: &Disk,
        ranges: bool,
    ) -> Result<Option<Self>, Nonsense> {
        let (kind, sector) = request::header(memory, chain)?;
        let writable = GuestIo::new(memory, &chain.writable, Permissions::Write)?;
        let room = writable.len().checked_sub(1).ok_or(Nonsense)?;
        let last = chain.writable.last().ok_or(Nonsense)?;
        let at = last.addr.0.checked_add(u64::from(last.len) - 1).ok_or(Nonsense)?;
        let status = Buffer { addr: vm_memory::GuestAddress(at), len: 1 };
        let mut readable = GuestIo::new(memory, &chain.readable, Permissions::Read)?;
        readable.advance(HEADER_BYTES);
        let transfer = |reads, bytes, start, buffers: &[Buffer]| {
            let offset = request::place(disk, sector, bytes)?;
            let buffers = buffers.to_vec();
            (bytes > 0).then_some(Work::Transfer(Transfer { reads, buffers, start, bytes, moved: 0, offset }))
        };
        let work = match kind {
            blk::VIRTIO_BLK_T_IN => transfer(true, room, 0, &chain.writable),
            blk::VIRTIO_BLK_T_OUT if !disk.read_only => {
                transfer(false, readable.len(), HEADER_BYTES, &chain.readable)
            }
            blk::VIRTIO_BLK_T_FLUSH if disk.writeback => Some(Work::Flush),
            blk::VIRTIO_BLK_T_DISCARD if ranges => {
                Calls::of(disk, Kind::Discard, &mut readable).ok().map(Box::new).map(Work::Ranges)
            }
            blk::VIRTIO_BLK_T_WRITE_ZEROES if ranges => {
                Calls::of(disk, Kind::WriteZeroes, &mut readable).ok().map(Box::new).map(Work::Ranges)
            }
            _ => None,
        };
        Ok(work.map(|work| Self { place, head: chain.head, status, work }))
    }

    /// Bytes that it moves, or would.
    fn bytes(&self) -> u64 {
        if let Work::Transfer(transfer) = &self.work { transfer.bytes as u64 } else { 0 }
    }

    /// Its next operation is in flight, or it is done.
    fn start(mut self, memory: &Memory, ring: &mut GuestRing<Self>) -> Option<Done> {
        match &mut self.work {
            Work::Flush => ring.flush(self),
            Work::Ranges(calls) => match calls.call() {
                Some((mode, range)) => ring.allocate(mode, range, self),
                None => return Some(self.finish(memory, Status::Ok)),
            },
            Work::Transfer(transfer) => {
                let (reads, offset) = (transfer.reads, transfer.offset + transfer.moved as u64);
                match transfer.rest(memory) {
                    Ok(buffers) if reads => ring.read(buffers, offset, self),
                    Ok(buffers) => ring.write(buffers, offset, self),
                    // They were guest memory when the request was taken, and still are.
                    Err(_) => return Some(self.finish(memory, Status::IoError)),
                }
            }
        }
        None
    }

    /// Its operation has completed: the next one, or the answer.
    pub(super) fn go_on(
        mut self,
        result: io::Result<usize>,
        memory: &Memory,
        ring: &mut GuestRing<Self>,
    ) -> Option<Done> {
        let interrupted =
            matches!(&result, Err(error) if error.raw_os_error() == Some(Errno::INTR.raw_os_error()));
        let status = match &mut self.work {
            _ if interrupted => None,
            Work::Flush => Some(if result.is_ok() { Status::Ok } else { Status::IoError }),
            Work::Ranges(calls) => {
                let errno = |error: io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
                calls.done(result.map(drop).map_err(errno))
            }
            Work::Transfer(transfer) => {
                // None at all: the file has shrunk under the disk.
                let moved = result.unwrap_or(0);
                transfer.moved = transfer.bytes.min(transfer.moved + moved);
                match transfer.moved == transfer.bytes {
                    true => Some(Status::Ok),
                    false => (moved == 0).then_some(Status::IoError),
                }
            }
        };
        match status {
            Some(status) => Some(self.finish(memory, status)),
            None => self.start(memory, ring),
        }
    }

    fn finish(self, memory: &Memory, status: Status) -> Done {
        let moved = match &self.work {
            Work::Transfer(transfer) if transfer.reads => transfer.moved,
            _ => 0,
        };
        // It was guest memory when the request was taken, and still is.
        if let Ok(mut byte) = GuestIo::new(memory, &[self.status], Permissions::Write) {
            byte.fill_from(&[status as u8]);
        }
        (self.head, u32::try_from(moved + 1).unwrap_or(u32::MAX))
    }
}
