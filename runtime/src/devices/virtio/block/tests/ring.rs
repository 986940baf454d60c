//! A disk behind a ring: the same requests, answered as they complete.

use super::*;
use crate::devices::virtio::guest_ring::tests::ring_of;
use crate::devices::virtio::testkit::drive::until;
use std::os::unix::fs::FileExt;

/// A disk of `len` sevens with a ring; `None`: skipped.
fn ringed(len: usize, cache: CacheType) -> Option<(Block, File)> {
    let file = file(len);
    drop(ring_of::<()>(&file)?);
    let block = Block::new(file.try_clone().unwrap(), "vda", false, cache).unwrap();
    block.add_ring().unwrap();
    Some((block, file))
}

/// Delivers events until `count` chains of queue 0 are back.
fn answered(bench: &mut Bench, count: usize) -> Vec<(u32, u32)> {
    let mut used = Vec::new();
    until(|| {
        bench.round().unwrap();
        used.extend(bench.rings[0].take_all_used());
        used.len() >= count
    });
    bench.settle();
    assert_eq!((used.len(), bench.rings[0].take_used()), (count, None));
    used.sort_unstable();
    used
}

/// Offers a request of `kind` with what `data` says: address, length, whether the device writes it. Its status is at
/// `DATA - 1`.
fn offer(bench: &mut Bench, kind: u32, sector: u64, data: &[(u64, u32, bool)]) -> u32 {
    bench.write(HEADER, &kind.to_le_bytes());
    bench.write(HEADER + 8, &sector.to_le_bytes());
    bench.write(DATA - 1, &[0xff]);
    let (header, status) = ([(HEADER, 16, false)], [(DATA - 1, 1, true)]);
    bench.rings[0].offer(&[&header, data, &status].concat()).into()
}

/// One request, to its end: its status, and the used length.
fn ask(bench: &mut Bench, kind: u32, sector: u64, data: &[(u64, u32, bool)]) -> (u8, u32) {
    let head = offer(bench, kind, sector, data);
    bench.kick(0);
    let used = answered(bench, 1);
    assert_eq!(used[0].0, head);
    (bench.read(DATA - 1, 1)[0], used[0].1)
}

fn range(bench: &Bench, sector: u64, sectors: u32, flags: u32) {
    let bytes = [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat();
    bench.write(DATA, &bytes);
}

#[test]
fn each_kind_of_request_does_to_the_file_what_it_says() {
    let Some((mut device, file)) = ringed(64 << 10, CacheType::Writeback) else { return };
    let mut bench = Bench::start(&mut device);
    let bench = &mut bench;
    assert_eq!(
        ask(bench, blk::VIRTIO_BLK_T_IN, 1, &[(DATA, 1000, true), (DATA + 5000, 24, true)]),
        (0, 1025)
    );
    assert_eq!(
        (bench.read(DATA, 1000), bench.read(DATA + 5000, 25)),
        (vec![7; 1000], [[7; 24].as_slice(), &[0]].concat())
    );
    bench.write(DATA, &[9; 1024]);
    assert_eq!(ask(bench, blk::VIRTIO_BLK_T_OUT, 2, &[(DATA, 1024, false)]), (0, 1));
    assert_eq!(ask(bench, blk::VIRTIO_BLK_T_FLUSH, 0, &[]), (0, 1));
    assert_eq!(ask(bench, blk::VIRTIO_BLK_T_GET_ID, 0, &[(DATA, 20, true)]), (0, 21));
    range(bench, 8, 8, 0);
    assert_eq!(ask(bench, blk::VIRTIO_BLK_T_DISCARD, 0, &[(DATA, 16, false)]), (0, 1));
    let mut bytes = vec![0; 16 << 10];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes[..1024].iter().all(|&byte| byte == 7) && bytes[1024..2048].iter().all(|&byte| byte == 9));
    assert!(bytes[4096..8192].iter().all(|&byte| byte == 0) && bytes[8192] == 7);
    // A memfd cannot write zeros over a range that is to keep its blocks; where it lets go of them it can.
    range(bench, 16, 8, 0);
    assert_eq!(ask(bench, blk::VIRTIO_BLK_T_WRITE_ZEROES, 0, &[(DATA, 16, false)]), (2, 1));
    range(bench, 16, 8, 1);
    assert_eq!(ask(bench, blk::VIRTIO_BLK_T_WRITE_ZEROES, 0, &[(DATA, 16, false)]), (0, 1));
    file.read_exact_at(&mut bytes, 8192).unwrap();
    assert!(bytes[..4096].iter().all(|&byte| byte == 0) && bytes[4096] == 7);
}

