//! `husk ps`, `husk kill`, `husk gc`, and the result object.

use husk_tests::footprint::Footprint;
use husk_tests::husk::Husk;

#[test]
fn ps_shows_what_runs_and_kill_ends_it() {
    let before = Footprint::now();
    let husk =
        Husk::run(&["--vcpus", "2", "--memory", "160M"], &["sh", "-c", "echo up; sleep 1000"]).spawn().up();
    let listed = Husk::new(["ps", "--json"]).output().expect_status(0);
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    let sandboxes = listed.as_array().unwrap();
    assert_eq!(sandboxes.len(), 1, "{listed}");
    let id = sandboxes[0]["id"].as_str().unwrap().to_owned();
    let table = Husk::new(["ps"]).output().expect_status(0).text();
    assert!(table.contains(&id) && table.contains("sleep"), "{table}");
    Husk::new(["kill", &id]).output().expect_status(0);
    let outcome = husk.finish();
    assert_ne!(outcome.status, 0);
    let listed = Husk::new(["ps", "--json"]).output().expect_status(0);
    assert_eq!(listed.text().trim(), "[]");
    before.assert_restored();
}

#[test]
fn killing_what_is_not_there_is_named() {
    let outcome = Husk::new(["kill", "nosuchsandbox"]).output().expect_status(125);
    assert!(outcome.stderr.contains("nosuchsandbox"), "{}", outcome.stderr);
    let outcome = Husk::new(["kill", "../../etc"]).output().expect_status(125);
    assert!(outcome.stderr.contains("../../etc"), "{}", outcome.stderr);
}

#[test]
fn gc_does_not_touch_what_lives() {
    let husk = Husk::sh("echo up; sleep 4; echo alive").spawn().up();
    Husk::new(["gc"]).output().expect_status(0);
    let outcome = husk.finish().expect_status(0);
    assert_eq!(outcome.text(), "up\nalive\n");
}

#[test]
fn the_result_object_tells_it_all() {
    let outcome = Husk::run(&["--json"], &["sh", "-c", "echo out; exit 3"]).output().expect_status(3);
    assert_eq!(outcome.text(), "out\n");
    let result = outcome.json();
    assert_eq!(result["status"], 3, "{result}");
    assert!(result["fault"].is_null(), "{result}");
    let stages = result["stages"].as_array().unwrap_or_else(|| panic!("no stages: {result}"));
    let names: Vec<&str> = stages.iter().filter_map(|stage| stage["stage"].as_str()).collect();
    let order = [
        "start",
        "planned",
        "jailer",
        "jailed",
        "runtime",
        "built",
        "loaded",
        "kernel_entry",
        "init",
        "ready",
        "executed",
        "first_output",
        "exited",
    ];
    let mut rest = names.iter();
    for stage in order {
        assert!(rest.any(|name| *name == stage), "{stage} is missing or out of order in {names:?}");
    }
    let mut last = 0;
    for stage in stages {
        let at = stage["at_ns"].as_u64().unwrap_or_else(|| panic!("no at_ns: {stage}"));
        assert!(at >= last, "{stage} goes back in time: {result}");
        last = at;
    }
    assert!(result["resources"].is_object(), "{result}");
}

#[test]
fn the_result_object_says_who_is_at_fault() {
    let outcome =
        Husk::run(&["--json", "--kernel", "/no/such/kernel"], &["true"]).output().expect_status(125);
    let result = outcome.json();
    assert_eq!(result["fault"], "operator", "{result}");
    assert!(result["error"].as_str().unwrap().contains("/no/such/kernel"), "{result}");
    let outcome = Husk::run(&["--json"], &["no-such-command"]).output().expect_status(127);
    assert_eq!(outcome.json()["status"], 127);
    let outcome = Husk::run(&["--json", "--timeout", "2s"], &["sleep", "100"]).output().expect_status(124);
    assert_eq!(outcome.json()["timed_out"], true);
}

#[test]
fn the_timing_line_is_one_line() {
    let outcome = Husk::run(&["--timings"], &["echo", "x"]).output().expect_status(0);
    assert_eq!(outcome.text(), "x\n");
    assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
    for word in ["jail", "kernel", "ms"] {
        assert!(outcome.stderr.contains(word), "no {word}: {}", outcome.stderr);
    }
}

#[test]
fn the_result_object_is_a_line_of_its_own_always() {
    let outcome = Husk::run(&["--json"], &["sh", "-c", "printf partial >&2"]).output().expect_status(0);
    assert_eq!(outcome.json()["status"], 0);
    assert!(outcome.stderr.starts_with("partial\n{"), "{}", outcome.stderr);
    let outcome = Husk::run(&["--json", "--id", "a", "--name", "b"], &["true"]).output().expect_status(125);
    assert_eq!(outcome.json()["fault"], "operator");
}
