mod state;

use super::*;
use crate::devices::virtio::Token;
use crate::devices::virtio::testkit::{Bench, HIGH_END, IMAGE, INDIRECT, LOW_END, NEXT, Ring, WRITE, memory};
use std::time::Instant;
use vm_memory::{Bytes, GuestAddress};

const REQUEST: u64 = 0x20_0000;
const RESPONSE: u64 = 0x20_1000;
const START: u64 = 4 << 30;
const BLOCKS: u64 = 192;

const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;
const ACK: u16 = 0;
const NACK: u16 = 1;
const BUSY: u16 = 2;
const ERROR: u16 = 3;

/// A device that is asked for `blocks` blocks.
fn device(blocks: u64) -> (Mem, Hotplug) {
    let hotplug = Hotplug::map(BLOCKS * BLOCK, GuestAddress(START)).unwrap();
    let mem = Mem::new(&hotplug);
    mem.requested().set(blocks * BLOCK);
    (mem, hotplug)
}

fn start(device: &mut Mem, hotplug: &Hotplug) -> Bench {
    let features = device.features();
    Bench::start_in(memory().with_hotplug(hotplug).unwrap(), device, features)
}

fn bench(blocks: u64) -> (Bench, Hotplug) {
    let (mut device, hotplug) = device(blocks);
    (start(&mut device, &hotplug), hotplug)
}

fn request(kind: u16, address: u64, blocks: u16) -> [u8; 24] {
    let mut bytes = [0xee; 24];
    bytes[..2].copy_from_slice(&kind.to_le_bytes());
    bytes[8..16].copy_from_slice(&address.to_le_bytes());
    bytes[16..18].copy_from_slice(&blocks.to_le_bytes());
    bytes
}

/// Type and state of the response.
fn ask(bench: &mut Bench, kind: u16, block: u64, blocks: u16) -> (u16, u16) {
    ask_raw(bench, &request(kind, START + block * BLOCK, blocks))
}

fn ask_raw(bench: &mut Bench, request: &[u8]) -> (u16, u16) {
    bench.write(REQUEST, request);
    bench.write(RESPONSE, &[0xff; 16]);
    let head = bench.rings[0].offer(&[(REQUEST, 24, false), (RESPONSE, 10, true)]);
    bench.kick(0);
    bench.settle();
    assert_eq!(bench.rings[0].take_all_used(), [(head.into(), 10)]);
    let response = bench.read(RESPONSE, 16);
    assert_eq!(response[2..8], [0; 6]);
    assert_eq!(response[10..], [0xff; 6], "not a byte beyond the response");
    let word = |at: usize| u16::from_le_bytes([response[at], response[at + 1]]);
    (word(0), word(8))
}

fn config(device: &Mem) -> [u64; 7] {
    let mut bytes = [7; 56];
    device.read_config(0, &mut bytes);
    std::array::from_fn(|word| u64::from_le_bytes(bytes[8 * word..8 * word + 8].try_into().unwrap()))
}

#[test]
fn the_configuration_says_what_there_is_and_what_is_asked_for() {
    let (mut device, hotplug) = device(3);
    let bytes = BLOCKS * BLOCK;
    assert_eq!(config(&device), [BLOCK, 0, START, bytes, bytes, 0, 3 * BLOCK]);
    let mut bench = start(&mut device, &hotplug);
    assert_eq!(ask(&mut bench, PLUG, 1, 2), (ACK, 0));
    assert_eq!(config(&device)[5..], [2 * BLOCK, 3 * BLOCK]);
    device.requested().set(5 * BLOCK + 4096);
    assert_eq!(config(&device)[6], 5 * BLOCK, "whole blocks");
    device.requested().set(u64::MAX);
    assert_eq!(config(&device)[6], bytes, "at most all");
    // Less than is plugged may be asked for.
    device.requested().set(0);
    assert_eq!(config(&device)[5..], [2 * BLOCK, 0]);
    let mut beyond = [7; 8];
    device.read_config(56, &mut beyond);
    assert_eq!(beyond, [0; 8]);
    device.write_config(48, &[9; 8]);
    assert_eq!(config(&device)[6], 0, "the driver does not write it");
}

