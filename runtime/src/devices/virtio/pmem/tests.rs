mod state;

use super::*;
use crate::devices::virtio::testkit::{Bench, HIGH_END, IMAGE, INDIRECT, LOW_END, NEXT, WRITE, image};

const REQUEST: u64 = 0x20_0000;
const RESULT: u64 = 0x20_1000;

fn bench() -> Bench {
    Bench::start(&mut Pmem::new(&image()))
}

/// The result of a request of type `kind`.
fn result_of(bench: &mut Bench, kind: u32) -> u32 {
    bench.write(REQUEST, &kind.to_le_bytes());
    bench.write(RESULT, &[0xff; 8]);
    let head = bench.rings[0].offer(&[(REQUEST, 4, false), (RESULT, 4, true)]);
    bench.kick(0);
    bench.settle();
    assert_eq!(bench.rings[0].take_all_used(), [(head.into(), 4)]);
    assert_eq!(bench.read(RESULT + 4, 4), [0xff; 4], "not a byte beyond the result");
    u32::from_le_bytes(bench.read(RESULT, 4).try_into().unwrap())
}

#[test]
fn the_configuration_says_where_the_image_is() {
    let device = Pmem::new(&image());
    let mut config = [7; 24];
    device.read_config(0, &mut config);
    assert_eq!(config[..8], IMAGE.to_le_bytes());
    assert_eq!(config[8..16], (2_u64 << 20).to_le_bytes(), "whole places of huge pages");
    assert_eq!(config[16..], [0; 8]);
    let mut high = [0; 4];
    device.read_config(12, &mut high);
    assert_eq!(high, [0; 4]);
}

#[test]
fn a_flush_is_a_success_and_nothing_else_is() {
    let mut bench = bench();
    assert_eq!(result_of(&mut bench, 0), 0);
    for kind in [1, 2, 0x100, 0x0100_0000, u32::MAX] {
        assert_eq!(result_of(&mut bench, kind), 1, "{kind}");
    }
    assert_eq!(bench.dropped(), 0);
}

#[test]
fn a_request_may_lie_in_pieces_and_in_an_image() {
    let mut bench = bench();
    bench.write(REQUEST, &[0; 4]);
    let split = [(REQUEST, 1, false), (REQUEST + 1, 3, false), (RESULT, 3, true), (RESULT + 8, 1, true)];
    let pieces = bench.rings[0].offer(&split);
    // Its type is 0xdadadada.
    let image = bench.rings[0].offer(&[(IMAGE, 4, false), (RESULT + 16, 4, true)]);
    bench.kick(0);
    bench.settle();
    assert_eq!(bench.rings[0].take_all_used(), [(pieces.into(), 4), (image.into(), 4)]);
    assert_eq!(bench.read(RESULT + 16, 4), [1, 0, 0, 0]);
}

#[test]
fn items_1_3_4_5_nonsense_goes_back_unused_and_the_device_goes_on() {
    let mut bench = bench();
    let ring = &mut bench.rings[0];
    let request = |ring: &crate::devices::virtio::testkit::Ring, at, kind: (u64, u32), result: (u64, u32)| {
        ring.describe(at, (kind.0, kind.1, NEXT, at + 1));
        ring.describe(at + 1, (result.0, result.1, WRITE, 0));
    };
    let wrong = [
        // Short, long, of 4 GiB, outside memory, wrapping.
        ((REQUEST, 3), (RESULT, 4)),
        ((REQUEST, 5), (RESULT, 4)),
        ((REQUEST, 4), (RESULT, 3)),
        ((REQUEST, 4), (RESULT, 5)),
        ((REQUEST, u32::MAX), (RESULT, 4)),
        ((LOW_END, 4), (RESULT, 4)),
        ((REQUEST, 4), (HIGH_END - 2, 4)),
        ((u64::MAX - 1, 4), (RESULT, 4)),
        // The result into the image, and into what follows it.
        ((REQUEST, 4), (IMAGE, 4)),
        ((REQUEST, 4), (IMAGE + (1 << 20), 4)),
    ];
    for (at, (kind, result)) in (0..).step_by(2).zip(wrong) {
        request(ring, at, kind, result);
        ring.offer_head(at);
    }
    // To itself; nothing to read; nothing to write; swapped; a table not offered.
    ring.describe(40, (REQUEST, 4, NEXT, 40));
    ring.describe(41, (RESULT, 4, WRITE, 0));
    ring.describe(42, (REQUEST, 4, 0, 0));
    ring.describe(43, (RESULT, 4, WRITE | NEXT, 42));
    ring.describe(44, (REQUEST, 32, INDIRECT, 0));
    let mut expected: Vec<(u32, u32)> = (0..20).step_by(2).map(|head| (head, 0)).collect();
    for head in 40..=44 {
        ring.offer_head(head);
        expected.push((head.into(), 0));
    }
    bench.kick(0);
    bench.settle();
    assert_eq!(bench.rings[0].take_all_used(), expected);
    assert_eq!(bench.dropped(), expected.len() as u64);
    assert_eq!(result_of(&mut bench, 0), 0);
}

#[test]
fn one_event_is_bounded() {
    let mut bench = bench();
    bench.write(REQUEST, &[0; 4]);
    let head = bench.rings[0].offer(&[(REQUEST, 4, false), (RESULT, 4, true)]);
    for _ in 1..64 {
        bench.rings[0].offer_head(head);
    }
    bench.kick(0);
    bench.round().unwrap();
    assert_eq!(bench.rings[0].take_all_used().len(), 64);
    bench.settle();
}

#[test]
fn item_2_a_corrupt_ring_is_an_error_of_the_device() {
    let mut bench = bench();
    bench.rings[0].set_available(500);
    bench.kick(0);
    assert!(bench.round().unwrap_err().to_string().starts_with("queue 0: "));
}

#[test]
fn a_drained_device_gives_its_queue_back() {
    let mut bench = bench();
    assert_eq!(bench.worker.drain(Instant::now()).unwrap().len(), 1);
}
