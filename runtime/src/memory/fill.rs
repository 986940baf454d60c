//! From a file straight into guest memory.
//!
//! Refuses a target outside guest memory and a file that ends early. Invariant: the file's own position is neither used
//! nor moved (descriptors from outside may share it).

use super::GuestMemory;
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use vm_memory::{GuestAddress, GuestMemoryBackend, VolatileSlice};

/// A file's bytes are not in guest memory.
#[derive(Debug, thiserror::Error)]
pub enum FillError {
    /// The target is not memory.
    #[error("{length} bytes at guest address {at:#x} are outside guest memory")]
    Outside {
        /// First guest address.
        at: u64,
        /// Bytes.
        length: usize,
    },
    /// The file has fewer bytes.
    #[error("it ends at byte {end}, within the part that starts at {offset}")]
    Short {
        /// Where the wanted part starts in the file.
        offset: u64,
        /// Where the file ends.
        end: u64,
    },
    /// It cannot be read.
    #[error("it cannot be read at byte {offset}: {source}")]
    Read {
        /// Where in the file.
        offset: u64,
        /// What `pread(2)` said.
        source: io::Error,
    },
}

/// Reads `length` bytes of `file` from `offset` into guest memory at `at`, in as few calls as there are regions.
///
/// # Errors
/// See [`FillError`]; what was read before stays.
pub fn read_file(
    memory: &GuestMemory,
    file: impl AsFd,
    offset: u64,
    at: GuestAddress,
    length: usize,
) -> Result<(), FillError> {
    let mut offset = offset;
    for slice in memory.get_slices(at, length) {
        let slice = slice.map_err(|_| FillError::Outside { at: at.0, length })?;
        fill_slice(&slice, &file, offset)?;
        offset += slice.len() as u64;
    }
    Ok(())
}

fn fill_slice(slice: &VolatileSlice<'_>, file: &impl AsFd, start: u64) -> Result<(), FillError> {
    let mut done = 0;
    while done < slice.len() {
        let offset = start + done as u64;
        let position = libc::off_t::try_from(offset)
            .map_err(|_| FillError::Read { offset, source: Errno::OVERFLOW.into() })?;
        let guard = slice.ptr_guard_mut();
        let target = guard.as_ptr().wrapping_add(done).cast();
        #[expect(unsafe_code, reason = "the kernel writes to guest memory, of which no reference may exist")]
        // SAFETY: `target` and the `slice.len() - done` bytes after it lie within `slice`, which borrows mapped,
        // writable guest memory for as long as `guard` lives.
        let read = unsafe { libc::pread(file.as_fd().as_raw_fd(), target, slice.len() - done, position) };
        match usize::try_from(read) {
            Ok(0) => return Err(FillError::Short { offset: start, end: offset }),
            Ok(read) => done += read,
            Err(_) => {
                let source = io::Error::last_os_error();
                if source.kind() != io::ErrorKind::Interrupted {
                    return Err(FillError::Read { offset, source });
                }
            }
        }
    }
    Ok(())
}
