mod state;

use super::message::LONGEST;
use super::*;
use crate::devices::virtio::testkit::{Bench, INDIRECT, LOW_END, NEXT, WRITE};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

mod limits;

const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const DESTROY: u32 = 38;
const SAID: u64 = 0x20_0000;
const ROOM: u64 = 0x30_0000;
const EIO: i32 = -libc::EIO;

/// A driver, the device, and the server's end of its socket.
struct World {
    bench: Bench,
    device: Fs,
    server: UnixStream,
}

fn world() -> World {
    let (ours, server) = UnixStream::pair().unwrap();
    server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut device = Fs::new("data", ours.into()).unwrap();
    World { bench: Bench::start(&mut device), device, server }
}

/// A request; `length` is what its header claims.
fn request(opcode: u32, unique: u64, length: usize, body: &[u8]) -> Vec<u8> {
    let mut bytes = [u32::try_from(length).unwrap(), opcode].map(u32::to_le_bytes).concat();
    bytes.extend(unique.to_le_bytes());
    bytes.extend([0; 24]);
    bytes.extend(body);
    bytes
}

/// An answer; `length` is what its header claims.
fn answer(length: usize, error: i32, tag: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(length).unwrap().to_le_bytes().to_vec();
    bytes.extend(error.to_le_bytes());
    bytes.extend(tag.to_le_bytes());
    bytes.extend(body);
    bytes
}

impl World {
    /// Offers a request of `bytes`, with room for `room` bytes at `ROOM + 4096 * place`; returns its head.
    fn offer(&mut self, queue: usize, place: u64, bytes: &[u8], room: u32) -> u16 {
        let at = SAID + place * 4096;
        self.bench.write(at, bytes);
        let mut buffers = vec![(at, u32::try_from(bytes.len()).unwrap(), false)];
        if room > 0 {
            buffers.push((ROOM + place * 4096, room, true));
        }
        let head = self.bench.rings[queue].offer(&buffers);
        self.bench.kick(queue);
        head
    }

    /// Asks for a name, and lets the device do what it can.
    fn ask(&mut self, place: u64, unique: u64, room: u32) -> u16 {
        let head = self.offer(1, place, &request(LOOKUP, unique, 44, b"abc\0"), room);
        self.bench.settle();
        head
    }

    /// What the server hears next: opcode, tag and body.
    fn hears(&mut self) -> (u32, u64, Vec<u8>) {
        let mut head = [0; 40];
        self.server.read_exact(&mut head).unwrap();
        let length = u32::from_le_bytes(head[..4].try_into().unwrap()) as usize;
        let mut body = vec![0; length - 40];
        self.server.read_exact(&mut body).unwrap();
        let opcode = u32::from_le_bytes(head[4..8].try_into().unwrap());
        (opcode, u64::from_le_bytes(head[8..16].try_into().unwrap()), body)
    }

    fn says(&mut self, bytes: &[u8]) {
        self.server.write_all(bytes).unwrap();
        self.bench.settle();
    }

    fn used(&mut self) -> Vec<(u32, u32)> {
        self.bench.rings[1].take_all_used()
    }

    /// The answer at `place`: error, the guest's number, and as many bytes more as `body`.
    fn got(&self, place: u64, body: usize) -> (i32, u64, Vec<u8>) {
        let bytes = self.bench.read(ROOM + place * 4096, 16 + body);
        let error = i32::from_le_bytes(bytes[4..8].try_into().unwrap());
        (error, u64::from_le_bytes(bytes[8..16].try_into().unwrap()), bytes[16..].to_vec())
    }
}

#[test]
fn the_tag_and_one_queue_are_its_configuration() {
    let world = world();
    let mut data = [9; 44];
    world.device.read_config(0, &mut data);
    assert_eq!((&data[..5], &data[36..]), (&b"data\0"[..], &[1, 0, 0, 0, 0, 0, 0, 0][..]));
}

#[test]
fn answers_find_their_requests_in_any_order() {
    let mut world = world();
    // The guest gives both the same number: that is its affair.
    let (first, second) = (world.ask(0, 7, 64), world.ask(1, 7, 64));
    let ((opcode, one, name), (_, two, _)) = (world.hears(), world.hears());
    assert_eq!((opcode, name), (LOOKUP, b"abc\0".to_vec()));
    assert_ne!(one, two);
    world.says(&answer(20, 0, two, b"late"));
    world.says(&answer(16, -2, one, b""));
    assert_eq!(world.used(), [(second.into(), 20), (first.into(), 16)]);
    assert_eq!(world.got(1, 4), (0, 7, b"late".to_vec()));
    assert_eq!(world.got(0, 0), (-2, 7, vec![]));
    assert_eq!(world.bench.dropped(), 0);
}

#[test]
fn an_answer_may_come_in_pieces() {
    let mut world = world();
    let head = world.ask(0, 1, 64);
    let (_, tag, _) = world.hears();
    for byte in answer(19, 0, tag, b"xyz") {
        assert_eq!(world.used(), []);
        world.says(&[byte]);
    }
    assert_eq!(world.used(), [(head.into(), 19)]);
}

