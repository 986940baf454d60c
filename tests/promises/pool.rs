//! What is made once for all sandboxes: shared by none at the same time, refused if it is not Husk's, and gone when that is asked for.

use husk_tests::husk::{Husk, Running};
use std::path::{Path, PathBuf};

const POOL: &str = "/run/husk/ns";

/// Mounts of this machine's there.
fn mounts() -> usize {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().filter(|line| line.split(' ').nth(4).is_some_and(|point| point.starts_with(POOL))).count()
}

fn removed() -> String {
    Husk::new(["gc", "--all"]).output().expect_status(0).text()
}

#[test]
fn gc_all_removes_what_was_made_for_sandboxes_to_come() {
    let running: Vec<_> = (0..2).map(|_| Husk::sh("echo up; sleep 1000").spawn()).map(Running::up).collect();
    let networks: Vec<PathBuf> = husk_tests::processes::named("husk-control")
        .into_iter()
        .map(|pid| std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap())
        .collect();
    assert_eq!(networks.len(), 2);
    assert_ne!(networks[0], networks[1]);
    assert!(!networks.contains(&std::fs::read_link("/proc/self/ns/net").unwrap()));
    assert_eq!(mounts(), 2);
    let checks = Husk::new(["doctor", "--json"]).output().stdout;
    let checks = String::from_utf8(checks).unwrap();
    assert!(checks.contains("of 16 network namespaces ready"), "{checks}");
    // Sandboxes that run have what they have.
    assert!(removed().contains(POOL));
    assert!(!Path::new(POOL).exists() && mounts() == 0);
    running.into_iter().for_each(Running::terminate);
    drop(removed());
    assert!(!removed().contains(POOL), "nothing is left to remove");
    Husk::run(&[], &["true"]).output().expect_status(0);
    assert_eq!(mounts(), 2);
}

#[test]
fn what_is_not_husks_is_refused_by_name() {
    drop(removed());
    std::os::unix::fs::symlink("/tmp", POOL).unwrap();
    let outcome = Husk::run(&[], &["true"]).output().expect_status(125);
    std::fs::remove_file(POOL).unwrap();
    assert!(outcome.stderr.contains(POOL) && outcome.stderr.contains("symbolic link"), "{}", outcome.stderr);
    Husk::run(&[], &["true"]).output().expect_status(0);
}
