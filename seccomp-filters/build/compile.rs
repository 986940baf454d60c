//! From tables to programs and to source text.
//!
//! Owns the merge (rules of the target, each once, the wider one swallowing its narrower kin). Every call's
//! rules keep their order, so what a table puts first is tested first. Calls without argument tests cost nothing at run
//! time, for the kernel caches them in a bitmap.

use crate::rule::{Arch, Arg, Role, Rule};
use crate::syscalls::SYSCALLS;
use crate::tree::{self, Call};
use seccompiler::BpfProgram;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;

/// Why there are no filters.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Another machine.
    #[error("no filters for target architecture {0:?}: x86_64 and aarch64 have them")]
    Target(String),
    /// A typing error in a table.
    #[error("rule for {0}: the call has no number on this target in src/syscalls.rs")]
    UnknownCall(&'static str),
    /// A rule that nobody can audit.
    #[error("rule for {0}: no reason")]
    NoReason(&'static str),
    /// More tests than a jump reaches over.
    #[error("a filter needs a jump over {0} instructions")]
    TooFar(usize),
    /// The output.
    #[error("{}: {source}", path.display())]
    Write { path: PathBuf, source: std::io::Error },
}

/// The rules of `groups` that apply on `target`, each once.
pub(crate) fn merge(groups: &[&[Rule]], target: Arch) -> Vec<Rule> {
    let mut merged: Vec<Rule> = Vec::new();
    for rule in groups.iter().copied().flatten().filter(|rule| rule.arch.covers(target)) {
        if merged.iter().any(|kept| kept.covers(rule)) {
            continue;
        }
        merged.retain(|kept| !rule.covers(kept));
        merged.push(*rule);
    }
    merged
}

/// The BPF program of `rules`: what no rule allows traps, another architecture's call kills.
pub(crate) fn program(rules: &[Rule], target: Arch) -> Result<BpfProgram, Error> {
    let mut calls: BTreeMap<u32, Vec<&Rule>> = BTreeMap::new();
    for rule in rules {
        let number = number(rule.call, target).ok_or(Error::UnknownCall(rule.call))?;
        if rule.reason.is_empty() {
            return Err(Error::NoReason(rule.call));
        }
        calls.entry(number).or_default().push(rule);
    }
    let calls: Vec<Call<'_>> = calls.into_iter().map(|(number, rules)| Call { number, rules }).collect();
    tree::program(&calls, target)
}

fn number(call: &str, target: Arch) -> Option<u32> {
    SYSCALLS.iter().find(|entry| entry.name == call)?.number(target)
}

/// The table as a static of the crate.
pub(crate) fn table_source(role: Role, rules: &[Rule]) -> String {
    let mut text = format!("static TABLE_{}: &[Rule] = &[\n", role.name().to_uppercase());
    for rule in rules {
        let mut args = String::new();
        for arg in rule.args {
            let Arg { index, width, mask, value } = arg;
            let _ = write!(
                args,
                "Arg {{ index: {index}, width: Width::{width:?}, mask: {mask:#x}, value: {value:#x} }}, "
            );
        }
        let Rule { arch, call, reason, .. } = rule;
        let _ = writeln!(
            text,
            "    Rule {{ arch: Arch::{arch:?}, call: {call:?}, args: &[{args}], reason: {reason:?} }},"
        );
    }
    text.push_str("];\n");
    text
}

/// The program as a static of the crate.
pub(crate) fn program_source(role: Role, program: &BpfProgram) -> String {
    let mut text = format!("static PROGRAM_{}: &[sock_filter] = &[\n", role.name().to_uppercase());
    for step in program {
        let (code, jt, jf, k) = (step.code, step.jt, step.jf, step.k);
        let _ = writeln!(text, "    sock_filter {{ code: {code:#x}, jt: {jt}, jf: {jf}, k: {k:#x} }},");
    }
    text.push_str("];\n");
    text
}
