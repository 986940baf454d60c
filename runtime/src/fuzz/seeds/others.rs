//! The seeds of the devices that have no request of the host's kind: images, volumes, the console.

use super::devices::{named, words};
use super::{DATA, Device, HEADER, Script, Seed};
use crate::devices::virtio::testkit::{NEXT, WRITE};
use crate::fuzz::input::{LOW, LOW_END, MIDDLE, READ_ONLY};
use crate::fuzz::volumes::{ANSWERS, READS, act};

pub(super) fn pmem() -> Vec<Seed> {
    let chain = vec![(HEADER, 4, false), (DATA, 4, true)];
    let request = |kind: u32| Device {
        prefix: Script::default(),
        queue: 0,
        contents: words(&[kind]),
        chain: chain.clone(),
        size: 64,
    };
    let sent = |chain: &[(super::Place, u32, bool)]| request(0).ready().chain(0, chain).kick(0);
    let more = vec![
        ("unknown", request(7).sound()),
        ("in-an-image", sent(&[((READ_ONLY, 0), 4, false), (DATA, 4, true)])),
        ("03-result-in-the-image", sent(&[(HEADER, 4, false), ((READ_ONLY, 0), 4, true)])),
        ("03-result-at-the-end", sent(&[(HEADER, 4, false), ((LOW_END, 2), 4, true)])),
        ("04-short-request", sent(&[(HEADER, 3, false), (DATA, 4, true)])),
        ("04-long-result", sent(&[(HEADER, 4, false), (DATA, 5, true)])),
        ("04-in-pieces", sent(&[(HEADER, 1, false), (HEADER, 3, false), (DATA, 3, true), (DATA, 1, true)])),
    ];
    named(request(0).seeds(), more)
}

pub(super) fn console() -> Vec<Seed> {
    let chain = vec![(HEADER, 40, false)];
    let text = b"last words\x1b[2J\n\r\t\x00\xff and more of them".to_vec();
    let device =
        Device { prefix: Script::default(), queue: 1, contents: text, chain: chain.clone(), size: 64 };
    let most = [((MIDDLE, 0), 0x1_0000, false)];
    let flood =
        (0..12).fold(Script::default().chain(1, &most).kick(1), |script, _| script.head(1, 0).kick(1));
    let input = Script::default().chain(0, &[(DATA, 4096, true)]).kick(0);
    let more = vec![
        ("15-flood", flood.clone()),
        ("15-flood-and-read", flood.clone().host(&[0xff, 0xff]).host(&[0xff, 0xff]).kick(1)),
        ("15-reader-leaves", flood.host(&[0, 0]).kick(1)),
        ("04-too-long", Script::default().chain(1, &[((MIDDLE, 0), 0x1_0001, false)]).kick(1)),
        ("04-room-in-it", Script::default().chain(1, &[(HEADER, 4, false), (DATA, 4, true)]).kick(1)),
        ("04-text-in-the-image", Script::default().chain(1, &[((READ_ONLY, 0), 64, false)]).kick(1)),
        ("input", input),
    ];
    named(device.seeds(), more)
}

/// A request of `body`: length, operation, number, node, and what a carrier does not look at.
fn request(operation: u32, length: u32, body: &[u8]) -> Vec<u8> {
    [words(&[length, operation, 7, 0, 1, 0, 0, 0, 0, 0]), body.to_vec()].concat()
}

/// An answer, as the host's operation says it: which request's, then length, error and bytes.
fn lie(length: u32, error: i32, count: u8) -> Vec<u8> {
    [vec![act::LIE, 0], words(&[length, error.cast_unsigned()]), vec![count]].concat()
}

/// A driver that asks for `contents`, of a server of this manner.
fn asks(manner: u8, contents: &[u8]) -> Device {
    let (prefix, contents) = (Script(vec![manner]), contents.to_vec());
    Device { prefix, queue: 1, contents, chain: vec![(HEADER, 44, false), (DATA, 64, true)], size: 128 }
}

/// One request that nobody answers by himself, then what the server does.
fn served(acts: &[&[u8]]) -> Script {
    let asked = asks(READS, &request(1, 44, b"abc\0")).sound();
    acts.iter().fold(asked, |script, act| script.host(act).kick(1)).kick(1)
}

