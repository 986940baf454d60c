//! From rules to classic BPF: a search tree over the call numbers, and in its leaves the tests of the arguments.
//!
//! The kernel walks a new filter once for every call number there is and compiles it, so its length is paid at each start
//! of a sandbox (some 1,400 instructions of the kernel's for each of its own), and its depth at each call. So all that is
//! decided ends in two returns at the end of a segment, and what all rules of a call test is tested once. Source:
//! linux/seccomp.h, linux/bpf_common.h. Invariant: every path ends in a return, and every jump goes forward.

use crate::compile::Error;
use crate::rule::{Arch, Arg, Rule, Width};
use seccompiler::sock_filter;

const LOAD_WORD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_IF_EQUAL: u16 = 0x15;
const JUMP_IF_AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;

const ALLOW: u32 = 0x7fff_0000;
const TRAP: u32 = 0x0003_0000;
const KILL_PROCESS: u32 = 0x8000_0000;

/// Places in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// Calls that are compared one after the other in a leaf: fewer make the tree deeper and the program longer.
const CALLS_A_LEAF: usize = 9;

/// A call and its rules; none of them has argument tests, or all have.
pub(crate) struct Call<'a> {
    pub(crate) number: u32,
    pub(crate) rules: Vec<&'a Rule>,
}

/// Where a step goes on.
#[derive(Clone, Copy)]
enum To {
    /// So many steps behind the next one.
    Over(usize),
    /// To one of the returns at the end of the segment.
    Allow,
    Trap,
}

use To::{Allow, Over, Trap};

/// A step of a segment; those that do not branch go on with the next.
struct Step {
    code: u16,
    k: u32,
    yes: To,
    no: To,
}

/// A 32-bit comparison: a place in the data, the bits that count, what they must be.
type Test = (u32, u32, u32);