#[test]
fn item_10_what_is_not_on_the_disk_is_refused_at_once() {
    let Some((mut device, file)) = ringed(64 << 10, CacheType::Unsafe) else { return };
    let mut bench = Bench::start(&mut device);
    let bench = &mut bench;
    for (kind, sector, len) in [(0, 128, 512), (0, u64::MAX, 512), (0, 127, 1024), (0, 0, 100), (1, 128, 512)]
    {
        let writes = kind == blk::VIRTIO_BLK_T_IN;
        assert_eq!(ask(bench, kind, sector, &[(DATA, len, writes)]), (1, 1), "{kind} {sector} {len}");
    }
    range(bench, 127, 2, 0);
    assert_eq!(ask(bench, blk::VIRTIO_BLK_T_DISCARD, 0, &[(DATA, 16, false)]), (1, 1));
    assert_eq!(ask(bench, blk::VIRTIO_BLK_T_FLUSH, 0, &[]), (2, 1), "not offered");
    assert_eq!(ask(bench, 77, 0, &[]), (2, 1));
    // The file ends in the middle of the second request.
    file.set_len(1024).unwrap();
    assert_eq!(ask(bench, blk::VIRTIO_BLK_T_IN, 1, &[(DATA, 512, true)]), (0, 513));
    assert_eq!(ask(bench, blk::VIRTIO_BLK_T_IN, 1, &[(DATA, 1024, true)]), (1, 513));
}

#[test]
fn items_1_3_4_nonsense_goes_back_unused_and_the_ring_goes_on() {
    let Some((mut device, _file)) = ringed(64 << 10, CacheType::Unsafe) else { return };
    let mut bench = Bench::start(&mut device);
    bench.rings[0].describe(100, (HEADER, 16, NEXT, 100));
    bench.rings[0].offer_head(100);
    bench.rings[0].describe(101, (HEADER, 16, 0, 0));
    bench.rings[0].offer_head(101);
    bench.rings[0].describe(102, (LOW_END - 4, 16, NEXT, 103));
    bench.rings[0].describe(103, (DATA, 1, WRITE, 0));
    bench.rings[0].offer_head(102);
    let good = offer_read(&mut bench, 1, 512);
    bench.kick(0);
    assert_eq!(answered(&mut bench, 4), [(good.into(), 513), (100, 0), (101, 0), (102, 0)]);
    assert_eq!(bench.dropped(), 3);
}

#[test]
fn item_9_more_requests_than_the_ring_holds_wait_their_turn() {
    let Some((device, _file)) = ringed(64 << 10, CacheType::Unsafe) else { return };
    let mut device = device.with_queues(3);
    let mut bench = Bench::start(&mut device);
    bench.write(HEADER, &[0; 16]);
    for queue in 0..3 {
        for _ in 0..40 {
            bench.rings[queue].offer(&[(HEADER, 16, false), (DATA, 512, true), (DATA - 1, 1, true)]);
        }
        // The same chain over and over: more heads than a driver has.
        for _ in 40..128 {
            bench.rings[queue].offer_head(0);
        }
        bench.kick(queue);
    }
    let mut counts = [0; 3];
    until(|| {
        bench.round().unwrap();
        (0..3).for_each(|queue| counts[queue] += bench.rings[queue].take_all_used().len());
        counts == [128; 3]
    });
    bench.settle();
}

#[test]
fn item_7_a_drain_waits_for_what_is_in_flight_and_the_next_driver_has_the_ring() {
    let Some((mut device, _file)) = ringed(64 << 10, CacheType::Unsafe) else { return };
    for _ in 0..20 {
        let mut bench = Bench::start(&mut device);
        for sector in 0..30 {
            offer_read(&mut bench, sector, 512);
        }
        bench.kick(0);
        bench.round().unwrap();
        let mut queues = Vec::new();
        until(|| bench.worker.drain(std::time::Instant::now()).map(|drained| queues = drained).is_ok());
        use virtio_queue::QueueT;
        assert_eq!((queues[0].1.next_avail(), queues[0].1.next_used()), (30, 30));
        assert_eq!(bench.rings[0].take_all_used().len(), 30);
    }
    let (_, ring) = device.seat.take();
    assert_eq!(ring.unwrap().in_flight(), 0);
}

#[test]
fn a_limited_disk_with_a_ring_waits_for_its_tokens() {
    use crate::devices::virtio::gate::tests::{DAY, limit};
    let Some((device, _file)) = ringed(1 << 20, CacheType::Unsafe) else { return };
    let mut device = device.with_limit(Some(limit((4096, DAY), (6, DAY))));
    let mut bench = Bench::start(&mut device);
    // Four take all bytes; the other two operations are about no bytes.
    for _ in 0..8 {
        offer_read(&mut bench, 0, 1024);
    }
    bench.kick(0);
    assert_eq!(answered(&mut bench, 4).len(), 4);
    for _ in 0..1000 {
        bench.kick(0);
        assert_eq!(bench.round().unwrap(), 0, "nobody looks");
    }
}
