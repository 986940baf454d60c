//! Many sandboxes, one after another and side by side, and nothing left of any.

use husk_tests::footprint::Footprint;
use husk_tests::husk::{Husk, Running};
use std::time::Duration;

#[test]
fn item_31_a_hundred_one_after_another_leave_nothing() {
    Husk::run(&[], &["true"]).output().expect_status(0);
    let before = Footprint::now();
    for number in 0..100 {
        let outcome = Husk::run(&[], &["echo", &number.to_string()]).output().expect_status(0);
        assert_eq!(outcome.text(), format!("{number}\n"));
    }
    before.assert_restored();
}

#[test]
fn eight_at_once_do_not_meet() {
    Husk::run(&[], &["true"]).output().expect_status(0);
    let before = Footprint::now();
    let running: Vec<_> = (0..8)
        .map(|number| {
            let script = format!("echo {number} > /tmp/me; sleep 3; cat /tmp/me; hostname; exit {number}");
            Husk::sh(&script).deadline(Duration::from_secs(120)).spawn()
        })
        .collect();
    let mut hostnames = Vec::new();
    for (number, husk) in running.into_iter().enumerate() {
        let outcome = husk.finish().expect_status(i32::try_from(number).unwrap());
        let text = outcome.text();
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some(number.to_string().as_str()));
        hostnames.push(lines.next().unwrap_or_default().to_owned());
    }
    hostnames.sort_unstable();
    hostnames.dedup();
    assert_eq!(hostnames.len(), 8, "{hostnames:?}");
    before.assert_restored();
}

#[test]
fn each_has_its_own_user_and_cgroup_while_it_runs() {
    let running: Vec<_> = (0..2).map(|_| Husk::sh("echo up; sleep 1000").spawn()).map(Running::up).collect();
    let mut users = Vec::new();
    let mut cgroups = Vec::new();
    for pid in husk_tests::processes::named("husk-control").into_iter() {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let uids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap().trim().to_owned();
        assert!(!uids.split_whitespace().any(|uid| uid == "0"), "a runtime runs as {uids}");
        users.push(uids);
        cgroups.push(std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap());
    }
    assert_eq!(users.len(), 2, "two runtimes, not {users:?}");
    assert_ne!(users[0], users[1]);
    assert_ne!(cgroups[0], cgroups[1]);
    running.into_iter().for_each(Running::terminate);
}
