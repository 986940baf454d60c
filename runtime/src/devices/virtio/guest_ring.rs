//! One file through an `io_uring`: bytes between it and guest memory, without a copy and without a thread that waits.
//!
//! Owns the ring and what is in flight on it. Refuses to be more than it was built for: it starts disabled, knows one file
//! and four operations on it, and once it is enabled no `io_uring_register` changes that, for its operations pass seccomp by.
//! Invariant: an address that is in flight was translated from a [`Memory`] that the flight holds, and a flight ends with its
//! completion alone: a ring that is dropped before leaves the memory mapped for ever.

use super::Memory;
use super::guest_io::{BadBuffer, GuestIo};
use super::queue::Buffer;
use husk_protocol::spec::IoEngine;
use io_uring::register::Restriction;
use io_uring::squeue::{Entry, Flags};
use io_uring::types::{Fixed, FsyncFlags};
use io_uring::{IoUring, opcode};
use rustix::fs::FallocateFlags;
use std::io;
use std::mem;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use vm_memory::Permissions;
use vmm_sys_util::eventfd::EventFd;

/// Most operations in flight; what they need of kernel memory is bounded by it. As many as a queue has descriptors.
const FLIGHTS: u32 = 128;
/// Threads that the kernel may make for operations that wait: for such on files, and for others, of which there are none.
const WORKERS: [u32; 2] = [IoEngine::WORKERS - 1, 1];
/// The one registered file.
const FILE: Fixed = Fixed(0);

/// Which bytes of a request's buffers.
#[derive(Debug, Clone)]
pub struct Part<'a> {
    /// In order.
    pub buffers: &'a [Buffer],
    /// Of all of them together.
    pub bytes: Range<usize>,
}

/// Guest memory that is kept for an operation: its addresses, and the mapping that makes them valid.
pub struct Pinned {
    pieces: Vec<libc::iovec>,
    _memory: Memory,
}

impl Pinned {
    /// The `part` of its buffers, for the access that `permissions` names.
    ///
    /// # Errors
    /// A buffer is not guest memory, or may not be accessed so.
    pub fn new(memory: &Memory, part: &Part<'_>, permissions: Permissions) -> Result<Self, BadBuffer> {
        let mut io = GuestIo::new(memory, part.buffers, permissions)?;
        io.truncate(part.bytes.end);
        io.advance(part.bytes.start);
        Ok(Self { pieces: io.addresses(), _memory: memory.clone() })
    }

    /// For the kernel; at most as many as one call takes, which [`GuestIo::addresses`] sees to.
    fn list(&self) -> (*const libc::iovec, u32) {
        (self.pieces.as_ptr(), u32::try_from(self.pieces.len()).unwrap_or(0))
    }
}

// SAFETY: the addresses are guest memory's, which is mapped for every thread as long as `_memory` lives; nobody else has the
// list.
#[expect(unsafe_code, reason = "iovec has a raw pointer")]
unsafe impl Send for Pinned {}

struct Flight<T> {
    tag: T,
    _buffers: Option<Pinned>,
}

/// See the module; `T` is what comes back with a completion.
pub struct GuestRing<T> {
    ring: IoUring,
    bell: Arc<EventFd>,
    flights: Vec<Option<Flight<T>>>,
    free: Vec<usize>,
}

impl<T> GuestRing<T> {
    /// A ring for `file`. Makes descriptors and maps 16 KiB.
    ///
    /// # Errors
    /// What the kernel says: it has no io_uring, has it turned off (`kernel.io_uring_disabled`), or lacks a part of it.
    pub fn new(file: BorrowedFd<'_>) -> io::Result<Self> {
        let ring = IoUring::builder().setup_r_disabled().build(FLIGHTS)?;
        if !ring.params().is_feature_nodrop() || !ring.params().is_feature_submit_stable() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let bell = Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
        let submitter = ring.submitter();
        submitter.register_files(&[file.as_raw_fd()])?;
        submitter.register_eventfd(bell.as_raw_fd())?;
        submitter.register_iowq_max_workers(&mut WORKERS.clone())?;
        let fixed = Flags::FIXED_FILE.bits();
        // No `register_op` among them: none is allowed any more.
        submitter.register_restrictions(&mut [
            Restriction::sqe_op(opcode::Readv::CODE),
            Restriction::sqe_op(opcode::Writev::CODE),
            Restriction::sqe_op(opcode::Fsync::CODE),
            Restriction::sqe_op(opcode::Fallocate::CODE),
            Restriction::sqe_flags_allowed(fixed),
            Restriction::sqe_flags_required(fixed),
        ])?;
        submitter.register_enable_rings()?;
        let flights = usize::try_from(FLIGHTS).unwrap_or(0);
        Ok(Self {
            ring,
            bell,
            flights: (0..flights).map(|_| None).collect(),
            free: (0..flights).rev().collect(),
        })
    }

