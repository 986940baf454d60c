//! The tables as lines of text, one rule a line, for people and for `diff`.
//!
//! Owns the form of a line and the names of what is compared. Refuses nothing. Invariant: a line depends on its own rule
//! alone, and the order is the tables' own, so that a changed rule is a changed line and nothing else.

use crate::rule::{Arg, Role, Rule, Width};
use crate::{table, values};
use std::fmt::{self, Write};

/// Which literals an argument may be: the call, the argument, and how their names begin. Where a call is not here, a number
/// must have one name alone.
const FAMILIES: &[(&str, u8, &[&str])] = &[
    ("accept4", 3, &["CLOEXEC_NONBLOCK"]),
    ("clone", 0, &["CLONE_"]),
    ("epoll_create1", 0, &["CLOEXEC_NONBLOCK"]),
    ("eventfd2", 1, &["CLOEXEC_NONBLOCK"]),
    ("fallocate", 1, &["FALLOC_"]),
    ("fcntl", 1, &["F_"]),
    ("fcntl", 2, &["FD_"]),
    ("getsockopt", 1, &["SOL_"]),
    ("getsockopt", 2, &["SO_"]),
    ("ioctl", 1, &["KVM_", "TUN", "FIO"]),
    ("madvise", 2, &["MADV_"]),
    ("mmap", 1, &["SHARED_PAGES"]),
    ("io_uring_register", 1, &["IORING_"]),
    ("mmap", 2, &["PROT_"]),
    ("mmap", 3, &["MAP_"]),
    ("mprotect", 2, &["PROT_"]),
    ("mremap", 3, &["MREMAP_"]),
    ("prctl", 0, &["PR_"]),
    ("recvfrom", 3, &["MSG_"]),
    ("seccomp", 0, &["SECCOMP_"]),
    ("sendto", 3, &["MSG_"]),
    ("timerfd_create", 1, &["CLOEXEC_NONBLOCK"]),
    ("tkill", 1, &["SIGABRT", "VCPU_KICK_SIGNAL"]),
];

/// The name of `value` as argument `index` of `call`.
fn name(call: &str, index: u8, value: u64) -> Option<&'static str> {
    let family = FAMILIES.iter().find(|(of, at, _)| *of == call && *at == index).map(|(_, _, begin)| begin);
    let mut names = values::NAMES.iter().filter(|(name, number)| {
        *number == value && family.is_none_or(|begins| begins.iter().any(|begin| name.starts_with(begin)))
    });
    let (name, _) = names.next()?;
    names.next().is_none().then_some(*name)
}

/// A number as its name, or as it is.
fn literal(call: &str, index: u8, value: u64) -> String {
    match name(call, index, value) {
        Some(name) => name.to_owned(),
        None if value < 10 => value.to_string(),
        None => format!("{value:#x}"),
    }
}

/// `int arg1 == KVM_RUN`; `long arg2 within PROT_READ_WRITE`: no bit beside those of the literal.
fn test(call: &str, arg: &Arg) -> String {
    let Arg { index, width, mask, value } = *arg;
    let (kind, all) = match width {
        Width::Low32 => ("int", u64::from(u32::MAX)),
        Width::Full64 => ("long", u64::MAX),
    };
    let compared = if mask & all == all {
        format!("== {}", literal(call, index, value))
    } else {
        let allowed = literal(call, index, (!mask | value) & all);
        let needed = literal(call, index, value);
        if value == 0 { format!("within {allowed}") } else { format!("within {allowed} with {needed}") }
    };
    format!("{kind} arg{index} {compared}")
}

impl fmt::Display for Rule {
    /// `ioctl(int arg1 == KVM_RUN): enters the guest`; a call with any arguments has `...` in the brackets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tests: Vec<String> = self.args.iter().map(|arg| test(self.call, arg)).collect();
        let tests = if tests.is_empty() { "...".to_owned() } else { tests.join(", ") };
        write!(f, "{}({tests}): {}", self.call, self.reason)
    }
}

/// All tables of this target: `ROLE CALL(TESTS): REASON`, a line each, in the order in which rules are tried.
#[must_use]
pub fn listing() -> String {
    let mut text = String::new();
    for role in Role::ALL {
        for rule in table(role) {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{} {rule}", role.name());
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_role_call_test_and_reason() {
        let text = listing();
        for line in [
            "vcpu ioctl(int arg1 == KVM_RUN): enters the guest",
            "build io_uring_register(int arg1 == IORING_REGISTER_FILES): its one file",
            "control tkill(int arg1 == VCPU_KICK_SIGNAL): takes a vCPU thread out of the guest; no other signal",
            "build seccomp(int arg0 == SECCOMP_SET_MODE_FILTER, int arg1 == 0): each thread narrows itself to its role; \
             filters only add up",
            "device epoll_pwait(...): the event loop waits",
            "block mprotect(long arg2 within PROT_READ_WRITE): the allocator opens pages that it had reserved, the \
             memory device blocks of guest memory; never executable",
            "build mmap(long arg2 within PROT_READ_WRITE, long arg3 within MAP_WHILE_BUILDING with MAP_ANONYMOUS): guest \
             memory, threads' stacks; no file, never executable",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn every_rule_is_a_line_of_its_own_in_the_tables_order() {
        let text = listing();
        let mut lines = text.lines();
        for role in Role::ALL {
            for rule in table(role) {
                let line = lines.next().unwrap();
                let (of, rest) = line.split_once(' ').unwrap();
                assert_eq!((of, rest.split('(').next()), (role.name(), Some(rule.call)), "{line}");
                assert!(line.ends_with(rule.reason), "{line}");
            }
        }
        assert_eq!(lines.next(), None);
        let mut distinct: Vec<&str> = text.lines().collect();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), text.lines().count(), "two rules read alike");
    }

    #[test]
    fn every_number_that_says_something_has_a_name() {
        for role in Role::ALL {
            for rule in table(role) {
                for arg in rule.args {
                    let line = test(rule.call, arg);
                    assert!(
                        !line.contains("0x"),
                        "{role:?} {}: {line}; give the literal a name or a family",
                        rule.call
                    );
                }
            }
        }
    }
}
