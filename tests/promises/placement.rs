//! vCPUs and memory are where they were asked to be.

use husk_tests::footprint::Footprint;
use husk_tests::husk::Husk;
use husk_tests::processes;
use std::fs;

const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";

#[test]
fn two_vcpus_are_two() {
    let outcome = Husk::run(&["--vcpus", "2"], &["nproc"]).output().expect_status(0);
    assert_eq!(outcome.text(), "2\n");
}

#[test]
fn two_vcpus_run_at_the_same_time() {
    // Both halves wait for the other's file: one vCPU could do that too, but not if each spins without sleeping.
    let script = r"
        (while [ ! -e /tmp/b ]; do :; done; : > /tmp/a) &
        : > /tmp/b; while [ ! -e /tmp/a ]; do :; done; wait; echo met; grep -c ^processor /proc/cpuinfo";
    let outcome = Husk::run(&["--vcpus", "2"], &["sh", "-c", script]).output().expect_status(0);
    assert_eq!(outcome.text(), "met\n2\n");
}

#[test]
fn memory_is_what_was_asked_for() {
    for (memory, least, most) in
        [("128M", 100_000, 131_072), ("512M", 470_000, 524_288), ("1G", 960_000, 1_048_576)]
    {
        let script = "sed -n 's/MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo";
        let outcome = Husk::run(&["--memory", memory], &["sh", "-c", script]).output().expect_status(0);
        let kib: u64 = outcome.text().trim().parse().unwrap();
        assert!((least..=most).contains(&kib), "{memory}: {kib} KiB");
    }
}

#[test]
fn each_vcpu_is_pinned_and_the_cpuset_agrees() {
    if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        husk_tests::skip!("one CPU on this machine");
    }
    let husk =
        Husk::run(&["--vcpus", "2", "--pin", "1,0"], &["sh", "-c", "echo up; sleep 1000"]).spawn().up();
    let pids = processes::named("husk-control");
    assert_eq!(pids.len(), 1, "one runtime, not {pids:?}");
    let threads = processes::threads(pids[0]);
    let cpus = |name: &str| {
        let thread = threads.iter().find(|(_, comm)| comm == name);
        let (id, _) = thread.unwrap_or_else(|| panic!("no thread {name} in {threads:?}"));
        processes::status(&format!("/proc/{}/task/{id}", pids[0]), "Cpus_allowed_list")
    };
    assert_eq!(cpus("husk-vcpu0"), "1");
    assert_eq!(cpus("husk-vcpu1"), "0");
    let cgroup = fs::read_to_string(format!("/proc/{}/cgroup", pids[0])).unwrap();
    let path = cgroup.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default().to_owned();
    let cpuset = fs::read_to_string(format!("/sys/fs/cgroup{path}/cpuset.cpus")).unwrap();
    assert_eq!(cpuset.trim(), "0-1");
    husk.terminate();
}

/// A pool of so many 2 MiB pages while the test runs.
pub(crate) struct Pool(String);

impl Pool {
    pub(crate) fn of(pages: u64) -> Option<Self> {
        let before = fs::read_to_string(POOL).ok()?;
        fs::write(POOL, pages.to_string()).ok()?;
        let got: u64 = fs::read_to_string(POOL).ok()?.trim().parse().ok()?;
        let pool = Self(before);
        (got >= pages).then_some(pool)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        drop(fs::write(POOL, self.0.trim()));
    }
}

#[test]
fn huge_pages_are_used_and_returned() {
    let Some(_pool) = Pool::of(72) else { husk_tests::skip!("no 72 huge pages of 2 MiB to be had") };
    let before = Footprint::now();
    let husk = Husk::run(&["--hugepages", "2M"], &["sh", "-c", "echo up; sleep 1000"]).spawn().up();
    let free: u64 = fs::read_to_string(POOL.replace("nr_", "free_")).unwrap().trim().parse().unwrap();
    // Pre-fault is implied: all 64 are taken, whether the guest touched them or not.
    assert!(free <= 8, "{free} of 72 huge pages are free while a guest of 128 MiB runs on them");
    husk.terminate();
    before.assert_restored();
}

#[test]
fn item_30_too_few_huge_pages_are_named() {
    let Some(_pool) = Pool::of(4) else { husk_tests::skip!("no 4 huge pages of 2 MiB to be had") };
    let before = Footprint::now();
    let outcome = Husk::run(&["--hugepages", "2M"], &["true"]).output().expect_status(125);
    assert!(outcome.stderr.contains("64") && outcome.stderr.contains("nr_hugepages"), "{}", outcome.stderr);
    before.assert_restored();
}

#[test]
fn prefault_populates_all_memory_before_the_first_instruction() {
    let resident = |options: &[&str]| {
        let husk = Husk::run(options, &["sh", "-c", "echo up; sleep 1000"]).spawn().up();
        let pids = processes::named("husk-control");
        assert_eq!(pids.len(), 1, "one runtime, not {pids:?}");
        let rss = processes::status(&format!("/proc/{}", pids[0]), "VmRSS");
        husk.terminate();
        rss.trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    let lazy = resident(&["--memory", "256M"]);
    let whole = resident(&["--memory", "256M", "--prefault"]);
    assert!(whole >= 256 * 1024, "{whole} KiB resident with --prefault");
    assert!(lazy < 160 * 1024, "{lazy} KiB resident without");
}
