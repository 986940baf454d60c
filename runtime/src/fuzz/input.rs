//! Bytes read as a sequence of choices.
//!
//! Owns the place in the input. Refuses nothing: past the end every choice is zero, so any input means something.
//! Invariant: reading never fails and always ends, as [`Input::is_empty`] ends it.

use crate::devices::virtio::testkit::{IMAGE, RINGS};

/// Guest memory of the fuzzed machine: two regions of this many bytes, with a hole between them. Five rings fit the first.
pub(super) const REGION: u64 = 144 << 10;
/// Where the second one starts.
pub(super) const HIGH: u64 = 256 << 10;

/// See the module.
pub(super) struct Input<'a>(pub(super) &'a [u8]);

impl<'a> Input<'a> {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut taken = [0; N];
        let bytes = self.bytes(N);
        taken[..bytes.len()].copy_from_slice(bytes);
        taken
    }

    pub(super) fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.take())
    }

    pub(super) fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    pub(super) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    pub(super) fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    /// The next `count` bytes, or as many as there are.
    pub(super) fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        bytes
    }

    /// A number below `limit`, which is not zero.
    pub(super) fn below(&mut self, limit: usize) -> usize {
        usize::from(self.u8()) % limit
    }

    /// A guest address: an area, and how far in it. What no area reaches is written out.
    pub(super) fn place(&mut self) -> u64 {
        let area = self.u8();
        if area == RAW {
            return self.u64();
        }
        let offset = u64::from(self.u16());
        match area % AREAS {
            LOW => offset,
            RING => RINGS + offset,
            LOW_END => REGION - offset.min(REGION),
            MIDDLE => HIGH + offset,
            UPPER_END => HIGH + REGION - offset.min(REGION),
            HOLE => HIGH - offset.min(HIGH),
            _ => IMAGE + offset,
        }
    }
}

/// Areas: the start of memory, the rings, the low region's end backwards, the high region's start, its end backwards, and
/// the hole before it, and the image that nobody may write to. [`RAW`] is followed by eight bytes.
pub(super) const LOW: u8 = 0;
pub(super) const RING: u8 = 1;
pub(super) const LOW_END: u8 = 2;
pub(super) const MIDDLE: u8 = 3;
pub(super) const UPPER_END: u8 = 4;
pub(super) const HOLE: u8 = 5;
pub(super) const READ_ONLY: u8 = 6;
const AREAS: u8 = READ_ONLY + 1;
pub(super) const RAW: u8 = 0xff;
