//! A file that a guest sees as memory and never writes: mapped read-only and shared, so that all sandboxes of one image use
//! the same pages of the host.
//!
//! Owns the mapping until the process ends. Refuses nothing: `resources` has looked at the file, which is open for reading
//! only. Invariant: no mapping made here is ever writable, nor can be made so: the kernel lets nobody write to a shared
//! mapping of a file that was opened for reading.

use super::{HUGE_PAGE, MemoryError, mapping};
use rustix::mm::{MapFlags, ProtFlags, mmap};
use std::os::fd::AsFd;
use std::sync::Arc;
use vm_memory::{Address, GuestAddress, GuestMemoryRegion, GuestRegionMmap, MmapRegion};

/// A part of the guest's address space that holds an image.
#[derive(Debug, Clone)]
pub struct Image {
    region: Arc<GuestRegionMmap<()>>,
}

impl Image {
    /// Maps the `bytes` of `file` for the guest at `base`, a multiple of [`HUGE_PAGE`]. The region is whole places of huge
    /// pages, as the guest's driver wants it. What follows the file's last page is anonymous memory, which reads as zero:
    /// a mapping of the file there would be an access beyond its end, a SIGBUS.
    ///
    /// # Errors
    /// [`MemoryError::Image`] if the host cannot map so much.
    pub fn map(file: impl AsFd, id: &str, bytes: u64, base: GuestAddress) -> Result<Self, MemoryError> {
        let failed = |source| MemoryError::Image { id: id.into(), bytes, source };
        let too_large = || failed(rustix::io::Errno::OVERFLOW);
        let length = usize::try_from(bytes).map_err(|_| too_large())?;
        let padded = length.checked_next_multiple_of(HUGE_PAGE).ok_or_else(too_large)?;
        let start = mapping::reserve(padded).map_err(failed)?;
        #[expect(unsafe_code, reason = "mmap(2) replaces a mapping at an address")]
        // SAFETY: `start` is the first of `padded` bytes, at least `length`, that were just reserved and that nothing else
        // knows of; the new mapping replaces the first of them.
        let mapped =
            unsafe { mmap(start, length, ProtFlags::READ, MapFlags::SHARED.union(MapFlags::FIXED), file, 0) };
        mapped.map_err(failed)?;
        let (prot, flags) = (libc::PROT_READ, libc::MAP_SHARED);
        #[expect(unsafe_code, reason = "vm-memory does not map a file and what follows it as one region")]
        // SAFETY: `padded` bytes from `start` were just mapped readable; they are never unmapped, so they outlive the region.
        let region = unsafe { MmapRegion::build_raw(start.cast(), padded, prot, flags) };
        let region = region.ok().and_then(|region| GuestRegionMmap::new(region, base));
        Ok(Self { region: Arc::new(region.ok_or(MemoryError::Wraps(base.raw_value()))?) })
    }

    /// First guest address.
    #[must_use]
    pub fn start(&self) -> u64 {
        self.region.start_addr().raw_value()
    }

    /// Bytes of the guest's address space, a multiple of [`HUGE_PAGE`].
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.region.len()
    }

    /// First address in the host's address space.
    #[must_use]
    pub fn host_address(&self) -> u64 {
        self.region.as_ptr().addr() as u64
    }

    pub(super) fn region(&self) -> Arc<GuestRegionMmap<()>> {
        Arc::clone(&self.region)
    }
}