    /// Readable when something has completed.
    #[must_use]
    pub fn bell(&self) -> RawFd {
        self.bell.as_raw_fd()
    }

    /// The bell was heard.
    pub fn hush(&self) {
        // It fails only where nobody rang.
        let _ = self.bell.read();
    }

    /// Ends the ring, which has nothing in flight, and keeps its bell, which somebody may still watch.
    #[must_use]
    pub fn into_bell(self) -> Arc<EventFd> {
        Arc::clone(&self.bell)
    }

    /// Operations in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.flights.len() - self.free.len()
    }

    /// Whether one more can be.
    #[must_use]
    pub fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Reads from the file at byte `offset` into `buffers`, which may be written to; may read less.
    pub fn read(&mut self, buffers: Pinned, offset: u64, tag: T) {
        let (list, count) = buffers.list();
        let entry = opcode::Readv::new(FILE, list, count).offset(offset).build();
        self.push(entry, Flight { tag, _buffers: Some(buffers) });
    }

    /// Writes `buffers` to the file at byte `offset`; may write less.
    pub fn write(&mut self, buffers: Pinned, offset: u64, tag: T) {
        let (list, count) = buffers.list();
        let entry = opcode::Writev::new(FILE, list, count).offset(offset).build();
        self.push(entry, Flight { tag, _buffers: Some(buffers) });
    }

    /// All that was written before reaches the medium (`fdatasync`).
    pub fn flush(&mut self, tag: T) {
        let entry = opcode::Fsync::new(FILE).flags(FsyncFlags::DATASYNC).build();
        self.push(entry, Flight { tag, _buffers: None });
    }

    /// `fallocate` of the `range`, in bytes.
    pub fn allocate(&mut self, mode: FallocateFlags, range: Range<u64>, tag: T) {
        let mode = mode.bits().cast_signed();
        let length = range.end.saturating_sub(range.start);
        let entry = opcode::Fallocate::new(FILE, length).offset(range.start).mode(mode).build();
        self.push(entry, Flight { tag, _buffers: None });
    }

    /// Waits in the ring until [`Self::submit`]; not to be called without room.
    fn push(&mut self, entry: Entry, flight: Flight<T>) {
        let Some(place) = self.free.pop() else { return };
        // Kept first: what the kernel may look at lives from here to the completion.
        self.flights[place] = Some(flight);
        let entry = entry.user_data(place as u64);
        // SAFETY: the list that the entry names, and the guest memory that it names in turn, are in `flights` until its
        // completion, or for ever (the module's invariant).
        #[expect(unsafe_code, reason = "the kernel keeps addresses beyond the call")]
        let pushed = unsafe { self.ring.submission().push(&entry) };
        // As many entries as flights: it is never full.
        debug_assert!(pushed.is_ok(), "the submission queue is as long as the list of flights");
    }

    /// Hands the kernel what was started. Where it has no memory for it now, the bell rings for another try.
    ///
    /// # Errors
    /// The ring cannot be used any more.
    pub fn submit(&mut self) -> io::Result<()> {
        while !self.ring.submission().is_empty() {
            match self.ring.submit() {
                Ok(count) if count > 0 => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(_) => return self.bell.write(1),
                Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY)) => {
                    return self.bell.write(1);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The next that has completed, and what its system call would have returned.
    pub fn completed(&mut self) -> Option<(T, io::Result<usize>)> {
        loop {
            let entry = self.ring.completion().next()?;
            let place = usize::try_from(entry.user_data()).ok();
            // Only places that are in flight were ever given to the kernel.
            let Some(place) = place.filter(|&place| place < self.flights.len()) else { continue };
            let Some(flight) = self.flights[place].take() else { continue };
            self.free.push(place);
            let result = usize::try_from(entry.result())
                .map_err(|_| io::Error::from_raw_os_error(entry.result().saturating_neg()));
            return Some((flight.tag, result));
        }
    }
}

impl<T> Drop for GuestRing<T> {
    fn drop(&mut self) {
        // The kernel may still write to what they name.
        self.flights.drain(..).flatten().for_each(mem::forget);
    }
}

impl<T> std::fmt::Debug for GuestRing<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuestRing").field("in_flight", &self.in_flight()).finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(crate) mod tests;
