//! The judgements, on trees of files that stand for machines.

mod controllers;
mod parts;
mod told;

use super::files::Root;
use super::kernel::{Probes, User};
use super::kvm::Opened;
use super::*;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

const ROOT_USER: User = User { uid: 0 };
const ALICE: User = User { uid: 1000 };
const MOUNTS: &str = "proc/self/mountinfo";
const V2: &str = "38 26 0:31 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw,nsdelegate";
const V1: &str = "33 23 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                  34 23 0:31 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n\
                  35 23 0:32 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n\
                  36 23 0:33 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct";

/// A machine on which every check of a file is fine.
const FINE: &[(&str, &str)] = &[
    (
        "proc/cpuinfo",
        "processor\t: 0\nmicrocode\t: 0x2b\nflags\t\t: fpu vmx sse\n\nprocessor\t: 1\nflags\t\t: none\n",
    ),
    ("proc/cmdline", "root=/dev/sda1 quiet"),
    ("sys/module/kvm_intel/parameters/nested", "N"),
    ("sys/devices/system/cpu/smt/active", "0"),
    ("sys/devices/system/cpu/smt/control", "off"),
    ("sys/devices/system/clocksource/clocksource0/current_clocksource", "tsc"),
    ("sys/devices/system/cpu/vulnerabilities/itlb_multihit", "KVM: Mitigation: Split huge pages"),
    ("sys/devices/system/cpu/vulnerabilities/meltdown", "Not affected"),
    (
        "sys/devices/system/cpu/vulnerabilities/spectre_v2",
        "Mitigation: Enhanced IBRS; PBRSB-eIBRS: Not affected",
    ),
    ("sys/module/kvm/parameters/nx_huge_pages", "Y"),
    ("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "128"),
    ("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "64"),
    ("sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages", "0"),
    ("sys/kernel/mm/hugepages/hugepages-1048576kB/free_hugepages", "0"),
    ("sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages", "128"),
    ("sys/devices/system/node/node0/hugepages/hugepages-2048kB/free_hugepages", "64"),
    ("sys/kernel/mm/ksm/run", "0"),
    ("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never"),
    ("sys/kernel/mm/transparent_hugepage/defrag", "always defer defer+madvise [madvise] never"),
    ("proc/swaps", "Filename\tType\tSize\tUsed\tPriority"),
    ("proc/sys/kernel/numa_balancing", "1"),
    (MOUNTS, V2),
    ("proc/self/cgroup", "0::/user.slice/alice"),
    ("sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory hugetlb pids"),
    ("sys/fs/cgroup/cgroup.subtree_control", "memory pids"),
    ("sys/fs/cgroup/user.slice/alice/cgroup.controllers", "memory pids"),
    ("proc/sys/kernel/osrelease", "6.12.1-1-amd64"),
    (
        "proc/sys/kernel/seccomp/actions_avail",
        "kill_process kill_thread trap errno user_notif trace log allow",
    ),
    ("proc/sys/kernel/core_pattern", "core"),
    ("proc/sys/user/max_user_namespaces", "15000"),
    ("proc/sys/kernel/randomize_va_space", "2"),
    ("proc/sys/kernel/unprivileged_bpf_disabled", "2"),
    ("proc/sys/kernel/perf_event_paranoid", "3"),
    ("proc/sys/kernel/io_uring_disabled", "2"),
    ("proc/sys/kernel/yama/ptrace_scope", "1"),
    ("proc/sys/kernel/kptr_restrict", "1"),
    ("proc/sys/kernel/dmesg_restrict", "1"),
];

/// A tree of files, gone when it is dropped.
struct Tree(PathBuf);

impl Tree {
    fn empty() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("husk-doctor-{}-{count}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn fine() -> Self {
        let tree = Self::empty();
        for (path, content) in FINE {
            tree.write(path, content);
        }
        tree
    }

    fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.0.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    /// The check `name` of the machine with another content of one file, which is then put back.
    fn changed(&self, path: &str, content: &str, name: &str) -> Check {
        let place = self.0.join(path);
        let before = std::fs::read(&place).ok();
        self.write(path, content);
        let check = self.check(name);
        match before {
            Some(before) => std::fs::write(&place, before).unwrap(),
            None => {
                std::fs::remove_file(&place).unwrap();
                // Directories that were made for it.
                let mut made = place.parent();
                while made.is_some_and(|directory| std::fs::remove_dir(directory).is_ok()) {
                    made = made.and_then(Path::parent);
                }
            }
        }
        check
    }

    fn mode(&self, path: &str, mode: u32) {
        std::fs::set_permissions(self.0.join(path), PermissionsExt::from_mode(mode)).unwrap();
    }

    fn root(&self) -> Root {
        Root::at(&self.0)
    }

    fn check(&self, name: &str) -> Check {
        named(host(&self.root(), &ROOT_USER), name)
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

fn named(checks: Vec<Check>, name: &str) -> Check {
    let names: Vec<String> = checks.iter().map(|check| check.name.clone()).collect();
    checks.into_iter().find(|check| check.name == name).unwrap_or_else(|| panic!("no {name} in {names:?}"))
}

#[test]
fn a_machine_with_everything_right_has_nothing_to_mend() {
    let tree = Tree::fine();
    for check in host(&tree.root(), &ROOT_USER) {
        // There is no device in a tree of files.
        let files_say = !matches!(check.name.as_str(), "kvm" | "kvm access");
        assert!(!files_say || check.verdict == Verdict::Ok, "{check:?}");
        assert!(!files_say || check.mend.is_none(), "{check:?}");
    }
}

/// What one other file does to one check of the fine machine.
const CHANGES: &[(&str, &str, &str, Verdict)] = &[
    ("proc/cpuinfo", "flags : fpu sse", "virtualization", Verdict::Unusable),
    ("proc/cpuinfo", "nonsense", "virtualization", Verdict::Note),
    ("proc/cpuinfo", "flags : vmx hypervisor", "machine", Verdict::Note),
    ("proc/cpuinfo", "flags : vmx", "microcode", Verdict::Note),
    ("sys/module/kvm_intel/parameters/nested", "Y", "nested", Verdict::Note),
    ("sys/devices/system/cpu/smt/active", "", "smt", Verdict::Note),
    ("proc/cmdline", "quiet mitigations=off", "mitigations", Verdict::Unsafe),
    ("proc/cmdline", "mitigations=auto,nosmt", "mitigations", Verdict::Ok),
    ("proc/cmdline", "nokaslr", "kaslr", Verdict::Degraded),
    ("sys/devices/system/clocksource/clocksource0/current_clocksource", "hpet", "clock", Verdict::Degraded),
    ("sys/devices/system/clocksource/clocksource0/current_clocksource", "kvm-clock", "clock", Verdict::Note),
    ("sys/module/kvm/parameters/nx_huge_pages", "N", "nx_huge_pages", Verdict::Unsafe),
    ("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "0", "hugepages 2048kB", Verdict::Note),
    ("sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages", "4", "hugepages 1048576kB", Verdict::Note),
    ("sys/kernel/mm/ksm/run", "1", "ksm", Verdict::Degraded),
    ("sys/kernel/mm/ksm/run", "2", "ksm", Verdict::Ok),
    (
        "sys/kernel/mm/transparent_hugepage/enabled",
        "always madvise [never]",
        "transparent huge pages",
        Verdict::Note,
    ),
    ("sys/kernel/mm/transparent_hugepage/defrag", "[always] never", "transparent huge pages", Verdict::Note),
    ("proc/swaps", "Filename\n/dev/sda2 partition 1 0 -2", "swap", Verdict::Degraded),
    ("proc/swaps", "Filename\n/dev/zram0 partition 1 0 -2", "swap", Verdict::Note),
    ("sys/devices/system/node/node1/meminfo", "", "numa", Verdict::Note),
    (MOUNTS, "", "cgroup", Verdict::Unusable),
    (MOUNTS, "38 26 0:31 / /sys/fs/cgroup ro - cgroup2 cgroup2 rw", "cgroup", Verdict::Unusable),
    (MOUNTS, V1, "cgroup", Verdict::Note),
    (MOUNTS, V1, "cgroup controllers", Verdict::Ok),
    (MOUNTS, V1, "cgroup delegation", Verdict::Ok),
    ("sys/fs/cgroup/cgroup.controllers", "cpu cpuset pids", "cgroup controllers", Verdict::Unusable),
    ("sys/fs/cgroup/cgroup.controllers", "memory pids", "cgroup controllers", Verdict::Note),
    ("sys/fs/cgroup/cgroup.controllers", "cpu cpuset memory pids", "cgroup io", Verdict::Note),
    ("sys/fs/cgroup/cgroup.controllers", "cpu cpuset memory pids io", "cgroup hugetlb", Verdict::Note),
    (MOUNTS, V1, "cgroup io", Verdict::Note),
    (MOUNTS, "35 23 0:32 / /sys/fs/cgroup/blkio rw - cgroup cgroup rw,blkio", "cgroup io", Verdict::Ok),
    (
        MOUNTS,
        "35 23 0:32 / /sys/fs/cgroup/hugetlb rw - cgroup cgroup rw,hugetlb",
        "cgroup hugetlb",
        Verdict::Ok,
    ),
    ("proc/sys/kernel/osrelease", "5.10.0-33-amd64", "kernel", Verdict::Degraded),
    ("proc/sys/kernel/osrelease", "5.14.0", "kernel", Verdict::Ok),
    ("proc/sys/kernel/osrelease", "plan9", "kernel", Verdict::Note),
    ("proc/sys/kernel/seccomp/actions_avail", "kill_thread trap errno", "seccomp", Verdict::Unusable),
    ("proc/sys/user/max_user_namespaces", "0", "user namespaces", Verdict::Unusable),
    ("proc/sys/kernel/unprivileged_userns_clone", "0", "user namespaces", Verdict::Note),
    ("proc/sys/kernel/unprivileged_userns_clone", "1", "user namespaces", Verdict::Ok),
    ("proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "user namespaces", Verdict::Note),
    ("proc/sys/kernel/core_pattern", "|/usr/bin/collect %P", "core dumps", Verdict::Ok),
    ("proc/sys/kernel/randomize_va_space", "1", "aslr", Verdict::Degraded),
    ("proc/sys/kernel/randomize_va_space", "0", "aslr", Verdict::Unsafe),
    ("proc/sys/kernel/unprivileged_bpf_disabled", "0", "unprivileged bpf", Verdict::Degraded),
    ("proc/sys/kernel/perf_event_paranoid", "1", "perf events", Verdict::Note),
    ("proc/sys/kernel/perf_event_paranoid", "-1", "perf events", Verdict::Degraded),
    ("proc/sys/kernel/io_uring_disabled", "0", "io_uring", Verdict::Note),
    ("proc/sys/kernel/yama/ptrace_scope", "0", "ptrace", Verdict::Note),
    ("proc/sys/kernel/kptr_restrict", "0", "kernel addresses", Verdict::Note),
    ("proc/sys/kernel/dmesg_restrict", "0", "kernel log", Verdict::Note),
    ("proc/sys/kernel/dmesg_restrict", "many", "kernel log", Verdict::Note),
];

#[test]
fn one_setting_changes_the_verdict_of_its_check() {
    let tree = Tree::fine();
    for (path, content, name, verdict) in CHANGES {
        let check = tree.changed(path, content, name);
        assert_eq!(check.verdict, *verdict, "{path} = {content:?}: {check:?}");
        assert!(check.mend.is_some() || *verdict < Verdict::Degraded, "{check:?} has no mend");
    }
}

#[test]
fn a_vulnerability_is_judged_by_what_the_kernel_says_of_it() {
    let tree = Tree::fine();
    for (name, text, verdict) in [
        ("meltdown", "Vulnerable", Verdict::Unsafe),
        ("mds", "Vulnerable: Clear CPU buffers attempted, no microcode; SMT vulnerable", Verdict::Unsafe),
        ("itlb_multihit", "KVM: Vulnerable", Verdict::Unsafe),
        ("itlb_multihit", "Processor vulnerable", Verdict::Unsafe),
        ("itlb_multihit", "KVM: Mitigation: VMX disabled", Verdict::Ok),
        ("l1tf", "Mitigation: PTE Inversion; VMX: vulnerable, SMT disabled", Verdict::Unsafe),
        (
            "l1tf",
            "Mitigation: PTE Inversion; VMX: conditional cache flushes, SMT vulnerable",
            Verdict::Degraded,
        ),
        ("l1tf", "Mitigation: PTE Inversion; VMX: flush not necessary, SMT disabled", Verdict::Ok),
        ("mds", "Mitigation: Clear CPU buffers; SMT vulnerable", Verdict::Degraded),
        ("mds", "Mitigation: Clear CPU buffers; SMT Host state unknown", Verdict::Note),
        ("mds", "Mitigation: Clear CPU buffers; SMT mitigated", Verdict::Ok),
        ("spectre_v2", "Mitigation: Retpolines; STIBP: disabled; BHI: Vulnerable", Verdict::Degraded),
        ("spec_store_bypass", "Vulnerable", Verdict::Degraded),
        ("mmio_stale_data", "Unknown: No mitigations", Verdict::Degraded),
        ("new_one", "words of a later kernel", Verdict::Note),
    ] {
        let path = format!("sys/devices/system/cpu/vulnerabilities/{name}");
        let check = tree.changed(&path, text, &format!("cpu {name}"));
        assert_eq!(check.verdict, verdict, "{name}: {text}: {check:?}");
        assert_eq!(check.mend.is_some(), verdict >= Verdict::Degraded, "{check:?}");
    }
}

#[test]
fn huge_pages_without_execution_matter_on_affected_processors_only() {
    let tree = Tree::fine();
    tree.write("sys/module/kvm/parameters/nx_huge_pages", "N");
    tree.write("sys/devices/system/cpu/vulnerabilities/itlb_multihit", "Not affected");
    assert_eq!(tree.check("nx_huge_pages").verdict, Verdict::Ok);
}

#[test]
fn huge_pages_are_told_by_size_and_by_node() {
    let tree = Tree::fine();
    let pages = |node, file| format!("sys/devices/system/node/{node}/hugepages/hugepages-2048kB/{file}");
    tree.write(&pages("node1", "nr_hugepages"), "0");
    tree.write(&pages("node1", "free_hugepages"), "0");
    let found = tree.check("hugepages 2048kB").found;
    assert_eq!(found, "64 free of 128 (node0 64 of 128, node1 0 of 0)");
}

#[test]
fn merging_is_unsafe_where_it_takes_guests_memory() {
    let tree = Tree::fine();
    tree.write("sys/kernel/mm/ksm/run", "1");
    let mut facts = memory::Facts::collect(&tree.root());
    facts.merged = true;
    assert_eq!(named(facts.judge(), "ksm").verdict, Verdict::Unsafe);
}

#[test]
fn kvm_is_judged_by_what_opening_it_brought() {
    let tree = Tree::fine();
    tree.write("etc/group", "root:x:0:\nvirt:x:77:alice\n");
    let processor = processor::Facts::collect(&tree.root());
    let mut facts = kvm::Facts::collect(&tree.root());
    for (opened, verdict, mend) in [
        (Opened::Version(12), Verdict::Ok, None),
        (Opened::Version(11), Verdict::Unusable, Some("kernel")),
        (Opened::Failed(io::ErrorKind::NotFound), Verdict::Unusable, Some("modprobe kvm_intel")),
        (Opened::Failed(io::ErrorKind::PermissionDenied), Verdict::Unusable, Some("usermod -a -G virt YOU")),
    ] {
        facts.opened = opened;
        facts.group = Some("virt".into());
        facts.access = Some((0o660, 77));
        let check = named(facts.judge(&processor), "kvm");
        assert_eq!(check.verdict, verdict, "{check:?}");
        assert_eq!(check.mend.is_some(), mend.is_some());
        assert!(check.mend.unwrap_or_default().contains(mend.unwrap_or_default()));
    }
    facts.opened = Opened::Failed(io::ErrorKind::PermissionDenied);
    facts.access = Some((0o600, 0));
    assert!(named(facts.judge(&processor), "kvm").mend.unwrap().starts_with("chgrp kvm"));
    for (mode, verdict, found) in
        [(0o660, Verdict::Ok, "root and group virt (0660)"), (0o666, Verdict::Note, "everybody (0666)")]
    {
        facts.access = Some((mode, 77));
        let check = named(facts.judge(&processor), "kvm access");
        assert_eq!((check.verdict, check.found.as_str()), (verdict, found));
    }
}

#[test]
fn a_file_in_the_place_of_kvm_is_no_kvm() {
    let tree = Tree::fine();
    tree.write("dev/kvm", "x");
    let check = tree.check("kvm");
    assert_eq!(check.verdict, Verdict::Unusable, "{check:?}");
}

#[test]
fn threads_of_a_core_are_worse_without_core_scheduling() {
    let tree = Tree::fine();
    tree.write("sys/devices/system/cpu/smt/active", "1");
    let mut facts = processor::Facts::collect(&tree.root());
    for (core_scheduling, verdict) in [(true, Verdict::Note), (false, Verdict::Degraded)] {
        facts.core_scheduling = core_scheduling;
        assert_eq!(named(facts.judge(), "smt").verdict, verdict);
    }
}

#[test]
fn namespaces_that_are_roots_alone_stop_others() {
    let tree = Tree::fine();
    tree.write("proc/sys/kernel/unprivileged_userns_clone", "0");
    for (user, verdict) in [(ROOT_USER, Verdict::Note), (ALICE, Verdict::Unusable)] {
        assert_eq!(named(host(&tree.root(), &user), "user namespaces").verdict, verdict);
    }
}

#[test]
fn landlock_is_judged_by_its_version() {
    let check = |landlock| named(Probes { landlock }.judge(), "landlock");
    assert_eq!(check(Ok(9)).verdict, Verdict::Ok);
    let older = check(Ok(3));
    assert_eq!((older.verdict, older.found.starts_with("partial: interface 3")), (Verdict::Note, true));
    for errno in [libc::EOPNOTSUPP, libc::ENOSYS] {
        let off = check(Err(io::Error::from_raw_os_error(errno)));
        assert!(
            off.verdict == Verdict::Degraded && off.found.starts_with("absent: ") && off.mend.is_some(),
            "{off:?}"
        );
    }
}

#[test]
fn an_ordinary_user_is_told_what_his_cells_would_share() {
    let tree = Tree::fine();
    let checks = host(&tree.root(), &ALICE);
    let user = named(checks.clone(), "user");
    assert_eq!((user.verdict, user.found.as_str()), (Verdict::Note, "user id 1000"));
    assert!(user.why.contains("share that user's id") && user.why.contains("no set-user-id helper"));
    // The tree's group belongs to whoever runs the tests, not to Alice.
    let delegation = named(checks, "cgroup delegation");
    assert_eq!(delegation.verdict, Verdict::Unusable, "{delegation:?}");
    assert!(delegation.mend.unwrap().contains("Delegate=yes"));
}