#[test]
fn a_driver_that_would_read_what_is_not_plugged_is_refused() {
    let (mut device, _hotplug) = device(0);
    let activation = Activation {
        features: FEATURE_EVENT_IDX,
        memory: memory(),
        interrupt: Arc::new(crate::devices::virtio::testkit::Bell::default()),
        queues: vec![None],
        dropped: Arc::default(),
    };
    let error = device.activate(activation).err().unwrap().to_string();
    assert!(error.contains("VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE"), "{error}");
}

#[test]
fn blocks_are_plugged_and_unplugged() {
    let (mut bench, hotplug) = bench(8);
    assert_eq!(ask(&mut bench, STATE, 0, 8), (ACK, 1));
    assert_eq!(ask(&mut bench, PLUG, 0, 4), (ACK, 0));
    assert_eq!(ask(&mut bench, PLUG, 100, 4), (ACK, 0));
    assert_eq!(ask(&mut bench, STATE, 0, 4), (ACK, 0));
    assert_eq!(ask(&mut bench, STATE, 3, 2), (ACK, 2));
    assert_eq!(ask(&mut bench, STATE, 4, 96), (ACK, 1));
    assert_eq!(hotplug.plugged_bytes(), 8 * BLOCK);
    bench.memory.write_slice(&vec![1; 8 << 20], GuestAddress(START)).unwrap();
    assert_eq!(ask(&mut bench, UNPLUG, 1, 2), (ACK, 0));
    assert_eq!((hotplug.plugged_bytes(), hotplug.open_bytes()), (6 * BLOCK, 6 * BLOCK));
    bench.memory.read_obj::<u8>(GuestAddress(START + BLOCK)).unwrap_err();
    assert_eq!(ask(&mut bench, STATE, 0, 4), (ACK, 2));
    assert_eq!(ask(&mut bench, UNPLUG_ALL, 0, 0), (ACK, 0));
    assert_eq!((hotplug.plugged_bytes(), hotplug.open_bytes()), (0, 0));
    assert_eq!(ask(&mut bench, UNPLUG_ALL, 77, 9), (ACK, 0), "the rest of it does not count");
    assert_eq!(bench.dropped(), 0);
}

#[test]
fn no_more_is_plugged_than_is_asked_for() {
    let (mut device, hotplug) = device(4);
    let mut bench = start(&mut device, &hotplug);
    assert_eq!(ask(&mut bench, PLUG, 0, 5), (NACK, 0));
    assert_eq!(ask(&mut bench, PLUG, 0, 3), (ACK, 0));
    assert_eq!(ask(&mut bench, PLUG, 3, 2), (NACK, 0));
    assert_eq!(hotplug.plugged_bytes(), 3 * BLOCK);
    device.requested().set(2 * BLOCK);
    assert_eq!(ask(&mut bench, PLUG, 3, 1), (NACK, 0));
    assert_eq!(ask(&mut bench, UNPLUG, 2, 1), (ACK, 0));
    assert_eq!(ask(&mut bench, PLUG, 2, 1), (NACK, 0));
    device.requested().set(3 * BLOCK);
    assert_eq!(ask(&mut bench, PLUG, 2, 1), (ACK, 0));
}

