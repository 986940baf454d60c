//! The limits of a sandbox's cgroup hold, by their effect, under version 1, version 2 and both side by side; they change while it
//! runs, and nothing of them is left.

use crate::drives::talking;
use husk_tests::footprint::Footprint;
use husk_tests::husk::{Husk, Running};
use husk_tests::loops::LoopDevice;
use husk_tests::processes;
use husk_tests::scratch::Scratch;
use husk_tests::skip;
use rustix::process::Signal;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Seconds over which processor time is measured.
const MEASURED_S: f64 = 3.0;

/// The sandbox's file: of version 2, or where a hierarchy of its own has the controller, of version 1.
pub(crate) fn file(id: &str, two: &str, one: &str) -> PathBuf {
    let controller = one.split('.').next().unwrap();
    let entries = std::fs::read_dir("/sys/fs/cgroup").unwrap().map(|entry| entry.unwrap());
    let mut legacy = entries.filter(|entry| {
        // One hierarchy may have several: cpu,cpuacct.
        entry.file_name().to_str().unwrap().split(',').any(|name| name == controller)
    });
    if let Some(legacy) = legacy.find(|entry| entry.path().join("tasks").exists()) {
        return legacy.path().join("husk").join(id).join(one);
    }
    let hybrid = Path::new("/sys/fs/cgroup/unified");
    let mount = if hybrid.join("cgroup.procs").exists() { hybrid } else { Path::new("/sys/fs/cgroup") };
    mount.join("husk").join(id).join(two)
}

pub(crate) fn read(path: &Path) -> String {
    std::fs::read_to_string(path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        .trim()
        .to_owned()
}

pub(crate) fn number(id: &str, two: &str, one: &str) -> u64 {
    read(&file(id, two, one)).parse().unwrap()
}

/// Seconds of processor time of a process and its threads.
fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // User and system time are the fields 14 and 15; the second, the name, may have blanks in its parentheses.
    let (_, rest) = stat.rsplit_once(')').unwrap();
    let ticks: u32 =
        rest.split_whitespace().skip(11).take(2).map(|field| field.parse::<u32>().unwrap()).sum();
    f64::from(ticks) / 100.0
}

/// How much of a CPU it takes.
pub(crate) fn share(pid: u32) -> f64 {
    let (before, started) = (cpu_seconds(pid), Instant::now());
    std::thread::sleep(Duration::from_secs_f64(MEASURED_S));
    (cpu_seconds(pid) - before) / started.elapsed().as_secs_f64()
}

fn only_runtime() -> u32 {
    let pids = processes::named("husk-control");
    assert_eq!(pids.len(), 1, "one runtime, not {pids:?}");
    pids[0]
}

pub(crate) fn update(id: &str, limits: &[&str]) -> Husk {
    let options = limits.iter().flat_map(|limit| ["--limit", limit]);
    Husk::new(["update", id].into_iter().chain(options))
}

const BURN: [&str; 3] = ["sh", "-c", "echo up; while :; do :; done"];

/// Up, and with the time that its boot and its end take with the quota that it has.
fn slow(husk: Husk) -> Running {
    husk.deadline(Duration::from_secs(180)).spawn().up()
}

