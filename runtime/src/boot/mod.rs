//! Booting: from a kernel's file, an initrd and a command line to a machine that is about to execute its first instruction.
//!
//! Owns the detection of the image's format and the placement of kernel and initrd. Refuses every image whose headers do not
//! fit the file or the guest's memory, naming which. Invariant: nothing is written to guest memory before the whole plan
//! has been checked against the file's size and the memory's ranges.

mod bzimage;
mod elf;
mod error;
mod image;

pub use error::BootError;

use crate::arch::{self, Entry, Found, Loaded, cmdline};
use crate::memory::{self, GuestMemory, HUGE_PAGE, read_file};
use crate::spec::BootSpec;
use error::Role;
use image::Image;
use std::collections::BTreeMap;
use std::fs::File;
use vm_memory::{Address, GuestAddress, GuestMemoryBackend};

const PAGE: u64 = 4096;
/// Up to so many bytes are cheaper read into small pages, faulted one by one, than into a huge page that is cleared before.
const SPARSE: u64 = 64 << 10;

/// A part of a file and its place in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    /// Where it starts in the file.
    offset: u64,
    /// Bytes read from the file.
    file_bytes: u64,
    /// Guest address.
    address: u64,
    /// Bytes of memory that it takes; those after `file_bytes` are zero.
    memory_bytes: u64,
}

/// How a kernel is to be loaded.
#[derive(Debug)]
struct Plan {
    segments: Vec<Segment>,
    entry: Entry,
    /// Setup header of a bzImage.
    header: Option<arch::boot::SetupHeader>,
    /// Longest command line without its zero.
    max_cmdline: usize,
    /// An initrd ends at or below this address.
    initrd_limit: u64,
}

/// What is booted, besides the kernel's and the initrd's files.
#[derive(Debug)]
pub struct Request<'a> {
    /// Protocol and command line.
    pub spec: &'a BootSpec,
    /// The kernel's arguments, without device declarations.
    pub args: &'a str,
    /// How the kernel finds its virtio devices.
    pub devices: Found<'a>,
    /// Number of vCPUs.
    pub vcpus: u8,
}

/// Loads kernel, initrd and what the kernel expects to find; returns its entry.
///
/// # Errors
/// See [`BootError`]; guest memory may hold parts of the kernel then, and is not to be run.
pub fn load(
    memory: &GuestMemory,
    kernel: &File,
    initrd: Option<&File>,
    request: &Request<'_>,
) -> Result<Entry, BootError> {
    let image = Image::open(kernel)?;
    let plan = match image.format()? {
        image::Format::Elf => elf::plan(&image, request.spec.protocol())?,
        image::Format::BzImage => bzimage::plan(&image, request.spec.protocol())?,
    };
    let kernel_end = check(&plan, &image, memory)?;
    let line = cmdline::build(request.args, request.devices)?;
    if line.len() > plan.max_cmdline {
        return Err(BootError::CmdlineOverKernels { length: line.len(), allowed: plan.max_cmdline });
    }
    let initrd = initrd.map(|file| place_initrd(file, &plan, memory, kernel_end)).transpose()?;
    for window in sparse_windows(plan.segments.iter().chain(initrd.iter().map(|(_, segment)| segment))) {
        memory::prefer(memory, GuestAddress(window), memory::Pages::Small);
    }
    for segment in plan.segments.iter().filter(|segment| segment.file_bytes > 0) {
        fill(memory, kernel, Role::Kernel, segment)?;
    }
    if let Some((file, segment)) = &initrd {
        fill(memory, file, Role::Initrd, segment)?;
    }
    let initrd = initrd.map(|(_, segment)| (segment.address, bytes(segment.file_bytes)));
    let loaded = Loaded {
        entry: plan.entry,
        header: plan.header,
        initrd,
        cmdline: &line,
        vcpus: request.vcpus,
        slots: request.devices.slots(),
    };
    arch::boot::write(memory, &loaded)?;
    Ok(plan.entry)
}

