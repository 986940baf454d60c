//! Item 33: clocks that jump, the host's and, over a pause, the guest's own: no limit in time is missed or met too early by it, and
//! the guest goes on with the right time.

use husk_tests::husk::{Husk, Outcome};
use husk_tests::processes;
use rustix::process::{Pid, Signal, kill_process};
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a sandbox is paused.
const PAUSE: Duration = Duration::from_secs(4);
/// How long the guest itself sleeps meanwhile.
const SLEEP_S: f64 = 1.0;
/// Between two of the guest's looks at its clock: its time since boot, in seconds.
const LOOKS: &str = "cut -d' ' -f1 /proc/uptime; sleep 1; cut -d' ' -f1 /proc/uptime";

/// The host's clock of the day, moved, and set right again.
struct Jump {
    seconds: i64,
}

/// Whether this is the lab's machine: another's clock is not a test's to move.
fn may_move_clock() -> bool {
    let may = Path::new("/run/lab").is_dir();
    if !may {
        println!("HUSK-SKIP the clock is moved in the lab's machine alone");
    }
    may
}

impl Jump {
    fn by(seconds: i64) -> Self {
        move_clock(seconds);
        Self { seconds }
    }
}

impl Drop for Jump {
    fn drop(&mut self) {
        move_clock(-self.seconds);
    }
}

fn move_clock(seconds: i64) {
    let now = clock_gettime(ClockId::Realtime);
    let then = Timespec { tv_sec: now.tv_sec + seconds, ..now };
    clock_settime(ClockId::Realtime, then).unwrap_or_else(|error| panic!("setting the clock: {error}"));
}

/// Seconds between the guest's two looks.
fn between_looks(outcome: &Outcome) -> f64 {
    let text = outcome.text();
    let looks: Vec<f64> = text.lines().filter_map(|line| line.parse().ok()).collect();
    assert_eq!(looks.len(), 2, "{text}");
    looks[1] - looks[0]
}

#[test]
fn item_33_a_host_clock_that_jumps_neither_ends_a_sandbox_nor_moves_its_guests() {
    if !may_move_clock() {
        return;
    }
    const DAY: i64 = 86_400;
    for seconds in [DAY, -DAY] {
        let husk = Husk::run(&["--timeout", "100s"], &["sh", "-c", LOOKS]).spawn().up();
        let jump = Jump::by(seconds);
        let listed = Husk::new(["ps"]).output().expect_status(0);
        assert_eq!(listed.text().lines().count(), 2, "a head and one sandbox: {}", listed.text());
        let seen = between_looks(&husk.finish().expect_status(0));
        drop(jump);
        assert!(
            (SLEEP_S * 0.8..20.0).contains(&seen),
            "the guest slept {seen} s when the clock moved by {seconds} s"
        );
    }
}

#[test]
fn item_33_a_limit_in_time_holds_whatever_the_hosts_clock_says() {
    if !may_move_clock() {
        return;
    }
    for seconds in [86_400, -86_400] {
        let husk = Husk::run(&["--timeout", "20s"], &["sh", "-c", "echo up; sleep 1000"]).spawn().up();
        let _jump = Jump::by(seconds);
        let outcome = husk.finish().expect_status(124);
        assert!((20.0..60.0).contains(&outcome.took.as_secs_f64()), "{:?}", outcome.took);
    }
}

/// The runtime that is there.
fn runtime() -> u32 {
    let pids = processes::named("husk-control");
    assert_eq!(pids.len(), 1, "one runtime, not {pids:?}");
    pids[0]
}

/// The file that freezes the cgroup of a process, where it has one of its own and version 2 is there.
fn freezer(pid: u32) -> Option<PathBuf> {
    let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let own = cgroups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let file = Path::new("/sys/fs/cgroup").join(own).join("cgroup.freeze");
    file.exists().then_some(file)
}

fn paused(pause: impl Fn(u32), go_on: impl Fn(u32)) {
    let husk = Husk::run(&["--timeout", "100s"], &["sh", "-c", LOOKS]).spawn().up();
    let runtime = runtime();
    pause(runtime);
    std::thread::sleep(PAUSE);
    go_on(runtime);
    let outcome = husk.finish().expect_status(0);
    let (seen, least) = (between_looks(&outcome), PAUSE.as_secs_f64() - 0.5);
    assert!(
        (least..outcome.took.as_secs_f64()).contains(&seen),
        "the guest's clock went on by {seen} s in a pause of {PAUSE:?}"
    );
}

#[test]
fn item_33_a_sandbox_that_was_stopped_goes_on_with_the_right_time() {
    let send = |pid: u32, signal| {
        let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    };
    paused(|pid| send(pid, Signal::STOP), |pid| send(pid, Signal::CONT));
}

#[test]
fn item_33_a_sandbox_whose_cgroup_was_frozen_goes_on_with_the_right_time() {
    let freeze = |pid, word: &str| {
        let file = freezer(pid).unwrap_or_else(|| panic!("a runtime is in a cgroup of its own"));
        std::fs::write(&file, word).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    };
    paused(|pid| freeze(pid, "1"), |pid| freeze(pid, "0"));
}
