//! A disk's requests across a save and a load.

use super::*;
use crate::devices::virtio::guest_ring::tests::ring_of;
use crate::devices::virtio::testkit::HIGH;
use crate::devices::virtio::testkit::rig::Rig;
use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;

const HEADERS: u64 = 0x10_0000;
const STATUSES: u64 = 0x18_0000;
/// As many as the queue holds, of three descriptors each.
const REQUESTS: usize = 42;
const BYTES: usize = SEGMENT_BYTES as usize;

/// Request `number` writes its part of the disk from its part of memory, of which no two are the same.
fn write(rig: &mut Rig, number: usize) -> u16 {
    let number = number as u64;
    let sector = number * u64::from(SEGMENT_BYTES) / SECTOR_BYTES;
    let header = [u64::from(blk::VIRTIO_BLK_T_OUT), sector].map(u64::to_le_bytes).concat();
    let (at, status) = (HEADERS + 16 * number, STATUSES + number);
    rig.write(at, &header);
    rig.write(status, &[0xff]);
    rig.rings[0].offer(&[(at, 16, false), (HIGH + 4096 * number, SEGMENT_BYTES, false), (status, 1, true)])
}

fn data(number: usize) -> u64 {
    HIGH + 4096 * number as u64
}

fn device(file: &File) -> Box<Block> {
    Box::new(
        Block::new(file.try_clone().unwrap(), "vda", false, CacheType::Writeback).unwrap().with_queues(2),
    )
}

#[test]
fn block_saves_and_loads_with_requests_in_flight() {
    let file = file(BYTES * REQUESTS);
    let mut rig = Rig::start_drive(device(&file));
    let pattern: Vec<u8> = (0..1_u32 << 20).flat_map(u32::to_le_bytes).collect();
    rig.write(HIGH, &pattern);
    let heads: BTreeSet<u32> = (0..REQUESTS).map(|number| write(&mut rig, number).into()).collect();
    rig.kick(0);
    let mut used = Vec::new();
    while used.is_empty() {
        rig.turn_drive();
        used = rig.rings[0].take_all_used();
    }
    rig.transport.pause();
    for _ in 0..20 {
        rig.turn();
    }
    assert!(!rig.is_paused(), "the drive's thread is with its disk, and has the queues");
    rig.until(|rig| rig.is_paused());
    used.extend(rig.rings[0].take_all_used());
    let (before, all) = (used.len(), heads.len());
    assert!(0 < before && before < all, "{before} of {all} were answered before");
    // What was written before is not written again.
    file.write_all_at(&vec![7; BYTES * before], 0).unwrap();

    let mut rig = rig.restore(device(&file));
    rig.until(|rig| {
        used.extend(rig.rings[0].take_all_used());
        used.len() >= all
    });
    rig.settle();
    assert!(rig.rings[0].take_all_used().is_empty(), "none is answered twice");
    assert!(used.iter().all(|&(_, written)| written == 1));
    assert_eq!(used.iter().map(|&(head, _)| head).collect::<BTreeSet<_>>(), heads);
    let mut content = vec![0; BYTES];
    for number in 0..REQUESTS {
        assert_eq!(rig.read(STATUSES + number as u64, 1), [0]);
        file.read_exact_at(&mut content, (number * BYTES) as u64).unwrap();
        let same = if number < before {
            content == vec![7; BYTES]
        } else {
            content == rig.read(data(number), BYTES)
        };
        assert!(same, "request {number}");
    }
    let head = write(&mut rig, 1);
    rig.kick(0);
    rig.until(|rig| rig.rings[0].take_used() == Some((head.into(), 1)));
    rig.is_well();
}

#[test]
fn an_async_drive_saves_and_loads_with_requests_in_flight() {
    let file = file(BYTES * REQUESTS);
    if ring_of::<()>(&file).is_none() {
        return;
    }
    let ringed = || {
        let device = device(&file);
        device.add_ring().unwrap();
        device
    };
    let mut rig = Rig::start_drive(ringed());
    let pattern: Vec<u8> = (0..1_u32 << 20).flat_map(u32::to_le_bytes).collect();
    rig.write(HIGH, &pattern);
    let half = REQUESTS / 2;
    let mut heads: BTreeSet<u32> = (0..half).map(|number| write(&mut rig, number).into()).collect();
    rig.kick(0);
    rig.turn_drive();
    rig.transport.pause();
    heads.extend((half..REQUESTS).map(|number| u32::from(write(&mut rig, number))));
    rig.until(|rig| rig.is_paused());
    let mut used = rig.rings[0].take_all_used();
    assert!(used.len() <= half, "what came after the pause waits");

    let mut rig = rig.restore(ringed());
    rig.until(|rig| {
        used.extend(rig.rings[0].take_all_used());
        used.len() >= REQUESTS
    });
    rig.settle();
    assert!(rig.rings[0].take_all_used().is_empty(), "none is answered twice");
    assert_eq!(used.iter().map(|&(head, _)| head).collect::<BTreeSet<_>>(), heads);
    let mut content = vec![0; BYTES];
    for number in 0..REQUESTS {
        assert_eq!(rig.read(STATUSES + number as u64, 1), [0]);
        file.read_exact_at(&mut content, (number * BYTES) as u64).unwrap();
        assert!(content == rig.read(data(number), BYTES), "request {number}");
    }
    rig.is_well();
}

#[test]
fn a_disk_of_another_size_is_refused() {
    let (small, large) = (device(&file(512)), device(&file(1024)));
    let error = device(&file(512)).load(&large.save()).unwrap_err();
    let said = "virtio-block: capacity is 2; 1, as the drive's file has is allowed";
    assert_eq!(error.to_string(), said);
    assert!(device(&file(1023)).load(&small.save()).is_ok());
}

crate::devices::virtio::testkit::rig::over_pci!(
    block_saves_and_loads_with_requests_in_flight,
    an_async_drive_saves_and_loads_with_requests_in_flight,
    a_disk_of_another_size_is_refused,
);
