//! The host's side of a region: one mapping.
//!
//! Owns address-space placement. Invariant: a region starts at a multiple of [`HUGE_PAGE`] in the host's address space, so
//! that the kernel can back it with huge pages wherever the guest's addresses are aligned too.

use super::{Backing, HUGE_PAGE, MemoryError, Pages};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags, madvise, mmap_anonymous, mprotect, munmap};
use std::ffi::c_void;
use std::ptr::null_mut;
use vm_memory::{GuestRegionMmap, MmapRegion};

const PAGE: usize = 4096;
/// Most places of huge pages in a region (16 GiB) for which each may be told to have small or huge pages. Of the three regions
/// that a guest may have, the one below 4 GiB, the one above and the one that comes and goes, all together stay below what a
/// process has of mappings, with the pieces of the last.
const MOST_PLACES: usize = 8192;
const PROT: ProtFlags = ProtFlags::READ.union(ProtFlags::WRITE);

/// Maps `bytes`; `total` is what the whole guest needs, for the error's text.
pub(super) fn map(bytes: usize, backing: Backing, total: usize) -> Result<MmapRegion, MemoryError> {
    let page = match backing {
        Backing::Anonymous => PAGE,
        Backing::HugeTlb2M => HUGE_PAGE,
    };
    if bytes == 0 || !bytes.is_multiple_of(page) {
        return Err(MemoryError::NotPages { bytes, page });
    }
    match backing {
        Backing::Anonymous => {
            anonymous(bytes).map_err(|source| MemoryError::NoMemory { mib: total >> 20, source })
        }
        Backing::HugeTlb2M => region(bytes, HUGETLB).map_err(|source| MemoryError::NoHugePages {
            needed: total / HUGE_PAGE,
            free: free_huge_pages(total / HUGE_PAGE),
            source,
        }),
    }
}

/// Says whether pages are to be small or huge at the place of the huge page around `inside` (bytes into the region).
pub(super) fn prefer(region: &GuestRegionMmap, inside: usize, pages: Pages) {
    let mapping = region.get_mmap();
    // Each place may cost two mappings, of which a process has 65530.
    if mapping.size() / HUGE_PAGE > MOST_PLACES {
        return;
    }
    let start = inside - inside % HUGE_PAGE;
    let length = HUGE_PAGE.min(mapping.size().saturating_sub(start));
    let advice = match pages {
        Pages::Small => Advice::LinuxNoHugepage,
        Pages::Huge => Advice::LinuxHugepage,
    };
    // Advice: a host without huge pages, or without room for one more mapping, says no, and the guest loses nothing.
    let _refused = advise(&mapping, (start, length), advice);
}

/// Makes the host back all of `region` with memory, as if each page had been written.
pub(super) fn populate(region: &GuestRegionMmap) -> Result<(), Errno> {
    let start: *mut c_void = region.get_mmap().as_ptr().cast();
    let bytes = region.get_mmap().size();
    loop {
        #[expect(unsafe_code, reason = "madvise(2) takes a pointer")]
        // SAFETY: the range is the region's own mapping; populating changes no content.
        let result = unsafe { madvise(start, bytes, Advice::LinuxPopulateWrite) };
        match result {
            Err(Errno::INTR | Errno::AGAIN) => {}
            other => return other,
        }
    }
}

