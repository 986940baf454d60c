//! The seeds of a disk, with and without a ring.

use super::devices::{named, words};
use super::{DATA, Device, HEADER, Place, Script, Seed};
use crate::fuzz::input::{LOW, MIDDLE};

pub(super) fn block() -> Vec<Seed> {
    let status = (LOW, 0x3000);
    let request = |options: u8, (kind, sector): (u32, u64), chain: &[(Place, u32, bool)]| {
        let contents = [words(&[kind, 0]), sector.to_le_bytes().to_vec()].concat();
        Device { prefix: Script(vec![options]), queue: 0, contents, chain: chain.to_vec(), size: 128 }
    };
    let read = [(HEADER, 16, false), (DATA, 512, true), (status, 1, true)];
    let write = [(HEADER, 16, false), (DATA, 512, false), (status, 1, true)];
    let ranges = [(HEADER, 16, false), (DATA, 32, false), (status, 1, true)];
    let range = |sector: u64, count: u32, flags: u32| {
        [words(&[sector as u32, (sector >> 32) as u32]), words(&[count, flags])].concat()
    };
    let discard = |kind: u32, one: &[u8], two: &[u8]| {
        let device = request(0, (kind, 0), &ranges);
        device.ready().write(DATA, &[one, two].concat()).chain(0, &device.chain).kick(0)
    };
    let more = vec![
        ("write", request(0, (1, 3), &write).sound()),
        ("flush", request(2, (4, 0), &[(HEADER, 16, false), (status, 1, true)]).sound()),
        ("identity", request(0, (8, 0), &[(HEADER, 16, false), (DATA, 21, true)]).sound()),
        ("discard", discard(11, &range(0, 8, 0), &range(16, 8, 0))),
        ("zeroes", discard(13, &range(0, 8, 1), &[])),
        ("third-queue", Script(vec![8]).write(HEADER, &[0; 16]).chain(2, &read).kick(2)),
        ("04-no-status", request(0, (0, 0), &read[..1]).sound()),
        ("04-huge", request(0, (0, 0), &[read[0], ((MIDDLE, 0), 0x2_0000, true), read[2]]).sound()),
        ("08-write-to-read-only", request(1, (1, 3), &write).sound()),
        ("08-discard-of-read-only", request(1, (11, 0), &ranges).sound()),
        ("10-past-the-end", request(0, (0, 128), &read).sound()),
        ("10-sector-wraps", request(0, (0, u64::MAX), &read).sound()),
        ("10-bytes-wrap", request(0, (1, 1 << 55), &write).sound()),
        ("10-unaligned", request(0, (0, 0), &[read[0], (DATA, 511, true), read[2]]).sound()),
        ("10-unknown", request(0, (99, 0), &read).sound()),
        ("10-range-wraps", discard(11, &range(u64::MAX, 2, 0), &range(0, 8, 0))),
        ("10-range-past-the-end", discard(13, &range(127, 2, 0), &[])),
        ("10-range-flags", discard(11, &range(0, 8, 0), &range(0, 8, 0xffff_fffe))),
        ("22-shrunk", request(0, (0, 100), &read).ready().host(&[0, 2]).chain(0, &read).kick(0)),
    ];
    let mut seeds = named(request(0, (0, 1), &read).seeds(), more);
    seeds.extend(ringed(&seeds));
    seeds
}

/// The bit of a disk's options that gives it a ring.
pub(in crate::fuzz) const RING_OPTION: u8 = 1 << 4;

/// What a ring does otherwise than the calls of a thread: with more than one in flight, and with none.
fn ringed(seeds: &[Seed]) -> Vec<Seed> {
    let chosen = [
        "sound",
        "write",
        "flush",
        "discard",
        "zeroes",
        "third-queue",
        "01-next-to-itself",
        "04-into-the-rings",
        "05-sound",
        "07-restarts",
        "08-write-to-read-only",
        "09-full-ring",
        "10-past-the-end",
        "20-pause",
        "22-shrunk",
    ];
    let with_ring = |(name, bytes): &Seed| {
        let mut bytes = bytes.clone();
        bytes[0] |= RING_OPTION;
        (format!("{name}-ring"), bytes)
    };
    seeds.iter().filter(|(name, _)| chosen.contains(&name.as_str())).map(with_ring).collect()
}
