mod state;

use super::*;
use crate::devices::virtio::gate::tests::{DAY, limit};
use crate::devices::virtio::testkit::drive::until;
use crate::devices::virtio::testkit::{Bench, HIGH, HIGH_END, IMAGE, INDIRECT, LOW_END, NEXT, WRITE};

const DATA: u64 = 0x20_0000;

fn bench() -> Bench {
    Bench::start(&mut Entropy::default())
}

#[test]
fn a_request_is_filled_and_no_byte_beyond_it() {
    let mut bench = bench();
    let first = bench.rings[0].offer(&[(DATA, 64, true)]);
    let second = bench.rings[0].offer(&[(DATA + 100, 32, true), (DATA + 200, 32, true)]);
    bench.kick(0);
    bench.settle();
    assert_eq!(bench.rings[0].take_all_used(), [(first.into(), 64), (second.into(), 64)]);
    let bytes = bench.read(DATA, 300);
    // Any one of these is wrong once in 2^256 runs.
    for filled in [&bytes[..64], &bytes[100..132], &bytes[200..232]] {
        assert!(filled.iter().any(|&byte| byte != 0));
    }
    assert_ne!(bytes[..32], bytes[32..64]);
    assert_ne!(bytes[100..132], bytes[200..232]);
    for gap in [&bytes[64..100], &bytes[132..200], &bytes[232..]] {
        assert!(gap.iter().all(|&byte| byte == 0));
    }
    assert_eq!(bench.bell.queues.load(std::sync::atomic::Ordering::SeqCst), 1);
}

#[test]
fn item_14_a_huge_request_costs_what_one_of_64_kib_costs() {
    let mut bench = bench();
    // 512 MiB: the same 8 MiB in every descriptor that there is.
    let half = u32::try_from(HIGH_END - HIGH).unwrap();
    let head = bench.rings[0].offer(&vec![(HIGH, half, true); 64]);
    for _ in 1..64 {
        bench.rings[0].offer_head(head);
    }
    bench.kick(0);
    assert_eq!(bench.round().unwrap(), 1);
    let used = bench.rings[0].take_all_used();
    assert_eq!(used, [(head.into(), 64 << 10); 4], "one event is 256 KiB");
    assert_eq!(bench.round().unwrap(), 1, "it comes back for the rest by itself");
    bench.settle();
    assert_eq!(bench.rings[0].take_all_used().len(), 60);
    assert!(bench.read(HIGH + (64 << 10), 4096).iter().all(|&byte| byte == 0));
    assert_eq!(bench.dropped(), 0);
}

#[test]
fn item_14_small_requests_are_bounded_too() {
    let mut bench = bench();
    let head = bench.rings[0].offer(&[(DATA, 1, true)]);
    for _ in 1..64 {
        bench.rings[0].offer_head(head);
    }
    bench.kick(0);
    bench.round().unwrap();
    assert_eq!(bench.rings[0].take_all_used().len(), 64);
    bench.settle();
}

#[test]
fn items_1_3_4_5_nonsense_goes_back_unused_and_the_device_goes_on() {
    let mut bench = bench();
    let ring = &mut bench.rings[0];
    // To itself; outside memory, whole or in part; of 4 GiB; wrapping; readable; both; empty; a table not offered; an
    // image.
    ring.describe(40, (DATA, 16, WRITE | NEXT, 40));
    ring.describe(41, (LOW_END, 16, WRITE, 0));
    ring.describe(42, (LOW_END - 8, 16, WRITE, 0));
    ring.describe(43, (DATA, u32::MAX, WRITE, 0));
    ring.describe(44, (u64::MAX - 4, 16, WRITE, 0));
    ring.describe(45, (DATA, 16, 0, 0));
    ring.describe(46, (DATA, 16, NEXT, 47));
    ring.describe(47, (DATA, 16, WRITE, 0));
    ring.describe(48, (DATA, 0, WRITE, 0));
    ring.describe(49, (DATA, 7, INDIRECT, 0));
    ring.describe(50, (IMAGE, 16, WRITE, 0));
    let wrong = [40, 41, 42, 43, 44, 45, 46, 48, 49, 50];
    for head in wrong {
        ring.offer_head(head);
    }
    let good = ring.offer(&[(DATA + 4096, 16, true)]);
    bench.kick(0);
    bench.settle();
    let mut expected: Vec<_> = wrong.iter().map(|&head| (u32::from(head), 0)).collect();
    expected.push((good.into(), 16));
    assert_eq!(bench.rings[0].take_all_used(), expected);
    assert_eq!(bench.dropped(), wrong.len() as u64);
    assert!(bench.read(DATA, 64).iter().all(|&byte| byte == 0));
}

