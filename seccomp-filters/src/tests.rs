//! The tables against the headers, and the compiled programs against the tables, by an interpreter of classic BPF.

mod bpf;
mod documented;
mod headers;
mod kernel;

use super::*;
use bpf::{Call, Verdict, run};

/// A call that satisfies all tests of `rule`.
fn matching(rule: &Rule) -> Call {
    let number = number_of(rule.call);
    let mut args = [0; 6];
    for arg in rule.args {
        args[usize::from(arg.index)] = arg.value;
    }
    Call { number, args }
}

fn number_of(name: &str) -> u32 {
    call_number(name).unwrap()
}

fn holds(rule: &Rule, call: &Call) -> bool {
    number_of(rule.call) == call.number
        && rule.args.iter().all(|arg| {
            let width = if arg.width == Width::Low32 { u64::from(u32::MAX) } else { u64::MAX };
            call.args[usize::from(arg.index)] & width & arg.mask == arg.value
        })
}

fn expected(role: Role, call: &Call) -> Verdict {
    if table(role).iter().any(|rule| holds(rule, call)) { Verdict::Allow } else { Verdict::Trap }
}

#[test]
fn what_a_rule_allows_is_allowed_and_its_neighbours_are_not() {
    for role in Role::ALL {
        for rule in table(role) {
            let call = matching(rule);
            assert_eq!(run(program(role), &call), Verdict::Allow, "{role:?} {rule:?}");
            for arg in rule.args {
                for bit in 0..64 {
                    let mut near = call;
                    near.args[usize::from(arg.index)] ^= 1 << bit;
                    assert_eq!(
                        run(program(role), &near),
                        expected(role, &near),
                        "{role:?} {rule:?} bit {bit}"
                    );
                }
            }
        }
    }
}

#[test]
fn every_call_that_no_table_names_is_denied() {
    for role in Role::ALL {
        let mut denied = 0;
        for number in 0..1024 {
            let call = Call { number, args: [0; 6] };
            let verdict = run(program(role), &call);
            assert_eq!(verdict, expected(role, &call), "{role:?} call {number}");
            denied += u32::from(verdict == Verdict::Trap);
        }
        assert!(denied > 900, "{role:?} denies only {denied}");
    }
}

#[test]
fn another_architecture_kills() {
    for role in Role::ALL {
        let call = matching(&table(role)[0]);
        assert_eq!(bpf::run_as(program(role), &call, 0x4000_0003), Verdict::Kill);
    }
}

#[test]
fn the_x32_entry_is_denied() {
    for role in Role::ALL {
        let call = Call { number: number_of("write") | 0x4000_0000, args: [0; 6] };
        assert_eq!(run(program(role), &call), Verdict::Trap);
    }
}

/// Calls at the edges of every rule there is: each as its rule wants it, and each with one bit of an argument turned over,
/// tested or not.
fn edges() -> Vec<Call> {
    let mut calls = Vec::new();
    for rule in Role::ALL.into_iter().flat_map(table) {
        let call = matching(rule);
        calls.push(call);
        for index in 0..call.args.len() {
            for bit in 0..64 {
                let mut near = call;
                near.args[index] ^= 1 << bit;
                calls.push(near);
            }
        }
    }
    calls
}

#[test]
fn each_phase_only_narrows() {
    let calls = edges();
    for role in Role::ALL {
        let (own, below) = role.stack().split_last().unwrap();
        assert_eq!(*own, role);
        for &under in below {
            let mut narrowed = 0;
            for call in &calls {
                let (now, before) = (run(program(role), call), run(program(under), call));
                assert!(now == Verdict::Trap || before == Verdict::Allow, "{role:?} on {under:?}: {call:?}");
                narrowed += u32::from(now != before);
            }
            assert!(narrowed > 0, "{role:?} allows as much as {under:?}");
        }
    }
}

#[test]
fn what_a_phase_was_for_is_over_with_it() {
    let allowed = |role, name: &str, args: [u64; 6]| {
        run(program(role), &Call { number: number_of(name), args }) == Verdict::Allow
    };
    let ioctl = |role, request: u32| allowed(role, "ioctl", [0, request.into(), 0, 0, 0, 0]);
    for request in [values::KVM_CREATE_VM, values::KVM_CREATE_VCPU] {
        assert!(ioctl(Role::Shell, request) && !ioctl(Role::Build, request), "{request:#x}");
    }
    let memory = values::KVM_SET_USER_MEMORY_REGION;
    assert!(ioctl(Role::Shell, memory) && ioctl(Role::Build, memory));
    for role in Role::RUNNING {
        assert!(!ioctl(role, memory), "{role:?}");
    }
    for role in Role::ALL {
        assert!(!allowed(role, "rt_sigaction", [31, 0, 0, 8, 0, 0]), "{role:?} takes the report away");
    }
}

