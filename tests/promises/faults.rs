//! When a piece breaks, husk says which in one line, ends with 125, and leaves nothing.

use husk_tests::footprint::Footprint;
use husk_tests::husk::{Husk, Outcome, libexec};
use husk_tests::processes;
use husk_tests::scratch::Scratch;
use rustix::process::{Pid, Signal, kill_process};
use std::time::{Duration, Instant};

/// Kills the one process of this name as soon as it is there.
#[track_caller]
fn kill_when_there(name: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let [pid] = processes::named(name)[..] {
            let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
            let _ = kill_process(pid, Signal::KILL);
            return;
        }
        assert!(Instant::now() < deadline, "no process {name}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

#[track_caller]
fn one_line(outcome: &Outcome, words: &[&str]) {
    assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
    assert!(outcome.stderr.starts_with("husk: "), "{}", outcome.stderr);
    for word in words {
        assert!(outcome.stderr.contains(word), "no {word:?}: {}", outcome.stderr);
    }
}

#[test]
fn a_killed_runtime_is_named() {
    let before = Footprint::now();
    let husk = Husk::sh("echo up; sleep 1000").spawn().up();
    kill_when_there("husk-control");
    let outcome = husk.finish().expect_status(125);
    one_line(&outcome, &["runtime", "SIGKILL"]);
    before.assert_restored();
}

#[test]
fn a_killed_jailer_is_named() {
    // The jailer lives for a moment only: one that is stopped by a debugger at its start waits to be killed. Instead of
    // racing, a jailer is put in place that never ends.
    let before = Footprint::now();
    let scratch = Scratch::new();
    for name in ["husk-runtime", "husk-init", "vmlinux"] {
        std::os::unix::fs::symlink(libexec().join(name), scratch.path().join(name)).unwrap();
    }
    std::fs::copy(husk_tests::rootfs::tool(), scratch.path().join("husk-jailer")).unwrap();
    let husk = Husk::run(&[], &["true"]).env("HUSK_LIBEXEC", scratch.path()).spawn();
    kill_when_there("husk-jailer");
    let outcome = husk.finish().expect_status(125);
    one_line(&outcome, &["jailer", "SIGKILL"]);
    before.assert_restored();
}

#[test]
fn item_31_the_real_jailer_killed_at_any_moment_leaves_nothing() {
    Husk::run(&[], &["true"]).output().expect_status(0);
    let before = Footprint::now();
    let mut killed = 0;
    for round in 0..20 {
        let husk = Husk::run(&[], &["true"]).spawn();
        let deadline = Instant::now() + Duration::from_secs(3);
        while Instant::now() < deadline {
            if let Some(&pid) = processes::named("husk-jailer").first() {
                std::thread::sleep(Duration::from_micros(100 * round));
                let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
                let _ = kill_process(pid, Signal::KILL);
                break;
            }
        }
        let outcome = husk.finish();
        assert!(matches!(outcome.status, 0 | 125), "{} {}", outcome.status, outcome.stderr);
        if outcome.status == 125 {
            killed += 1;
            one_line(&outcome, &["jailer", "SIGKILL"]);
        }
    }
    println!("{killed} of 20 jailers were killed in time");
    before.assert_restored();
}

#[test]
fn item_31_a_killed_husk_takes_its_sandbox_along_and_gc_the_rest() {
    Husk::run(&[], &["true"]).output().expect_status(0);
    Husk::new(["gc"]).output().expect_status(0);
    let before = Footprint::now();
    let scratch = Scratch::new();
    let socket = scratch.name("vsock");
    let husk = Husk::run(&["--vsock", &socket], &["sh", "-c", "echo up; sleep 1000"]).spawn().up();
    assert_eq!(processes::named("husk-control").len(), 1);
    assert!(std::path::Path::new(&socket).exists());
    husk.signal(Signal::KILL);
    let outcome = husk.finish();
    assert_eq!(outcome.status, 1009);
    let deadline = Instant::now() + Duration::from_secs(5);
    while !processes::named("husk-control").is_empty() {
        assert!(Instant::now() < deadline, "the runtime outlives husk");
        std::thread::sleep(Duration::from_millis(10));
    }
    Husk::new(["gc"]).output().expect_status(0);
    assert!(!std::path::Path::new(&socket).exists(), "its socket is left");
    before.assert_restored();
}

#[test]
fn a_guest_kernel_that_panics_shows_its_last_lines() {
    let before = Footprint::now();
    let outcome = Husk::sh("echo c > /proc/sysrq-trigger; sleep 100").output();
    if outcome.stderr.contains("sysrq-trigger") {
        // No SysRq in this kernel: PID 1's death is a panic as well.
        panic!("the guest kernel has no SysRq: {}", outcome.stderr);
    }
    let outcome = outcome.expect_status(125);
    assert!(outcome.stderr.contains("Kernel panic"), "{}", outcome.stderr);
    assert!(outcome.stderr.starts_with("husk: "), "{}", outcome.stderr);
    let console = outcome.stderr.lines().count() - 1;
    assert!((1..=20).contains(&console), "{console} console lines: {}", outcome.stderr);
    before.assert_restored();
}

#[test]
fn a_panic_is_seen_on_the_console_whenever_it_comes() {
    let script = ["sh", "-c", "echo c > /proc/sysrq-trigger; sleep 100"];
    let outcome = Husk::run(&["--console"], &script).output().expect_status(125);
    let printed = outcome.stderr.lines().filter(|line| line.starts_with("Kernel panic")).count();
    assert!(printed == 1 && outcome.stderr.contains("console: Kernel panic"), "{}", outcome.stderr);
    // Before the console is up: in a machine that has none it never is.
    let scratch = Scratch::new();
    let kernel = libexec().join("vmlinux");
    let json = format!(
        r#"{{"boot-source": {{"kernel_image_path": "{}", "boot_protocol": "linux64",
            "boot_args": "reboot=t panic=-1 console=hvc0 earlyprintk=vga,keep rdinit=/none"}}}}"#,
        kernel.display()
    );
    let config = scratch.file("machine.json", json.as_bytes());
    let outcome = Husk::run(&["--console", "--config", &config], &["true"]).output().expect_status(125);
    assert!(outcome.stderr.starts_with("husk: the guest kernel panicked: "), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("console: Kernel panic"), "{}", outcome.stderr);
}

