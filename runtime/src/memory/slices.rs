//! A range of guest memory as slices of the host's.
//!
//! Owns the short way for what nearly all ranges are: all in one region. Refuses what the region's own look-up refuses.
//! Invariant: whichever way, the same slices come out as of the memory's own iterator.

use super::GuestMemory;
use std::iter::FusedIterator;
use vm_memory::guest_memory::{GuestMemoryBackendSliceIterator, GuestMemorySliceIterator};
use vm_memory::{
    Address, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion, MemoryRegionAddress,
    VolatileSlice,
};

type Slice<'m> = Result<VolatileSlice<'m, ()>, GuestMemoryError>;

/// See the module.
#[derive(Debug)]
pub(super) enum Slices<'m> {
    /// All of it, until it was given out.
    Whole(Option<VolatileSlice<'m, ()>>),
    /// Nothing, what spans regions, and what lies in none.
    Parts(GuestMemoryBackendSliceIterator<'m, GuestMemory>),
}

impl<'m> Slices<'m> {
    /// `count` bytes of `memory` from `address` on.
    #[inline]
    pub(super) fn of(memory: &'m GuestMemory, address: GuestAddress, count: usize) -> Self {
        let whole = if count > 0 { whole(memory, address, count) } else { None };
        match whole {
            Some(slice) => Self::Whole(Some(slice)),
            None => Self::Parts(GuestMemoryBackend::get_slices(memory, address, count)),
        }
    }
}

/// The slice, if one region has all of it. There are two or three regions: a search by halves takes longer.
#[inline]
fn whole(memory: &GuestMemory, address: GuestAddress, count: usize) -> Option<VolatileSlice<'_, ()>> {
    let within = |region: &&_| {
        let offset = address.raw_value().wrapping_sub(GuestMemoryRegion::start_addr(*region).raw_value());
        offset < GuestMemoryRegion::len(*region)
    };
    let region = memory.iter().find(within)?;
    let offset = address.raw_value() - region.start_addr().raw_value();
    // It refuses what is longer than the region.
    region.get_slice(MemoryRegionAddress(offset), count).ok()
}

impl<'m> Iterator for Slices<'m> {
    type Item = Slice<'m>;

    #[inline]
    fn next(&mut self) -> Option<Slice<'m>> {
        match self {
            Self::Whole(slice) => slice.take().map(Ok),
            Self::Parts(parts) => parts.next(),
        }
    }
}

impl FusedIterator for Slices<'_> {}

impl<'m> GuestMemorySliceIterator<'m, ()> for Slices<'m> {
    #[inline]
    fn stop_on_error(self) -> Result<impl Iterator<Item = VolatileSlice<'m, ()>>, GuestMemoryError> {
        let (whole, parts) = match self {
            Self::Whole(slice) => (slice, None),
            Self::Parts(parts) => (None, Some(parts.stop_on_error()?)),
        };
        Ok(whole.into_iter().chain(parts.into_iter().flatten()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Backing, map};

    const PAGE: u64 = 4096;

    /// Two regions side by side, and one behind a gap.
    fn memory() -> GuestMemory {
        let ranges = [(0, 4096), (PAGE, 4096), (3 * PAGE, 4096)].map(|(at, len)| (GuestAddress(at), len));
        map(&ranges, Backing::Anonymous).unwrap()
    }

    /// Address and length of each slice, or that it is none.
    fn shape<'m>(slices: impl Iterator<Item = Slice<'m>>) -> Vec<Option<(usize, usize)>> {
        slices
            .map(|slice| slice.ok().map(|slice| (slice.ptr_guard().as_ptr() as usize, slice.len())))
            .collect()
    }

    #[test]
    fn both_ways_give_the_same_slices() {
        let memory = memory();
        let edges =
            [0, 1, 2000, PAGE - 1, PAGE, 2 * PAGE - 1, 2 * PAGE, 3 * PAGE, 4 * PAGE - 1, 4 * PAGE, u64::MAX];
        for address in edges.map(GuestAddress) {
            for count in [0, 1, 2, 4095, 4096, 4097, 8192, 8193, 3 * 4096, usize::MAX] {
                let slices = Slices::of(&memory, address, count);
                let expected = GuestMemoryBackend::get_slices(&memory, address, count);
                assert_eq!(shape(slices), shape(expected), "{count} bytes at {address:?}");
                let until_error = |slices: Result<Vec<usize>, GuestMemoryError>| slices.ok();
                let lengths = Slices::of(&memory, address, count).stop_on_error();
                let expected = GuestMemoryBackend::get_slices(&memory, address, count).stop_on_error();
                assert_eq!(
                    until_error(lengths.map(|slices| slices.map(|slice| slice.len()).collect())),
                    until_error(expected.map(|slices| slices.map(|slice| slice.len()).collect())),
                    "{count} bytes at {address:?}"
                );
            }
        }
    }

    #[test]
    fn what_lies_in_one_region_takes_the_short_way() {
        let memory = memory();
        let is_whole = |at, count| matches!(Slices::of(&memory, GuestAddress(at), count), Slices::Whole(_));
        assert!(is_whole(0, 4096) && is_whole(PAGE + 1, 4095) && is_whole(4 * PAGE - 1, 1));
        assert!(!is_whole(0, 4097) && !is_whole(2 * PAGE, 1) && !is_whole(0, 0));
    }
}
