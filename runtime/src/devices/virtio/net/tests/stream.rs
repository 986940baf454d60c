//! A wire that is a stream: the peer is a program like any other, and may be cut off, slow, silent or hostile.

use super::super::frames::{MAC, tcp_with};
use super::*;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

const LARGE_MTU: u16 = 65_535;

struct Rig {
    bench: Bench,
    peer: UnixStream,
    net: Net,
}

fn rig() -> Rig {
    let (peer, socket) = UnixStream::pair().unwrap();
    peer.set_nonblocking(true).unwrap();
    let allow = vec!["10.0.0.0/8:*".parse().unwrap()];
    let policy = Policy::new(allow, Vec::new());
    let mut net = Net::over_stream(socket.into(), MAC, LARGE_MTU, policy).unwrap();
    Rig { bench: Bench::start(&mut net), peer, net }
}

fn outgoing(data: usize) -> Vec<u8> {
    let mut frame = tcp_with("10.0.0.2", "10.0.0.1", 80, data);
    for (place, byte) in frame[60..].iter_mut().enumerate() {
        *byte = u8::try_from(place % 251).unwrap();
    }
    frame
}

fn with_length(frame: &[u8]) -> Vec<u8> {
    [&u32::try_from(frame.len()).unwrap().to_be_bytes(), frame].concat()
}

fn incoming(seed: u8, length: usize) -> Vec<u8> {
    (0..length).map(|place| u8::try_from(place % 253).unwrap() ^ seed).collect()
}

impl Rig {
    fn offer(&mut self, frame: &[u8]) {
        let bytes = with_header(frame);
        self.bench.write(FRAME, &bytes);
        self.bench.rings[1].offer(&[(FRAME, u32::try_from(bytes.len()).unwrap(), false)]);
        self.bench.kick(1);
    }

    fn post(&mut self, count: u64, bytes: u32) {
        for index in 0..count {
            self.bench.rings[0].offer(&[(ROOM + 0x1_0000 * index, bytes, true)]);
        }
        self.bench.kick(0);
    }

    /// All that has come to the peer.
    fn heard(&mut self) -> Vec<u8> {
        let (mut all, mut piece) = (Vec::new(), vec![0; 70_000]);
        while let Ok(count @ 1..) = self.peer.read(&mut piece) {
            all.extend_from_slice(&piece[..count]);
        }
        all
    }

    fn is_up(&self) -> bool {
        let mut status = [0xff; 2];
        self.net.read_config(6, &mut status);
        assert!(status == [1, 0] || status == [0, 0]);
        status[0] == 1
    }

    /// The driver was told once that the link is down, sends into nothing, and nobody is busy.
    fn assert_down(&mut self) {
        self.bench.settle();
        assert!(!self.is_up());
        let told = || self.bench.bell.configs.load(std::sync::atomic::Ordering::SeqCst);
        assert_eq!(told(), 1);
        self.bench.rings[1].take_all_used();
        for _ in 0..3 {
            self.offer(&outgoing(100));
            self.bench.settle();
            assert_eq!(self.bench.rings[1].take_all_used().len(), 1);
        }
        self.post(3, 2000);
        self.bench.settle();
        assert_eq!(self.bench.rings[0].take_used(), None);
        assert_eq!(self.bench.bell.configs.load(std::sync::atomic::Ordering::SeqCst), 1);
    }
}

#[test]
fn nothing_is_offered_that_the_peer_could_not_do() {
    let rig = rig();
    for offload in [
        net::VIRTIO_NET_F_CSUM,
        net::VIRTIO_NET_F_GUEST_CSUM,
        net::VIRTIO_NET_F_HOST_TSO4,
        net::VIRTIO_NET_F_HOST_TSO6,
        net::VIRTIO_NET_F_GUEST_TSO4,
        net::VIRTIO_NET_F_GUEST_TSO6,
    ] {
        assert_eq!(rig.net.features() & bit(offload), 0, "{offload}");
    }
    for feature in [net::VIRTIO_NET_F_STATUS, net::VIRTIO_NET_F_MRG_RXBUF, net::VIRTIO_NET_F_MTU] {
        assert_ne!(rig.net.features() & bit(feature), 0, "{feature}");
    }
    assert!(rig.is_up());
}

#[test]
fn a_frame_goes_out_behind_its_length_and_without_a_virtio_header() {
    let mut rig = rig();
    for data in [40, 1460, 60_000] {
        rig.offer(&outgoing(data));
        rig.bench.settle();
        assert_eq!(rig.bench.rings[1].take_all_used().len(), 1);
        assert_eq!(rig.heard(), with_length(&outgoing(data)));
    }
    // What asks for a checksum, or to be cut, was not negotiated.
    for (at, value) in [(0, 1), (1, 1)] {
        let mut bytes = with_header(&outgoing(100));
        bytes[at] = value;
        rig.bench.write(FRAME, &bytes);
        rig.bench.rings[1].offer(&[(FRAME, u32::try_from(bytes.len()).unwrap(), false)]);
        rig.bench.kick(1);
        rig.bench.settle();
    }
    assert!(rig.heard().is_empty());
    assert_eq!(rig.bench.dropped(), 2);
}

#[test]
fn the_policy_is_the_same_as_on_a_tap() {
    let mut rig = rig();
    for destination in ["192.0.2.1", "169.254.169.254", "127.0.0.1"] {
        rig.offer(&tcp("10.0.0.2", destination, 80));
        rig.bench.settle();
    }
    assert!(rig.heard().is_empty());
    assert_eq!(rig.bench.dropped(), 3);
}