#[test]
fn processor_time_is_held_to_its_quota_and_to_another_one_while_it_runs() {
    let husk = slow(Husk::run(&["--id", "quota", "--limit", "cpu.max=60%"], &BURN));
    let pid = only_runtime();
    let held = share(pid);
    assert!((0.45..0.75).contains(&held), "{held} of a CPU with a quota of 0.6");
    update("quota", &["cpu.max=20%/50ms", "cpu.weight=50"]).output().expect_status(0);
    let held = share(pid);
    assert!((0.1..0.3).contains(&held), "{held} of a CPU with a quota of 0.2");
    let listed = Husk::new(["ps", "--json"]).output().expect_status(0).text();
    assert!(listed.contains(r#""cpu.max=10000 50000","cpu.weight=50""#), "{listed}");
    husk.terminate();
}

#[test]
fn a_quota_comes_to_a_sandbox_that_started_without_one() {
    let husk = slow(Husk::run(&["--id", "late"], &BURN));
    let pid = only_runtime();
    update("late", &["cpu.max=20%"]).output().expect_status(0);
    let held = share(pid);
    assert!((0.1..0.3).contains(&held), "{held} of a CPU with a quota of 0.2");
    husk.terminate();
}

#[test]
fn memory_beyond_the_limit_ends_its_sandbox_alone_and_the_limit_is_named() {
    let script = "echo up; read go; dd if=/dev/zero of=/tmp/x bs=1M count=40 2>&- && echo alive";
    let (mut neighbour, stdin, lines) = talking(&["run", "-i", "--", "sh", "-c", script]);
    let next = || lines.recv_timeout(Duration::from_secs(40)).unwrap();
    assert_eq!(next(), "up");
    let before = Footprint::now();
    let script = "dd if=/dev/zero of=/tmp/x bs=1M count=180 2>&-; echo unharmed";
    let options = ["--json", "--memory", "256M", "--limit", "memory.max=96M"];
    let outcome = Husk::run(&options, &["sh", "-c", script]).output().expect_status(125);
    let result = outcome.json();
    let line = result["error"].as_str().unwrap();
    for word in ["SIGKILL", "out of memory", "memory.max is 100663296 bytes", "--limit memory.max=SIZE"] {
        assert!(line.contains(word), "{word}: {line}");
    }
    assert_eq!((&result["fault"], outcome.text().as_str()), (&"host".into(), ""), "{result}");
    before.assert_restored();
    drop(stdin);
    assert_eq!(next(), "alive");
    assert!(neighbour.wait().unwrap().success());
}

#[test]
fn the_limit_of_memory_covers_what_is_plugged_in_later() {
    let script = "echo up; for i in $(seq 100); do t=$(sed -n 's/MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo); \
                  [ $t -gt 370000 ] && break; sleep 0.1; done; \
                  dd if=/dev/zero of=/dev/null bs=300M count=1 2>&- && echo filled; read x; exit 0";
    let (mut child, stdin, lines) =
        talking(&["run", "-i", "--id", "grown", "--memory-max", "400M", "--", "sh", "-c", script]);
    let next = || lines.recv_timeout(Duration::from_secs(40)).unwrap();
    assert_eq!((next().as_str(), next().as_str()), ("up", "filled"));
    let limit = number("grown", "memory.max", "memory.limit_in_bytes");
    assert!(limit >= (400 + 176) << 20, "{limit}");
    // And has no way around it.
    let swap = file("grown", "memory.swap.max", "memory.memsw.limit_in_bytes");
    if swap.exists() {
        let most = if swap.ends_with("memory.swap.max") { 0 } else { limit };
        assert_eq!(read(&swap), most.to_string(), "{}", swap.display());
    }
    drop(stdin);
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_process_more_than_the_limit_is_not_made() {
    let before = Footprint::now();
    let outcome = Husk::run(&["--json", "--limit", "pids.max=3"], &["true"]).output().expect_status(125);
    let result = outcome.json();
    assert_eq!(result["fault"], "host", "{result}");
    assert!(result["error"].as_str().unwrap().contains("Resource temporarily unavailable"), "{result}");
    before.assert_restored();
    let husk = Husk::run(&["--id", "few"], &["sh", "-c", "echo up; sleep 1000"]).spawn().up();
    let current = number("few", "pids.current", "pids.current");
    assert!(number("few", "pids.max", "pids.max") < 32 && current >= 4, "{current}");
    husk.terminate();
}

#[test]
fn a_disk_is_held_to_its_bytes_a_second_and_to_more_while_it_runs() {
    let scratch = Scratch::new();
    let device = LoopDevice::of(&scratch.file("disk", &vec![7; 16 << 20]));
    let json = format!(
        r#"{{"drives": [{{"drive_id": "data", "path_on_host": "{}", "is_read_only": true}}],
            "limits": {{"io.max": ["data:rbps=1M"]}}}}"#,
        device.node()
    );
    let config = scratch.file("machine.json", json.as_bytes());
    // The guest's clock says how long 3 MiB took, in hundredths of a second.
    let script = "now() { read up idle < /proc/uptime; echo $((${up%.*} * 100 + 1${up#*.} - 100)); }
        echo up; while read skip; do start=$(now); dd if=/dev/vdb of=/dev/null bs=64k count=48 skip=$skip 2>&- || exit 9
        echo $(($(now) - start)); done";
    let (mut child, mut stdin, lines) =
        talking(&["run", "-i", "--id", "slow", "--config", &config, "--", "sh", "-c", script]);
    let next = || lines.recv_timeout(Duration::from_secs(40)).unwrap();
    assert_eq!(next(), "up");
    stdin.write_all(b"0\n").unwrap();
    let held: u32 = next().parse().unwrap();
    assert!(held >= 220, "3 MiB in {held}/100 s at 1 MiB a second");
    update("slow", &["io.max=data:rbps=max"]).output().expect_status(0);
    stdin.write_all(b"64\n").unwrap();
    let free: u32 = next().parse().unwrap();
    assert!(free < 150, "3 MiB in {free}/100 s without a limit, {held} with");
    drop(stdin);
    assert!(child.wait().unwrap().success());
}

#[test]
fn what_is_on_no_block_device_is_named() {
    let shared = tempfile_in_memory();
    for target in ["husk-nope", &shared.0] {
        let limit = format!("io.max={target}:rbps=1M");
        let outcome = Husk::run(&["--limit", &limit], &["true"]).output().expect_status(125);
        let said = if target == "husk-nope" { "it has husk-root" } else { "on no single block device" };
        assert!(outcome.stderr.contains(target) && outcome.stderr.contains(said), "{}", outcome.stderr);
    }
}

/// A file on a tmpfs, wherever the test runs.
fn tempfile_in_memory() -> InMemory {
    let path = format!("/dev/shm/husk-test-{}", std::process::id());
    std::fs::write(&path, [0; 512]).unwrap();
    InMemory(path)
}

struct InMemory(String);

impl Drop for InMemory {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.0));
    }
}

