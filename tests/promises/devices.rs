//! The lesser devices do what they are there for: random bytes from the host, memory that goes back to it.

use husk_tests::husk::{Husk, Outcome, libexec};
use husk_tests::processes;
use husk_tests::scratch::Scratch;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

#[test]
fn the_guest_gets_random_bytes_of_the_host() {
    let script = "cat /sys/class/misc/hw_random/rng_current >&2; head -c 4096 /dev/hwrng";
    let read = || {
        let outcome = Husk::run(&["--entropy"], &["sh", "-c", script]).output().expect_status(0);
        assert!(outcome.stderr.contains("virtio_rng.0"), "{}", outcome.stderr);
        assert_eq!(outcome.stdout.len(), 4096);
        outcome.stdout
    };
    let (one, other) = (read(), read());
    let blocks: BTreeSet<_> = one.chunks(16).chain(other.chunks(16)).collect();
    assert_eq!(blocks.len(), 512, "a block of 16 bytes came twice");
}

#[test]
fn without_the_option_there_is_no_such_device() {
    let outcome = Husk::sh("head -c 1 /dev/hwrng 2>/dev/null || echo none").output().expect_status(0);
    assert_eq!(outcome.text(), "none\n");
}

/// A machine of 128 MiB with the balloon that `balloon` is the JSON of.
fn with_balloon(scratch: &Scratch, balloon: &str) -> String {
    let kernel = libexec().join("vmlinux");
    let json = format!(
        r#"{{"boot-source": {{"kernel_image_path": "{}"}}, "machine-config": {{"mem_size_mib": 128}},
            "balloon": {balloon}}}"#,
        kernel.display()
    );
    scratch.file("machine.json", json.as_bytes())
}

#[test]
fn a_balloon_takes_its_amount_out_of_the_guests_memory() {
    let total = |balloon: &str, below: u64| {
        let scratch = Scratch::new();
        let config = with_balloon(&scratch, balloon);
        let script = format!(
            "for i in $(seq 200); do \
               t=$(sed -n 's/MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo); \
               [ $t -lt {below} ] && break; sleep 0.1; \
             done; echo $t"
        );
        let outcome: Outcome =
            Husk::run(&["--config", &config], &["sh", "-c", &script]).output().expect_status(0);
        outcome.text().trim().parse::<u64>().unwrap()
    };
    let all = total(r#"{"amount_mib": 0, "deflate_on_oom": false}"#, u64::MAX >> 1);
    let wanted = all - (64 << 10);
    let left = total(r#"{"amount_mib": 64, "deflate_on_oom": false}"#, wanted + 64);
    assert!((wanted - 1024..wanted + 64).contains(&left), "{all} KiB became {left}");
}

#[test]
fn the_guest_says_how_its_memory_is_used() {
    let scratch = Scratch::new();
    let balloon = r#"{"amount_mib": 64, "deflate_on_oom": false, "stats_polling_interval_s": 1}"#;
    let config = with_balloon(&scratch, balloon);
    // Until the balloon is full, and for one answer more.
    let script = "for i in $(seq 400); do \
           t=$(sed -n 's/MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo); [ $t -lt 58000 ] && break; sleep 0.1; \
         done; sleep 3; sed -n 's/MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo";
    let outcome =
        Husk::run(&["--json", "--config", &config], &["sh", "-c", script]).output().expect_status(0);
    let total: u64 = outcome.text().trim().parse().unwrap();
    let said = &outcome.json()["balloon"];
    let bytes = |name: &str| said["statistics"][name].as_u64().unwrap_or_else(|| panic!("{name}: {said}"));
    assert_eq!(said["actual_mib"], 64, "{said}");
    assert_eq!(bytes("total_memory"), total << 10);
    assert!((1..total << 10).contains(&bytes("free_memory")), "{said}");
    assert!(bytes("minor_faults") > 0 && said["at_ns"].as_u64() > Some(1_000_000_000), "{said}");
}

#[test]
fn without_an_interval_it_is_not_asked() {
    let scratch = Scratch::new();
    let config = with_balloon(&scratch, r#"{"amount_mib": 1, "deflate_on_oom": false}"#);
    let outcome = Husk::run(&["--json", "--config", &config], &["sleep", "2"]).output().expect_status(0);
    assert!(outcome.json()["balloon"].is_null(), "{}", outcome.stderr);
}

/// Waits until a runtime whose memory was all there has given at least `kib` of it back; the host's `MemAvailable` then, in
/// KiB.
#[track_caller]
fn gives_back(balloon: &str, kib: u64) -> u64 {
    const ALL: u64 = 128 << 10;
    let scratch = Scratch::new();
    let config = with_balloon(&scratch, balloon);
    let husk = Husk::run(&["--prefault", "--config", &config], &["sleep", "90"]).spawn();
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let pids = processes::named("husk-control");
        let resident = |field: &str| {
            let text = processes::status(&format!("/proc/{}", pids.first()?), field);
            text.strip_suffix(" kB")?.parse::<u64>().ok()
        };
        if let (Some(peak), Some(now)) = (resident("VmHWM"), resident("VmRSS"))
            && peak >= ALL
            && now <= peak - kib
        {
            break;
        }
        let seen = (resident("VmHWM"), resident("VmRSS"));
        assert!(Instant::now() < deadline, "peak and now of {pids:?} in KiB: {seen:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
    let available = available();
    husk.signal(rustix::process::Signal::TERM);
    husk.finish();
    available
}

fn available() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
}

#[test]
fn what_is_in_the_balloon_goes_back_to_the_host() {
    gives_back(r#"{"amount_mib": 64, "deflate_on_oom": true}"#, 60 << 10);
}

#[test]
fn what_the_guest_does_not_use_goes_back_to_the_host() {
    let kept = gives_back(r#"{"amount_mib": 0, "deflate_on_oom": false}"#, 0);
    let given =
        gives_back(r#"{"amount_mib": 0, "deflate_on_oom": false, "free_page_reporting": true}"#, 40 << 10);
    assert!(
        given >= kept + (30 << 10),
        "available on the host: {kept} KiB without reporting, {given} with it"
    );
}
