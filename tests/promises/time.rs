//! Limits in time, and the signals of whoever started husk.

use husk_tests::footprint::Footprint;
use husk_tests::husk::Husk;
use rustix::process::Signal;
use std::time::{Duration, Instant};

#[test]
fn a_timeout_ends_it_with_124() {
    let before = Footprint::now();
    let outcome = Husk::run(&["--timeout", "2s"], &["sleep", "1000"]).output().expect_status(124);
    assert!(outcome.took >= Duration::from_secs(2), "{:?}", outcome.took);
    assert!(outcome.took < Duration::from_secs(20), "{:?}", outcome.took);
    assert!(outcome.stderr.contains("2s") || outcome.stderr.contains("2 s"), "{}", outcome.stderr);
    before.assert_restored();
}

#[test]
fn a_timeout_ends_one_that_ignores_signals() {
    let script = "trap '' TERM INT HUP; while :; do sleep 1; done";
    let outcome = Husk::run(&["--timeout", "2s"], &["sh", "-c", script]).output().expect_status(124);
    assert!(outcome.took < Duration::from_secs(20), "{:?}", outcome.took);
}

#[test]
fn one_that_ends_in_time_is_not_disturbed() {
    Husk::run(&["--timeout", "50s"], &["sh", "-c", "exit 7"]).output().expect_status(7);
}

#[test]
fn the_first_signal_goes_to_the_command() {
    for (signal, name) in [(Signal::TERM, "TERM"), (Signal::INT, "INT")] {
        let script =
            format!("trap 'echo got {name}; exit 9' {name}; echo ready; while :; do sleep 0.1; done");
        let husk = Husk::sh(&script).spawn().up();
        husk.signal(signal);
        let outcome = husk.finish().expect_status(9);
        assert_eq!(outcome.text(), format!("ready\ngot {name}\n"));
    }
}

#[test]
fn an_unhandled_signal_is_the_commands_end() {
    let husk = Husk::sh("echo up; exec sleep 1000").spawn().up();
    husk.signal(Signal::TERM);
    husk.finish().expect_status(143);
}

#[test]
fn the_second_signal_ends_what_ignores_the_first() {
    let before = Footprint::now();
    let husk = Husk::sh("trap '' TERM; echo ready; while :; do sleep 0.1; done").spawn().up();
    let started = Instant::now();
    husk.signal(Signal::TERM);
    std::thread::sleep(Duration::from_secs(1));
    husk.signal(Signal::TERM);
    let outcome = husk.finish();
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
    assert_ne!(outcome.status, 0);
    before.assert_restored();
}

#[test]
fn a_signal_that_is_ignored_for_ten_seconds_ends_it_too() {
    let before = Footprint::now();
    let husk = Husk::sh("trap '' INT; echo ready; while :; do sleep 0.1; done").spawn().up();
    let started = Instant::now();
    husk.signal(Signal::INT);
    let outcome = husk.finish();
    assert_ne!(outcome.status, 0);
    assert!(started.elapsed() > Duration::from_secs(9), "{:?}", started.elapsed());
    before.assert_restored();
}

#[test]
fn a_signal_during_the_boot_ends_it() {
    let before = Footprint::now();
    let husk = Husk::run(&[], &["sleep", "1000"]).spawn();
    std::thread::sleep(Duration::from_millis(150));
    husk.signal(Signal::TERM);
    let outcome = husk.finish();
    assert_eq!(outcome.status, 143, "{}", outcome.stderr);
    before.assert_restored();
}
