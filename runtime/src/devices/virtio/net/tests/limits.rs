//! A card behind rate limiters.

use super::*;
use crate::devices::virtio::gate::Limit;
use crate::devices::virtio::gate::tests::{DAY, limit};
use crate::devices::virtio::testkit::drive::until;
use std::time::{Duration, Instant};

/// A rig with these limits, its card, and a second hold on its tap.
fn limited(receive: Option<Limit>, transmit: Option<Limit>) -> (Rig, Net, UnixDatagram) {
    let (wire, tap) = UnixDatagram::pair().unwrap();
    tap.set_nonblocking(true).unwrap();
    wire.set_nonblocking(true).unwrap();
    let same = tap.try_clone().unwrap();
    let mut net = card(tap).with_limits(receive, transmit);
    (Rig { bench: Bench::start(&mut net), wire }, net, same)
}

fn frame() -> Vec<u8> {
    with_header(&tcp("10.0.0.2", "10.0.0.1", 80))
}

/// Offers so many frames to be sent.
fn offer(rig: &mut Rig, count: usize) {
    let frame = frame();
    rig.bench.write(FRAME, &frame);
    for _ in 0..count {
        rig.bench.rings[1].offer(&[(FRAME, u32::try_from(frame.len()).unwrap(), false)]);
        rig.bench.kick(1);
    }
}

fn all_heard(rig: &Rig) -> usize {
    std::iter::from_fn(|| rig.heard()).count()
}

#[test]
fn what_is_sent_too_fast_waits_and_receiving_goes_on() {
    let (mut rig, mut net, _tap) = limited(None, Some(limit((0, 0), (3, DAY))));
    offer(&mut rig, 5);
    rig.bench.settle();
    assert_eq!((all_heard(&rig), rig.bench.rings[1].take_all_used().len()), (3, 3));
    for _ in 0..1000 {
        rig.bench.kick(1);
        assert_eq!(rig.bench.round().unwrap(), 0, "nobody looks");
    }
    rig.post(2, 2000);
    rig.wire.send(&[5; 200]).unwrap();
    rig.bench.settle();
    assert_eq!(rig.bench.rings[0].take_all_used().len(), 1);
    assert_eq!((all_heard(&rig), rig.bench.dropped()), (0, 0));
    // A reset brings no tokens.
    rig.bench = Bench::start(&mut net);
    offer(&mut rig, 1);
    rig.bench.settle();
    assert_eq!((all_heard(&rig), rig.bench.rings[1].take_used()), (0, None));
}

#[test]
fn bytes_sent_are_those_of_the_frame_and_a_refused_one_counts() {
    let bytes = (frame().len() - HEADER_BYTES) as u64;
    let (mut rig, ..) = limited(None, Some(limit((3 * bytes, DAY), (0, 0))));
    let mut spoofed = frame();
    spoofed[HEADER_BYTES + 6] ^= 1;
    rig.drops(&spoofed);
    offer(&mut rig, 3);
    rig.bench.settle();
    assert_eq!(all_heard(&rig), 2);
}

#[test]
fn item_11_a_huge_chain_is_refused_and_pays_for_a_frame() {
    let longest = LONGEST_FRAME as u64;
    let (mut rig, ..) = limited(None, Some(limit((longest + 100, DAY), (0, 0))));
    let all = u32::try_from(LOW_END - FRAME).unwrap();
    for _ in 0..2 {
        rig.bench.rings[1].offer(&[(FRAME, all, false), (FRAME, all, false)]);
    }
    rig.bench.kick(1);
    rig.bench.settle();
    assert_eq!((rig.bench.rings[1].take_all_used().len(), rig.bench.dropped()), (1, 1));
}

#[test]
fn what_comes_too_fast_waits_in_the_tap_and_sending_goes_on() {
    let (mut rig, _net, tap) = limited(Some(limit((0, 0), (2, DAY))), None);
    rig.post(8, 1000);
    (0..5_u8).for_each(|round| assert_eq!(rig.wire.send(&[round; 100]).unwrap(), 100));
    rig.bench.settle();
    assert_eq!(rig.bench.rings[0].take_all_used().len(), 2);
    for round in 0..1000 {
        rig.bench.kick(0);
        drop(rig.wire.send(&[9; 100]));
        assert_eq!(rig.bench.round().unwrap(), 0, "nobody looks, round {round}");
    }
    rig.send(&frame());
    assert!(rig.heard().is_some());
    let mut bytes = [0; 200];
    for round in 2..5 {
        assert_eq!((tap.recv(&mut bytes).unwrap(), bytes[0]), (100, round), "in order, none is lost");
    }
    assert_eq!(rig.bench.dropped(), 0);
}

#[test]
fn a_received_frame_may_leave_a_debt() {
    let start = Instant::now();
    let (mut rig, ..) = limited(Some(limit((100, 10), (0, 0))), None);
    rig.post(4, 2000);
    for _ in 0..2 {
        rig.wire.send(&[1; HEADER_BYTES + 1000]).unwrap();
    }
    let mut received = 0;
    until(|| {
        rig.bench.settle();
        received += rig.bench.rings[0].take_all_used().len();
        received == 2
    });
    assert!(start.elapsed() >= Duration::from_millis(90), "900 bytes of debt at 10 a millisecond");
}

#[test]
fn both_ways_go_on_by_themselves_and_frames_stay_in_order() {
    let start = Instant::now();
    let (mut rig, ..) = limited(Some(limit((0, 0), (1, 5))), Some(limit((0, 0), (1, 5))));
    rig.post(12, 1000);
    (0..10_u8).for_each(|round| assert_eq!(rig.wire.send(&[round; 100]).unwrap(), 100));
    offer(&mut rig, 10);
    let (mut heard, mut received) = (0, Vec::new());
    until(|| {
        rig.bench.settle();
        heard += all_heard(&rig);
        received.extend(rig.bench.rings[0].take_all_used());
        heard == 10 && received.len() == 10
    });
    assert!(start.elapsed() >= Duration::from_millis(45));
    let first = |head: &(u32, u32)| rig.bench.read(ROOM + 0x1_0000 * u64::from(head.0) + 50, 1)[0];
    assert_eq!(received.iter().map(first).collect::<Vec<_>>(), (0..10).collect::<Vec<_>>());
}

#[test]
fn a_pause_while_it_waits_loses_no_frame() {
    let (mut rig, mut net, _tap) = limited(Some(limit((0, 0), (1, 100))), Some(limit((0, 0), (1, 100))));
    rig.post(5, 1000);
    (0..3_u8).for_each(|round| assert_eq!(rig.wire.send(&[round; 100]).unwrap(), 100));
    offer(&mut rig, 3);
    rig.bench.settle();
    rig.bench.pause_and_resume(&mut net);
    let (mut heard, mut received) = (0, 0);
    until(|| {
        rig.bench.settle();
        heard += all_heard(&rig);
        received += rig.bench.rings[0].take_all_used().len();
        heard == 3 && received == 3
    });
    assert_eq!(rig.bench.dropped(), 0);
}