#[test]
fn running_roles_cannot_widen_themselves() {
    let forbidden = ["rt_sigaction", "clone", "seccomp", "prctl", "openat", "socket", "execve", "ptrace"];
    for role in Role::RUNNING {
        for name in forbidden {
            assert!(table(role).iter().all(|rule| rule.call != name), "{role:?} allows {name}");
        }
    }
}

#[test]
fn a_ring_is_made_before_the_guest_runs_and_used_by_its_drives_thread_alone() {
    for role in Role::ALL {
        let names: Vec<_> =
            table(role).iter().map(|rule| rule.call).filter(|call| call.starts_with("io_uring")).collect();
        match role {
            Role::Shell | Role::Build => {
                assert!(names.contains(&"io_uring_setup") && names.contains(&"io_uring_register"))
            }
            Role::BlockRing => assert_eq!(names, ["io_uring_enter"]),
            _ => assert!(names.is_empty(), "{role:?} allows {names:?}"),
        }
    }
}

#[test]
fn a_volumes_server_cannot_leave_and_a_read_only_ones_cannot_change() {
    let leaving = [
        "rt_sigaction",
        "clone",
        "seccomp",
        "prctl",
        "socket",
        "execve",
        "ptrace",
        "chroot",
        "mount",
        "capset",
    ];
    let changes = ["pwritev", "unlinkat", "mkdirat", "renameat2", "ftruncate", "fchownat", "setresuid"];
    for name in leaving {
        for role in [Role::Volume, Role::VolumeWritable] {
            assert!(table(role).iter().all(|rule| rule.call != name), "{role:?} allows {name}");
        }
    }
    for name in changes {
        assert!(table(Role::Volume).iter().all(|rule| rule.call != name), "{name}");
        assert!(table(Role::VolumeWritable).iter().any(|rule| rule.call == name), "{name}");
    }
}

#[test]
fn no_role_may_map_executable_memory() {
    const PROT_EXEC: u64 = 4;
    for role in Role::ALL {
        for name in ["mmap", "mprotect"] {
            for flags in [values::MAP_PRIVATE_ANONYMOUS, 1, 2] {
                let call = Call { number: number_of(name), args: [0, 4096, PROT_EXEC | 1, flags, 0, 0] };
                assert_eq!(run(program(role), &call), Verdict::Trap, "{role:?} {name}");
            }
        }
    }
}

#[test]
fn no_role_may_map_a_file_writable() {
    const READ: u64 = 1;
    const WRITE: u64 = 2;
    let map = |role, length, prot, flags| {
        run(program(role), &Call { number: number_of("mmap"), args: [0x1000, length, prot, flags, 3, 0] })
    };
    for role in Role::ALL {
        for prot in [WRITE, READ | WRITE] {
            for flags in [1, 2, 3, 0x11, 0x12, 0x4002, 0x8001, 0x10_0001] {
                assert_eq!(map(role, 0x1_0000, prot, flags), Verdict::Trap, "{role:?} {prot} {flags:#x}");
            }
        }
        let image = if role.stack().len() < 3 && role.stack()[0] == Role::Shell {
            Verdict::Allow
        } else {
            Verdict::Trap
        };
        assert_eq!(map(role, 1 << 30, READ, 0x11), image, "{role:?}");
    }
}

#[test]
fn each_rule_stands_once_and_says_why() {
    for role in Role::ALL {
        let rules = table(role);
        for (place, rule) in rules.iter().enumerate() {
            assert!(rule.reason.len() > 5, "{role:?} {rule:?}");
            let others = rules.iter().enumerate().filter(|(other, _)| *other != place);
            let mut others = others.filter(|(_, kept)| kept.covers(rule));
            assert!(others.next().is_none(), "{role:?}: redundant {rule:?}");
        }
    }
}

#[test]
fn a_call_of_a_table_or_of_an_intruder_has_a_name() {
    assert_eq!(call_name(number_of("ioctl")), Some("ioctl"));
    assert_eq!(call_name(number_of("execve")), Some("execve"));
    assert_eq!(call_name(999_999), None);
}
