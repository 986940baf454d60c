//! The BPF program that keeps each call once. Source: Documentation/bpf/standardization/instruction-set.rst.
//!
//! It runs at `raw_syscalls:sys_enter`, whose record is 8 bytes of header, the call's number and its six arguments
//! (events/raw_syscalls/sys_enter/format). Of the helpers it takes only those that the kernel gives to a program of any licence.

use super::Seen;
use super::bpf::Map;
use std::collections::BTreeMap;

/// A key of the map of what was seen: name (16), filters (4), number (4), arguments (48).
pub(super) const KEY_BYTES: u32 = 72;
/// The thread id under which is noted that something was lost; no thread has it.
pub(super) const LOST: u32 = 0;

/// Helpers, by their numbers in linux/bpf.h.
const LOOKUP: i32 = 1;
const UPDATE: i32 = 2;
const PID_TGID: i32 = 14;
const COMM: i32 = 16;

/// Places in the record, and on the stack.
const NUMBER: i16 = 8;
const ARGS: i16 = 16;
const KEY: i16 = -72;
const FILTERS: i16 = KEY + 16;
const KEY_NUMBER: i16 = KEY + 20;
const KEY_ARGS: i16 = KEY + 24;
const THREAD: i16 = -76;
const INDEX: i16 = -80;
const VALUE: i16 = -84;
const NONE: i16 = -88;

const FRAME: u8 = 10;
/// `husk` in memory, as a number of the target.
const HUSK: i32 = i32::from_le_bytes(*b"husk");
const PR_SET_NAME: i32 = 15;
const SET_MODE_FILTER: i32 = 1;

/// Instructions, with jumps to names that are resolved at the end.
#[derive(Default)]
struct Code {
    words: Vec<u64>,
    jumps: Vec<(usize, &'static str)>,
    labels: BTreeMap<&'static str, usize>,
}

impl Code {
    fn put(&mut self, code: u8, (to, from): (u8, u8), offset: i16, value: i32) {
        let registers = u64::from(to | from << 4) << 8;
        let offset = u64::from(offset.cast_unsigned()) << 16;
        self.words.push(u64::from(code) | registers | offset | u64::from(value.cast_unsigned()) << 32);
    }

    fn label(&mut self, name: &'static str) {
        self.labels.insert(name, self.words.len());
    }

    fn jump(&mut self, code: u8, register: u8, value: i32, to: &'static str) {
        self.jumps.push((self.words.len(), to));
        self.put(code, (register, 0), 0, value);
    }

    /// `register` = the address of the stack's place.
    fn stack(&mut self, register: u8, place: i16) {
        self.put(0xbf, (register, FRAME), 0, 0);
        self.put(0x07, (register, 0), 0, place.into());
    }

    /// The map and its key at `place` become a helper's first two arguments.
    fn map(&mut self, map: &Map, place: i16) {
        self.put(0x18, (1, 1), 0, map.number());
        self.put(0, (0, 0), 0, 0);
        self.stack(2, place);
    }

    fn call(&mut self, helper: i32) {
        self.put(0x85, (0, 0), 0, helper);
    }

    /// Sets the entry at `place` to what lies at `VALUE`.
    fn update(&mut self, map: &Map, place: i16) {
        self.map(map, place);
        self.stack(3, VALUE);
        self.put(0xb7, (4, 0), 0, 0);
        self.call(UPDATE);
    }

    /// 32 bits of `register` onto the stack.
    fn store(&mut self, place: i16, register: u8) {
        self.put(0x63, (FRAME, register), place, 0);
    }

