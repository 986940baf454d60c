//! The seeds of each target, from the general ones and those that only its device knows.

use super::{DATA, Device, HEADER, Place, Script, Seed, TABLE};
use crate::devices::virtio::testkit::Ring;
use crate::fuzz::input::{HOLE, LOW, MIDDLE, REGION, RING};
use crate::fuzz::registers::op;
use crate::fuzz::{hosts, script, sockets};
use crate::memory::BLOCK;

pub(super) fn named(mut seeds: Vec<Seed>, more: Vec<(&str, Script)>) -> Vec<Seed> {
    seeds.extend(more.into_iter().map(|(name, script)| (name.to_owned(), script.0)));
    seeds
}

pub(super) fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

pub(super) fn entropy() -> Vec<Seed> {
    let chain = vec![(DATA, 64, true), ((MIDDLE, 3), 100, true)];
    let device = Device { prefix: Script::default(), queue: 0, contents: Vec::new(), chain, size: 64 };
    let huge = [((MIDDLE, 0), 0x2_0000, true); 32];
    let flood = (0..63).fold(device.ready().chain(0, &huge), |script, _| script.head(0, 0));
    let half = [(DATA, 64, true), ((HOLE, 0x10), 0x20, true)];
    let more = vec![
        ("14-huge", flood.kick(0).kick(0)),
        ("03-second-buffer", device.ready().chain(0, &half).kick(0)),
    ];
    named(device.seeds(), more)
}

pub(super) fn balloon() -> Vec<Seed> {
    let device = |queue: u8, pages: &[u32]| {
        let contents = words(pages);
        let chain = vec![(HEADER, contents.len() as u32, false)];
        Device { prefix: Script::default(), queue, contents, chain, size: 32 }
    };
    let report = |buffers: &[(Place, u32, bool)]| {
        device(2, &[0]).ready().write(TABLE, &[7; 64]).chain(2, buffers).kick(2)
    };
    let many: Vec<u32> = (0..900).map(|page| page % 16).collect();
    let more = vec![
        ("deflate", device(1, &[8, 9, 8]).sound()),
        ("report", report(&[(TABLE, 4096, true), ((MIDDLE, 0), 8192, true)])),
        ("13-outside", device(0, &[8, 32, 9]).sound()),
        ("13-highest", device(0, &[u32::MAX]).sound()),
        ("13-duplicates", device(0, &[8; 200]).sound()),
        ("13-many", device(0, &many).sound()),
        ("13-the-list-itself", device(0, &[1]).sound()),
        ("13-the-rings", device(0, &[16, 17, 18, 19]).sound()),
        ("13-deflate-of-nothing", device(1, &[64, 95, 63]).sound()),
        ("13-report-outside", report(&[(TABLE, 4096, true), ((HOLE, 0x1000), 8192, true)])),
        ("13-report-of-parts", report(&[((LOW, 0x8100), 4096, true)])),
        ("13-report-huge", report(&[((MIDDLE, 0), 0x2_0000, true); 32])),
    ];
    named(device(0, &[8, 9, 8]).seeds(), more)
}

