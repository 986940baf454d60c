//! Limits that share out and hold back instead of ending: memory.high and the weights, by their effect. Under cgroup v2.

use crate::cgroups::{file, number, read, update};
use crate::drives::talking;
use husk_tests::husk::Husk;
use husk_tests::skip;
use std::io::Write;
use std::process::{Child, ChildStdin};
use std::sync::mpsc::Receiver;
use std::time::Duration;

/// Whether memory and processor are those of version 2, which alone has these files.
fn is_there() -> bool {
    let offered = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    ["memory", "cpu"].iter().all(|name| offered.split_whitespace().any(|other| other == *name))
}

/// The number after `key` in a file of keys and numbers.
fn count(id: &str, name: &str, key: &str) -> u64 {
    let text = read(&file(id, name, name));
    let found = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    found.unwrap_or_else(|| panic!("no {key} in {text}")).parse().unwrap()
}

/// A sandbox that says `up`, and waits for a line before it goes on with `script`.
struct Waiting {
    id: &'static str,
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
}

impl Waiting {
    fn start(id: &'static str, options: &[&str], script: &str) -> Self {
        let script = format!("echo up; read go; {script}");
        let args = [&["run", "-i", "--id", id], options, &["--", "sh", "-c", &script]].concat();
        let (child, stdin, lines) = talking(&args);
        let started = Self { id, child, stdin, lines };
        assert_eq!(started.line(), "up");
        started
    }

    fn line(&self) -> String {
        self.lines.recv_timeout(Duration::from_secs(40)).unwrap()
    }

    fn go(&mut self) {
        self.stdin.write_all(b"go\n").unwrap();
    }

    /// Ends one that has no end, at once: with its share of the processor it would take its time to hear of a signal.
    fn kill(mut self) {
        Husk::new(["kill", "--signal", "KILL", self.id]).output().expect_status(0);
        assert_eq!(self.child.wait().unwrap().code(), Some(137));
    }
}

#[test]
fn memory_beyond_memory_high_comes_slowly_and_a_higher_one_sets_it_free() {
    const MIB: u64 = 1 << 20;
    if !is_there() {
        skip!("no cgroup v2 with the controllers memory and cpu");
    }
    let script = "dd if=/dev/zero of=/tmp/x bs=1M count=120 2>&- && echo filled; read x; exit 0";
    let mut husk = Waiting::start("high", &["--memory", "256M"], script);
    let current = || number("high", "memory.current", "memory.usage_in_bytes");
    let high = current() + 16 * MIB;
    update("high", &[&format!("memory.high={high}")]).output().expect_status(0);
    assert_eq!(count("high", "memory.events", "high"), 0);
    husk.go();
    // Without the limit it is done in less.
    std::thread::sleep(Duration::from_secs(4));
    let (reached, passed) = (current(), count("high", "memory.events", "high"));
    assert!(husk.lines.try_recv().is_err(), "120 MiB came as if there were no limit");
    assert!(
        passed > 0 && (high - 8 * MIB..high + 24 * MIB).contains(&reached),
        "{reached} of {high}, {passed} times"
    );
    update("high", &["memory.high=max"]).output().expect_status(0);
    assert_eq!(husk.line(), "filled");
    assert!(current() > high + 64 * MIB, "{} with a limit of {high} before", current());
    assert_eq!(count("high", "memory.events", "oom_kill"), 0);
    drop(husk.stdin);
    assert!(husk.child.wait().unwrap().success());
}

#[test]
fn sandboxes_share_a_cpu_by_their_weights_and_by_new_ones_while_they_run() {
    const BURN: &str = "while :; do :; done";
    if !is_there() {
        skip!("no cgroup v2 with the controllers memory and cpu");
    }
    let start = |id, weight: &str| Waiting::start(id, &["--pin", "0", "--limit", weight], BURN);
    let mut both = [start("heavy", "cpu.weight=400"), start("light", "cpu.weight=100")];
    both.iter_mut().for_each(Waiting::go);
    let used = || ["heavy", "light"].map(|id| count(id, "cpu.stat", "usage_usec"));
    let ratio = || {
        std::thread::sleep(Duration::from_millis(500));
        let before = used();
        std::thread::sleep(Duration::from_secs(4));
        let [heavy, light] = [0, 1].map(|index| u32::try_from(used()[index] - before[index]).unwrap());
        f64::from(heavy) / f64::from(light)
    };
    let four = ratio();
    assert!((2.5..6.5).contains(&four), "weights as 4 to 1, time as {four} to 1");
    update("heavy", &["cpu.weight=100"]).output().expect_status(0);
    let equal = ratio();
    assert!((0.6..1.7).contains(&equal), "equal weights, time as {equal} to 1");
    both.into_iter().for_each(Waiting::kill);
}