#[test]
fn of_several_new_limits_all_or_none_come_about() {
    let husk = Husk::run(&["--id", "whole", "--limit", "cpu.max=80%"], &["sh", "-c", "echo up; sleep 1000"])
        .spawn()
        .up();
    let quota = file("whole", "cpu.max", "cpu.cfs_quota_us");
    let (before, pids) = (read(&quota), number("whole", "pids.max", "pids.max"));
    // There is no device of this number: the kernel refuses the last one.
    let refused = update("whole", &["cpu.max=25%", "pids.max=9", "io.max=240:77:rbps=1M"]).output();
    let refused = refused.expect_status(125);
    assert!(
        refused.stderr.contains("240:77") && refused.stderr.contains("no limit was changed"),
        "{}",
        refused.stderr
    );
    assert_eq!((read(&quota), number("whole", "pids.max", "pids.max")), (before, pids));
    update("whole", &["cpu.max=90%", "pids.max=30"]).output().expect_status(0);
    assert!(read(&quota).starts_with("90000"));
    assert_eq!(number("whole", "pids.max", "pids.max"), 30);
    husk.terminate();
}

#[test]
fn what_version_one_has_not_is_refused_by_name_or_reported() {
    let run = |more: &[&str]| {
        let options = [&["--json", "--limit", "memory.high=100M"], more].concat();
        Husk::run(&options, &["true"]).output()
    };
    if file("x", "memory.high", "memory.high").ends_with("memory/husk/x/memory.high") {
        let refused = run(&[]).expect_status(125).json();
        assert_eq!(refused["fault"], "operator", "{refused}");
        assert!(
            refused["error"].as_str().unwrap().starts_with("limit memory.high: cgroup v1 slows"),
            "{refused}"
        );
        let without = run(&["--isolation", "best-effort"]).expect_status(0).json();
        assert_eq!(without["isolation"]["missing"][0]["part"], "cgroup limit memory.high", "{without}");
    } else {
        run(&[]).expect_status(0);
    }
}

#[test]
fn cgroups_of_all_controllers_go_with_their_sandbox_and_after_a_killed_husk() {
    let scratch = Scratch::new();
    let device = LoopDevice::of(&scratch.file("disk", &[7; 4096]));
    let io = format!("io.max={}:rbps=1M", device.node());
    let limits = ["cpu.max=1", "cpu.weight=9", "memory.low=1M", "pids.max=64", &io];
    let limits: Vec<&str> = limits.iter().flat_map(|limit| ["--limit", limit]).collect();
    Husk::run(&limits, &["true"]).output().expect_status(0);
    let before = Footprint::now();
    Husk::run(&limits, &["true"]).output().expect_status(0);
    before.assert_restored();
    let husk = Husk::run(&limits, &["sh", "-c", "echo up; sleep 1000"]).spawn().up();
    let pid = only_runtime();
    assert_eq!(read(Path::new(&format!("/proc/{pid}/comm"))), "husk-control");
    husk.signal(Signal::KILL);
    assert_eq!(husk.finish().status, 1009);
    let deadline = Instant::now() + Duration::from_secs(5);
    while !processes::named("husk-control").is_empty() {
        assert!(Instant::now() < deadline, "the runtime outlives husk");
        std::thread::sleep(Duration::from_millis(10));
    }
    Husk::new(["gc"]).output().expect_status(0);
    before.assert_restored();
}

