//! Each thread of a running runtime has exactly the filters of its role: read back from the kernel, byte by byte.

use husk_seccomp::Role;
use husk_tests::husk::Husk;
use husk_tests::processes;
use husk_tests::ptrace::Traced;
use husk_tests::rootfs::ext4;
use husk_tests::scratch::Scratch;

/// The filters of a thread, the oldest first, as its name demands.
fn expected(thread: &str) -> &'static [Role] {
    let role = match thread.trim_end_matches(|letter: char| letter.is_ascii_digit()) {
        "husk-control" => Role::Control,
        "husk-device" => Role::Device,
        "husk-ring" => Role::BlockRing,
        "husk-blk" => Role::Block,
        "husk-vcpu" => Role::Vcpu,
        other => panic!("a thread of no known role: {other}"),
    };
    role.stack()
}

#[test]
fn every_thread_carries_its_roles_compiled_table() {
    let scratch = Scratch::new();
    let disk = scratch.name("disk.ext4");
    ext4(&disk, 16);
    let drive = format!("{disk}:/data:async");
    let husk =
        Husk::run(&["--vcpus", "2", "--drive", &drive], &["sh", "-c", "echo up; sleep 1000"]).spawn().up();
    let pids = processes::named("husk-control");
    assert_eq!(pids.len(), 1, "one runtime, not {pids:?}");
    // KVM adds a worker of its own to the process, and a ring some, which never run in user mode.
    let mut threads = processes::threads(pids[0]);
    threads.retain(|(thread, _)| !processes::is_kernels_worker(pids[0], *thread));
    let mut names: Vec<&str> = threads.iter().map(|(_, name)| name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["husk-blk0", "husk-control", "husk-device", "husk-ring1", "husk-vcpu0", "husk-vcpu1"]);
    for (thread, name) in &threads {
        let traced = Traced::attach(*thread);
        for (place, &role) in expected(name).iter().enumerate() {
            let loaded =
                traced.filter(place).unwrap_or_else(|| panic!("{name} has no filter number {place}"));
            let compiled: Vec<_> =
                husk_seccomp::program(role).iter().map(|op| (op.code, op.jt, op.jf, op.k)).collect();
            assert!(!compiled.is_empty());
            assert!(loaded == compiled, "{name}: filter {place} is not {role:?}'s table");
        }
        assert!(traced.filter(expected(name).len()).is_none(), "{name} has a filter more than its role");
        let path = format!("/proc/{}/task/{thread}", pids[0]);
        assert_eq!(processes::status(&path, "Seccomp"), "2", "{name}");
        assert_eq!(processes::status(&path, "NoNewPrivs"), "1", "{name}");
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(processes::status(&path, set), "0000000000000000", "{name}: {set}");
        }
    }
    husk.terminate();
}

#[test]
fn each_rule_has_a_reason_and_is_there_once() {
    for role in Role::ALL {
        let table = husk_seccomp::table(role);
        assert!(!table.is_empty(), "{role:?}");
        for rule in table {
            assert!(rule.reason.len() >= 10, "{role:?}: {} has the reason {:?}", rule.call, rule.reason);
        }
    }
}
