//! Guest memory that waits for frames from a descriptor, from one event to the next.
//!
//! Owns the addresses, each translated once, and a share of the memory that they are in. Buffers that follow each other are
//! one place: Linux cuts those of a network card from blocks of 32 KiB, so a frame's room is three places, not 44, and the
//! system call reads three. Refuses buffers that do not lie in guest memory. Invariants: a place was translated from `memory`, which is held for as long as the place is known, so what
//! it points to stays mapped; that the guest changes the bytes meanwhile is expected, and nothing here ever makes a Rust
//! reference to them. Memory that was unplugged since then cannot be touched any more: whoever keeps a room from one event to the
//! next, on the thread that unplugs, asks first whether it is stale.

use super::{BadBuffer, MAX_PIECES};
use crate::devices::virtio::Memory;
use crate::devices::virtio::queue::Buffer;
use smallvec::SmallVec;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use vm_memory::{Bytes, GuestMemory, Permissions, VolatileSlice};

/// Pieces that a call takes without an allocation: buffers of 1.5 KiB for a frame of 64.
const FEW_PIECES: usize = 64;

/// A piece of guest memory, by its address in this process.
#[derive(Debug, Clone, Copy)]
struct Place {
    start: usize,
    bytes: usize,
}

/// See the module.
pub struct Room {
    memory: Memory,
    places: Vec<Place>,
    /// Places before this one are used up.
    first: usize,
    bytes: usize,
    /// How often memory was unplugged before the first place was looked up.
    unplugs: u64,
}

impl Room {
    /// None yet.
    #[must_use]
    pub fn new(memory: Memory) -> Self {
        let unplugs = memory.unplugs();
        Self { memory, places: Vec::new(), first: 0, bytes: 0, unplugs }
    }

    /// Whether memory was unplugged since its places were looked up: then only [`Self::clear`] may follow.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        self.unplugs != self.memory.unplugs()
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// In how many pieces.
    #[must_use]
    pub fn pieces(&self) -> usize {
        self.places.len() - self.first
    }

    /// Appends all of `buffers`, or nothing.
    ///
    /// # Errors
    /// One of them does not lie in guest memory that may be written.
    pub fn push(&mut self, buffers: &[Buffer]) -> Result<(), BadBuffer> {
        let (places, last, bytes) = (self.places.len(), self.places.last().copied(), self.bytes);
        let pushed = buffers.iter().try_for_each(|buffer| self.push_one(*buffer));
        if pushed.is_err() {
            self.places.truncate(places);
            // It may have grown.
            if let (Some(place), Some(last)) = (self.places.last_mut(), last) {
                *place = last;
            }
            self.bytes = bytes;
        }
        pushed
    }

    fn push_one(&mut self, buffer: Buffer) -> Result<(), BadBuffer> {
        let bad = |_| BadBuffer { addr: buffer.addr.0, len: buffer.len };
        let len = usize::try_from(buffer.len).unwrap_or(usize::MAX);
        for slice in
            GuestMemory::get_slices(&self.memory, buffer.addr, len, Permissions::Write).map_err(bad)?
        {
            let slice = slice.map_err(bad)?;
            let start = slice.ptr_guard_mut().as_ptr().expose_provenance();
            self.bytes += slice.len();
            // One that is used up is not gone on with: it may be forgotten at any time.
            match self.places[self.first..].last_mut() {
                Some(last) if last.start + last.bytes == start => last.bytes += slice.len(),
                _ => self.places.push(Place { start, bytes: slice.len() }),
            }
        }
        Ok(())
    }