#[test]
fn what_makes_no_sense_is_an_error_and_changes_nothing() {
    let (mut bench, hotplug) = bench(BLOCKS);
    assert_eq!(ask(&mut bench, PLUG, 10, 2), (ACK, 0));
    let past = BLOCKS - 1;
    for kind in [PLUG, UNPLUG, STATE] {
        for (block, blocks) in
            [(0, 0), (past, 2), (BLOCKS, 1), (BLOCKS + 1, 1), (0, u16::MAX), (past, u16::MAX)]
        {
            assert_eq!(ask(&mut bench, kind, block, blocks), (ERROR, 0), "{kind}: {blocks} from {block}");
        }
        for address in [0, START - BLOCK, START + 1, START + 4096, u64::MAX, u64::MAX - BLOCK + 1] {
            assert_eq!(ask_raw(&mut bench, &request(kind, address, 1)), (ERROR, 0), "{kind}: {address:#x}");
        }
        // So many that address and size wrap.
        let address = 0_u64.wrapping_sub(u64::from(u16::MAX) * BLOCK).next_multiple_of(BLOCK);
        assert_eq!(ask_raw(&mut bench, &request(kind, address, u16::MAX)), (ERROR, 0));
    }
    // Twice; partly there; partly not; unknown.
    for (kind, block, blocks) in [
        (PLUG, 10, 2),
        (PLUG, 9, 2),
        (PLUG, 11, 2),
        (PLUG, 9, 4),
        (UNPLUG, 9, 2),
        (UNPLUG, 11, 2),
        (UNPLUG, 50, 1),
    ] {
        assert_eq!(ask(&mut bench, kind, block, blocks), (ERROR, 0), "{kind}: {blocks} from {block}");
    }
    for kind in [4, 0x100, u16::MAX] {
        assert_eq!(ask(&mut bench, kind, 10, 2), (ERROR, 0));
    }
    assert_eq!((hotplug.plugged_bytes(), hotplug.open_bytes()), (2 * BLOCK, 2 * BLOCK));
    assert_eq!(ask(&mut bench, STATE, 10, 2), (ACK, 0));
}

#[test]
fn what_another_thread_may_be_at_is_the_guests_until_it_leaves() {
    let (mut bench, hotplug) = bench(4);
    let reader = hotplug.reader();
    assert_eq!(ask(&mut bench, PLUG, 0, 4), (ACK, 0));
    reader.enter();
    assert_eq!(ask(&mut bench, UNPLUG, 0, 4), (ACK, 0), "nobody waits");
    assert_eq!((hotplug.plugged_bytes(), hotplug.open_bytes()), (0, 4 * BLOCK));
    // It still counts against what the guest may have, unless it is the same blocks.
    assert_eq!(ask(&mut bench, PLUG, 8, 1), (BUSY, 0));
    reader.leave();
    bench.settle();
    assert_eq!(hotplug.open_bytes(), 0);
    assert_eq!(ask(&mut bench, PLUG, 8, 4), (ACK, 0));
}

#[test]
fn a_request_may_lie_in_pieces_and_in_plugged_memory() {
    let (mut bench, hotplug) = bench(8);
    assert_eq!(ask(&mut bench, PLUG, 0, 2), (ACK, 0));
    // In the block that it takes away.
    bench.write(START + BLOCK, &request(UNPLUG, START + BLOCK, 1));
    let split = [
        (START + BLOCK, 1, false),
        (START + BLOCK + 1, 23, false),
        (START + BLOCK + 64, 9, true),
        (RESPONSE, 7, true),
    ];
    let head = bench.rings[0].offer(&split);
    bench.kick(0);
    bench.settle();
    assert_eq!(bench.rings[0].take_all_used(), [(head.into(), 10)]);
    assert_eq!(hotplug.plugged_bytes(), BLOCK);
    // Not plugged any more: no buffer.
    bench.write(REQUEST, &request(STATE, START, 1));
    let gone = bench.rings[0].offer(&[(REQUEST, 24, false), (START + BLOCK, 10, true)]);
    let over = bench.rings[0].offer(&[(REQUEST, 24, false), (START + BLOCK - 4, 10, true)]);
    bench.kick(0);
    bench.settle();
    assert_eq!(bench.rings[0].take_all_used(), [(gone.into(), 0), (over.into(), 0)]);
    assert_eq!(bench.dropped(), 2);
}