#[test]
fn what_is_forgotten_is_not_waited_for() {
    let mut world = world();
    let head = world.offer(0, 0, &request(FORGET, 5, 48, &[1; 8]), 0);
    world.bench.settle();
    assert_eq!(world.bench.rings[0].take_all_used(), [(head.into(), 0)]);
    assert_eq!(world.hears().0, FORGET);
}

#[test]
fn a_length_that_lies_is_refused_and_never_sent() {
    let mut world = world();
    for (place, (claimed, bytes)) in
        [(45, 4), (43, 4), (0, 4), (39, 0), (u32::MAX as usize, 4)].into_iter().enumerate()
    {
        let bytes = request(LOOKUP, 3, claimed, &vec![0; bytes]);
        world.offer(1, place as u64, &bytes, 64);
        world.bench.settle();
        assert_eq!(world.used().pop().unwrap().1, 16);
        assert_eq!(world.got(place as u64, 0), (EIO, 3, vec![]), "{claimed}");
    }
    assert_eq!(world.bench.dropped(), 5);
    let long = u32::try_from(LONGEST).unwrap() + 1;
    world.bench.write(SAID, &request(LOOKUP, 4, LONGEST + 1, &[]));
    world.bench.rings[1].offer(&[(SAID, long, false), (ROOM, 64, true)]);
    world.bench.kick(1);
    world.bench.settle();
    assert_eq!((world.used().len(), world.got(0, 0).0), (1, EIO));
    let good = world.ask(9, 9, 64);
    let (_, tag, _) = world.hears();
    world.says(&answer(16, 0, tag, b""));
    assert_eq!(world.used(), [(good.into(), 16)]);
}

#[test]
fn items_1_3_4_5_nonsense_goes_back_unused_and_the_device_goes_on() {
    let mut world = world();
    world.bench.write(SAID, &request(LOOKUP, 1, 44, b"abc\0"));
    let ring = &mut world.bench.rings[1];
    // To itself; outside memory, either half; no header; no room for an answer; 4 GiB; a bad table.
    ring.describe(40, (SAID, 44, NEXT, 40));
    ring.describe(41, (LOW_END, 44, 0, 0));
    ring.describe(42, (SAID, 44, NEXT, 43));
    ring.describe(43, (LOW_END - 8, 64, WRITE, 0));
    ring.describe(44, (SAID, 39, NEXT, 45));
    ring.describe(45, (ROOM, 64, WRITE, 0));
    ring.describe(46, (SAID, 44, NEXT, 47));
    ring.describe(47, (ROOM, 15, WRITE, 0));
    ring.describe(48, (SAID, u32::MAX, 0, 0));
    ring.describe(49, (SAID, 7, INDIRECT, 0));
    let wrong = [40, 41, 42, 44, 46, 48, 49];
    for head in wrong {
        ring.offer_head(head);
    }
    world.bench.kick(1);
    world.bench.settle();
    assert_eq!(world.used(), wrong.map(|head| (u32::from(head), 0)));
    assert_eq!(world.bench.dropped(), wrong.len() as u64);
    world.ask(2, 2, 64);
    assert_eq!(world.hears().2, b"abc\0");
}

#[test]
fn an_answer_that_the_guest_has_no_room_for_is_an_error() {
    let mut world = world();
    // Too long for its buffers; an error with content; errors that are none.
    let answers = [(49, 0, 33), (17, -2, 1), (16, 5, 0), (16, -512, 0), (16, i32::MIN, 0)];
    for (place, (length, error, body)) in answers.into_iter().enumerate() {
        let head = world.ask(place as u64, 6, 48);
        let (_, tag, _) = world.hears();
        world.bench.write(ROOM + place as u64 * 4096 + 16, &[0xaa; 64]);
        world.says(&answer(length, error, tag, &vec![1; body]));
        assert_eq!(world.used(), [(head.into(), 16)]);
        assert_eq!(world.got(place as u64, 64), (EIO, 6, vec![0xaa; 64]));
    }
}

#[test]
fn an_answer_to_nobody_is_ignored_and_one_that_comes_twice_too() {
    let mut world = world();
    let head = world.ask(0, 8, 64);
    let (_, tag, _) = world.hears();
    world.says(&answer(20, 0, tag + 1, b"none"));
    assert_eq!(world.used(), []);
    world.says(&answer(20, 0, tag, b"once"));
    world.says(&answer(20, 0, tag, b"more"));
    assert_eq!(world.used(), [(head.into(), 20)]);
    assert_eq!(world.got(0, 4).2, b"once");
}

