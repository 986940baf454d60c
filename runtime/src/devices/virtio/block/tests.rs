mod limits;
mod ring;
mod state;

use super::*;
use crate::devices::virtio::testkit::{Bench, LOW_END, NEXT, WRITE};
use std::io::Write;

fn file(len: usize) -> File {
    let mut file = File::from(rustix::fs::memfd_create("disk", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    file.write_all(&vec![7; len]).unwrap();
    file
}

fn disk(len: usize) -> Block {
    Block::new(file(len), "vda", false, CacheType::Unsafe).unwrap()
}

fn config(block: &Block, offset: u64) -> u32 {
    let mut data = [0; 4];
    block.read_config(offset, &mut data);
    u32::from_le_bytes(data)
}

#[test]
fn a_tail_shorter_than_a_sector_is_invisible() {
    for (len, sectors) in [(512, 1), (513, 1), (1023, 1), (1024, 2)] {
        assert_eq!(config(&disk(len), 0), sectors);
    }
    let block = disk(512);
    assert_eq!((config(&block, 8), config(&block, 12), config(&block, 20)), (256 << 10, 126, 512));
    assert_eq!(config(&block, 24), 0);
    let ranges: Vec<u32> = (36..64).step_by(4).map(|offset| config(&block, offset)).collect();
    assert_eq!(ranges, [1 << 19, 16, 8, 1 << 16, 1, 1, 0]);
}

#[test]
fn what_cannot_be_a_disk_is_refused_by_name() {
    let error = |file| Block::new(file, "scratch", true, CacheType::Unsafe).unwrap_err().to_string();
    assert!(error(file(511)).contains("drive scratch: the file has 511 bytes"));
    assert!(error(file(0)).contains("0 bytes"));
    assert!(error(File::open("/dev/null").unwrap()).contains("neither a regular file nor a block device"));
    assert!(error(File::open("/").unwrap()).contains("neither"));
}

#[test]
fn a_part_of_a_file_is_a_disk_of_its_own() {
    let part = |part, len| Block::of_part(file(len), Some(part), "x", true, CacheType::Unsafe);
    assert_eq!(config(&part(512..2048, 2048).unwrap(), 0), 3);
    assert!(part(512..2049, 2048).unwrap_err().to_string().contains("2048 bytes; its part ends at 2049"));
    for nothing in [512..1023, 2048..2048] {
        assert!(part(nothing, 2048).unwrap_err().to_string().contains("at least one sector"));
    }
}

#[test]
fn features_say_what_the_disk_can() {
    let offers = |block: &Block, bit: u32| block.features() & 1 << bit != 0;
    let plain = disk(512);
    assert!(!offers(&plain, blk::VIRTIO_BLK_F_RO) && !offers(&plain, blk::VIRTIO_BLK_F_FLUSH));
    let other = Block::new(file(512), "x", true, CacheType::Writeback).unwrap();
    assert!(offers(&other, blk::VIRTIO_BLK_F_RO) && offers(&other, blk::VIRTIO_BLK_F_FLUSH));
    for bit in [blk::VIRTIO_BLK_F_DISCARD, blk::VIRTIO_BLK_F_WRITE_ZEROES] {
        assert!(offers(&plain, bit) && !offers(&other, bit), "only a disk that may be written to");
    }
    assert!((36..60).all(|offset| config(&other, offset) == 0));
}

const HEADER: u64 = 0x10_0000;
const DATA: u64 = 0x20_0000;

fn offer_read(bench: &mut Bench, sector: u64, len: u32) -> u16 {
    bench.write(HEADER, &[0; 8]);
    bench.write(HEADER + 8, &sector.to_le_bytes());
    bench.rings[0].offer(&[(HEADER, 16, false), (DATA, len, true), (DATA + u64::from(len), 1, true)])
}

#[test]
fn requests_are_answered_in_order_with_one_interrupt() {
    let mut device = disk(64 << 10);
    let mut bench = Bench::start(&mut device);
    for sector in 0..40 {
        offer_read(&mut bench, sector, 512);
    }
    bench.kick(0);
    bench.settle();
    let used = bench.rings[0].take_all_used();
    assert_eq!(used.len(), 40);
    assert!(
        used.iter()
            .enumerate()
            .all(|(index, &(head, len))| (head, len) == (u32::try_from(index * 3).unwrap(), 513))
    );
    assert_eq!(bench.bell.queues.load(std::sync::atomic::Ordering::SeqCst), 1);
    assert_eq!(bench.read(DATA, 513), [[7; 512].as_slice(), &[0]].concat());
}

#[test]
fn item_9_one_event_does_a_bounded_amount_of_work() {
    let mut device = Block::new(file(512), "x", false, CacheType::Unsafe).unwrap();
    let mut bench = Bench::start(&mut device);
    // Heads all name one chain: a ring's full of requests from one set of descriptors.
    offer_read(&mut bench, 0, 512);
    for _ in 1..128 {
        bench.rings[0].offer_head(0);
    }
    bench.kick(0);
    assert_eq!(bench.round().unwrap(), 1);
    assert_eq!(bench.rings[0].take_all_used().len(), 64);
    assert_eq!(bench.round().unwrap(), 1, "it comes back for the rest by itself");
    assert_eq!(bench.rings[0].take_all_used().len(), 64);
    bench.settle();
}

#[test]
fn item_9_large_requests_let_others_in_sooner() {
    let mut device = disk(4 << 20);
    let mut bench = Bench::start(&mut device);
    for _ in 0..10 {
        offer_read(&mut bench, 0, 2 << 20);
    }
    bench.kick(0);
    bench.round().unwrap();
    assert_eq!(bench.rings[0].take_all_used().len(), 2);
    bench.settle();
    assert_eq!(bench.rings[0].take_all_used().len(), 8);
}

#[test]
fn items_1_3_4_nonsense_goes_back_unused_and_the_disk_goes_on() {
    let mut device = disk(64 << 10);
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
    bench.settle();
    assert_eq!(bench.rings[0].take_all_used(), [(100, 0), (101, 0), (102, 0), (good.into(), 513)]);
    assert_eq!(bench.dropped(), 3);
}

#[test]
fn item_2_a_corrupt_ring_is_an_error_of_the_device() {
    let mut device = disk(512);
    let mut bench = Bench::start(&mut device);
    bench.rings[0].set_available(500);
    bench.kick(0);
    assert!(bench.round().unwrap_err().to_string().starts_with("queue 0: "));
}

#[test]
fn a_drained_disk_goes_on_where_it_was() {
    let mut device = disk(64 << 10);
    let mut bench = Bench::start(&mut device);
    offer_read(&mut bench, 0, 512);
    bench.kick(0);
    bench.settle();
    let queues = bench.worker.drain(std::time::Instant::now()).unwrap();
    assert_eq!(queues.len(), 1);
    use virtio_queue::QueueT;
    assert_eq!((queues[0].1.next_avail(), queues[0].1.next_used()), (1, 1));
}

#[test]
fn several_queues_are_offered_and_served_each() {
    let mut device = disk(64 << 10).with_queues(3);
    assert!(device.features() & 1 << blk::VIRTIO_BLK_F_MQ != 0);
    assert_eq!((config(&device, 32) >> 16, device.queue_sizes()), (3, [256; 3].as_slice()));
    let mut bench = Bench::start(&mut device);
    bench.write(HEADER, &[0; 16]);
    for queue in [2, 0, 1] {
        let chain = [(HEADER, 16, false), (DATA, 512, true), (DATA + 512, 1, true)];
        bench.rings[queue].offer(&chain);
        bench.kick(queue);
        bench.settle();
        let used: Vec<_> = bench.rings.iter_mut().map(|ring| ring.take_all_used().len()).collect();
        assert_eq!(used, (0..3).map(|index| usize::from(index == queue)).collect::<Vec<_>>());
    }
    bench.rings[1].set_available(500);
    bench.kick(1);
    assert!(bench.round().unwrap_err().to_string().starts_with("queue 1: "));
    let drained = bench.worker.drain(std::time::Instant::now()).unwrap();
    assert_eq!(drained.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [0, 1, 2]);
    let single = disk(512).with_queues(1);
    assert!(single.features() & 1 << blk::VIRTIO_BLK_F_MQ == 0 && config(&single, 32) == 0);
}