#[test]
fn item_2_a_corrupt_ring_is_an_error_of_the_device() {
    let mut bench = bench();
    bench.rings[0].set_available(500);
    bench.kick(0);
    assert!(bench.round().unwrap_err().to_string().starts_with("queue 0: "));
}

#[test]
fn it_has_no_configuration() {
    let mut data = [7; 16];
    Entropy::default().read_config(0, &mut data);
    assert_eq!(data, [0; 16]);
}

#[test]
fn a_drained_device_gives_its_queue_back() {
    use virtio_queue::QueueT;
    let mut bench = bench();
    bench.rings[0].offer(&[(DATA, 16, true)]);
    bench.kick(0);
    bench.settle();
    let queues = bench.worker.drain(Instant::now()).unwrap();
    assert_eq!((queues.len(), queues[0].1.next_avail(), queues[0].1.next_used()), (1, 1, 1));
}

/// Offers so many requests of 16 bytes, and kicks after each.
fn ask(bench: &mut Bench, count: usize) {
    for _ in 0..count {
        bench.rings[0].offer(&[(DATA, 16, true)]);
        bench.kick(0);
    }
}

#[test]
fn without_tokens_requests_wait_and_nothing_spins() {
    let mut device = Entropy::new(Some(limit((0, 0), (3, DAY))));
    let mut bench = Bench::start(&mut device);
    ask(&mut bench, 5);
    bench.settle();
    assert_eq!(bench.rings[0].take_all_used().len(), 3);
    // A storm of kicks, with requests and without.
    for round in 0..1000 {
        ask(&mut bench, usize::from(round < 50));
        bench.kick(0);
        assert_eq!(bench.round().unwrap(), 0, "nobody looks");
    }
    assert_eq!((bench.rings[0].take_used(), bench.dropped()), (None, 0));
    // A reset brings no tokens.
    let mut bench = Bench::start(&mut device);
    ask(&mut bench, 1);
    bench.settle();
    assert_eq!(bench.rings[0].take_used(), None);
}

#[test]
fn with_new_tokens_the_requests_go_on_in_order_by_themselves() {
    let start = Instant::now();
    let mut bench = Bench::start(&mut Entropy::new(Some(limit((0, 0), (2, 20)))));
    ask(&mut bench, 10);
    let mut used = Vec::new();
    until(|| {
        bench.settle();
        used.extend(bench.rings[0].take_all_used());
        used.len() == 10
    });
    assert!(start.elapsed() >= std::time::Duration::from_millis(80));
    assert_eq!(used, (0..10).map(|head| (head, 16)).collect::<Vec<_>>());
    ask(&mut bench, 1);
    until(|| {
        bench.settle();
        bench.rings[0].take_used() == Some((10, 16))
    });
}

#[test]
fn item_14_a_huge_request_pays_for_what_it_gets() {
    let mut bench = Bench::start(&mut Entropy::new(Some(limit((200 << 10, DAY), (0, 0)))));
    let half = u32::try_from(HIGH_END - HIGH).unwrap();
    let head = bench.rings[0].offer(&vec![(HIGH, half, true); 64]);
    for _ in 1..64 {
        bench.rings[0].offer_head(head);
    }
    bench.kick(0);
    bench.settle();
    // The fourth finds 8 KiB.
    assert_eq!(bench.rings[0].take_all_used(), [(head.into(), 64 << 10); 3]);
}

#[test]
fn nonsense_is_an_operation_too() {
    let mut bench = Bench::start(&mut Entropy::new(Some(limit((0, 0), (3, DAY)))));
    bench.rings[0].describe(40, (DATA, 16, WRITE | NEXT, 40));
    for _ in 0..60 {
        bench.rings[0].offer_head(40);
    }
    bench.kick(0);
    bench.settle();
    assert_eq!((bench.rings[0].take_all_used().len(), bench.dropped()), (3, 3));
}

#[test]
fn a_pause_while_it_waits_loses_no_request() {
    let mut device = Entropy::new(Some(limit((0, 0), (2, 200))));
    let mut bench = Bench::start(&mut device);
    ask(&mut bench, 4);
    bench.settle();
    bench.pause_and_resume(&mut device);
    let mut used = Vec::new();
    until(|| {
        bench.settle();
        used.extend(bench.rings[0].take_all_used());
        used.len() == 4
    });
    assert_eq!(used, (0..4).map(|head| (head, 16)).collect::<Vec<_>>());
}
