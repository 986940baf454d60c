//! Frames across a save and a load.

use super::*;
use crate::devices::BusDevice;
use crate::devices::virtio::testkit::drive;
use crate::devices::virtio::testkit::rig::Rig as Machine;
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

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

const PAIRS: usize = 3;
/// The control queue of a card with so many pairs.
const CONTROL: u32 = 6;

/// A card on a tap with so many queues.
fn several(taps: &[UnixDatagram]) -> Net {
    let mut taps: Vec<OwnedFd> = taps.iter().map(|tap| tap.try_clone().unwrap().into()).collect();
    let policy = Policy::new(vec!["10.0.0.0/8:*".parse().unwrap()], Vec::new());
    Net::new(taps.remove(0), taps, MAC, 1500, policy)
}

fn taps() -> (Vec<UnixDatagram>, Vec<UnixDatagram>) {
    let pair = |_| {
        let (wire, tap) = UnixDatagram::pair().unwrap();
        tap.set_nonblocking(true).unwrap();
        wire.set_nonblocking(true).unwrap();
        (wire, tap)
    };
    (0..PAIRS).map(pair).unzip()
}

fn set_pairs(rig: &mut Machine, count: u8) {
    const COMMAND: u64 = 0x10_0000;
    rig.write(COMMAND, &[4, 0, count, 0, 0xff]);
    rig.rings[CONTROL as usize].offer(&[(COMMAND, 4, false), (COMMAND + 4, 1, true)]);
    rig.kick(CONTROL);
    rig.settle();
    assert_eq!(rig.rings[CONTROL as usize].take_all_used().len(), 1);
    assert_eq!(rig.read(COMMAND + 4, 1), [0]);
}

/// Frames that each pair got.
fn received(rig: &mut Machine) -> [usize; PAIRS] {
    rig.settle();
    [0, 2, 4].map(|queue: usize| rig.rings[queue].take_all_used().len())
}

#[test]
fn several_pairs_save_and_load_with_requests_in_flight() {
    let (wires, taps) = taps();
    let send_into_all = || wires.iter().for_each(|wire| assert_eq!(wire.send(&incoming(0)).unwrap(), 166));
    let mut rig = Machine::start(Box::new(several(&taps)));
    for pair in 0..PAIRS {
        for number in 0..10 {
            let at = ROOM + 0x10_0000 * pair as u64 + STRIDE * number;
            rig.rings[2 * pair].offer(&[(at, 2048, true)]);
        }
        rig.kick(u32::try_from(2 * pair).unwrap());
    }
    set_pairs(&mut rig, 2);
    send_into_all();
    assert_eq!(received(&mut rig), [2, 1, 0]);
    rig.pause();
    send_into_all();
    let frame = with_header(&tcp("10.0.0.2", "10.0.0.1", 80));
    rig.write(FRAME, &frame);
    for pair in 0..PAIRS {
        rig.rings[2 * pair + 1].offer(&[(FRAME, u32::try_from(frame.len()).unwrap(), false)]);
    }

    let mut rig = rig.restore(Box::new(several(&taps)));
    assert_eq!(received(&mut rig), [2, 1, 0], "the driver uses two pairs, as before");
    let mut heard = vec![0; 2000];
    for (pair, wire) in wires.iter().enumerate() {
        assert_eq!(rig.rings[2 * pair + 1].take_all_used().len(), 1);
        let length = wire.recv(&mut heard).unwrap();
        assert!(heard[..length] == frame && wire.recv(&mut heard).is_err(), "pair {pair} sends once");
    }
    set_pairs(&mut rig, 3);
    send_into_all();
    assert_eq!(received(&mut rig), [1, 1, 1]);
    rig.is_well();
}

#[test]
fn as_many_pairs_are_loaded_as_there_are_and_a_reset_leaves_one() {
    let (_wires, taps) = taps();
    let mut net = several(&taps);
    for pairs in [0, 4, u16::MAX] {
        let error = net.load(&FORMAT.section(&(pairs, true))).unwrap_err().to_string();
        let expected = format!("virtio-net: pairs of queues in use is {pairs}; 1 to 3 is allowed");
        assert_eq!(error, expected);
        assert_eq!(net.save(), FORMAT.section(&(1_u16, true)), "nothing was taken over");
    }
    let error = net.load(&FORMAT.section(&(1_u16, false))).unwrap_err().to_string();
    assert_eq!(error, "virtio-net: link is false; true, for a tap is allowed");
    net.load(&FORMAT.section(&(3_u16, true))).unwrap();
    assert_eq!(net.save(), FORMAT.section(&(3_u16, true)));
    net.reset();
    assert_eq!(net.save(), FORMAT.section(&(1_u16, true)));
    assert!(several(&taps[..1]).load(&FORMAT.section(&(2_u16, true))).is_err());
}

fn stream() -> (Box<Net>, UnixStream) {
    let (peer, socket) = UnixStream::pair().unwrap();
    peer.set_nonblocking(true).unwrap();
    let policy = Policy::new(vec!["10.0.0.0/8:*".parse().unwrap()], Vec::new());
    (Box::new(Net::over_stream(socket.into(), MAC, u16::MAX, policy).unwrap()), peer)
}

