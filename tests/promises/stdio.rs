//! Standard streams are binary-safe, separate, in order, and push back.

use husk_tests::husk::{Husk, binary};
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Bytes without a pattern that compression or text handling would survive (xorshift64).
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

#[test]
fn sixty_four_mib_both_ways_arrive_as_they_were() {
    let bytes = noise(64 << 20);
    let outcome = Husk::run(&["-i"], &["cat"])
        .stdin(bytes.clone())
        .deadline(Duration::from_secs(300))
        .output()
        .expect_status(0);
    assert_eq!(outcome.stdout.len(), bytes.len());
    assert!(outcome.stdout == bytes, "the bytes differ");
}

#[test]
fn every_byte_value_passes_at_every_size_around_a_frame() {
    for size in [1, 255, 4095, 4096, 65_535, 65_536, 65_537, 300_000] {
        let bytes: Vec<u8> = (0..size).map(|i| u8::try_from(i % 256).unwrap()).collect();
        let outcome = Husk::run(&["-i"], &["cat"]).stdin(bytes.clone()).output().expect_status(0);
        assert!(outcome.stdout == bytes, "{size} bytes came back as {}", outcome.stdout.len());
    }
}

#[test]
fn stdout_and_stderr_stay_apart() {
    let outcome =
        Husk::sh("echo out; echo err >&2; printf more; printf 'e\\0f' >&2").output().expect_status(0);
    assert_eq!(outcome.text(), "out\nmore");
    assert_eq!(outcome.stderr, "err\ne\0f");
}

#[test]
fn without_i_standard_input_is_empty() {
    let outcome = Husk::run(&[], &["cat"]).stdin(noise(1000)).output().expect_status(0);
    assert_eq!(outcome.stdout, b"");
    let outcome = Husk::sh("readlink /proc/self/fd/0").output().expect_status(0);
    assert_eq!(outcome.text(), "/dev/null\n");
}

#[test]
fn output_comes_as_it_is_written() {
    let mut child = Command::new(binary())
        .args(["run", "-i", "--", "sh", "-c", "echo first; read x; echo second $x"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut first = [0; 6];
    stdout.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"first\n");
    // Only now does the command get what it waits for.
    child.stdin.take().unwrap().write_all(b"line\n").unwrap();
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "second line\n");
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_command_that_does_not_read_its_input_still_ends() {
    let outcome = Husk::run(&["-i"], &["true"]).stdin(noise(8 << 20)).output();
    outcome.expect_status(0);
}

#[test]
fn item_32_a_reader_that_does_not_read_holds_the_command_not_the_memory() {
    let mut child = Command::new(binary())
        .args(["run", "--", "sh", "-c", "dd if=/dev/zero bs=64k count=1024 2>/dev/null; echo end >&2"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut byte = [0];
    stdout.read_exact(&mut byte).unwrap();
    std::thread::sleep(Duration::from_secs(3));
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let rss: u64 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok())
        .unwrap();
    assert!(rss < 32 * 1024, "husk holds {rss} KiB for a reader that does not read");
    assert!(child.try_wait().unwrap().is_none(), "64 MiB went somewhere");
    let mut rest = Vec::new();
    stdout.read_to_end(&mut rest).unwrap();
    assert_eq!(rest.len() + 1, 64 << 20);
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_reader_that_goes_away_ends_the_sandbox() {
    let mut child = Command::new(binary())
        .args(["run", "--", "yes"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut some = [0; 4096];
    stdout.read_exact(&mut some).unwrap();
    drop(stdout);
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            assert!(!status.success());
            return;
        }
        assert!(std::time::Instant::now() < deadline, "husk goes on without a reader");
        std::thread::sleep(Duration::from_millis(20));
    }
}
