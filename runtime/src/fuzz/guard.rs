//! What a device may have done to guest memory, judged from copies of it.
//!
//! Owns what the driver has offered since it started the device. Refuses, by a panic, a byte written outside of every
//! buffer that was offered for writing or in the image that nobody writes to, a used entry of a chain that was not offered, and one that claims more bytes than
//! the chain has room for. Invariant: it reads the descriptors itself, by the standard and from a copy, so it shares no
//! mistake with the devices' queues. A driver that lets the device write to the rings is not judged any further.

use super::input::{HIGH, REGION};
use crate::devices::virtio::Memory;
use crate::devices::virtio::queue::QueueSetup;
use crate::devices::virtio::testkit::{IMAGE, IMAGE_BYTES, INDIRECT, NEXT, RING_STRIDE, RINGS, WRITE};
use std::collections::{BTreeMap, BTreeSet};
use vm_memory::{Bytes, GuestAddress};

const PAGE: usize = 4096;
/// Where each region starts, in the guest and in an [`Image`].
const REGIONS: [(u64, usize); 2] = [(0, 0), (HIGH, REGION as usize)];

/// A copy of guest memory, region after region.
#[derive(PartialEq, Eq)]
struct Image(Vec<u8>);

impl Image {
    fn new() -> Self {
        Self(vec![0; 2 * REGION as usize])
    }

    fn copy(&mut self, memory: &Memory) {
        for (start, at) in REGIONS {
            memory.read_slice(&mut self.0[at..at + REGION as usize], GuestAddress(start)).unwrap();
        }
    }

    fn place(addr: u64, len: u64) -> Option<std::ops::Range<usize>> {
        let end = addr.checked_add(len)?;
        let inside = |&(start, _): &(u64, usize)| addr >= start && end <= start + REGION;
        let (start, at) = REGIONS.into_iter().find(inside)?;
        let first = usize::try_from(addr - start).ok()? + at;
        Some(first..first + usize::try_from(len).ok()?)
    }

    fn get<const N: usize>(&self, addr: u64) -> Option<[u8; N]> {
        self.0[Self::place(addr, N as u64)?].try_into().ok()
    }

    fn u16(&self, addr: u64) -> u16 {
        self.get(addr).map_or(0, u16::from_le_bytes)
    }

    /// Address, length, flags and successor.
    fn descriptor(&self, table: u64, index: u16) -> Option<(u64, u32, u16, u16)> {
        let at = table.checked_add(16 * u64::from(index))?;
        let addr = u64::from_le_bytes(self.get(at)?);
        let len = u32::from_le_bytes(self.get(at + 8)?);
        Some((addr, len, self.u16(at + 12), self.u16(at + 14)))
    }

    fn take_over(&mut self, addr: u64, len: u64, from: &Self) {
        if let Some(place) = Self::place(addr, len) {
            self.0[place.clone()].copy_from_slice(&from.0[place]);
        }
    }

    fn take_over_zeroed_pages(&mut self, from: &Self) {
        for (page, from) in self.0.chunks_mut(PAGE).zip(from.0.chunks(PAGE)) {
            if from == [0; PAGE] {
                page.fill(0);
            }
        }
    }
}

/// See the module.
pub(super) struct Guard {
    /// Memory before and after the worker had it, and what it may look like at most.
    before: Image,
    after: Image,
    expected: Image,
    rings: Vec<QueueSetup>,
    /// How many bytes may be written to a chain at most, by queue and head.
    chains: BTreeMap<(usize, u16), u64>,
    /// Buffers that the device may write to: address, bytes.
    writable: BTreeSet<(u64, u64)>,
    /// Tables of descriptors, likewise.
    tables: BTreeSet<(u64, u64)>,
    /// Whole pages may turn to zeros anywhere but in the rings.
    discards: bool,
    /// Whether the device's writes still tell something.
    judges: bool,
    /// Chains that were given back.
    used: u32,
}

impl Guard {
    pub(super) fn new(rings: Vec<QueueSetup>, discards: bool) -> Self {
        let [before, after, expected] = [Image::new(), Image::new(), Image::new()];
        let (chains, writable, tables) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
        let mut guard = Self {
            before,
            after,
            expected,
            rings,
            chains,
            writable,
            tables,
            discards,
            judges: true,
            used: 0,
        };
        guard.restart();
        guard
    }

    /// The driver starts over.
    pub(super) fn restart(&mut self) {
        self.chains.clear();
        self.writable.clear();
        self.tables = [(RINGS, RING_STRIDE * self.rings.len() as u64)].into();
        self.judges = true;
    }