#[test]
fn items_1_3_4_5_nonsense_goes_back_unused_and_the_device_goes_on() {
    let (mut bench, hotplug) = bench(8);
    bench.write(REQUEST, &request(PLUG, START, 1));
    let ring = &mut bench.rings[0];
    let describe = |ring: &Ring, at, asked: (u64, u32), told: (u64, u32)| {
        ring.describe(at, (asked.0, asked.1, NEXT, at + 1));
        ring.describe(at + 1, (told.0, told.1, WRITE, 0));
    };
    let wrong = [
        // Short, no room for an answer, of 4 GiB, outside memory, wrapping, an image, not plugged.
        ((REQUEST, 23), (RESPONSE, 10)),
        ((REQUEST, 24), (RESPONSE, 9)),
        ((REQUEST, u32::MAX), (RESPONSE, 10)),
        ((LOW_END, 24), (RESPONSE, 10)),
        ((REQUEST, 24), (HIGH_END - 2, 10)),
        ((u64::MAX - 1, 24), (RESPONSE, 10)),
        ((REQUEST, 24), (IMAGE, 10)),
        ((REQUEST, 24), (START, 10)),
        ((START, 24), (RESPONSE, 10)),
    ];
    for (at, (asked, told)) in (0..).step_by(2).zip(wrong) {
        describe(ring, at, asked, told);
        ring.offer_head(at);
    }
    // To itself; nothing to read; nothing to write; swapped; a table not offered.
    ring.describe(40, (REQUEST, 24, NEXT, 40));
    ring.describe(41, (RESPONSE, 10, WRITE, 0));
    ring.describe(42, (REQUEST, 24, 0, 0));
    ring.describe(43, (RESPONSE, 10, WRITE | NEXT, 42));
    ring.describe(44, (REQUEST, 32, INDIRECT, 0));
    let mut expected: Vec<(u32, u32)> = (0..18).step_by(2).map(|head| (head, 0)).collect();
    for head in 40..=44 {
        ring.offer_head(head);
        expected.push((head.into(), 0));
    }
    bench.kick(0);
    bench.settle();
    assert_eq!(bench.rings[0].take_all_used(), expected);
    assert_eq!(bench.dropped(), expected.len() as u64);
    assert_eq!(hotplug.plugged_bytes(), 0, "nothing is done that cannot be answered");
    assert_eq!(ask(&mut bench, PLUG, 0, 1), (ACK, 0));
}

#[test]
fn one_event_is_bounded() {
    let (mut bench, _hotplug) = bench(8);
    bench.write(REQUEST, &request(STATE, START, 8));
    let head = bench.rings[0].offer(&[(REQUEST, 24, false), (RESPONSE, 10, true)]);
    for _ in 1..64 {
        bench.rings[0].offer_head(head);
    }
    bench.kick(0);
    bench.worker.ready(Token(0)).unwrap();
    assert_eq!(bench.rings[0].take_all_used().len(), 64);
    bench.settle();
    // By what the requests name, too: ten times a seventh of the bound.
    bench.write(REQUEST, &request(STATE, START, 1171));
    for _ in 0..10 {
        bench.rings[0].offer_head(head);
    }
    bench.kick(0);
    bench.worker.ready(Token(0)).unwrap();
    assert_eq!(bench.rings[0].take_all_used().len(), 7);
    bench.settle();
    assert_eq!(bench.rings[0].take_all_used().len(), 3);
}

#[test]
fn what_is_plugged_outlives_a_reset() {
    let (mut device, hotplug) = device(4);
    let mut bench = start(&mut device, &hotplug);
    assert_eq!(ask(&mut bench, PLUG, 0, 4), (ACK, 0));
    assert_eq!(bench.worker.drain(Instant::now()).unwrap().len(), 1);
    let mut bench = start(&mut device, &hotplug);
    assert_eq!(config(&device)[5], 4 * BLOCK);
    assert_eq!(ask(&mut bench, STATE, 0, 4), (ACK, 0));
    bench.pause_and_resume(&mut device);
    assert_eq!(hotplug.plugged_bytes(), 4 * BLOCK);
}

#[test]
fn item_2_a_corrupt_ring_is_an_error_of_the_device() {
    let (mut bench, _hotplug) = bench(1);
    bench.rings[0].set_available(500);
    bench.kick(0);
    assert!(bench.round().unwrap_err().to_string().starts_with("queue 0: "));
}