    fn finish(mut self) -> Vec<u64> {
        for (at, name) in self.jumps {
            let distance = self.labels[name] - at - 1;
            self.words[at] |= u64::try_from(distance & 0x7fff).unwrap_or_default() << 16;
        }
        self.words
    }
}

const IF_EQUAL: u8 = 0x15;
const IF_NOT_EQUAL: u8 = 0x55;
const IF_AT_LEAST: u8 = 0x35;
const ALWAYS: u8 = 0x05;

fn number(call: &str) -> i32 {
    husk_seccomp::call_number(call).and_then(|number| i32::try_from(number).ok()).unwrap_or(-1)
}

/// The program over these maps.
pub(super) fn code(seen: &Map, threads: &Map, masks: &Map) -> Vec<u64> {
    let mut code = Code::default();
    // r6: the record. r7: the call. r8: filters of the thread.
    code.put(0xbf, (6, 1), 0, 0);
    code.put(0x79, (7, 6), NUMBER, 0);
    code.call(PID_TGID);
    code.store(THREAD, 0);
    // Whoever takes a name begins anew, also with a thread's id that another had before.
    code.put(0xb7, (8, 0), 0, 0);
    code.jump(IF_NOT_EQUAL, 7, number("prctl"), "named");
    code.put(0x79, (1, 6), ARGS, 0);
    code.jump(IF_NOT_EQUAL, 1, PR_SET_NAME, "named");
    code.store(VALUE, 8);
    code.update(threads, THREAD);
    code.label("named");
    code.stack(1, KEY);
    code.put(0xb7, (2, 0), 0, 16);
    code.call(COMM);
    code.put(0x61, (1, FRAME), KEY, 0);
    code.jump(IF_NOT_EQUAL, 1, HUSK, "end");
    code.put(0x71, (1, FRAME), KEY + 4, 0);
    code.jump(IF_NOT_EQUAL, 1, i32::from(b'-'), "end");
    code.map(threads, THREAD);
    code.call(LOOKUP);
    code.jump(IF_EQUAL, 0, 0, "unfiltered");
    code.put(0x61, (8, 0), 0, 0);
    code.label("unfiltered");
    code.store(FILTERS, 8);
    keep(&mut code, seen, threads, masks);
    // A filter is on from its call on.
    code.jump(IF_NOT_EQUAL, 7, number("seccomp"), "end");
    code.put(0x79, (1, 6), ARGS, 0);
    code.jump(IF_NOT_EQUAL, 1, SET_MODE_FILTER, "end");
    code.put(0x07, (8, 0), 0, 1);
    code.store(VALUE, 8);
    code.update(threads, THREAD);
    code.label("end");
    code.put(0xb7, (0, 0), 0, 0);
    code.put(0x95, (0, 0), 0, 0);
    code.finish()
}

/// Completes the key, and keeps it if it is new.
fn keep(code: &mut Code, seen: &Map, threads: &Map, masks: &Map) {
    code.jump(IF_AT_LEAST, 7, super::CALLS.cast_signed(), "end");
    code.store(KEY_NUMBER, 7);
    code.store(INDEX, 7);
    code.map(masks, INDEX);
    code.call(LOOKUP);
    code.jump(IF_EQUAL, 0, 0, "end");
    for place in (0..6).map(|index| 8 * index) {
        code.put(0x79, (1, 6), ARGS + place, 0);
        code.put(0x79, (2, 0), place, 0);
        code.put(0x5f, (1, 2), 0, 0);
        code.put(0x7b, (FRAME, 1), KEY_ARGS + place, 0);
    }
    code.map(seen, KEY);
    code.call(LOOKUP);
    code.jump(IF_NOT_EQUAL, 0, 0, "kept");
    code.put(0x62, (FRAME, 0), VALUE, 1);
    code.update(seen, KEY);
    code.jump(IF_EQUAL, 0, 0, "kept");
    code.put(0x62, (FRAME, 0), NONE, LOST.cast_signed());
    code.update(threads, NONE);
    code.jump(ALWAYS, 0, 0, "kept");
    code.label("kept");
}

/// What a key of the map says.
pub(super) fn read(key: &[u8]) -> Seen {
    let word =
        |at: usize| key.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes);
    let long =
        |at: usize| key.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_ne_bytes);
    let name: Vec<u8> = key.iter().take(16).copied().take_while(|&byte| byte != 0).collect();
    let args = std::array::from_fn(|index| long(24 + 8 * index));
    // A name is one word: that is what a line is made of.
    let thread = String::from_utf8_lossy(&name).replace(' ', "_");
    Seen { thread, filters: word(16), number: word(20), args }
}