fn fill(memory: &GuestMemory, file: &File, role: Role, segment: &Segment) -> Result<(), BootError> {
    let at = GuestAddress(segment.address);
    read_file(memory, file, segment.offset, at, bytes(segment.file_bytes))
        .map_err(|source| BootError::Read { role, source })
}

/// Checks that every segment lies in the file and in memory; returns where the kernel ends.
fn check(plan: &Plan, image: &Image<'_>, memory: &GuestMemory) -> Result<u64, BootError> {
    let mut kernel_end = arch::HIMEM;
    for segment in &plan.segments {
        let end = segment.offset.checked_add(segment.file_bytes);
        if end.is_none_or(|end| end > image.size()) {
            let needed = end.unwrap_or(u64::MAX);
            return Err(BootError::Truncated { role: Role::Kernel, size: image.size(), needed });
        }
        let in_memory =
            segment.address >= arch::HIMEM && contains(memory, segment.address, segment.memory_bytes);
        if !in_memory || segment.memory_bytes < segment.file_bytes {
            return Err(BootError::Segment {
                address: segment.address,
                bytes: segment.memory_bytes,
                low: arch::HIMEM,
                high: low_memory_end(memory),
            });
        }
        kernel_end = kernel_end.max(segment.address + segment.memory_bytes);
    }
    let entry = plan.entry.address();
    let inside =
        |segment: &Segment| entry >= segment.address && entry - segment.address < segment.memory_bytes;
    if !plan.segments.iter().any(inside) {
        return Err(BootError::Entry { address: entry });
    }
    if kernel_end > plan.entry.limit() {
        return Err(BootError::Beyond { end: kernel_end, limit: plan.entry.limit() });
    }
    Ok(kernel_end)
}

/// Whether all of `length` bytes at `address` are guest memory.
fn contains(memory: &GuestMemory, address: u64, length: u64) -> bool {
    usize::try_from(length).is_ok_and(|length| memory.check_range(GuestAddress(address), length))
        && address.checked_add(length).is_some()
}

/// Where the memory that starts at zero ends.
fn low_memory_end(memory: &GuestMemory) -> u64 {
    memory.to_region_addr(GuestAddress(0)).map_or(0, |(region, _)| {
        use vm_memory::GuestMemoryRegion;
        region.start_addr().raw_value() + region.len()
    })
}

/// Puts the initrd right behind the kernel, where huge pages are populated already.
fn place_initrd<'a>(
    file: &'a File,
    plan: &Plan,
    memory: &GuestMemory,
    kernel_end: u64,
) -> Result<(&'a File, Segment), BootError> {
    let size = image::size(file, Role::Initrd)?;
    if size == 0 {
        return Err(BootError::Truncated { role: Role::Initrd, size, needed: 1 });
    }
    let limit = low_memory_end(memory).min(plan.initrd_limit);
    let address = kernel_end.next_multiple_of(PAGE);
    let room = limit.saturating_sub(address);
    if size > room {
        return Err(BootError::InitrdTooLarge { size, room });
    }
    Ok((file, Segment { offset: 0, file_bytes: size, address, memory_bytes: size }))
}

/// Huge pages' places of which no more than [`SPARSE`] bytes are going to be read from files.
fn sparse_windows<'a>(segments: impl Iterator<Item = &'a Segment>) -> Vec<u64> {
    const WINDOW: u64 = HUGE_PAGE as u64;
    let mut windows: BTreeMap<u64, u64> = BTreeMap::new();
    for segment in segments {
        let end = segment.address + segment.file_bytes;
        let first = segment.address / WINDOW;
        let last = end.saturating_sub(1).max(segment.address) / WINDOW;
        // What lies between the first and the last one is full.
        for window in if first == last { vec![first] } else { vec![first, last] } {
            let start = window * WINDOW;
            let inside = end.min(start + WINDOW) - segment.address.max(start);
            *windows.entry(start).or_default() += inside;
        }
    }
    windows.into_iter().filter(|&(_, bytes)| bytes > 0 && bytes <= SPARSE).map(|(window, _)| window).collect()
}

/// A length that was found to lie within a mapped region, so that it fits.
fn bytes(length: u64) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