pub(super) fn mem() -> Vec<Seed> {
    const CHAIN: [(Place, u32, bool); 2] = [(HEADER, 24, false), (DATA, 10, true)];
    let request = |kind: u16, address: u64, blocks: u16| {
        let start = [kind, 0, 0, 0].map(u16::to_le_bytes).concat();
        [start, address.to_le_bytes().to_vec(), [blocks, 0, 0, 0].map(u16::to_le_bytes).concat()].concat()
    };
    let at = |block: u64| hosts::REGION_START + block * BLOCK;
    let (plug, unplug, all, state) = (0, 1, 2, 3);
    let ask = |script: Script, (kind, address, blocks): (u16, u64, u16)| {
        script.write(HEADER, &request(kind, address, blocks)).chain(0, &CHAIN).kick(0)
    };
    let asks = |requests: &[(u16, u64, u16)]| requests.iter().copied().fold(Script::default(), ask);
    let device = Device {
        prefix: Script::default(),
        queue: 0,
        contents: request(plug, at(0), 4),
        chain: CHAIN.to_vec(),
        size: 64,
    };
    let reader = || asks(&[(plug, at(0), 8)]).host(&[0xff]);
    let more = vec![
        ("there-and-back", asks(&[(plug, at(0), 8), (state, at(0), 9), (unplug, at(2), 3), (all, 0, 0)])),
        ("under-a-reader", ask(ask(reader(), (unplug, at(0), 8)), (plug, at(8), 8)).host(&[0xff]).kick(0)),
        (
            "again-under-a-reader",
            ask(ask(reader(), (unplug, at(0), 8)), (plug, at(1), 2)).host(&[0xff]).kick(0),
        ),
        ("restart", ask(asks(&[(plug, at(3), 5)]).restart(), (all, 0, 0))),
        ("13-more-than-asked", asks(&[(plug, at(0), 9), (plug, at(0), 8), (plug, at(9), 1)])),
        ("13-less-is-asked", ask(asks(&[(plug, at(0), 8)]).host(&[2]), (plug, at(8), 1))),
        ("13-outside", asks(&[(plug, 0, 1), (plug, at(15), 2), (unplug, at(16), 1), (state, u64::MAX, 1)])),
        ("13-wraps", asks(&[(plug, 0_u64.wrapping_sub(BLOCK), u16::MAX), (plug, at(0), u16::MAX)])),
        ("13-unaligned", asks(&[(plug, at(0) + 4096, 1), (plug, at(0) + 1, 1), (plug, at(0), 0)])),
        ("13-twice", asks(&[(plug, at(1), 2), (plug, at(0), 2), (unplug, at(0), 2), (unplug, at(5), 1)])),
        ("13-unknown", asks(&[(4, at(0), 1), (u16::MAX, at(0), 1)])),
    ];
    named(device.seeds(), more)
}

pub(super) fn net() -> Vec<Seed> {
    // On a tap with two queues; on a stream.
    const SEVERAL: u8 = 1 << 6;
    const STREAM: u8 = 1 << 7;
    let frame = |header: &[u8; 12], source: u8, destination: [u8; 4]| {
        let mut bytes = header.to_vec();
        bytes.extend([0xff; 6]);
        bytes.extend([2, 0xfc, 0, 0, 0, source, 8, 0]);
        bytes.extend([0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 2]);
        bytes.extend(destination);
        bytes.extend([0, 80, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 2, 0, 0, 0, 0, 0, 0]);
        bytes
    };
    let send = |contents: Vec<u8>, len: u32| {
        let chain = vec![(HEADER, len, false)];
        Device { prefix: Script(vec![0]), queue: 1, contents, chain, size: 256 }
    };
    let sound = frame(&[0; 12], 1, [10, 0, 0, 1]);
    let checksum = frame(&[1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0], 1, [10, 0, 0, 1]);
    let outside = frame(&[1, 1, 54, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0], 1, [10, 0, 0, 1]);
    let room = [(DATA, 0x1000, true), ((MIDDLE, 0), 0x1_0000, true)];
    let arrives = [0xe8, 3, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0xfc, 0, 0, 0, 1, 2, 3];
    let flood = (0..30).fold(Script(vec![0]), |script, _| script.host(&arrives));
    let small = (0..8).fold(Script(vec![0]), |script, _| script.chain(0, &[(DATA, 128, true)]));
    let command = |bytes: &[u8]| {
        let chain = [(HEADER, bytes.len() as u32, false), (DATA, 1, true)];
        Script(vec![SEVERAL]).write(HEADER, bytes).chain(4, &chain).kick(4)
    };
    let line = |contents: Vec<u8>| Device { prefix: Script(vec![STREAM]), ..send(contents, 66) };
    let more = vec![
        ("pairs", command(&[4, 0, 2, 0]).chain(2, &room).host(&arrives).kick(2).chain(0, &room).kick(0)),
        ("pairs-none", command(&[4, 0, 0, 0])),
        ("pairs-too-many", command(&[4, 0, 3, 0])),
        ("control-unknown", command(&[1, 0, 2, 0])),
        ("control-long", command(&[4; 100])),
        ("second-pair", Script(vec![SEVERAL]).write(HEADER, &sound).chain(3, &[(HEADER, 66, false)]).kick(3)),
        ("stream", line(sound.clone()).sound().chain(0, &room).host(&arrives).kick(0)),
        (
            "stream-bad-length",
            Script(vec![STREAM]).chain(0, &room).kick(0).host(&[0, 0, 5, 0xff, 0xff, 0xff, 0xff, 0]),
        ),
        (
            "stream-half",
            Script(vec![STREAM]).chain(0, &room).kick(0).host(&[0, 0, 5, 0, 0, 0, 60, 7]).restart(),
        ),
        ("checksum", send(checksum, 66).sound()),
        ("receive", Script(vec![0]).chain(0, &room).kick(0).host(&arrives).kick(0)),
        ("receive-merged", small.host(&arrives).kick(0).kick(0)),
        ("receive-unmerged", Script(vec![4]).chain(0, &room).host(&arrives).kick(0)),
        ("11-oversized", send(sound.clone(), 0xf000).sound()),
        ("11-bad-header", send(outside, 66).sound()),
        ("11-spoofed", send(frame(&[0; 12], 9, [10, 0, 0, 1]), 66).sound()),
        ("11-forbidden", send(frame(&[0; 12], 1, [8, 8, 8, 8]), 66).sound()),
        ("11-header-only", send(sound.clone(), 12).sound()),
        ("11-flood-without-room", flood.kick(0).chain(0, &room).kick(0)),
        ("11-no-room", Script(vec![0]).chain(0, &[(DATA, 20, true)]).host(&arrives).kick(0).kick(0)),
        (
            "11-restart-with-room",
            Script(vec![0]).chain(0, &room).kick(0).restart().chain(0, &room).host(&arrives).kick(0),
        ),
    ];
    named(send(sound, 66).seeds(), more)
}