#[test]
fn an_answer_of_impossible_length_is_the_servers_death() {
    for length in [0, 15, LONGEST + 1, u32::MAX as usize] {
        let mut world = world();
        let head = world.ask(0, 1, 64);
        world.says(&answer(length, 0, 1, b""));
        assert_eq!(world.used(), [(head.into(), 16)], "{length}");
        assert_eq!(world.got(0, 0), (EIO, 1, vec![]));
    }
}

#[test]
fn a_server_that_died_leaves_nobody_waiting() {
    let mut world = world();
    let (first, second) = (world.ask(0, 1, 64), world.ask(1, 2, 64));
    world.server.shutdown(std::net::Shutdown::Both).unwrap();
    world.bench.settle();
    assert_eq!(world.used(), [(first.into(), 16), (second.into(), 16)]);
    assert_eq!((world.got(0, 0), world.got(1, 0)), ((EIO, 1, vec![]), (EIO, 2, vec![])));
    let third = world.ask(2, 3, 64);
    assert_eq!(world.used(), [(third.into(), 16)]);
    assert_eq!(world.got(2, 0), (EIO, 3, vec![]));
    let forget = world.offer(0, 3, &request(FORGET, 5, 48, &[1; 8]), 0);
    world.bench.settle();
    assert_eq!(world.bench.rings[0].take_all_used(), [(forget.into(), 0)]);
}

#[test]
fn a_server_that_does_not_read_stops_the_queue_and_nothing_is_lost() {
    let mut world = world();
    let bytes = request(LOOKUP, 1, LONGEST, &vec![7; LONGEST - 40]);
    world.bench.write(SAID, &bytes);
    let long = u32::try_from(LONGEST).unwrap();
    let head = world.bench.rings[1].offer(&[(SAID, long, false), (ROOM, 64, true)]);
    for _ in 1..40 {
        world.bench.rings[1].offer_head(head);
    }
    world.bench.kick(1);
    world.bench.settle();
    assert_eq!(world.used(), []);
    for count in 0..40 {
        // The socket holds a few messages; what waits goes on as soon as the server reads.
        let mut read = 0;
        let mut message = vec![0; LONGEST];
        world.server.set_nonblocking(true).unwrap();
        while read < LONGEST {
            read += world.server.read(&mut message[read..]).unwrap_or(0);
            world.bench.settle();
        }
        world.server.set_nonblocking(false).unwrap();
        assert!(message[40..] == bytes[40..], "message {count}");
        let tag = u64::from_le_bytes(message[8..16].try_into().unwrap());
        world.says(&answer(16, 0, tag, b""));
        assert_eq!(world.used(), [(head.into(), 16)]);
    }
}

#[test]
fn no_more_than_64_requests_wait_for_the_server() {
    let mut world = world();
    world.bench.write(SAID, &request(LOOKUP, 1, 44, b"abc\0"));
    let head = world.bench.rings[1].offer(&[(SAID, 44, false), (ROOM, 64, true)]);
    for _ in 1..100 {
        world.bench.rings[1].offer_head(head);
    }
    world.bench.kick(1);
    world.bench.settle();
    let tags: Vec<u64> = (0..64).map(|_| world.hears().1).collect();
    world.server.set_nonblocking(true).unwrap();
    assert!(world.server.read(&mut [0; 1]).is_err(), "a 65th was sent");
    world.server.set_nonblocking(false).unwrap();
    for tag in tags {
        world.says(&answer(16, 0, tag, b""));
    }
    assert_eq!(world.used().len(), 64);
    for _ in 64..100 {
        assert_eq!(world.hears().0, LOOKUP);
    }
}

#[test]
fn a_drain_waits_for_the_server_but_not_for_ever() {
    let mut world = world();
    let head = world.ask(0, 1, 64);
    let (_, tag, _) = world.hears();
    let deadline = Instant::now() + Duration::from_secs(60);
    assert!(world.bench.worker.drain(deadline).is_err());
    world.offer(1, 1, &request(LOOKUP, 2, 44, b"abc\0"), 64);
    world.bench.settle();
    world.says(&answer(16, 0, tag, b""));
    assert_eq!(world.used(), [(head.into(), 16)], "what came after the drain's start stays in the queue");
    assert_eq!(world.bench.worker.drain(deadline).unwrap().len(), 2);
}

#[test]
fn after_a_reset_the_server_forgets_and_late_answers_are_nobodys() {
    let mut world = world();
    world.ask(0, 1, 64);
    let (_, late, _) = world.hears();
    assert_eq!(world.bench.worker.drain(Instant::now()).unwrap().len(), 2);
    world.device.reset();
    world.bench = Bench::start(&mut world.device);
    world.says(&answer(20, 0, late, b"late"));
    let head = world.ask(0, 1, 64);
    assert_eq!(world.hears().0, DESTROY);
    let (opcode, tag, _) = world.hears();
    assert_eq!(opcode, LOOKUP);
    assert_eq!(world.used(), []);
    world.says(&answer(20, 0, tag, b"good"));
    assert_eq!(world.used(), [(head.into(), 20)]);
    assert_eq!(world.got(0, 4).2, b"good");
}
