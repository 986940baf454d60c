//! From rules to classic BPF: a search tree over the call numbers, and in its leaves the tests of the arguments.
//!
//! The kernel walks a new filter once for every call number there is and compiles it, so its length is paid at each start
//! of a sandbox, and its depth at each call. Source: linux/seccomp.h, linux/bpf_common.h. Invariant: every path ends in a
//! return, and every jump goes forward.

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
const CALLS_A_LEAF: usize = 6;

/// A call and its rules; none of them has argument tests, or all have.
pub(crate) struct Call<'a> {
    pub(crate) number: u32,
    pub(crate) rules: Vec<&'a Rule>,
}

/// The program that allows `calls`, which are sorted by number.
pub(crate) fn program(calls: &[Call<'_>], target: Arch) -> Result<Vec<sock_filter>, Error> {
    let audit = if target == Arch::X86_64 { 0xc000_003e } else { 0xc000_00b7 };
    let mut code = vec![
        step(LOAD_WORD, ARCHITECTURE),
        branch(JUMP_IF_EQUAL, audit, 1, 0)?,
        step(RETURN, KILL_PROCESS),
        step(LOAD_WORD, NUMBER),
    ];
    code.extend(tree(calls)?);
    Ok(code)
}

/// Decides on the number in the accumulator.
fn tree(calls: &[Call<'_>]) -> Result<Vec<sock_filter>, Error> {
    if calls.len() <= CALLS_A_LEAF {
        return leaf(calls);
    }
    let (below, above) = calls.split_at(calls.len() / 2);
    let pivot = above[0].number;
    let (below, above) = (tree(below)?, tree(above)?);
    let mut code = match branch(JUMP_IF_AT_LEAST, pivot, below.len(), 0) {
        Ok(near) => vec![near],
        Err(_) => vec![branch(JUMP_IF_AT_LEAST, pivot, 0, 1)?, jump(below.len())?],
    };
    code.extend(below);
    code.extend(above);
    Ok(code)
}

/// Compares with each of a few numbers; then the bodies: trap, allow, and one for each call with tests.
fn leaf(calls: &[Call<'_>]) -> Result<Vec<sock_filter>, Error> {
    let mut bodies = vec![step(RETURN, TRAP), step(RETURN, ALLOW)];
    let mut code = Vec::new();
    for (place, call) in calls.iter().enumerate() {
        let compared = calls.len() - place - 1;
        let start = if call.rules.iter().any(|rule| rule.args.is_empty()) {
            1
        } else {
            let start = bodies.len();
            bodies.extend(body(&call.rules)?);
            start
        };
        code.push(branch(JUMP_IF_EQUAL, call.number, compared + start, 0)?);
    }
    code.extend(bodies);
    Ok(code)
}

/// Allows if any of `rules` holds.
fn body(rules: &[&Rule]) -> Result<Vec<sock_filter>, Error> {
    if let Some(code) = one_of(rules)? {
        return Ok(code);
    }
    let mut code = Vec::new();
    for rule in rules {
        code.extend(conjunction(rule.args)?);
    }
    code.push(step(RETURN, TRAP));
    Ok(code)
}

/// The short form for rules that compare one and the same 32-bit argument with a value each.
fn one_of(rules: &[&Rule]) -> Result<Option<Vec<sock_filter>>, Error> {
    let all = u64::from(u32::MAX);
    let single = |rule: &&Rule| match rule.args {
        [arg] if arg.width == Width::Low32 && arg.mask & all == all => Some((arg.index, low(arg.value))),
        _ => None,
    };
    let Some(values) = rules.iter().map(single).collect::<Option<Vec<_>>>() else { return Ok(None) };
    let Some(&(index, _)) = values.first() else { return Ok(None) };
    if values.iter().any(|&(other, _)| other != index) {
        return Ok(None);
    }
    let mut code = vec![step(LOAD_WORD, word(index, false))];
    for (place, &(_, value)) in values.iter().enumerate() {
        code.push(branch(JUMP_IF_EQUAL, value, values.len() - place, 0)?);
    }
    code.extend([step(RETURN, TRAP), step(RETURN, ALLOW)]);
    Ok(Some(code))
}

/// Allows if all of `args` hold, else goes on behind its end.
fn conjunction(args: &[Arg]) -> Result<Vec<sock_filter>, Error> {
    let halves: Vec<(u32, u32, u32)> = args.iter().flat_map(tests).collect();
    // Built from the end, because each test jumps over all that follow it.
    let mut code = vec![step(RETURN, ALLOW)];
    for (place, mask, value) in halves.into_iter().rev() {
        code.insert(0, branch(JUMP_IF_EQUAL, value, 0, code.len())?);
        if mask != u32::MAX {
            code.insert(0, step(AND, mask));
        }
        code.insert(0, step(LOAD_WORD, place));
    }
    Ok(code)
}

/// The 32-bit comparisons of one argument: place, mask, value.
fn tests(arg: &Arg) -> Vec<(u32, u32, u32)> {
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

fn step(code: u16, k: u32) -> sock_filter {
    sock_filter { code, jt: 0, jf: 0, k }
}

fn jump(over: usize) -> Result<sock_filter, Error> {
    Ok(step(JUMP, u32::try_from(over).map_err(|_| Error::TooFar(over))?))
}

fn branch(code: u16, k: u32, yes: usize, no: usize) -> Result<sock_filter, Error> {
    let jt = u8::try_from(yes).map_err(|_| Error::TooFar(yes))?;
    let jf = u8::try_from(no).map_err(|_| Error::TooFar(no))?;
    Ok(sock_filter { code, jt, jf, k })
}
