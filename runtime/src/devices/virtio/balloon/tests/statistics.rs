//! The statistics queue: what is told, how often, and what a hostile driver gets.

use super::super::*;
use crate::devices::virtio::balloon::statistics::MOST_ENTRIES;
use crate::devices::virtio::testkit::{Bench, LOW_END};
use husk_protocol::control::{BalloonReport, BalloonStatistics};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// Where statistics are put.
const LIST: u64 = 0x10_0000;
/// An interval that does not pass in a test.
const NEVER: u16 = 10_000;
const STATS: usize = 2;
const REPORTING: usize = 3;

/// A balloon that asks every so many seconds, and what it tells.
fn polled(seconds: u16, free_page_reporting: bool) -> (Balloon, Receiver<BalloonReport>) {
    let (sender, receiver) = channel();
    let sender = Mutex::new(sender);
    let tell: Tell = Arc::new(move |report| drop(sender.lock().unwrap().send(report)));
    let balloon = Balloon::new(4, false, free_page_reporting);
    (balloon.with_statistics(NonZeroU16::new(seconds).unwrap(), tell).unwrap(), receiver)
}

fn bytes(entries: &[(u16, u64)]) -> Vec<u8> {
    entries.iter().flat_map(|(tag, value)| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat()).collect()
}

fn offer(bench: &mut Bench, entries: &[(u16, u64)]) -> u16 {
    let bytes = bytes(entries);
    bench.write(LIST, &bytes);
    bench.rings[STATS].offer(&[(LIST, u32::try_from(bytes.len()).unwrap(), false)])
}

/// Serves the queue until it has given a buffer back, which takes a tick.
fn given_back(bench: &mut Bench) -> (u32, u32) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        bench.settle();
        if let Some(used) = bench.rings[STATS].take_used() {
            return used;
        }
        assert!(Instant::now() < deadline, "no tick within 10 s");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn statistics_are_told_and_asked_for_again_after_the_interval() {
    let started = Instant::now();
    let (mut balloon, told) = polled(1, false);
    assert_eq!((balloon.features() & 0x3f, balloon.queue_sizes().len()), (2, 3));
    balloon.write_config(4, &(3 * PAGES_PER_MIB + 255).to_le_bytes());
    let mut bench = Bench::start(&mut balloon);
    let head = offer(&mut bench, &[(4, 1 << 20), (3, u64::MAX), (15, 7)]);
    bench.kick(STATS);
    bench.settle();
    let report = told.try_recv().unwrap();
    let statistics = BalloonStatistics {
        free_memory: Some(1 << 20),
        minor_faults: Some(u64::MAX),
        direct_reclaim: Some(7),
        ..BalloonStatistics::default()
    };
    assert_eq!((report.actual_mib, report.statistics), (3, statistics));
    assert_eq!(given_back(&mut bench), (head.into(), 0));
    assert!(started.elapsed() >= Duration::from_secs(1), "{:?}", started.elapsed());
    offer(&mut bench, &[(4, 5)]);
    bench.kick(STATS);
    bench.settle();
    assert_eq!(told.try_recv().unwrap().statistics.free_memory, Some(5));
    assert_eq!(bench.dropped(), 0);
}

#[test]
fn the_queue_for_free_pages_comes_after_it() {
    let (mut balloon, told) = polled(NEVER, true);
    let mut bench = Bench::start(&mut balloon);
    bench.write(0x20_0000, &[7; 4096]);
    bench.rings[REPORTING].offer(&[(0x20_0000, 4096, true)]);
    bench.kick(REPORTING);
    offer(&mut bench, &[(5, 9)]);
    bench.kick(STATS);
    bench.settle();
    assert_eq!(bench.read(0x20_0000, 4096), [0; 4096]);
    assert_eq!(told.try_recv().unwrap().statistics.total_memory, Some(9));
    assert_eq!(bench.worker.drain(Instant::now()).unwrap().len(), 4);
}

#[test]
fn a_driver_that_does_not_take_part_is_not_asked() {
    let (mut balloon, _told) = polled(NEVER, true);
    let mut bench = Bench::start_with(&mut balloon, FEATURE_EVENT_IDX | FEATURE_REPORTING);
    // Its third queue is that for free pages.
    bench.write(0x20_0000, &[7; 4096]);
    bench.rings[STATS].offer(&[(0x20_0000, 4096, true)]);
    bench.kick(STATS);
    bench.settle();
    assert_eq!((bench.read(0x20_0000, 1), bench.worker.events().len()), (vec![0], 3));
}