    /// Reads one frame (readv): its first bytes into `head`, whose length is left free at the start of the room, then into
    /// the room, and what has no place there into `rest`. Returns the frame's bytes, at most what all three hold. The room
    /// stays as it is.
    ///
    /// # Errors
    /// What the system says.
    pub fn read_frame(&self, file: BorrowedFd<'_>, head: &mut [u8], rest: &mut [u8]) -> io::Result<usize> {
        let mut list = SmallVec::<[libc::iovec; FEW_PIECES]>::with_capacity(self.pieces() + 2);
        list.push(libc::iovec { iov_base: head.as_mut_ptr().cast(), iov_len: head.len() });
        let mut skip = head.len();
        for place in self.places[self.first..].iter().take(MAX_PIECES - 2) {
            let free = skip.min(place.bytes);
            skip -= free;
            if free < place.bytes {
                let start = ptr::with_exposed_provenance_mut(place.start + free);
                list.push(libc::iovec { iov_base: start, iov_len: place.bytes - free });
            }
        }
        list.push(libc::iovec { iov_base: rest.as_mut_ptr().cast(), iov_len: rest.len() });
        let count = libc::c_int::try_from(list.len()).unwrap_or(0);
        // SAFETY: `list` holds the two slices, which are borrowed for the call, and between them addresses and lengths of
        // guest memory that `self.memory` keeps mapped (the module's invariant).
        #[expect(unsafe_code, reason = "guest memory is no Rust slice, and only slices have a safe readv")]
        let result = unsafe { libc::readv(file.as_raw_fd(), list.as_ptr(), count) };
        usize::try_from(result).map_err(|_| io::Error::last_os_error())
    }

    /// Copies `bytes` into the room behind its first `skip` bytes, as many as fit.
    pub fn write(&self, mut skip: usize, bytes: &[u8]) {
        let mut rest = bytes;
        for place in &self.places[self.first..] {
            if rest.is_empty() {
                return;
            }
            let free = skip.min(place.bytes);
            skip -= free;
            let (now, later) = rest.split_at(rest.len().min(place.bytes - free));
            let start = ptr::with_exposed_provenance_mut(place.start + free);
            // SAFETY: the place is guest memory that `self.memory` keeps mapped (the module's invariant); the slice is
            // dropped before that.
            #[expect(unsafe_code, reason = "a place has no lifetime of its own")]
            let place = unsafe { VolatileSlice::new(start, place.bytes - free) };
            // Offset 0 of a place that is not empty: it copies what fits.
            let _ = place.write(now, 0);
            rest = later;
        }
    }

    /// Drops the first `count` bytes.
    pub fn advance(&mut self, mut count: usize) {
        self.bytes = self.bytes.saturating_sub(count);
        while let Some(place) = self.places.get_mut(self.first) {
            if count < place.bytes {
                place.start += count;
                place.bytes -= count;
                break;
            }
            count -= place.bytes;
            self.first += 1;
        }
        // Once in a while, so that it costs nothing by the piece.
        if self.first == self.places.len() || self.first >= MAX_PIECES {
            self.places.drain(..self.first);
            self.first = 0;
        }
    }

