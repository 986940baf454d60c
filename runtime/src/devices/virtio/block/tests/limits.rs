//! A disk behind a rate limiter.

use super::*;
use crate::devices::virtio::gate::tests::{DAY, limit};
use crate::devices::virtio::testkit::drive::until;
use std::time::{Duration, Instant};

fn limited(bytes: (u64, u32), operations: (u64, u32)) -> Block {
    disk(1 << 20).with_limit(Some(limit(bytes, operations)))
}

/// Offers a read of `len` bytes to queue `queue`.
fn offer(bench: &mut Bench, queue: usize, len: u32) {
    bench.rings[queue].offer(&[(HEADER, 16, false), (DATA, len, true), (DATA + u64::from(len), 1, true)]);
}

#[test]
fn without_tokens_requests_wait_and_nothing_spins() {
    let mut device = limited((0, 0), (3, DAY));
    let mut bench = Bench::start(&mut device);
    (0..5).for_each(|_| offer(&mut bench, 0, 512));
    bench.kick(0);
    bench.settle();
    assert_eq!(bench.rings[0].take_all_used().len(), 3);
    assert_eq!(bench.bell.queues.load(std::sync::atomic::Ordering::SeqCst), 1, "of what is done it tells");
    for _ in 0..1000 {
        bench.kick(0);
        assert_eq!(bench.round().unwrap(), 0, "nobody looks");
    }
    assert_eq!(bench.rings[0].take_used(), None);
    // A reset brings no tokens.
    let mut bench = Bench::start(&mut device);
    offer(&mut bench, 0, 512);
    bench.kick(0);
    bench.settle();
    assert_eq!(bench.rings[0].take_used(), None);
}

#[test]
fn bytes_are_those_of_the_data() {
    let mut bench = Bench::start(&mut limited((4096, DAY), (0, 0)));
    (0..8).for_each(|_| offer(&mut bench, 0, 1024));
    bench.kick(0);
    bench.settle();
    assert_eq!(bench.rings[0].take_all_used().len(), 4);
}

#[test]
fn a_request_larger_than_the_bucket_goes_through_once_and_leaves_a_debt() {
    let start = Instant::now();
    let mut bench = Bench::start(&mut limited((1024, 10), (0, 0)));
    offer(&mut bench, 0, 10 << 10);
    offer(&mut bench, 0, 512);
    bench.kick(0);
    let mut used = Vec::new();
    until(|| {
        bench.settle();
        used.extend(bench.rings[0].take_all_used());
        used.len() == 2
    });
    assert_eq!(used, [(0, (10 << 10) + 1), (3, 513)]);
    // 9 KiB of debt and half a bucket, at 1 KiB in 10 ms.
    assert!(start.elapsed() >= Duration::from_millis(95));
}

#[test]
fn item_4_a_huge_claim_that_is_refused_costs_an_operation_and_no_bytes() {
    let mut bench = Bench::start(&mut limited((4096, DAY), (100, DAY)));
    let huge = u32::try_from(LOW_END).unwrap();
    let head = bench.rings[0].offer(&[[(HEADER, 16, false)].as_slice(), &[(0, huge, true); 126]].concat());
    bench.kick(0);
    bench.settle();
    assert_eq!(bench.rings[0].take_all_used(), [(head.into(), 1)]);
    for _ in 0..4 {
        offer(&mut bench, 0, 1024);
    }
    bench.kick(0);
    bench.settle();
    assert_eq!(bench.rings[0].take_all_used().len(), 4);
    offer(&mut bench, 0, 512);
    bench.kick(0);
    bench.settle();
    assert_eq!(bench.rings[0].take_used(), None, "the bytes are gone");
}

/// Feeds queues 0 and 2 with reads of these sizes until `enough` of queue 2 are answered; returns how many of each were.
fn race(mut device: Block, sizes: [u32; 2], enough: usize) -> [usize; 2] {
    let mut bench = Bench::start(&mut device);
    for (queue, size) in [(0, sizes[0]), (2, sizes[1])] {
        (0..40).for_each(|_| offer(&mut bench, queue, size));
        bench.kick(queue);
    }
    let mut counts = [0; 2];
    until(|| {
        bench.round().unwrap();
        counts[0] += bench.rings[0].take_all_used().len();
        counts[1] += bench.rings[2].take_all_used().len();
        counts[1] >= enough
    });
    counts
}

#[test]
fn queues_have_their_turns_at_the_tokens() {
    let counts = race(limited((0, 0), (1, 2)).with_queues(3), [512, 512], 20);
    assert!(counts[0].abs_diff(counts[1]) <= 2, "{counts:?}");
    // Large requests, for which tokens have to be saved up, beside a stream of small ones.
    let counts = race(limited((4096, 4), (0, 0)).with_queues(3), [1024, 4096], 5);
    assert!(counts[0] < 40, "{counts:?}");
}

#[test]
fn a_pause_while_it_waits_loses_no_request() {
    let mut device = limited((0, 0), (2, 200)).with_queues(2);
    let mut bench = Bench::start(&mut device);
    for queue in [0, 1] {
        (0..3).for_each(|_| offer(&mut bench, queue, 512));
        bench.kick(queue);
    }
    bench.settle();
    bench.pause_and_resume(&mut device);
    let mut used = [0, 0];
    until(|| {
        bench.settle();
        (0..2).for_each(|queue| used[queue] += bench.rings[queue].take_all_used().len());
        used == [3, 3]
    });
}