/// Long requests to a server that does not read.
fn deaf() -> Script {
    let huge = [(HEADER, 40, false), ((MIDDLE, 0), 0x2_0000, false), (DATA, 0xfd8, false), (DATA, 64, true)];
    let start = asks(0, &request(16, 33 << 12, &[])).ready().chain(1, &huge).kick(1);
    (0..8).fold(start, |script, _| script.head(1, 0).kick(1))
}

pub(super) fn fs() -> Vec<Seed> {
    let lookup = request(1, 44, b"abc\0");
    let sound = asks(ANSWERS | READS, &lookup);
    let fill = (0..100).fold(asks(READS, &lookup).sound(), |script, _| script.head(1, 0));
    let forget =
        Device { queue: 0, chain: vec![(HEADER, 48, false)], ..asks(READS, &request(2, 48, &[1; 8])) };
    let answers = [act::MANNER, ANSWERS | READS];
    let part_sent = deaf().restart().host(&answers).kick(1).kick(1).kick(1);
    let image = ((READ_ONLY, 0), 64, WRITE, 0);
    let in_the_image = [((READ_ONLY, 0), 64, false), ((LOW, 0x4000), 64, true)];
    let into_the_image = sound.ready().describe(1, 0, (HEADER, 44, NEXT, 1)).describe(1, 1, image).head(1, 0);
    let more = vec![
        ("forget", forget.sound()),
        ("interrupt", asks(READS, &request(36, 44, &[1; 4])).sound()),
        ("destroy", asks(ANSWERS | READS, &request(38, 40, &[])).with_length(40)),
        ("03-answer-in-the-image", into_the_image.kick(1).kick(1)),
        ("03-request-in-the-image", Script(vec![ANSWERS | READS]).chain(1, &in_the_image).kick(1).kick(1)),
        ("04-length-lies", asks(ANSWERS | READS, &request(1, 45, b"abc\0")).sound()),
        ("04-length-zero", asks(ANSWERS | READS, &request(1, 0, b"abc\0")).sound()),
        ("04-header-alone-is-short", asks(ANSWERS | READS, &request(1, 39, &[])).with_length(39)),
        ("07-restart-with-a-part-sent", part_sent),
        ("09-more-than-wait", fill.kick(1).host(&answers).kick(1)),
    ];
    named(named(sound.seeds(), more), servers())
}

/// What a server may do that is not the host's any more.
fn servers() -> Vec<(&'static str, Script)> {
    let chain = [(HEADER, 44, false), (DATA, 64, true)];
    let late = asks(READS, &request(1, 44, b"abc\0")).sound().restart().chain(1, &chain).kick(1);
    let nobodys = [act::NOISE, 16, 16, 0, 0, 0, 0, 0, 0, 0, 99, 0, 0, 0, 0, 0, 0, 0];
    vec![
        ("server-answers", served(&[&[act::SAY, 0, 16, 0]])),
        ("server-says-too-much", served(&[&[act::SAY, 0, 49, 0]])),
        ("server-answers-twice", served(&[&lie(16, -2, 0), &lie(16, -2, 0)])),
        ("server-answers-nobody", served(&[&nobodys])),
        ("server-error-with-a-body", served(&[&lie(20, -2, 4)])),
        ("server-error-of-no-kind", served(&[&lie(16, 5, 0)])),
        ("server-error-beyond", served(&[&lie(16, i32::MIN, 0)])),
        ("server-impossible-length", served(&[&lie(15, 0, 0)])),
        ("server-giant-length", served(&[&lie(u32::MAX, 0, 9)])),
        ("server-says-less-than-it-claims", served(&[&lie(64, 0, 20), &[act::NOISE, 3, 1, 2, 3]])),
        ("server-leaves", served(&[&[act::LEAVE]])),
        ("server-leaves-in-the-middle", served(&[&lie(64, 0, 20), &[act::LEAVE]])),
        ("server-never-reads", deaf()),
        ("server-reads-late", deaf().host(&[act::MANNER, ANSWERS | READS]).kick(1).kick(1).kick(1)),
        ("server-leaves-and-has-not-read", deaf().host(&[act::LEAVE]).kick(1).kick(1)),
        ("server-answers-an-earlier-driver", late.host(&[act::SAY, 0, 4, 0]).kick(1).kick(1)),
    ]
}
