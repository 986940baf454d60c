//! Guest memory: how it is mapped, populated, filled from files and given back.
//!
//! Owns the mapping of each region until the process ends. Refuses sizes that are not whole pages of the backing.
//! Invariant: nothing here makes a `&[u8]` of guest memory; the guest may write to it at any time. [`GuestMemory`] is RAM
//! alone: what loads, populates or gives back takes it, and so has no way to an [`Image`].

mod blocks;
mod device;
mod fill;
mod hotplug;
mod image;
mod mapping;
mod slices;

pub use device::DeviceMemory;
pub use fill::{FillError, read_file};
pub use hotplug::{BLOCK, Blockwise, Hotplug, NotNow, Reader};
pub use image::Image;

use rustix::io::Errno;
use vm_memory::mmap::FromRangesError;
use vm_memory::{
    Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
};

/// The memory of one guest: its RAM.
pub type GuestMemory = GuestMemoryMmap<()>;

/// Bytes of a huge page, transparent or hugetlb.
pub const HUGE_PAGE: usize = 2 << 20;

/// Bytes of the smallest page.
const PAGE_BYTES: u64 = 4096;

/// What guest memory is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backing {
    /// Anonymous memory, aligned to [`HUGE_PAGE`], transparent huge pages advised.
    Anonymous,
    /// hugetlb pages of 2 MiB, reserved when mapped.
    HugeTlb2M,
}

/// Guest memory cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The host does not have or give this much.
    #[error(
        "machine-config.mem_size_mib: {mib} MiB of guest memory cannot be mapped: {source} \
         (a limit on address space, or vm.overcommit_memory=2)"
    )]
    NoMemory {
        /// Size in MiB.
        mib: usize,
        /// What `mmap(2)` said.
        source: Errno,
    },
    /// Not enough hugetlb pages are free.
    #[error(
        "machine-config.huge_pages: {needed} huge pages of 2 MiB are needed and {free} are free \
         (raise /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages): {source}"
    )]
    NoHugePages {
        /// Pages that the guest needs.
        needed: usize,
        /// Pages that could have been reserved.
        free: usize,
        /// What `mmap(2)` said.
        source: Errno,
    },
    /// A region is not made of whole pages.
    #[error("a memory region of {bytes} bytes is not made of whole pages of {page} bytes")]
    NotPages {
        /// Size of the region.
        bytes: usize,
        /// Size of a page of the backing.
        page: usize,
    },
    /// The regions do not fit together.
    #[error("guest memory regions: {0}")]
    Regions(#[from] FromRangesError),
    /// A region wraps around the end of the address space.
    #[error("the memory region at {0:#x} wraps")]
    Wraps(u64),
    /// An image cannot be mapped.
    #[error(
        "pmem {id:?}: the {bytes} bytes of its image cannot be mapped: {source} \
         (a limit on address space, or a file system without shared mappings)"
    )]
    Image {
        /// Its id.
        id: String,
        /// Size of the file.
        bytes: u64,
        /// What `mmap(2)` said.
        source: Errno,
    },
    /// Memory that comes later has no place in the runtime's address space.
    #[error(
        "memory-hotplug.total_size_mib: {mib} MiB cannot be reserved: {source} (a limit on address space or open files)"
    )]
    Hotplug {
        /// Size in MiB.
        mib: u64,
        /// What `mmap(2)` or `eventfd(2)` said.
        source: Errno,
    },
    /// Populating failed.
    #[error("placement.prefault: {mib} MiB of guest memory cannot be populated: {source} ({hint})")]
    Populate {
        /// Size in MiB.
        mib: usize,
        /// What to look at.
        hint: &'static str,
        /// What `madvise(2)` said.
        source: Errno,
    },
}

/// Maps guest memory: `ranges` are (address, bytes), in ascending order. The memory at address 0 is huge pages like the rest:
/// Linux uses some three hundred small pages of the first 2 MiB, and a fault of the guest's costs twice as much as its clearing.
///
/// # Errors
/// See [`MemoryError`].
pub fn map(ranges: &[(GuestAddress, usize)], backing: Backing) -> Result<GuestMemory, MemoryError> {
    let total: usize = ranges.iter().map(|(_, bytes)| bytes).sum();
    let mut regions = Vec::with_capacity(ranges.len());
    for &(base, bytes) in ranges {
        let region = mapping::map(bytes, backing, total)?;
        regions.push(GuestRegionMmap::new(region, base).ok_or(MemoryError::Wraps(base.raw_value()))?);
    }
    GuestMemory::from_regions(regions).map_err(|error| MemoryError::Regions(FromRangesError::from(error)))
}

/// Which pages the host should use, where it has the choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pages {
    /// Of 4 KiB.
    Small,
    /// Transparent huge pages, of [`HUGE_PAGE`] bytes.
    Huge,
}

/// Asks for `pages` at the place of the huge page that `address` lies in. Small ones are for where little is going to be
/// used: clearing a huge page costs as much as some two hundred faults. Where the host cannot, nothing changes; what is not
/// guest memory is left alone.
pub fn prefer(memory: &GuestMemory, address: GuestAddress, pages: Pages) {
    if let Some((region, offset)) = memory.to_region_addr(address) {
        // A region's size is a usize, and the offset lies in it.
        mapping::prefer(region, usize::try_from(offset.raw_value()).unwrap_or(0), pages);
    }
}

/// Populates all of guest memory for writing.
///
/// # Errors
/// [`MemoryError::Populate`]; what was populated stays so.
pub fn populate(memory: &GuestMemory) -> Result<(), MemoryError> {
    for region in memory.iter() {
        mapping::populate(region).map_err(|source| MemoryError::Populate {
            mib: total_bytes(memory) >> 20,
            hint: match source {
                Errno::INVAL => "MADV_POPULATE_WRITE needs Linux 5.14",
                Errno::FAULT | Errno::HWPOISON => "no huge page left, a cgroup's limit, or broken memory",
                _ => "memory, or the cgroup's limit, is exhausted",
            },
            source,
        })?;
    }
    Ok(())
}

/// Gives the memory at `length` bytes from `address` back to the host: what the guest reads there next is zero. Takes the
/// whole pages of 4 KiB in the range that are guest memory; touches nothing else, and no hugetlb page. Where only a part of
/// a huge page's place is taken, small pages are asked for, until [`prefer`] says otherwise.
///
/// # Errors
/// What `madvise(2)` said; what was given back before is gone.
pub fn discard(memory: &GuestMemory, address: GuestAddress, length: u64) -> Result<(), Errno> {
    let (start, end) = (address.raw_value(), address.raw_value().saturating_add(length));
    for region in memory.iter() {
        let base = region.start_addr().raw_value();
        let from = start.saturating_sub(base).checked_next_multiple_of(PAGE_BYTES);
        let to = end.saturating_sub(base).min(region.len());
        let to = to - to % PAGE_BYTES;
        if let Some(from) = from.filter(|&from| from < to) {
            // A region's size is a usize, and both lie in it.
            let place = (usize::try_from(from), usize::try_from(to - from));
            if let (Ok(from), Ok(length)) = place {
                mapping::discard(region, (from, length))?;
            }
        }
    }
    Ok(())
}

/// Bytes of all regions together.
#[must_use]
pub fn total_bytes(memory: &GuestMemory) -> usize {
    memory.iter().map(|region| usize::try_from(region.len()).unwrap_or(usize::MAX)).sum()
}

#[cfg(test)]
mod tests;
