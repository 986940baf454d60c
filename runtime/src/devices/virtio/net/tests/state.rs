//! Frames across a save and a load.

use super::*;
use crate::devices::virtio::testkit::rig::Rig as Machine;
use std::collections::BTreeSet;

/// Bytes between two buffers.
const STRIDE: u64 = 0x1000;

fn offer_frame(rig: &mut Machine, number: u64) {
    let at = FRAME + STRIDE * number;
    let frame = with_header(&tcp_with("10.0.0.2", "10.0.0.1", 80, usize::try_from(number).unwrap()));
    rig.write(at, &frame);
    rig.rings[1].offer(&[(at, u32::try_from(frame.len()).unwrap(), false)]);
}

/// A frame to the guest, known by its length.
fn incoming(number: usize) -> Vec<u8> {
    with_header(&tcp_with("10.0.0.1", "10.0.0.2", 80, 100 + number))
}

#[test]
fn net_saves_and_loads_with_requests_in_flight() {
    let (wire, tap) = UnixDatagram::pair().unwrap();
    tap.set_nonblocking(true).unwrap();
    wire.set_nonblocking(true).unwrap();
    let mut rig = Machine::start(Box::new(card(tap.try_clone().unwrap())));
    for number in 0..20 {
        rig.rings[0].offer(&[(ROOM + STRIDE * number, 2048, true)]);
    }
    rig.kick(0);
    for number in 0..3 {
        wire.send(&incoming(number)).unwrap();
    }
    (0..5).for_each(|number| offer_frame(&mut rig, number));
    rig.kick(1);
    rig.settle();
    let mut received = rig.rings[0].take_all_used();
    let mut sent = rig.rings[1].take_all_used();
    assert_eq!((received.len(), sent.len()), (3, 5));
    rig.pause();
    // The card had taken more buffers than it has filled; these frames wait in the tap, and in the ring.
    (3..8).for_each(|number| assert_ne!(wire.send(&incoming(number)).unwrap(), 0));
    (5..10).for_each(|number| offer_frame(&mut rig, number));
    rig.kick(1);

    let mut rig = rig.restore(Box::new(card(tap)));
    rig.settle();
    received.extend(rig.rings[0].take_all_used());
    sent.extend(rig.rings[1].take_all_used());
    let lengths: Vec<_> = received.iter().map(|&(_, length)| length as usize).collect();
    assert_eq!(lengths, (0..8).map(|number| incoming(number).len()).collect::<Vec<_>>());
    assert_eq!(received.iter().map(|&(head, _)| head).collect::<BTreeSet<_>>().len(), 8);
    for (number, &(head, _)) in received.iter().enumerate() {
        let frame = incoming(number);
        let there =
            rig.read(ROOM + STRIDE * u64::from(head) + HEADER_BYTES as u64, frame.len() - HEADER_BYTES);
        assert_eq!(there, frame[HEADER_BYTES..], "frame {number}");
    }
    assert_eq!(sent.iter().map(|&(head, _)| head).collect::<BTreeSet<_>>().len(), 10);
    let mut frame = vec![0; 70_000];
    for number in 0..10 {
        let length = wire.recv(&mut frame).unwrap();
        assert_eq!(frame[..length], with_header(&tcp_with("10.0.0.2", "10.0.0.1", 80, number)));
    }
    assert!(wire.recv(&mut frame).is_err(), "none is sent twice");
    rig.is_well();
}

/// A chain that takes no frame, behind one that waits for its frame: each goes back once, in their order.
#[test]
fn a_useless_buffer_waits_behind_the_others() {
    let mut rig = rig();
    rig.bench.rings[0].offer(&[(ROOM, 2048, true)]);
    rig.bench.rings[0].offer(&[(ROOM, 2048, false)]);
    rig.bench.kick(0);
    rig.bench.settle();
    let queues = rig.bench.worker.drain(std::time::Instant::now()).unwrap();
    let (_, queue) = &queues[0];
    assert_eq!(virtio_queue::QueueT::next_avail(queue), virtio_queue::QueueT::next_used(queue));
    assert_eq!(rig.bench.rings[0].take_used(), None);
}