/// A packet's header.
fn packet(op: u16, (guest_port, host_port): (u32, u32), len: u32) -> Vec<u8> {
    let ids = [sockets::CID, sockets::HOST_CID].map(u64::to_le_bytes).concat();
    let kinds = [1_u16, op].map(u16::to_le_bytes).concat();
    [ids, words(&[guest_port, host_port, len]), kinds, words(&[0, 1 << 18, 0])].concat()
}

pub(super) fn vsock() -> Vec<Seed> {
    let ports = (7, sockets::EXEC);
    let chain = vec![(HEADER, sockets::HEADER, false), (DATA, 100, false)];
    let device = |contents: Vec<u8>| Device {
        prefix: Script::default(),
        queue: 1,
        contents,
        chain: chain.clone(),
        size: 128,
    };
    let room =
        |script: Script| (0..4).fold(script, |script, _| script.chain(0, &[((MIDDLE, 0), 4096, true)]));
    let open = || room(device(packet(1, ports, 0)).sound()).kick(0);
    let connect = b"\x00\x0aCONNECT 9\n";
    let more = vec![
        ("data", open().write(HEADER, &packet(5, ports, 100)).chain(1, &chain).kick(1)),
        ("from-the-host", room(open().host(&[3, 0, 8, 0])).kick(0).kick(0)),
        ("host-connects", room(Script::default().host(connect)).kick(0).kick(0)),
        ("host-leaves", room(open().host(&[5, 0])).kick(0).kick(0)),
        ("another-port", room(device(packet(1, (7, 80), 0)).sound()).host(&[1, 0]).kick(0).kick(0)),
        ("refused-port", room(device(packet(1, (7, 80), 0)).sound()).host(&[2, 0]).kick(0)),
        ("transport-reset", room(open().host(&[6])).chain(2, &[(DATA, 4, true)]).kick(2).kick(0)),
        ("12-lies-about-length", open().write(HEADER, &packet(5, ports, 1 << 20)).chain(1, &chain).kick(1)),
        ("12-never-read", open().host(&[3, 0xff, 0xff, 0]).host(&[3, 0xff, 0xff, 0]).kick(0).kick(1)),
        (
            "12-header-buffers",
            open().chain(0, &[(DATA, 44, true)]).chain(0, &[(DATA, 43, true)]).host(&[3, 9, 0, 0]).kick(0),
        ),
    ];
    named(device(packet(1, ports, 0)).seeds(), more)
}