/// Gives the pages of (start, length) of a region, whole pages of it, back to the host: they read as zero when they are
/// next touched. Refuses what the region does not have.
///
/// Where the range has a part of a huge page's place, pages are small from now on: khugepaged would make a huge page of
/// what is left there, and so fill the hole again.
///
/// hugetlb pages are kept. Linux does not renew the reservation of one that was given back (older kernels never, newer ones
/// not while the pool has surplus pages), so the guest's next touch could find none left: a SIGBUS.
pub(super) fn discard(region: &GuestRegionMmap, (start, length): (usize, usize)) -> Result<(), Errno> {
    let mapping = region.get_mmap();
    let inside = start.checked_add(length).is_some_and(|end| end <= mapping.size());
    if !inside || !start.is_multiple_of(PAGE) || !length.is_multiple_of(PAGE) {
        return Err(Errno::INVAL);
    }
    if mapping.flags() & MapFlags::HUGETLB.bits().cast_signed() != 0 {
        return Ok(());
    }
    for edge in [start, start + length] {
        if !edge.is_multiple_of(HUGE_PAGE) {
            prefer(region, edge, Pages::Small);
        }
    }
    let start = mapping.as_ptr().wrapping_add(start).cast();
    #[expect(unsafe_code, reason = "madvise(2) takes a pointer")]
    // SAFETY: the range lies in the region's own mapping, as was just checked, which is private and anonymous and is guest
    // memory: its content may change at any time, and no reference to it exists.
    unsafe {
        madvise(start, length, Advice::LinuxDontNeed)
    }
}

const ANONYMOUS: MapFlags = MapFlags::PRIVATE.union(MapFlags::NORESERVE);
/// Without NORESERVE: the pages are set aside now, so that a shortage is an error and not a SIGBUS later.
const HUGETLB: MapFlags = MapFlags::PRIVATE.union(MapFlags::HUGETLB).union(MapFlags::HUGE_2MB);

/// A region where the kernel puts it, unmapped when it is dropped.
fn region(bytes: usize, flags: MapFlags) -> Result<MmapRegion, Errno> {
    let flags = (flags.bits() | libc::MAP_ANONYMOUS.cast_unsigned()).cast_signed();
    MmapRegion::build(None, bytes, PROT.bits().cast_signed(), flags).map_err(|error| match error {
        vm_memory::mmap::MmapRegionError::Mmap(error) => Errno::from_io_error(&error).unwrap_or(Errno::NOMEM),
        _ => Errno::INVAL,
    })
}

fn mmap(bytes: usize, prot: ProtFlags, flags: MapFlags) -> Result<*mut c_void, Errno> {
    #[expect(unsafe_code, reason = "mmap(2) makes a raw mapping")]
    // SAFETY: a new anonymous mapping at an address that the kernel chooses replaces nothing.
    unsafe {
        mmap_anonymous(null_mut(), bytes, prot, flags)
    }
}

fn unmap(start: *mut c_void, bytes: usize) -> Result<(), Errno> {
    if bytes == 0 {
        return Ok(());
    }
    #[expect(unsafe_code, reason = "munmap(2) takes a pointer")]
    // SAFETY: callers pass a part of a mapping of this module that nothing refers to.
    unsafe {
        munmap(start, bytes)
    }
}

/// Anonymous memory whose start is a multiple of [`HUGE_PAGE`], huge pages advised.
fn anonymous(bytes: usize) -> Result<MmapRegion, Errno> {
    let mut region = region(bytes, ANONYMOUS)?;
    if !region.as_ptr().addr().is_multiple_of(HUGE_PAGE) {
        // Kernels since 6.7 align large mappings by themselves; for others, and for small ones, it is done here.
        region = aligned(bytes)?;
    }
    advise(&region, (0, bytes), Advice::LinuxHugepage)?;
    Ok(region)
}

/// Gives `advice` about (start, length) of a region.
fn advise(region: &MmapRegion, (start, length): (usize, usize), advice: Advice) -> Result<(), Errno> {
    if length == 0 {
        return Ok(());
    }
    let start = region.as_ptr().wrapping_add(start).cast();
    #[expect(unsafe_code, reason = "madvise(2) takes a pointer")]
    // SAFETY: callers pass a part of the region's own mapping; the advice changes no content.
    let advised = unsafe { madvise(start, length, advice) };
    match advised {
        // A kernel without transparent huge pages says EINVAL; the guest runs on small ones.
        Err(Errno::INVAL) => Ok(()),
        other => other,
    }
}

/// `bytes` of the host's address space from a multiple of [`HUGE_PAGE`] on: anonymous memory that can only be read, for a file
/// to be mapped over. Never unmapped.
pub(super) fn reserve(bytes: usize) -> Result<*mut c_void, Errno> {
    place(bytes, ProtFlags::READ)
}