#[test]
fn a_killed_guest_init_is_a_guest_fault() {
    // Nobody in the guest can kill PID 1 by a signal; taking its memory away does it.
    let before = Footprint::now();
    let root = Scratch::new();
    let root = husk_tests::rootfs::busybox_and_tool(root.path());
    let root = root.to_string_lossy().into_owned();
    let outcome =
        Husk::run(&["--rootfs", &root, "--json"], &["guest-tool", "kill-init"]).output().expect_status(125);
    let result = outcome.json();
    assert_eq!(result["fault"], "guest", "{result}");
    before.assert_restored();
}

#[test]
fn a_guest_that_reboots_ends_the_sandbox() {
    let before = Footprint::now();
    let outcome = Husk::run(&["--json"], &["reboot", "-f"]).output().expect_status(125);
    let result = outcome.json();
    assert_eq!(result["fault"], "guest", "{result}");
    assert!(result["error"].as_str().unwrap_or_default().contains("re"), "{result}");
    before.assert_restored();
}

#[test]
fn a_kernel_that_never_gets_ready_meets_the_boot_timeout() {
    let before = Footprint::now();
    let scratch = Scratch::new();
    let kernel = scratch.file("loop", &husk_tests::payload::endless_loop());
    let outcome =
        Husk::run(&["--kernel", &kernel, "--boot-timeout", "2s"], &["true"]).output().expect_status(125);
    assert!(outcome.stderr.contains("2s") || outcome.stderr.contains("2 s"), "{}", outcome.stderr);
    assert!(outcome.took < Duration::from_secs(20), "{:?}", outcome.took);
    before.assert_restored();
}