    /// Takes note of what the driver has offered so far.
    pub(super) fn before(&mut self, memory: &Memory) {
        self.before.copy(memory);
        for queue in 0..self.rings.len() {
            let setup = self.rings[queue];
            let heads: BTreeSet<u16> = (0..u64::from(setup.size))
                .map(|slot| self.before.u16(setup.available + 4 + 2 * slot))
                .collect();
            for head in heads {
                let writable = self.walk(&setup, head);
                let most = self.chains.entry((queue, head)).or_default();
                *most = writable.max(*most);
            }
        }
        // Descriptors that the device can write to may be others by the time that it reads them.
        let written = |&table: &(u64, u64)| self.writable.iter().any(|&buffer| overlap(buffer, table));
        self.judges &= !self.tables.iter().any(written);
    }

    /// How many chains were given back while it judged.
    pub(super) fn used(&self) -> u32 {
        self.used
    }

    /// The driver itself wrote there.
    pub(super) fn driver_wrote(&mut self, addr: u64, len: u64) {
        for setup in &self.rings {
            self.judges &= !overlap((addr, len), (setup.used, used_bytes(setup)));
        }
    }

    /// Notes the buffers of a chain; returns how many bytes may be written to it, at most.
    fn walk(&mut self, setup: &QueueSetup, head: u16) -> u64 {
        let (mut table, mut entries, mut index, mut total) = (setup.descriptors, setup.size, head, 0);
        for _ in 0..2 * setup.size + 2 {
            if u32::from(index) >= entries {
                break;
            }
            let Some((addr, len, flags, next)) = self.before.descriptor(table, index) else { break };
            if flags & INDIRECT != 0 {
                self.tables.insert((addr, len.into()));
                (table, entries, index) = (addr, len / 16, 0);
                continue;
            }
            if flags & WRITE != 0 && len > 0 {
                total += u64::from(len);
                self.writable.insert((addr, len.into()));
            }
            if flags & NEXT == 0 {
                break;
            }
            index = next;
        }
        total
    }

    /// Judges what the device did since: at most `most` used entries a queue.
    pub(super) fn after(&mut self, memory: &Memory, most: u16) {
        let mut image = [0; IMAGE_BYTES as usize];
        memory.read_slice(&mut image, GuestAddress(IMAGE)).unwrap();
        assert!(image.iter().all(|&byte| byte == 0xda), "the device wrote to an image");
        self.after.copy(memory);
        self.judges &= !(self.discards && self.rings_are_gone());
        if !self.judges {
            return;
        }
        let Self { before, after, expected, .. } = self;
        expected.0.copy_from_slice(&before.0);
        for &(addr, len) in &self.writable {
            expected.take_over(addr, len, after);
        }
        for setup in &self.rings {
            expected.take_over(setup.used, used_bytes(setup), after);
        }
        if self.discards {
            expected.take_over_zeroed_pages(after);
        }
        if expected != after {
            let at = expected.0.iter().zip(&after.0).position(|(expected, is)| expected != is);
            panic!("the device wrote to byte {at:x?} of memory, which was not offered for writing");
        }
        for queue in 0..self.rings.len() {
            self.check_used(queue, most);
        }
    }

    fn check_used(&mut self, queue: usize, most: u16) {
        let (before, after, setup) = (&self.before, &self.after, self.rings[queue]);
        let (first, last) = (before.u16(setup.used + 2), after.u16(setup.used + 2));
        let count = last.wrapping_sub(first);
        assert!(count <= most, "queue {queue}: {count} chains were used for one round of events");
        let size = u16::try_from(setup.size).unwrap();
        self.used += u32::from(count);
        // What was written over within the round cannot be looked at.
        for step in 0..count.min(size) {
            let slot = u64::from(last.wrapping_sub(1 + step) % size);
            let entry = after.get::<8>(setup.used + 4 + 8 * slot).map_or(0, u64::from_le_bytes);
            let (head, len) = (entry & 0xffff_ffff, entry >> 32);
            let chain = u16::try_from(head).ok().and_then(|head| self.chains.get(&(queue, head)));
            let Some(room) = chain else { panic!("queue {queue}: chain {head} was used and never offered") };
            assert!(len <= *room, "queue {queue}: {len} bytes were written to chain {head} of {room}");
        }
    }

    /// Whether the driver had a page of its rings given back.
    fn rings_are_gone(&self) -> bool {
        let rings = Image::place(RINGS, RING_STRIDE * self.rings.len() as u64).unwrap();
        let gone = |page: usize| {
            let (before, after) = (&self.before.0[page..page + PAGE], &self.after.0[page..page + PAGE]);
            before != after && after == [0; PAGE]
        };
        rings.step_by(PAGE).any(gone)
    }
}

fn used_bytes(setup: &QueueSetup) -> u64 {
    6 + 8 * u64::from(setup.size)
}

fn overlap((a, a_len): (u64, u64), (b, b_len): (u64, u64)) -> bool {
    a < b.saturating_add(b_len) && b < a.saturating_add(a_len)
}