/// How long each of so many lines took to the guest and back, the longest last.
fn round_trips(
    stdin: &mut impl Write,
    lines: &std::sync::mpsc::Receiver<String>,
    count: usize,
) -> Vec<Duration> {
    let mut took: Vec<Duration> = (0..count)
        .map(|_| {
            let started = Instant::now();
            stdin.write_all(b"x\n").unwrap();
            lines.recv_timeout(Duration::from_secs(20)).unwrap();
            started.elapsed()
        })
        .collect();
    took.sort_unstable();
    took
}

#[test]
fn item_36_a_neighbour_that_burns_processor_and_disk_leaves_the_victim_its_latency() {
    const TRIPS: usize = 100;
    let scratch = Scratch::new();
    let disk = scratch.file("disk", &vec![7; 8 << 20]);
    let victim = ["run", "-i", "--limit", "cpu.weight=1000", "--", "sh", "-c", "echo up; exec cat"];
    let (mut child, mut stdin, lines) = talking(&victim);
    assert_eq!(lines.recv_timeout(Duration::from_secs(40)).unwrap(), "up");
    round_trips(&mut stdin, &lines, 10);
    let alone = round_trips(&mut stdin, &lines, TRIPS);
    let json =
        format!(r#"{{"drives": [{{"drive_id": "d", "path_on_host": "{disk}", "is_read_only": true}}]}}"#);
    let config = scratch.file("machine.json", json.as_bytes());
    let burn = "(while :; do dd if=/dev/vdb of=/dev/null bs=64k iflag=direct 2>&-; done) & echo up; while :; do :; done";
    let neighbour = slow(Husk::run(&["--id", "noisy", "--config", &config], &["sh", "-c", burn]));
    update("noisy", &["cpu.max=50%/20ms", "cpu.weight=1"]).output().expect_status(0);
    let beside = round_trips(&mut stdin, &lines, TRIPS);
    let (alone, beside) = (alone[TRIPS * 99 / 100 - 1], beside[TRIPS * 99 / 100 - 1]);
    println!("p99 of {TRIPS} round trips: {alone:?} alone, {beside:?} beside a noisy neighbour");
    // Ten periods of the neighbour's quota on top of five times what it takes alone.
    let bound = alone * 5 + Duration::from_millis(200);
    assert!(beside <= bound, "p99 {beside:?} beside a noisy neighbour, {alone:?} alone");
    // At once: with its quota and its weight it would take its time to hear of a signal.
    Husk::new(["kill", "--signal", "KILL", "noisy"]).output().expect_status(0);
    let _ended = neighbour.finish().expect_status(137);
    drop(stdin);
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_limit_of_huge_pages_is_theirs() {
    let Some(_pool) = crate::placement::Pool::of(72) else { skip!("no 72 huge pages of 2 MiB to be had") };
    let two = ["--id", "huge", "--hugepages", "2M"];
    let husk = Husk::run(&two, &["sh", "-c", "echo up; sleep 1000"]).spawn().up();
    assert_eq!(number("huge", "hugetlb.2MB.max", "hugetlb.2MB.limit_in_bytes"), 128 << 20);
    let used = number("huge", "hugetlb.2MB.current", "hugetlb.2MB.usage_in_bytes");
    assert_eq!(used, 128 << 20, "as many as the guest has");
    husk.terminate();
    let before = Footprint::now();
    let options = ["--json", "--hugepages", "2M", "--limit", "hugetlb.2MB.max=64M"];
    let outcome = Husk::run(&options, &["true"]).output().expect_status(125);
    assert_eq!(outcome.json()["fault"], "host", "{}", outcome.stderr);
    before.assert_restored();
}