#[test]
fn a_kernel_that_resets_at_once_is_a_guest_fault() {
    let before = Footprint::now();
    let scratch = Scratch::new();
    let kernel = scratch.file("reset", &husk_tests::payload::triple_fault());
    let outcome = Husk::run(&["--kernel", &kernel], &["true"]).output().expect_status(125);
    assert!(outcome.stderr.starts_with("husk: "), "{}", outcome.stderr);
    before.assert_restored();
}

#[test]
fn what_a_dying_kernel_printed_is_shown() {
    let scratch = Scratch::new();
    let kernel = scratch.file("prints", &husk_tests::payload::print_and_reset("last words of a kernel\n"));
    let outcome = Husk::run(&["--kernel", &kernel], &["true"]).output().expect_status(125);
    assert!(outcome.stderr.contains("last words of a kernel"), "{}", outcome.stderr);
}

#[test]
fn item_17_guest_memory_exhausted_is_the_commands_problem() {
    let before = Footprint::now();
    let script = "head -c 400m /dev/zero | tail -c 400m > /dev/null; echo status $?";
    let outcome = Husk::run(&["--memory", "96M"], &["sh", "-c", script]).output();
    assert_eq!(outcome.status, 0, "{}", outcome.stderr);
    before.assert_restored();
}

#[test]
fn item_17_a_fork_bomb_stays_in_its_guest() {
    let before = Footprint::now();
    let script = "bomb() { bomb | bomb & }; echo up; bomb; while :; do :; done";
    let bombed = Husk::sh(script).spawn().up();
    let neighbour = Husk::sh("echo alive").output().expect_status(0);
    assert_eq!(neighbour.text(), "alive\n");
    // The second signal ends it; or its kernel found nothing more to kill, and says so.
    bombed.signal(Signal::TERM);
    std::thread::sleep(Duration::from_millis(200));
    bombed.signal(Signal::TERM);
    let outcome = bombed.finish();
    assert!(matches!(outcome.status, 143 | 125), "{outcome:?}");
    before.assert_restored();
}

#[test]
fn item_29_a_full_disk_is_named() {
    // A cache directory and a state directory on a file system without room.
    let scratch = Scratch::new();
    let full = scratch.name("full");
    std::fs::create_dir(&full).unwrap();
    let mount = |args: &[&str]| std::process::Command::new("mount").args(args).status().unwrap().success();
    assert!(mount(&["-t", "tmpfs", "-o", "size=64k", "none", &full]));
    let root = husk_tests::rootfs::busybox_and_tool(scratch.path());
    let root = root.to_string_lossy().into_owned();
    let outcome = Husk::run(&["--rootfs", &root], &["true"]).env("XDG_CACHE_HOME", &full).output();
    let left: Vec<_> = walk(std::path::Path::new(&full)).into_iter().filter(|path| !path.is_dir()).collect();
    let filler = std::fs::write(format!("{full}/filler"), vec![0; 1 << 20]);
    assert!(filler.is_err());
    let state = Husk::run(&[], &["true"]).env("HUSK_STATE", format!("{full}/state")).output();
    assert!(std::process::Command::new("umount").arg(&full).status().unwrap().success());
    let outcome = outcome.expect_status(125);
    one_line(&outcome, &["pace"]);
    assert!(left.is_empty(), "left in the cache: {left:?}");
    let state = state.expect_status(125);
    one_line(&state, &["pace"]);
}

fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        found.push(entry.path());
        if entry.path().is_dir() {
            found.extend(walk(&entry.path()));
        }
    }
    found
}

#[test]
fn a_missing_part_of_husk_is_named() {
    let scratch = Scratch::new();
    let outcome = Husk::run(&[], &["true"]).env("HUSK_LIBEXEC", scratch.path()).output().expect_status(125);
    one_line(&outcome, &[&scratch.name("")[..scratch.name("").len() - 1]]);
}