fn with_length(frame: &[u8]) -> Vec<u8> {
    [&u32::try_from(frame.len()).unwrap().to_be_bytes(), frame].concat()
}

/// Until `peer` has heard so many bytes, or the end.
fn hear(rig: &mut Machine, peer: &mut UnixStream, bytes: usize) -> Vec<u8> {
    let (mut heard, mut piece) = (Vec::new(), vec![0; 70_000]);
    while heard.len() < bytes {
        match peer.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => heard.extend_from_slice(&piece[..count]),
            Err(_) => rig.turn(),
        }
    }
    heard
}

#[test]
fn half_a_frame_goes_on_after_a_pause_and_stays_behind_at_a_load() {
    const FRAMES: usize = 14;
    let frame = |number: usize| tcp_with("10.0.0.2", "10.0.0.1", 80, 50_000 + number);
    let (net, mut peer) = stream();
    let mut rig = Machine::start(net);
    for number in 0..4 {
        rig.rings[0].offer(&[(ROOM + STRIDE * number, 2048, true)]);
    }
    rig.kick(0);
    for number in 0..FRAMES {
        let (at, bytes) = (FRAME + 0x1_0000 * number as u64, with_header(&frame(number)));
        rig.write(at, &bytes);
        rig.rings[1].offer(&[(at, u32::try_from(bytes.len()).unwrap(), false)]);
    }
    rig.kick(1);
    rig.settle();
    let first = rig.rings[1].take_all_used().len();
    assert!((2..FRAMES - 4).contains(&first), "{first} frames were taken");
    // The same device goes on in the middle of a frame.
    rig.pause();
    rig.transport.resume();
    let whole: Vec<u8> = (0..first).flat_map(|number| with_length(&frame(number))).collect();
    let heard = hear(&mut rig, &mut peer, whole.len());
    assert!(heard[..whole.len()] == whole, "the frames are not as they were");
    // Another has a new peer, and begins with a whole frame, both ways.
    let started = with_length(&[7; 300]);
    peer.write_all(&started[..100]).unwrap();
    rig.settle();
    let second = first + rig.rings[1].take_all_used().len();
    assert!((first + 1..FRAMES).contains(&second), "{second} frames were taken");
    rig.pause();
    let (net, mut new_peer) = stream();
    let mut rig = rig.restore(net);
    let taken: usize = (0..second).map(|number| with_length(&frame(number)).len()).sum();
    let old = heard.len() + hear(&mut rig, &mut peer, usize::MAX).len();
    assert!(old < taken, "a frame was half sent");
    let rest: Vec<u8> = (second..FRAMES).flat_map(|number| with_length(&frame(number))).collect();
    let heard = hear(&mut rig, &mut new_peer, rest.len());
    assert!(heard == rest, "the new peer hears whole frames, each once");
    new_peer.write_all(&with_length(&[9; 200])).unwrap();
    rig.settle();
    assert_eq!(rig.rings[0].take_all_used(), [(0, 212)]);
    assert_eq!(rig.read(ROOM + 12, 200), [9; 200]);
    assert_eq!(rig.rings[1].take_all_used().len(), FRAMES - second);
    rig.is_well();
}

#[test]
fn a_link_that_was_down_is_up_with_a_new_peer_and_the_driver_is_told() {
    const CONFIG_CHANGED: u32 = 2;
    let is_up = |rig: &Machine| {
        let mut status = [0xff];
        rig.transport.read(0x106, &mut status);
        status == [LINK_UP]
    };
    let told = |rig: &Machine| {
        let interrupts = drive::read(&rig.transport, 0x60);
        drive::write(&rig.transport, 0x64, interrupts);
        interrupts & CONFIG_CHANGED != 0
    };
    let (net, peer) = stream();
    let mut rig = Machine::start(net);
    // Who posts no buffer hears nothing of the peer's end either.
    rig.rings[0].offer(&[(ROOM, 2048, true)]);
    rig.kick(0);
    rig.settle();
    assert!(is_up(&rig) && !told(&rig));
    drop(peer);
    rig.settle();
    assert!(!is_up(&rig) && told(&rig));
    rig.pause();
    rig.transport.resume();
    rig.settle();
    assert!(!is_up(&rig) && !told(&rig), "it is told once");
    rig.pause();
    let (net, peer) = stream();
    let mut rig = rig.restore(net);
    rig.settle();
    assert!(is_up(&rig) && told(&rig));
    rig.settle();
    assert!(!told(&rig));
    drop(peer);
    rig.settle();
    assert!(!is_up(&rig) && told(&rig));
}

crate::devices::virtio::testkit::rig::over_pci!(
    net_saves_and_loads_with_requests_in_flight,
    a_useless_buffer_waits_behind_the_others,
    several_pairs_save_and_load_with_requests_in_flight,
    as_many_pairs_are_loaded_as_there_are_and_a_reset_leaves_one,
    half_a_frame_goes_on_after_a_pause_and_stays_behind_at_a_load,
    a_link_that_was_down_is_up_with_a_new_peer_and_the_driver_is_told,
);
