//! The inputs in `tests/corpus`: a sound request of each device, and the items 1 to 14 of what a driver may throw at one.
//!
//! Owns how they are written; the files are what fuzzing starts from. Refuses nothing. Invariant: a seed names what it does.

pub(super) mod block;
mod devices;
mod others;
mod pci;

use super::input::{HOLE, LOW, LOW_END, MIDDLE, RAW, READ_ONLY, RING, UPPER_END};
use super::script::op;
use crate::devices::virtio::testkit::{INDIRECT, NEXT, WRITE};

/// Name and bytes.
pub(super) type Seed = (String, Vec<u8>);

/// An address as [`super::input::Input::place`] reads it.
type Place = (u8, u64);

/// Address, length, flags and successor.
type Descriptor = (Place, u32, u16, u16);

const HEADER: Place = (LOW, 0x1000);
const DATA: Place = (LOW, 0x2000);
const TABLE: Place = (LOW, 0x8000);

/// What a driver does, as it is put into an input.
#[derive(Clone, Default)]
struct Script(Vec<u8>);

impl Script {
    fn put(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    fn place(self, (area, offset): Place) -> Self {
        let bytes = offset.to_le_bytes();
        if area == RAW { self.put(&[area]).put(&bytes) } else { self.put(&[area]).put(&bytes[..2]) }
    }

    fn descriptor(self, place: Place, len: u32, flags: u16, next: u16) -> Self {
        self.place(place).put(&len.to_le_bytes()).put(&flags.to_le_bytes()).put(&next.to_le_bytes())
    }

    fn describe(self, queue: u8, index: u16, (place, len, flags, next): Descriptor) -> Self {
        self.put(&[op::DESCRIBE, queue]).put(&index.to_le_bytes()).descriptor(place, len, flags, next)
    }

    fn table(self, table: Place, index: u8, (place, len, flags, next): Descriptor) -> Self {
        self.put(&[op::TABLE]).place(table).put(&[index]).descriptor(place, len, flags, next)
    }

    fn head(self, queue: u8, head: u16) -> Self {
        self.put(&[op::HEAD, queue]).put(&head.to_le_bytes())
    }

    fn index(self, queue: u8, index: u16) -> Self {
        self.put(&[op::INDEX, queue]).put(&index.to_le_bytes())
    }

    fn chain(self, queue: u8, buffers: &[(Place, u32, bool)]) -> Self {
        let start = self.put(&[op::CHAIN, queue, buffers.len() as u8 - 1]);
        buffers.iter().fold(start, |script, &(place, len, writable)| {
            script.place(place).put(&len.to_le_bytes()).put(&[writable.into()])
        })
    }

    fn write(self, place: Place, bytes: &[u8]) -> Self {
        self.put(&[op::WRITE]).place(place).put(&(bytes.len() as u16).to_le_bytes()).put(bytes)
    }

    fn host(self, bytes: &[u8]) -> Self {
        self.put(&[op::HOST]).put(bytes)
    }

    fn restart(self) -> Self {
        self.put(&[op::RESTART])
    }

    fn suppress(self, queue: u8, flags: u16, index: u16) -> Self {
        self.put(&[op::SUPPRESS, queue]).put(&flags.to_le_bytes()).put(&index.to_le_bytes())
    }

    /// A kick and the events that follow.
    fn kick(self, queue: u8) -> Self {
        self.put(&[op::KICK, queue, op::ROUND])
    }
}

/// A device's target: what stands before the operations, a queue, and a sound chain for it with what it holds.
struct Device {
    prefix: Script,
    queue: u8,
    contents: Vec<u8>,
    chain: Vec<(Place, u32, bool)>,
    /// The size of the queue.
    size: u16,
}

impl Device {
    /// The device before any operation, with the request's contents in memory.
    fn ready(&self) -> Script {
        self.prefix.clone().write(HEADER, &self.contents)
    }

    fn sound(&self) -> Script {
        self.ready().chain(self.queue, &self.chain).kick(self.queue)
    }

    /// The request, of whose first buffer so many bytes count.
    fn with_length(mut self, length: u32) -> Script {
        self.chain[0].1 = length;
        self.sound()
    }

    /// Something wrong with one chain, then a sound request.
    fn with(&self, wrong: &[(u16, Descriptor)]) -> Vec<u8> {
        let script = wrong.iter().fold(self.ready(), |script, &(index, descriptor)| {
            script.describe(self.queue, index, descriptor)
        });
        script.head(self.queue, 16).kick(self.queue).chain(self.queue, &self.chain).kick(self.queue).0
    }

    /// The sound chain in a table, which `spoil` may spoil and one descriptor names.
    fn indirect(&self, name: Descriptor, spoil: Option<(u8, Descriptor)>) -> Vec<u8> {
        let last = self.chain.len() - 1;
        let mut script = self.ready();
        for (index, &(place, len, writable)) in self.chain.iter().enumerate() {
            let flags = if writable { WRITE } else { 0 } | if index < last { NEXT } else { 0 };
            script = script.table(TABLE, index as u8, (place, len, flags, index as u16 + 1));
        }
        if let Some((index, descriptor)) = spoil {
            script = script.table(TABLE, index, descriptor);
        }
        script.describe(self.queue, 16, name).head(self.queue, 16).kick(self.queue).0
    }

