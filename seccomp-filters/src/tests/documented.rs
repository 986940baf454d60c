//! `docs/filters.md` is what the compiled filters allow: its lines are the tables' own, and, read back as text and without
//! the tables, they say of every call by number what the programs say.

use super::bpf::{Call, Verdict, run};
use super::*;
use std::path::Path;

/// A rule as a line of the document has it.
#[derive(Debug)]
struct Documented {
    role: String,
    number: u32,
    tests: Vec<Test>,
}

/// `int arg1 == KVM_RUN`, `long arg2 within A with B`.
#[derive(Debug)]
struct Test {
    index: usize,
    width: u64,
    /// What must be the same as in `needed`; bits outside of what is allowed are.
    mask: u64,
    needed: u64,
}

/// The document's list: what stands between its fences.
fn list() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/filters.md");
    let document = std::fs::read_to_string(path).unwrap();
    document.split("```").nth(1).unwrap().trim_start_matches("text").trim_start().to_owned()
}

/// The number that a name stands for in a call's argument; names are each other's opposite in [`values::NAMES`].
fn value(text: &str) -> u64 {
    if let Ok(number) = text.parse() {
        return number;
    }
    let named = values::NAMES.iter().find(|(name, _)| *name == text);
    named.unwrap_or_else(|| panic!("{text} is no literal's name")).1
}

fn read(line: &str) -> Documented {
    let (role, rest) = line.split_once(' ').unwrap();
    let (call, rest) = rest.split_once('(').unwrap();
    let (tests, reason) = rest.split_once("): ").unwrap();
    assert!(reason.len() > 5, "{line}");
    let tests = if tests == "..." { Vec::new() } else { tests.split(", ").map(read_test).collect() };
    Documented { role: role.to_owned(), number: number_of(call), tests }
}

fn read_test(text: &str) -> Test {
    let words: Vec<&str> = text.split(' ').collect();
    let width = if words[0] == "int" { u64::from(u32::MAX) } else { u64::MAX };
    let index = words[1].strip_prefix("arg").unwrap().parse().unwrap();
    let (mask, needed) = match words[2..] {
        ["==", exact] => (u64::MAX, value(exact)),
        ["within", allowed] => (!value(allowed), 0),
        ["within", allowed, "with", needed] => (!value(allowed) | value(needed), value(needed)),
        _ => panic!("{text}"),
    };
    Test { index, width, mask, needed }
}

impl Documented {
    fn holds(&self, role: Role, call: &Call) -> bool {
        let passes = |test: &Test| call.args[test.index] & test.width & test.mask == test.needed & test.width;
        self.role == role.name() && self.number == call.number && self.tests.iter().all(passes)
    }

    /// Calls at the edge of the rule: what it needs and no more, and that with each bit of each tested argument turned.
    fn edges(&self) -> Vec<Call> {
        let mut call = Call { number: self.number, args: [0; 6] };
        for test in &self.tests {
            call.args[test.index] = test.needed;
        }
        let turned = self.tests.iter().flat_map(|test| (0..64).map(move |bit| (test.index, 1_u64 << bit)));
        let near = turned.map(|(index, bit)| {
            let mut near = call;
            near.args[index] ^= bit;
            near
        });
        [call].into_iter().chain(near).collect()
    }
}

#[test]
fn the_document_is_the_list() {
    let (documented, compiled) = (list(), listing());
    if cfg!(target_arch = "x86_64") {
        assert!(
            documented == compiled,
            "docs/filters.md is not what `husk doctor --filters` prints: put that there"
        );
    }
}

#[test]
fn the_allowed_list_equals_the_documented_one() {
    if cfg!(not(target_arch = "x86_64")) {
        return;
    }
    let rules: Vec<Documented> = list().lines().map(read).collect();
    assert!(rules.len() > 200, "only {} rules were found", rules.len());
    let plain = [[0; 6], [u64::MAX; 6], [1, 2, 3, 4, 5, 6]];
    let every = (0..1024).chain((0..1024).map(|number| number | 0x4000_0000)).chain([0x7fff_ffff, u32::MAX]);
    let mut calls: Vec<Call> = every.flat_map(|number| plain.map(|args| Call { number, args })).collect();
    calls.extend(rules.iter().flat_map(Documented::edges));
    for role in Role::ALL {
        let mut allowed = 0;
        for call in &calls {
            let documented = rules.iter().any(|rule| rule.holds(role, call));
            let expected = if documented { Verdict::Allow } else { Verdict::Trap };
            assert_eq!(run(program(role), call), expected, "{role:?} {call:?}");
            allowed += usize::from(documented);
        }
        assert!(allowed > 20, "{role:?} is said to allow only {allowed} of the calls");
    }
}
