//! System calls that move bytes between a descriptor and guest memory, without a copy in between.
//!
//! Owns the lists of addresses that such calls take; [`room::Room`] keeps one from one event to the next. Refuses buffers that do not lie in guest memory. Invariant: an
//! address in a [`GuestIo`] was translated from guest memory of the lifetime `'m`, so the mapping outlives the call;
//! that the guest changes the bytes meanwhile is expected, and nothing here ever makes a Rust reference to them.

pub mod room;

use super::Memory;
use super::queue::Buffer;
use smallvec::SmallVec;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};
use vm_memory::{Bytes, GuestMemory, Permissions, VolatileSlice};

/// The most pieces that one system call takes (`UIO_MAXIOV`).
const MAX_PIECES: usize = 1024;
/// Pieces that need no allocation: those of a frame of 64 KiB in pages.
const FEW_PIECES: usize = 20;

/// A buffer of the driver's does not lie in guest memory, or may not be accessed so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the buffer of {len} bytes at {addr:#x} does not lie in guest memory")]
pub struct BadBuffer {
    /// Guest address.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
}

/// Pieces of guest memory, in order, that a call reads into or writes from.
pub struct GuestIo<'m> {
    pieces: SmallVec<[VolatileSlice<'m>; FEW_PIECES]>,
    bytes: usize,
    /// Pieces before this one are done.
    first: usize,
    memory: PhantomData<&'m Memory>,
}

impl<'m> GuestIo<'m> {
    /// Room for about `pieces` pieces.
    #[inline]
    #[must_use]
    pub fn with_capacity(pieces: usize) -> Self {
        Self { pieces: SmallVec::with_capacity(pieces), bytes: 0, first: 0, memory: PhantomData }
    }

    /// All of `buffers`, for the access that `permissions` names.
    pub fn new(memory: &'m Memory, buffers: &[Buffer], permissions: Permissions) -> Result<Self, BadBuffer> {
        let mut io = Self::with_capacity(buffers.len());
        io.extend(memory, buffers, permissions)?;
        Ok(io)
    }

    /// Appends all of `buffers`: to a `GuestIo` that stays where it is, which is large.
    #[inline]
    pub fn extend(
        &mut self,
        memory: &'m Memory,
        buffers: &[Buffer],
        permissions: Permissions,
    ) -> Result<(), BadBuffer> {
        buffers.iter().try_for_each(|buffer| self.push(memory, *buffer, permissions))
    }

    /// Appends `buffer`.
    #[inline]
    pub fn push(
        &mut self,
        memory: &'m Memory,
        buffer: Buffer,
        permissions: Permissions,
    ) -> Result<(), BadBuffer> {
        let bad = |_| BadBuffer { addr: buffer.addr.0, len: buffer.len };
        let len = usize::try_from(buffer.len).unwrap_or(usize::MAX);
        for slice in GuestMemory::get_slices(memory, buffer.addr, len, permissions).map_err(bad)? {
            let slice = slice.map_err(bad)?;
            self.bytes += slice.len();
            self.pieces.push(slice);
        }
        Ok(())
    }

    /// Appends what is left of `other`.
    pub fn append(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.pieces.extend_from_slice(&other.pieces[other.first..]);
    }

    /// Bytes that are left.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Drops the first `count` bytes.
    pub fn advance(&mut self, mut count: usize) {
        self.bytes = self.bytes.saturating_sub(count);
        while let Some(piece) = self.pieces.get_mut(self.first) {
            if count < piece.len() {
                // `count` is inside the piece, so this cannot fail.
                if let Ok(rest) = piece.offset(count) {
                    *piece = rest;
                }
                return;
            }
            count -= piece.len();
            self.first += 1;
        }
    }