/// `bytes` of anonymous memory, aligned to [`HUGE_PAGE`], huge pages advised, that nobody can touch before [`open`].
pub(super) fn inaccessible(bytes: usize) -> Result<MmapRegion, Errno> {
    let region = built(place(bytes, ProtFlags::empty())?, bytes)?;
    advise(&region, (0, bytes), Advice::LinuxHugepage)?;
    Ok(region)
}

/// Makes (start, length) of a region accessible.
pub(super) fn open(region: &GuestRegionMmap, range: (usize, usize)) -> Result<(), Errno> {
    protect(region, range, MprotectFlags::READ.union(MprotectFlags::WRITE))
}

/// Makes (start, length) of a region inaccessible and gives its memory back to the host. Nobody may be at it.
pub(super) fn close(region: &GuestRegionMmap, range: (usize, usize)) -> Result<(), Errno> {
    protect(region, range, MprotectFlags::empty())?;
    // Now nobody can fill again what is given back.
    discard(region, range)?;
    // A balloon may have asked for small pages here. Advice again: who says no changes nothing.
    let _refused = advise(&region.get_mmap(), range, Advice::LinuxHugepage);
    Ok(())
}

fn protect(
    region: &GuestRegionMmap,
    (start, length): (usize, usize),
    flags: MprotectFlags,
) -> Result<(), Errno> {
    let mapping = region.get_mmap();
    if start.checked_add(length).is_none_or(|end| end > mapping.size()) {
        return Err(Errno::INVAL);
    }
    let start = mapping.as_ptr().wrapping_add(start).cast();
    #[expect(unsafe_code, reason = "mprotect(2) takes a pointer")]
    // SAFETY: the range lies in the region's own mapping, as was just checked, to which no reference exists. Copies to and
    // from it may be under way in other threads: `Hotplug` takes access away only where none can be.
    unsafe {
        mprotect(start, length, flags)
    }
}

/// A little more is mapped and the ends given back. Never unmapped.
fn place(bytes: usize, prot: ProtFlags) -> Result<*mut c_void, Errno> {
    let padded = bytes.checked_add(HUGE_PAGE).ok_or(Errno::NOMEM)?;
    let start = mmap(padded, prot, ANONYMOUS)?;
    let before = start.addr().next_multiple_of(HUGE_PAGE) - start.addr();
    let aligned = start.wrapping_byte_add(before);
    unmap(start, before)?;
    unmap(aligned.wrapping_byte_add(bytes), HUGE_PAGE - before)?;
    Ok(aligned)
}

/// See [`place`].
fn aligned(bytes: usize) -> Result<MmapRegion, Errno> {
    built(place(bytes, PROT)?, bytes)
}

/// The region of `bytes` bytes from `start`, which [`place`] has just made.
fn built(start: *mut c_void, bytes: usize) -> Result<MmapRegion, Errno> {
    let flags = (ANONYMOUS.bits() | libc::MAP_ANONYMOUS.cast_unsigned()).cast_signed();
    #[expect(unsafe_code, reason = "vm-memory does not align mappings")]
    // SAFETY: `start` is the first of `bytes` bytes that were just mapped and that nothing else knows of; they are never
    // unmapped, so they outlive the region. They are accessible, or will be before anything looks them up.
    let region = unsafe { MmapRegion::build_raw(start.cast(), bytes, PROT.bits().cast_signed(), flags) };
    region.map_err(|_| Errno::INVAL)
}

/// How many huge pages could be reserved, found by trying: the cell has no /sys. Fewer than `needed`.
fn free_huge_pages(needed: usize) -> usize {
    let (mut free, mut too_many) = (0, needed);
    while too_many - free > 1 {
        let middle = usize::midpoint(free, too_many);
        let mapped = mmap(middle * HUGE_PAGE, PROT, HUGETLB);
        match mapped.and_then(|start| unmap(start, middle * HUGE_PAGE)) {
            Ok(()) => free = middle,
            Err(_) => too_many = middle,
        }
    }
    free
}
