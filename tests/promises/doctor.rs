//! husk says what the machine is worth, lists the very filters that it runs with, and stays away from a bad machine if asked.

use husk_seccomp::Role;
use husk_tests::husk::Husk;
use serde_json::Value;

/// What `husk doctor --json` says, and its status.
fn examined() -> (Value, i32) {
    let outcome = Husk::new(["doctor", "--json"]).output();
    assert_eq!(outcome.stderr, "");
    let object =
        serde_json::from_str(&outcome.text()).unwrap_or_else(|error| panic!("{error}: {}", outcome.text()));
    (object, outcome.status)
}

fn checks(object: &Value) -> &[Value] {
    object["checks"].as_array().map_or(&[], Vec::as_slice)
}

fn named<'a>(object: &'a Value, name: &str) -> &'a Value {
    checks(object)
        .iter()
        .find(|check| check["name"] == name)
        .unwrap_or_else(|| panic!("no {name} in {object}"))
}

#[test]
fn the_machine_is_told_as_it_is_and_its_worst_check_is_the_status() {
    let (object, status) = examined();
    assert_eq!(object["schema"], 1, "{object}");
    for name in
        ["kvm", "virtualization", "user", "husk-jailer", "husk-runtime", "husk-init", "vmlinux", "seccomp"]
    {
        assert_eq!(named(&object, name)["verdict"], "ok", "{}", named(&object, name));
    }
    let found = named(&object, "virtualization")["found"].as_str().unwrap_or_default();
    assert!(found == "hardware (svm, kvm_amd)" || found == "hardware (vmx, kvm_intel)", "{found}");
    let order = ["ok", "note", "degraded", "unsafe", "unusable"];
    let rank = |check: &Value| order.iter().position(|verdict| check["verdict"] == *verdict).unwrap();
    let worst = checks(&object).iter().map(rank).max().unwrap();
    assert_eq!(object["verdict"], order[worst], "{object}");
    assert_eq!(status, [0, 0, 1, 2, 3][worst], "{object}");
    assert_eq!(object["status"], status);
}

#[test]
fn the_table_has_a_line_for_each_check() {
    let (object, status) = examined();
    let outcome = Husk::new(["doctor"]).output().expect_status(status);
    let text = outcome.text();
    for check in checks(&object) {
        let line = format!("{:8}  {} ", check["verdict"].as_str().unwrap(), check["name"].as_str().unwrap());
        assert!(text.lines().any(|found| found.starts_with(&line)), "no {line:?} in {text}");
    }
    assert!(!text.contains('\x1b'), "colours in a pipe: {text}");
}

#[test]
fn strict_runs_refuse_exactly_what_the_doctor_calls_unsafe() {
    let (object, _) = examined();
    let is_unsafe: Vec<&str> = checks(&object)
        .iter()
        .filter(|check| check["verdict"] == "unsafe")
        .filter_map(|check| check["name"].as_str())
        .collect();
    let outcome = Husk::run(&["--strict", "--json"], &["echo", "ran"]).output();
    let result = outcome.json();
    if is_unsafe.is_empty() {
        assert_eq!((outcome.status, outcome.text().as_str()), (0, "ran\n"), "{result}");
        return;
    }
    assert_eq!((outcome.status, &result["fault"]), (125, &Value::from("host")), "{result}");
    for name in is_unsafe {
        assert!(result["error"].as_str().unwrap().contains(name), "{name} is not named: {result}");
    }
}

#[test]
fn a_run_says_how_much_of_landlock_held_and_the_doctor_said_so_before() {
    let (object, _) = examined();
    let found = named(&object, "landlock")["found"].as_str().unwrap_or_default();
    let result = Husk::run(&["--json"], &["true"]).output().expect_status(0).json();
    let level = result["landlock"].as_str().unwrap_or_else(|| panic!("{result}"));
    assert!(["full", "partial", "absent"].contains(&level), "{result}");
    assert!(found.starts_with(&format!("{level}: ")), "{level} in the run, but the doctor said {found}");
}

/// Puts back what the test changed, however it ends.
struct Aslr(String);

const ASLR: &str = "/proc/sys/kernel/randomize_va_space";

impl Drop for Aslr {
    fn drop(&mut self) {
        drop(std::fs::write(ASLR, &self.0));
    }
}

#[test]
fn an_unsafe_machine_is_refused_with_its_mend_if_asked_alone() {
    let _before = Aslr(std::fs::read_to_string(ASLR).unwrap());
    std::fs::write(ASLR, "0").unwrap();
    let (object, _) = examined();
    assert_eq!(named(&object, "aslr")["verdict"], "unsafe", "{object}");
    let outcome = Husk::run(&["--strict"], &["echo", "ran"]).output().expect_status(125);
    assert_eq!((outcome.text().as_str(), outcome.stderr.lines().count()), ("", 1), "{}", outcome.stderr);
    for part in ["--strict", "aslr", "kernel.randomize_va_space = 0", "sysctl -w kernel.randomize_va_space=2"]
    {
        assert!(outcome.stderr.contains(part), "{part} is missing: {}", outcome.stderr);
    }
    let outcome = Husk::run(&[], &["echo", "ran"]).output().expect_status(0);
    assert_eq!(outcome.text(), "ran\n");
}

#[test]
fn the_list_of_filters_is_the_compiled_tables() {
    let outcome = Husk::new(["doctor", "--filters"]).output().expect_status(0);
    let text = outcome.text();
    let mut lines = text.lines();
    for role in Role::ALL {
        for rule in husk_seccomp::table(role) {
            let line = lines.next().unwrap_or_default();
            assert_eq!(line, format!("{} {rule}", role.name()));
            assert!(line.ends_with(rule.reason), "{line}");
        }
    }
    assert_eq!(lines.next(), None);
    assert!(text.contains("vcpu ioctl(int arg1 == KVM_RUN): enters the guest\n"), "{text}");
}