    /// Takes the last byte off; none if nothing is left.
    #[must_use]
    pub fn split_last_byte(&mut self) -> Option<VolatileSlice<'m>> {
        let last = self.pieces[self.first..].last()?;
        let byte = last.offset(last.len().checked_sub(1)?).ok()?;
        self.truncate(self.bytes.checked_sub(1)?);
        Some(byte)
    }

    /// Keeps the first `count` bytes only.
    pub fn truncate(&mut self, count: usize) {
        let mut left = count.min(self.bytes);
        self.bytes = left;
        for index in self.first..self.pieces.len() {
            let piece = self.pieces[index];
            if left <= piece.len() {
                if let Ok(kept) = piece.subslice(0, left) {
                    self.pieces[index] = kept;
                }
                self.pieces.truncate(index + 1);
                return;
            }
            left -= piece.len();
        }
    }

    /// Copies as much as there is room for into guest memory; returns how much.
    pub fn fill_from(&mut self, bytes: &[u8]) -> usize {
        let mut done = 0;
        for piece in &self.pieces[self.first..] {
            let rest = &bytes[done..];
            if rest.is_empty() {
                break;
            }
            // Offset 0 of a piece that is not empty: copies what fits.
            done += piece.write(&rest[..rest.len().min(piece.len())], 0).unwrap_or(0);
        }
        self.advance(done);
        done
    }

    /// Copies as much as is there out of guest memory; returns how much.
    pub fn copy_into(&mut self, bytes: &mut [u8]) -> usize {
        let mut done = 0;
        for piece in &self.pieces[self.first..] {
            let rest = &mut bytes[done..];
            if rest.is_empty() {
                break;
            }
            let len = rest.len().min(piece.len());
            done += piece.read(&mut rest[..len], 0).unwrap_or(0);
        }
        self.advance(done);
        done
    }

    /// Appends all that is left to `bytes`.
    pub fn append_to(&mut self, bytes: &mut Vec<u8>) {
        let start = bytes.len();
        bytes.resize(start + self.bytes, 0);
        let copied = self.copy_into(&mut bytes[start..]);
        bytes.truncate(start + copied);
    }

    /// Reads from `file` at byte `offset` (preadv); may read less than asked. What was read is no longer left.
    pub fn read_file(&mut self, file: BorrowedFd<'_>, offset: u64) -> io::Result<usize> {
        let offset = file_offset(offset)?;
        let (list, count) = self.list();
        // SAFETY: `list` holds addresses and lengths of guest memory that is mapped for 'm (the module's invariant).
        #[expect(unsafe_code, reason = "guest memory is no Rust slice, and only slices have a safe preadv")]
        let result = unsafe { libc::preadv(file.as_raw_fd(), list.as_ptr(), count, offset) };
        self.finish(result)
    }

    /// Writes to `file` at byte `offset` (pwritev); may write less than asked. What was written is no longer left.
    pub fn write_file(&mut self, file: BorrowedFd<'_>, offset: u64) -> io::Result<usize> {
        let offset = file_offset(offset)?;
        let (list, count) = self.list();
        // SAFETY: `list` holds addresses and lengths of guest memory that is mapped for 'm (the module's invariant).
        #[expect(unsafe_code, reason = "guest memory is no Rust slice, and only slices have a safe pwritev")]
        let result = unsafe { libc::pwritev(file.as_raw_fd(), list.as_ptr(), count, offset) };
        self.finish(result)
    }

    /// Receives from a stream socket without waiting. What was received is no longer left.
    pub fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let (mut list, _) = self.list();
        let mut message = message(&mut list);
        // SAFETY: `message` names `list`, which outlives the call and holds addresses and lengths of guest memory that
        // is mapped for 'm (the module's invariant).
        #[expect(unsafe_code, reason = "guest memory is no Rust slice, and only slices have a safe recvmsg")]
        let result = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
        self.finish(result)
    }

    /// Sends on a stream socket without waiting. What was sent is no longer left.
    pub fn send(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let (mut list, _) = self.list();
        let message = message(&mut list);
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: `message` names `list`, which outlives the call and holds addresses and lengths of guest memory that
        // is mapped for 'm (the module's invariant).
        #[expect(unsafe_code, reason = "guest memory is no Rust slice, and only slices have a safe sendmsg")]
        let result = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) };
        self.finish(result)
    }

    /// Writes one frame (writev): `head`, which nobody can change any more, and then all that is left of guest memory,
    /// in at most 1023 pieces.
    pub fn write_frame(&mut self, file: BorrowedFd<'_>, head: &[u8]) -> io::Result<usize> {
        let mut list = List::with_capacity(self.pieces() + 1);
        list.push(libc::iovec { iov_base: head.as_ptr().cast_mut().cast(), iov_len: head.len() });
        list.extend(self.pieces[self.first..].iter().take(MAX_PIECES).map(vector));
        let count = libc::c_int::try_from(list.len()).unwrap_or(0);
        // SAFETY: `list` holds `head`, which the kernel only reads, and addresses and lengths of guest memory that is
        // mapped for 'm (the module's invariant). One piece too many is refused by the kernel.
        #[expect(unsafe_code, reason = "guest memory is no Rust slice, and only slices have a safe writev")]
        let result = unsafe { libc::writev(file.as_raw_fd(), list.as_ptr(), count) };
        let total = usize::try_from(result).map_err(|_| io::Error::last_os_error())?;
        self.advance(total.saturating_sub(head.len()));
        Ok(total)
    }

    /// Sends one frame on a stream socket without waiting (sendmsg): `head`, which nobody can change any more, and then all
    /// that is left of guest memory. May send less: how much, is returned. What was sent is no longer left.
    pub fn send_frame(&mut self, socket: BorrowedFd<'_>, head: &[u8]) -> io::Result<usize> {
        let (pieces, _) = self.list();
        let mut list = Vec::with_capacity(pieces.len() + 1);
        list.push(libc::iovec { iov_base: head.as_ptr().cast_mut().cast(), iov_len: head.len() });
        list.extend(pieces);
        let message = message(&mut list);
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: `message` names `list`, which outlives the call and holds `head`, which the kernel only reads, and addresses
        // and lengths of guest memory that is mapped for 'm (the module's invariant). One piece too many is refused.
        #[expect(unsafe_code, reason = "guest memory is no Rust slice, and only slices have a safe sendmsg")]
        let result = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) };
        let total = usize::try_from(result).map_err(|_| io::Error::last_os_error())?;
        self.advance(total.saturating_sub(head.len()));
        Ok(total)
    }

    /// How many pieces are left.
    #[must_use]
    pub fn pieces(&self) -> usize {
        self.pieces.len() - self.first
    }

    /// Addresses and lengths of what is left, in at most 1024 pieces: for a call that outlives this. Who makes it keeps the
    /// memory mapped.
    pub(super) fn addresses(&self) -> Vec<libc::iovec> {
        self.list().0.into_vec()
    }

    #[inline]
    fn list(&self) -> (List, libc::c_int) {
        let list: List = self.pieces[self.first..].iter().take(MAX_PIECES).map(vector).collect();
        let count = libc::c_int::try_from(list.len()).unwrap_or(0);
        (list, count)
    }

    fn finish(&mut self, result: isize) -> io::Result<usize> {
        let count = usize::try_from(result).map_err(|_| io::Error::last_os_error())?;
        self.advance(count);
        Ok(count)
    }
}

/// What a system call takes.
type List = SmallVec<[libc::iovec; FEW_PIECES + 1]>;

fn vector(piece: &VolatileSlice<'_>) -> libc::iovec {
    libc::iovec { iov_base: piece.ptr_guard_mut().as_ptr().cast(), iov_len: piece.len() }
}

fn file_offset(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

fn message(list: &mut [libc::iovec]) -> libc::msghdr {
    #[expect(
        unsafe_code,
        reason = "msghdr has private padding on musl, so it cannot be written as a literal"
    )]
    // SAFETY: all-zero is a valid msghdr: null pointers with zero lengths.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = list.as_mut_ptr();
    // size_t on glibc, int on musl; at most MAX_PIECES either way.
    #[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "bounded by MAX_PIECES")]
    {
        message.msg_iovlen = list.len() as _;
    }
    message
}