#[test]
fn frames_that_arrive_cut_anywhere_are_whole() {
    let mut rig = rig();
    let frames = [incoming(1, 60), incoming(2, 14)];
    let bytes: Vec<u8> = frames.iter().flat_map(|frame| with_length(frame)).collect();
    for cut in 1..bytes.len() {
        rig.post(2, 2000);
        for part in [&bytes[..cut], &bytes[cut..]] {
            rig.peer.write_all(part).unwrap();
            rig.bench.settle();
        }
        let used = rig.bench.rings[0].take_all_used();
        assert_eq!(used.iter().map(|used| used.1).collect::<Vec<_>>(), [72, 26], "cut at {cut}");
        for (place, frame) in frames.iter().enumerate() {
            let at = ROOM + 0x1_0000 * place as u64;
            assert_eq!(rig.bench.read(at, 12), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
            assert_eq!(&rig.bench.read(at + 12, frame.len()), frame);
        }
    }
    assert!(rig.is_up() && rig.bench.dropped() == 0);
}

#[test]
fn what_lies_in_one_piece_is_delivered_without_another_word() {
    let mut rig = rig();
    // Far more than an event's frames, in one piece, and buffers for some of them only.
    let bytes: Vec<u8> = (0..140).flat_map(|seed| with_length(&incoming(seed, 100))).collect();
    rig.peer.write_all(&bytes).unwrap();
    rig.post(70, 2000);
    rig.bench.settle();
    assert_eq!(rig.bench.rings[0].take_all_used().len(), 70);
    rig.post(70, 2000);
    rig.bench.settle();
    let used = rig.bench.rings[0].take_all_used();
    assert_eq!((used.len(), rig.bench.dropped()), (70, 0));
    assert_eq!(rig.bench.read(ROOM + 0x1_0000 * 69 + 12, 100), incoming(139, 100));
}

#[test]
fn a_long_frame_fills_several_buffers() {
    let mut rig = rig();
    let frame = incoming(3, LONGEST_FRAME);
    rig.post(60, 1500);
    rig.peer.write_all(&with_length(&frame)).unwrap();
    rig.bench.settle();
    assert_eq!(rig.bench.rings[0].take_all_used().len(), 44);
    assert_eq!(rig.bench.read(ROOM + 10, 2), [44, 0]);
    assert_eq!(rig.bench.read(ROOM + 12, 1488), frame[..1488]);
}

#[test]
fn a_length_that_no_frame_has_is_the_peers_end() {
    for length in [0, 13, u32::try_from(LONGEST_FRAME).unwrap() + 1, 1 << 31, u32::MAX] {
        let mut rig = rig();
        rig.post(4, 2000);
        rig.peer.write_all(&with_length(&incoming(1, 100))).unwrap();
        rig.peer.write_all(&length.to_be_bytes()).unwrap();
        rig.peer.write_all(&[7; 200]).unwrap();
        rig.bench.settle();
        assert_eq!(rig.bench.rings[0].take_all_used().len(), 1, "{length}");
        rig.assert_down();
    }
}

#[test]
fn a_peer_that_ends_is_a_link_that_is_down_for_good() {
    let Rig { mut bench, peer, mut net } = rig();
    drop(peer);
    bench.rings[0].offer(&[(ROOM, 2000, true)]);
    bench.kick(0);
    bench.settle();
    bench.pause_and_resume(&mut net);
    // Stands in for the peer that is gone.
    let peer = UnixStream::pair().unwrap().0;
    peer.set_nonblocking(true).unwrap();
    Rig { bench, peer, net }.assert_down();
}

#[test]
fn a_peer_that_ends_is_noticed_by_who_only_sends() {
    let mut rig = rig();
    rig.peer = UnixStream::pair().unwrap().0;
    rig.offer(&outgoing(100));
    rig.assert_down();
}

#[test]
fn a_peer_that_does_not_read_holds_nobody_up_and_loses_nothing() {
    let mut rig = rig();
    rustix::net::sockopt::set_socket_send_buffer_size(&rig.peer, 4096).unwrap();
    let mut sent = Vec::new();
    for round in 0..40_usize {
        let frame = outgoing(40 + 1511 * round);
        sent.extend(with_length(&frame));
        let bytes = with_header(&frame);
        let at = FRAME + 0x1_0000 * u64::try_from(round).unwrap();
        rig.bench.write(at, &bytes);
        rig.bench.rings[1].offer(&[(at, u32::try_from(bytes.len()).unwrap(), false)]);
    }
    rig.bench.kick(1);
    rig.bench.settle();
    let first = rig.bench.rings[1].take_all_used().len();
    assert!((1..40).contains(&first), "{first} frames were taken");
    // Meanwhile frames come in.
    rig.post(1, 2000);
    rig.peer.write_all(&with_length(&incoming(9, 64))).unwrap();
    rig.bench.settle();
    assert_eq!(rig.bench.rings[0].take_all_used().len(), 1);
    // A driver that goes away in the middle of a frame does not cut it.
    rig.bench.pause_and_resume(&mut rig.net);
    let (mut heard, mut piece) = (Vec::new(), vec![0; 9973]);
    while heard.len() < sent.len() {
        let count = rig.peer.read(&mut piece).unwrap();
        heard.extend_from_slice(&piece[..count]);
        rig.bench.settle();
    }
    assert!(heard == sent, "the frames are not as they were");
    assert_eq!(rig.bench.rings[1].take_all_used().len() + first, 40);
    assert_eq!(rig.bench.dropped(), 0);
}