pub(super) fn packets() -> Vec<Seed> {
    // Operation, kind, flags, ports, credit, length said and real.
    let send =
        |op: u8, (guest, host): (u8, u8), (allocated, forwarded): (u32, u32), (said, real): (u32, u16)| {
            let start = vec![sockets::op::SEND, op, 0, 0, guest, host];
            [start, words(&[allocated, forwarded, said]), real.to_le_bytes().to_vec()].concat()
        };
    let (post, host) = (vec![sockets::op::POST, 32], |bytes: &[u8]| [&[sockets::op::HOST], bytes].concat());
    let credit = (1 << 18, 0);
    let open = [post.clone(), send(1, (1, 0), credit, (0, 0))].concat();
    let then = |more: &[Vec<u8>]| [open.clone(), more.concat()].concat();
    let flood = (0..60).flat_map(|port| send(1, (port, 1), credit, (0, 0))).collect();
    let strays = (0..80).flat_map(|_| send(5, (3, 3), credit, (0, 0))).collect();
    let seeds: Vec<(&str, Vec<u8>)> = vec![
        ("data", then(&[send(5, (1, 0), credit, (100, 100)), host(&[4, 0])])),
        ("from-the-host", then(&[host(&[3, 0, 16, 0]), post, send(6, (1, 0), (1 << 18, 4096), (0, 0))])),
        ("shutdown", then(&[send(4, (1, 0), credit, (0, 0)), send(3, (1, 0), credit, (0, 0))])),
        ("12-source", then(&[[&[sockets::op::SEND, 5, 0x80, 0, 1, 0][..], &[0; 22]].concat()])),
        ("12-kind", then(&[[&[sockets::op::SEND, 5, 7, 0, 1, 0][..], &[0; 14]].concat()])),
        ("12-operation", then(&[send(9, (1, 0), credit, (0, 0))])),
        ("12-length", then(&[send(5, (1, 0), credit, (u32::MAX, 100))])),
        (
            "12-credit-overflow",
            then(&[host(&[3, 0xff, 0xff, 0]), send(6, (1, 0), (u32::MAX, u32::MAX), (0, 0))]),
        ),
        ("12-credit-underflow", then(&[send(6, (1, 0), (0, 1), (0, 0)), host(&[3, 9, 0, 0])])),
        ("12-no-credit", then(&[send(6, (1, 0), (0, 0), (0, 0)), host(&[3, 9, 0, 0])])),
        ("12-too-much", then(&vec![send(5, (1, 0), credit, (0x7fff, 0x7fff)); 20])),
        ("12-ports", flood),
        ("12-strays", strays),
        ("12-twice", then(&[send(1, (1, 0), credit, (0, 0))])),
        ("12-response", then(&[send(2, (1, 0), credit, (0, 0))])),
    ];
    seeds.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect()
}

/// A write of a register.
fn write(offset: u16, value: u32) -> Vec<u8> {
    [vec![op::WRITE], offset.to_le_bytes().to_vec(), value.to_le_bytes().to_vec()].concat()
}

fn writes(all: &[(u16, u32)]) -> Vec<u8> {
    all.iter().flat_map(|&(offset, value)| write(offset, value)).collect()
}

/// The registers of queue 0, and a start.
fn set_queue(size: u32, table: u32, available: u32, used: u32) -> Vec<u8> {
    writes(&[(0x30, 0), (0x38, size), (0x80, table), (0x90, available), (0xa0, used), (0x44, 1), (0x70, 15)])
}