    /// The items that are about queues and chains, whatever the device.
    fn seeds(&self) -> Vec<Seed> {
        let (queue, bytes) = (self.queue, 16 * self.chain.len() as u32);
        let both = NEXT | WRITE;
        let swapped: Vec<_> =
            self.chain.iter().map(|&(place, len, writable)| (place, len, !writable)).collect();
        let four_gib: Vec<_> = [((MIDDLE, 0), 0x8000_0000, true); 3].to_vec();
        let storm = (0..40).fold(self.sound(), |script, _| script.kick(queue));
        let again = (0..20).fold(self.sound(), |script, _| script.restart().kick(queue));
        let fill =
            (1..self.size).fold(self.ready().chain(queue, &self.chain), |script, _| script.head(queue, 0));
        let seeds: Vec<(&str, Vec<u8>)> = vec![
            ("sound", self.sound().0),
            ("01-next-to-itself", self.with(&[(16, (DATA, 16, both, 16))])),
            ("01-cycle", self.with(&[(16, (HEADER, 16, NEXT, 17)), (17, (DATA, 16, NEXT, 16))])),
            ("01-next-outside", self.with(&[(16, (DATA, 16, both, self.size))])),
            ("01-head-outside", self.ready().head(queue, self.size).kick(queue).restart().0),
            ("02-index-jumps", self.sound().index(queue, self.size + 2).kick(queue).restart().0),
            ("02-index-back", self.sound().index(queue, 0).kick(queue).restart().0),
            ("03-end-of-region", self.with(&[(16, ((LOW_END, 8), 16, WRITE, 0))])),
            ("03-end-of-memory", self.with(&[(16, ((UPPER_END, 8), 16, WRITE, 0))])),
            ("03-hole", self.with(&[(16, ((HOLE, 0x100), 16, WRITE, 0))])),
            ("03-wraps", self.with(&[(16, ((RAW, u64::MAX - 7), 16, WRITE, 0))])),
            ("03-device-registers", self.with(&[(16, ((RAW, 0xd000_0000), 16, WRITE, 0))])),
            ("03-image", self.with(&[(16, ((READ_ONLY, 0), 16, WRITE, 0))])),
            ("03-behind-the-image", self.with(&[(16, ((READ_ONLY, 0x3000), 16, WRITE, 0))])),
            ("04-zero-length", self.with(&[(16, (DATA, 0, WRITE, 0))])),
            ("04-four-gib", self.ready().chain(queue, &four_gib).kick(queue).0),
            ("04-swapped", self.ready().chain(queue, &swapped).kick(queue).0),
            ("04-one-readable-byte", self.with(&[(16, (DATA, 1, 0, 0))])),
            ("04-into-the-rings", self.with(&[(16, ((RING, 0), 0x3000, WRITE, 0))])),
            ("05-sound", self.indirect((TABLE, bytes, INDIRECT, 0), None)),
            ("05-nested", self.indirect((TABLE, bytes, INDIRECT, 0), Some((0, (TABLE, bytes, INDIRECT, 0))))),
            ("05-not-whole", self.indirect((TABLE, bytes - 1, INDIRECT, 0), None)),
            ("05-unaligned", self.indirect(((LOW, 0x8001), bytes, INDIRECT, 0), None)),
            ("05-too-long", self.indirect((TABLE, 16 << 16, INDIRECT, 0), None)),
            ("05-with-next", self.indirect((TABLE, bytes, INDIRECT | NEXT, 17), None)),
            ("07-restarts", again.0),
            ("09-kicks", storm.0),
            (
                "20-pause",
                self.sound().put(&[op::PAUSE, op::ROUND, op::PAUSE]).chain(queue, &self.chain).kick(queue).0,
            ),
            ("09-full-ring", fill.kick(queue).kick(queue).0),
            ("quiet", self.ready().suppress(queue, 1, 9).chain(queue, &self.chain).kick(queue).0),
        ];
        seeds.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect()
    }
}

/// What stands before the operations in a device's target.
pub(super) fn prefix(target: &str) -> usize {
    usize::from(matches!(target, "block" | "net" | "fs"))
}

/// The seeds of a target.
pub(super) fn of(target: &str) -> Vec<Seed> {
    match target {
        "block" => block::block(),
        "net" => devices::net(),
        "vsock" => devices::vsock(),
        "vsock_packets" => devices::packets(),
        "entropy" => devices::entropy(),
        "balloon" => devices::balloon(),
        "mem" => devices::mem(),
        "pmem" => others::pmem(),
        "fs" => others::fs(),
        "console" => others::console(),
        "state" => devices::state(),
        "pci" => pci::pci(),
        _ => devices::registers(),
    }
}