/// The program that allows `calls`, which are sorted by number.
pub(crate) fn program(calls: &[Call<'_>], target: Arch) -> Result<Vec<sock_filter>, Error> {
    let audit = if target == Arch::X86_64 { 0xc000_003e } else { 0xc000_00b7 };
    let mut code = vec![
        plain(LOAD_WORD, ARCHITECTURE),
        branch(JUMP_IF_EQUAL, audit, 1, 0)?,
        plain(RETURN, KILL_PROCESS),
        plain(LOAD_WORD, NUMBER),
    ];
    code.extend(segments(calls)?);
    Ok(code)
}

/// Decides on the number in the accumulator: in one segment, or in as many as its jumps reach over.
fn segments(calls: &[Call<'_>]) -> Result<Vec<sock_filter>, Error> {
    let too_far = match segment(calls) {
        Err(Error::TooFar(distance)) if calls.len() > 1 => distance,
        done => return done,
    };
    let (below, above) = calls.split_at(calls.len() / 2);
    let pivot = above.first().ok_or(Error::TooFar(too_far))?.number;
    let (below, above) = (segments(below)?, segments(above)?);
    let mut code = match branch(JUMP_IF_AT_LEAST, pivot, below.len(), 0) {
        Ok(near) => vec![near],
        Err(_) => vec![branch(JUMP_IF_AT_LEAST, pivot, 0, 1)?, jump(below.len())?],
    };
    code.extend(below);
    code.extend(above);
    Ok(code)
}

/// A tree with its two returns behind it.
fn segment(calls: &[Call<'_>]) -> Result<Vec<sock_filter>, Error> {
    let steps = tree(calls);
    let mut code = Vec::with_capacity(steps.len() + 2);
    for (place, step) in steps.iter().enumerate() {
        let left = steps.len() - place - 1;
        let distance = |to| match to {
            Over(count) => count,
            Trap => left,
            Allow => left + 1,
        };
        code.push(branch(step.code, step.k, distance(step.yes), distance(step.no))?);
    }
    code.extend([plain(RETURN, TRAP), plain(RETURN, ALLOW)]);
    Ok(code)
}

fn tree(calls: &[Call<'_>]) -> Vec<Step> {
    if calls.len() <= CALLS_A_LEAF {
        return leaf(calls);
    }
    let (below, above) = calls.split_at(calls.len() / 2);
    let pivot = above[0].number;
    let (below, above) = (tree(below), tree(above));
    let mut steps = vec![Step { code: JUMP_IF_AT_LEAST, k: pivot, yes: Over(below.len()), no: Over(0) }];
    steps.extend(below);
    steps.extend(above);
    steps
}

/// Compares with each of a few numbers; behind that the tests of those calls that have some.
fn leaf(calls: &[Call<'_>]) -> Vec<Step> {
    let (mut steps, mut bodies) = (Vec::new(), Vec::new());
    for (place, call) in calls.iter().enumerate() {
        let left = calls.len() - place - 1;
        let yes = if call.rules.iter().any(|rule| rule.args.is_empty()) {
            Allow
        } else {
            let start = bodies.len();
            bodies.extend(body(&call.rules));
            Over(left + start)
        };
        steps.push(Step {
            code: JUMP_IF_EQUAL,
            k: call.number,
            yes,
            no: if left == 0 { Trap } else { Over(0) },
        });
    }
    steps.extend(bodies);
    steps
}

/// Allows if any of `rules` holds, else traps.
fn body(rules: &[&Rule]) -> Vec<Step> {
    let mut rules: Vec<Vec<Test>> =
        rules.iter().map(|rule| rule.args.iter().flat_map(tests).collect()).collect();
    let mut steps = Vec::new();
    for test in in_all(&rules) {
        rules.iter_mut().for_each(|tests| tests.retain(|other| *other != test));
        steps.extend(compare(test, Over(0), Trap));
    }
    if let Some(values) = one_place(&rules) {
        return steps.into_iter().chain(one_of(&values)).collect();
    }
    let count = rules.len();
    for (place, tests) in rules.iter().enumerate() {
        steps.extend(conjunction(tests, place + 1 == count));
    }
    steps
}

/// What each of several rules tests, if each tests something beside it.
fn in_all(rules: &[Vec<Test>]) -> Vec<Test> {
    let Some((first, others)) = rules.split_first() else { return Vec::new() };
    let common: Vec<Test> =
        first.iter().filter(|test| others.iter().all(|tests| tests.contains(test))).copied().collect();
    let alone = others.is_empty() || rules.iter().any(|tests| tests.iter().all(|test| common.contains(test)));
    if alone { Vec::new() } else { common }
}

/// The tests of rules that compare the same bits of one place, each with a value.
fn one_place(rules: &[Vec<Test>]) -> Option<Vec<Test>> {
    let single = |tests: &Vec<Test>| if let [test] = tests[..] { Some(test) } else { None };
    let tests: Vec<Test> = rules.iter().map(single).collect::<Option<_>>()?;
    let &(place, mask, _) = tests.first()?;
    tests.iter().all(|test| (test.0, test.1) == (place, mask)).then_some(tests)
}

fn one_of(tests: &[Test]) -> Vec<Step> {
    let mut steps = Vec::new();
    for (at, &(place, mask, value)) in tests.iter().enumerate() {
        if at == 0 {
            steps.extend(load(place, mask));
        }
        let no = if at + 1 == tests.len() { Trap } else { Over(0) };
        steps.push(Step { code: JUMP_IF_EQUAL, k: value, yes: Allow, no });
    }
    steps
}

/// Allows if all of `tests` hold, else goes on behind its end, or traps if it is the last.
fn conjunction(tests: &[Test], last: bool) -> Vec<Step> {
    // Built from the end, because each test jumps over all that follow it.
    let mut steps: Vec<Step> = Vec::new();
    for &test in tests.iter().rev() {
        let yes = if steps.is_empty() { Allow } else { Over(0) };
        let no = if last { Trap } else { Over(steps.len()) };
        let mut compared = compare(test, yes, no);
        compared.append(&mut steps);
        steps = compared;
    }
    steps
}

fn compare((place, mask, value): Test, yes: To, no: To) -> Vec<Step> {
    let mut steps = load(place, mask);
    steps.push(Step { code: JUMP_IF_EQUAL, k: value, yes, no });
    steps
}

fn load(place: u32, mask: u32) -> Vec<Step> {
    let step = |code, k| Step { code, k, yes: Over(0), no: Over(0) };
    let mut steps = vec![step(LOAD_WORD, place)];
    if mask != u32::MAX {
        steps.push(step(AND, mask));
    }
    steps
}

/// The 32-bit comparisons of one argument.
fn tests(arg: &Arg) -> Vec<Test> {
    let halves = [(false, low(arg.mask), low(arg.value)), (true, low(arg.mask >> 32), low(arg.value >> 32))];
    let count = if arg.width == Width::Low32 { 1 } else { 2 };
    let compared = halves.into_iter().take(count).filter(|&(_, mask, value)| mask != 0 || value != 0);
    compared.map(|(high, mask, value)| (word(arg.index, high), mask, value)).collect()
}

fn word(index: u8, high: bool) -> u32 {
    ARGUMENTS + 8 * u32::from(index) + if high { 4 } else { 0 }
}

fn low(value: u64) -> u32 {
    let [a, b, c, d, ..] = value.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

fn plain(code: u16, k: u32) -> sock_filter {
    sock_filter { code, jt: 0, jf: 0, k }
}

fn jump(over: usize) -> Result<sock_filter, Error> {
    Ok(plain(JUMP, u32::try_from(over).map_err(|_| Error::TooFar(over))?))
}

fn branch(code: u16, k: u32, yes: usize, no: usize) -> Result<sock_filter, Error> {
    let jt = u8::try_from(yes).map_err(|_| Error::TooFar(yes))?;
    let jf = u8::try_from(no).map_err(|_| Error::TooFar(no))?;
    Ok(sock_filter { code, jt, jf, k })
}
