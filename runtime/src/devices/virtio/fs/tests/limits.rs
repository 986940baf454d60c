//! A volume behind a rate limiter.

use super::*;
use crate::devices::virtio::gate::Limit;
use crate::devices::virtio::gate::tests::{DAY, limit};
use crate::devices::virtio::testkit::drive::until;

/// Bytes of the request that [`World::ask`] sends.
const ASKED: u64 = 44;

fn limited(limit: Limit) -> World {
    let (ours, server) = UnixStream::pair().unwrap();
    server.set_nonblocking(true).unwrap();
    let mut device = Fs::new("data", ours.into()).unwrap().with_limit(Some(limit));
    World { bench: Bench::start(&mut device), device, server }
}

/// How many requests have reached the server, by their tags.
fn heard(world: &mut World) -> Vec<u64> {
    let mut tags = Vec::new();
    let mut bytes = [0; 44];
    while world.server.read_exact(&mut bytes).is_ok() {
        tags.push(u64::from_le_bytes(bytes[8..16].try_into().unwrap()));
    }
    tags
}

#[test]
fn messages_without_tokens_wait_and_their_answers_do_not() {
    let mut world = limited(limit((0, 0), (3, DAY)));
    (0..5).for_each(|place| {
        world.ask(place, place, 64);
    });
    let tags = heard(&mut world);
    assert_eq!(tags.len(), 3);
    for _ in 0..1000 {
        world.bench.kick(1);
        assert_eq!(world.bench.round().unwrap(), 0, "nobody looks");
    }
    for tag in tags {
        world.says(&answer(16, 0, tag, b""));
    }
    assert_eq!(world.used().len(), 3);
    // A reset brings no tokens.
    assert_eq!(world.bench.worker.drain(Instant::now()).unwrap().len(), 2);
    world.bench = Bench::start(&mut world.device);
    world.ask(0, 1, 64);
    assert_eq!((heard(&mut world).len(), world.used().len()), (0, 0));
}

#[test]
fn what_counts_is_the_message_and_the_answer_that_came() {
    // Room for 4,000 bytes each; answers of 16.
    let tokens = 2 * (ASKED + 16) + ASKED + 4000;
    let mut world = limited(limit((tokens, DAY), (0, 0)));
    for place in 0..4 {
        world.ask(place, place, 4000);
        let tags = heard(&mut world);
        assert_eq!(tags.len(), usize::from(place < 3), "{place}");
        for tag in tags {
            world.says(&answer(16, 0, tag, b""));
        }
    }
    assert_eq!(world.used().len(), 3);
}

#[test]
fn answers_that_are_still_to_come_have_their_tokens_kept() {
    let mut world = limited(limit((2 * (ASKED + 4000) + 100, DAY), (0, 0)));
    (0..5).for_each(|place| {
        world.ask(place, place, 4000);
    });
    let tags = heard(&mut world);
    assert_eq!(tags.len(), 2, "a third answer could be as long as its room");
    world.says(&answer(4000, 0, tags[0], &[7; 3984]));
    world.says(&answer(4000, 0, tags[1], &[7; 3984]));
    assert_eq!((world.used().len(), heard(&mut world).len()), (2, 0));
}

#[test]
fn with_new_tokens_the_messages_go_on_in_order_by_themselves() {
    let mut world = limited(limit((0, 0), (1, 50)));
    (0..4).for_each(|place| {
        world.ask(place, place, 64);
    });
    let mut tags = heard(&mut world);
    assert_eq!(tags.len(), 1);
    until(|| {
        world.bench.settle();
        tags.extend(heard(&mut world));
        tags.len() == 4
    });
    assert!(tags.is_sorted());
}

#[test]
fn item_4_a_huge_chain_that_is_refused_pays_for_the_longest_message() {
    let mut world = limited(limit((2 * LONGEST as u64 + 200, DAY), (0, 0)));
    world.bench.write(SAID, &request(LOOKUP, 4, LONGEST + 1, &[]));
    let huge = [(SAID, 4 << 20, false), (SAID, 4 << 20, false), (ROOM, 64, true)];
    world.bench.rings[1].offer(&huge);
    world.bench.kick(1);
    world.bench.settle();
    assert_eq!((world.used().len(), world.got(0, 0).0), (1, EIO));
    world.ask(9, 9, 64);
    assert_eq!(heard(&mut world).len(), 1);
}