    /// Drops all of it.
    pub fn clear(&mut self) {
        self.places.clear();
        (self.first, self.bytes) = (0, 0);
        self.unplugs = self.memory.unplugs();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::virtio::testkit::{HIGH, LOW_END, memory};
    use crate::memory::{BLOCK, Hotplug};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixDatagram;
    use vm_memory::GuestAddress;

    fn buffer(addr: u64, len: u32) -> Buffer {
        Buffer { addr: GuestAddress(addr), len }
    }

    fn bytes(memory: &Memory, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        memory.read_slice(&mut bytes, GuestAddress(addr)).unwrap();
        bytes
    }

    #[test]
    fn a_frame_goes_behind_its_head_and_what_is_too_long_into_the_rest() {
        let memory = memory();
        let (near, far) = UnixDatagram::pair().unwrap();
        let mut room = Room::new(memory.clone());
        room.push(&[buffer(0x1_0000, 3), buffer(HIGH, 7), buffer(0x2_0000, 5)]).unwrap();
        assert_eq!((room.len(), room.pieces(), room.is_empty()), (15, 3, false));
        far.send(b"headfirstsecondrest").unwrap();
        let (mut head, mut rest) = ([0; 4], [0; 8]);
        assert_eq!(room.read_frame(near.as_fd(), &mut head, &mut rest).unwrap(), 19);
        assert_eq!((&head, &rest), (b"head", b"rest\0\0\0\0"));
        assert_eq!(room.len(), 15, "it stays as it is");
        room.write(0, b"HEAD");
        assert_eq!(bytes(&memory, 0x1_0000, 4), b"HEA\0");
        assert_eq!(bytes(&memory, HIGH, 8), b"Dfirsts\0");
        assert_eq!(bytes(&memory, 0x2_0000, 6), b"econd\0");
        room.write(2, b"..");
        assert_eq!(bytes(&memory, 0x1_0000, 4), b"HE.\0");
        assert_eq!(bytes(&memory, HIGH, 4), b".fir");
        room.advance(12);
        room.write(0, b"next frame");
        assert_eq!((room.len(), room.pieces()), (3, 1));
        assert_eq!(bytes(&memory, 0x2_0000, 6), b"ecnex\0");
    }

    #[test]
    fn places_in_memory_that_was_unplugged_are_stale() {
        let hotplug = Hotplug::map(4 * BLOCK, GuestAddress(4 << 30)).unwrap();
        hotplug.plug(0..2).unwrap();
        let mut room = Room::new(memory().with_hotplug(&hotplug).unwrap());
        room.push(&[buffer(4 << 30, 8), buffer((4 << 30) + BLOCK, 8)]).unwrap();
        hotplug.plug(2..3).unwrap();
        assert!(!room.is_stale());
        hotplug.unplug(1..2).unwrap();
        assert!(room.is_stale());
        room.clear();
        assert!(!room.is_stale());
        room.push(&[buffer((4 << 30) + BLOCK, 8)]).unwrap_err();
        room.push(&[buffer(4 << 30, 8)]).unwrap();
    }

    #[test]
    fn buffers_that_follow_each_other_are_one_piece() {
        let memory = memory();
        let (near, far) = UnixDatagram::pair().unwrap();
        let mut room = Room::new(memory.clone());
        room.push(&[buffer(0x1_0000, 4), buffer(0x1_0004, 4)]).unwrap();
        room.push(&[buffer(0x1_0008, 4)]).unwrap();
        assert_eq!((room.len(), room.pieces()), (12, 1));
        // Not one that comes before, nor one with a gap, nor one whose neighbour was used up.
        room.push(&[buffer(0x1_0000 - 4, 4), buffer(0x1_0010, 4)]).unwrap();
        assert_eq!((room.len(), room.pieces()), (20, 3));
        room.push(&[buffer(0x1_0014, 4), buffer(LOW_END, 4)]).unwrap_err();
        assert_eq!((room.len(), room.pieces()), (20, 3), "what has failed is not there, grown or new");
        room.advance(20);
        room.push(&[buffer(0x1_0014, 4)]).unwrap();
        assert_eq!((room.len(), room.pieces()), (4, 1));
        far.send(b"ab").unwrap();
        assert_eq!(room.read_frame(near.as_fd(), &mut [], &mut []).unwrap(), 2);
        assert_eq!(bytes(&memory, 0x1_0010, 8), b"\0\0\0\0ab\0\0");
    }

    #[test]
    fn buffers_outside_of_memory_leave_no_trace() {
        let mut room = Room::new(memory());
        room.push(&[buffer(0x1_0000, 8)]).unwrap();
        room.push(&[buffer(0x2_0000, 8), buffer(LOW_END - 4, 8)]).unwrap_err();
        assert_eq!((room.len(), room.pieces()), (8, 1));
        room.advance(8);
        assert_eq!((room.len(), room.pieces(), room.is_empty()), (0, 0, true));
        room.push(&[buffer(0x2_0000, 8)]).unwrap();
        room.clear();
        assert_eq!((room.len(), room.pieces()), (0, 0));
    }
}