#[test]
fn item_13_unknown_tags_and_doubles_are_harmless() {
    let (mut balloon, told) = polled(NEVER, false);
    let mut bench = Bench::start(&mut balloon);
    offer(&mut bench, &[(16, 1), (u16::MAX, 2), (0, 3), (0, 4), (0x8000, 5)]);
    bench.kick(STATS);
    bench.settle();
    let expected = BalloonStatistics { swap_in: Some(4), ..BalloonStatistics::default() };
    assert_eq!((told.try_recv().unwrap().statistics, bench.dropped()), (expected, 0));
}

#[test]
fn item_13_huge_statistics_are_dropped_and_cost_a_tick_each() {
    let most = vec![(0, 1); MOST_ENTRIES];
    let most_bytes = u32::try_from(bytes(&most).len()).unwrap();
    for (buffers, wrong) in [
        (&[(LIST, most_bytes + 10, false)][..], true),
        (&[(LIST, u32::MAX, false)], true),
        (&[(LIST, 8 << 20, false), (LIST, 8 << 20, false)], true),
        (&[(LIST, 9, false)], true),
        (&[(LIST, 10, false), (LIST, 10, true)], true),
        (&[(LOW_END - 5, 10, false)], true),
        (&[(LIST, 3, false), (LIST + 3, most_bytes - 3, false)], false),
    ] {
        let (mut balloon, told) = polled(NEVER, false);
        let mut bench = Bench::start(&mut balloon);
        bench.write(LIST, &bytes(&most));
        bench.rings[STATS].offer(buffers);
        bench.kick(STATS);
        bench.settle();
        assert_eq!((bench.dropped(), told.try_recv().is_err()), (wrong.into(), wrong), "{buffers:?}");
        assert!(bench.rings[STATS].take_used().is_none(), "it is not answered before the tick");
    }
}

#[test]
fn item_13_many_buffers_and_resets_tell_husk_once_a_tick() {
    let (mut balloon, told) = polled(1, false);
    let ticked = Instant::now();
    for _ in 0..50 {
        let mut bench = Bench::start(&mut balloon);
        let head = offer(&mut bench, &[(1, 1)]);
        for _ in 1..QUEUE_SIZE {
            bench.rings[STATS].offer_head(head);
        }
        for _ in 0..10 {
            bench.kick(STATS);
            bench.settle();
        }
        assert_eq!(bench.worker.drain(Instant::now()).unwrap().len(), 3);
    }
    let most = 2 + ticked.elapsed().as_secs();
    let count = told.try_iter().count() as u64;
    assert!((1..=most).contains(&count), "{count} reports");
}

#[test]
fn a_buffer_that_is_here_goes_back_with_its_queue() {
    let (mut balloon, _told) = polled(NEVER, false);
    let mut bench = Bench::start(&mut balloon);
    offer(&mut bench, &[(1, 1)]);
    bench.kick(STATS);
    bench.settle();
    let queues = bench.worker.drain(Instant::now()).unwrap();
    let (_, queue) = queues.iter().find(|(index, _)| usize::from(*index) == STATS).unwrap();
    assert_eq!(virtio_queue::QueueT::next_avail(queue), 0);
}

#[test]
fn items_1_2_a_corrupt_statistics_queue_is_an_error_of_the_device() {
    let (mut balloon, _told) = polled(1, false);
    let mut bench = Bench::start(&mut balloon);
    // Descriptors that lead nowhere are the driver's chain, and dropped; an index that jumps is the queue's end.
    bench.rings[STATS].describe(0, (LIST, 10, crate::devices::virtio::testkit::NEXT, 0));
    bench.rings[STATS].offer_head(0);
    bench.kick(STATS);
    bench.settle();
    assert_eq!(bench.dropped(), 1);
    given_back(&mut bench);
    bench.rings[STATS].set_available(500);
    bench.kick(STATS);
    assert!(bench.round().unwrap_err().to_string().starts_with("queue 2: "));
}