pub(super) fn registers() -> Vec<Seed> {
    let started =
        |device: u8| vec![device, op::NEGOTIATE, op::QUEUES, op::WRITE, 0x70, 0, 15, 0, 0, 0, op::TURN];
    let then = |device: u8, more: &[&[u8]]| [started(device), more.concat()].concat();
    let offer: &[u8] = &[op::OFFER, op::TURN];
    let reset = [write(0x70, 0), vec![op::NEGOTIATE, op::QUEUES], write(0x70, 15)].concat();
    let wide: Vec<u8> =
        (0..17).flat_map(|width| [op::READ, 0x70, 0, width, op::READ, 0xfc, 0, width]).collect();
    let kicks: Vec<u8> = (0..60).flat_map(|queue| write(0x50, queue * 0x101)).collect();
    let order = writes(&[(0x70, 15), (0x70, 8), (0x70, 4), (0x70, 128), (0x70, 3)]);
    let features = writes(&[(0x70, 3), (0x24, 0), (0x20, u32::MAX), (0x70, 11), (0x70, 15)]);
    let beyond = writes(&[(0x24, 9), (0x20, 1), (0x70, 15)]);
    let (configure, short) = ([op::WRITE_WIDE, 4, 1, 4, 9, 9, 9, 9], [op::WRITE_WIDE, 0x70, 0, 2, 0, 0]);
    let elsewhere = vec![op::PAUSE, op::TURN, op::TURN, op::MOVE];
    let header = [vec![op::MEMORY, LOW, 0, 0x10, 16, 1], vec![0; 15]].concat();
    let seeds: Vec<(&str, Vec<u8>)> = vec![
        ("block", then(0, &[offer])),
        ("entropy", then(1, &[offer])),
        ("balloon", then(2, &[offer, &configure])),
        ("net", then(3, &[offer])),
        ("vsock", then(4, &[offer])),
        ("pmem", then(5, &[offer])),
        ("fs", then(6, &[offer])),
        ("console", then(7, &[offer])),
        ("07-rewritten", then(0, &[&set_queue(64, 0, 0, 0), offer, &set_queue(1, 64, 32, 0), offer])),
        ("07-status-out-of-order", [vec![0], order].concat()),
        ("07-reset-in-flight", then(0, &[&offer[..1], &reset, offer, &reset, offer])),
        ("07-storm", then(0, &[&reset, &reset, &[op::TURN], &reset, &write(0x70, 0), &reset, offer])),
        ("08-features", [vec![0], features].concat()),
        ("08-features-beyond", [vec![1, op::NEGOTIATE], beyond].concat()),
        ("09-no-such-queue", then(1, &[&kicks, offer])),
        ("15-widths", then(2, &[&wide, &short, &[op::WRITE_WIDE, 0xff, 0, 16], offer])),
        ("memory", then(0, &[&header, offer])),
        ("20-paused", then(1, &[offer, &elsewhere, &[op::RESUME], offer])),
        (
            "20-paused-half-way",
            [vec![2, op::NEGOTIATE], elsewhere.clone(), vec![op::QUEUES, op::RESUME]].concat(),
        ),
        (
            "20-started-while-paused",
            [
                vec![0, op::PAUSE, op::NEGOTIATE, op::QUEUES],
                write(0x70, 15),
                elsewhere.clone(),
                vec![op::RESUME],
            ]
            .concat(),
        ),
        ("20-reset-while-paused", then(0, &[&elsewhere, &reset, offer, &[op::RESUME], offer])),
    ];
    let seeds = seeds.into_iter().chain(unsound_queues());
    seeds.map(|(name, bytes)| (name.to_owned(), bytes)).collect()
}

/// Item 6.
fn unsound_queues() -> Vec<(&'static str, Vec<u8>)> {
    let setup = Ring::new(&script::memory(), 0, 64).setup;
    let [table, available, used] = [setup.descriptors, setup.available, setup.used].map(|addr| addr as u32);
    let negotiated = |queue: Vec<u8>| [vec![1, op::NEGOTIATE], queue, vec![op::TURN]].concat();
    vec![
        ("06-size-0", negotiated(set_queue(0, table, available, used))),
        ("06-size-63", negotiated(set_queue(63, table, available, used))),
        ("06-size-128", negotiated(set_queue(128, table, available, used))),
        ("06-size-huge", negotiated(set_queue(u32::MAX, table, available, used))),
        ("06-overlap", negotiated(set_queue(64, table, table, used))),
        ("06-end-of-ram", negotiated(set_queue(64, table, available, REGION as u32 - 8))),
        ("06-unaligned", negotiated(set_queue(64, table + 8, available, used))),
        ("06-no-queue", negotiated(write(0x70, 15))),
    ]
}

/// Every device as it was saved, and what may be wrong with that.
pub(super) fn state() -> Vec<Seed> {
    use crate::fuzz::state::op::{CUT, FLIP, INSERT, MEMORY, SET};
    let edit = |operation: u8, place: u16, value: u8| {
        let [low, high] = place.to_le_bytes();
        vec![operation, low, high, value]
    };
    let names = ["block", "entropy", "balloon", "net", "vsock", "pmem", "fs", "console", "mem"];
    let sound = names.iter().zip(0..).map(|(name, kind)| ((*name).to_owned(), vec![kind]));
    let used = [vec![1, MEMORY, RING, 2, 0x30, 1, 9], vec![MEMORY, RING, 2, 0x20, 2, 0xff, 0xff]].concat();
    let wrong = [
        ("sound", vec![1]),
        ("20-bit-flipped", [vec![0], edit(FLIP, 40, 3)].concat()),
        ("20-truncated", [vec![4], edit(CUT, 60, 0)].concat()),
        ("20-longer", [vec![3], edit(INSERT, 30, 7)].concat()),
        ("20-newer", [vec![2], edit(SET, 13, 2)].concat()),
        ("20-rings-contradict", used),
    ];
    let wrong = wrong.into_iter().map(|(name, bytes)| (name.to_owned(), bytes));
    sound.chain(wrong).collect()
}
