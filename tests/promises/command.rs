//! The command runs as asked for, and its end is husk's end.

use husk_tests::husk::Husk;

#[test]
fn prints_and_ends_with_zero() {
    let outcome = Husk::run(&[], &["echo", "hello", "world"]).output().expect_status(0);
    assert_eq!(outcome.text(), "hello world\n");
    assert_eq!(outcome.stderr, "");
}

#[test]
fn its_status_is_husks_status() {
    for status in [1, 3, 42, 124, 255] {
        Husk::sh(&format!("exit {status}")).output().expect_status(status);
    }
}

#[test]
fn a_signal_that_ends_it_is_128_and_its_number() {
    Husk::sh("kill -9 $$").output().expect_status(137);
    Husk::sh("kill -TERM $$").output().expect_status(143);
    Husk::sh("kill -SEGV $$").output().expect_status(139);
}

#[test]
fn one_that_does_not_exist_is_127_and_named() {
    let outcome = Husk::run(&[], &["no-such-command", "x"]).output().expect_status(127);
    assert!(outcome.stderr.contains("no-such-command"), "{}", outcome.stderr);
    assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
    Husk::run(&[], &["/no/such/path"]).output().expect_status(127);
}

#[test]
fn one_that_cannot_be_executed_is_126() {
    let outcome = Husk::run(&[], &["/etc/passwd"]).output().expect_status(126);
    assert!(outcome.stderr.contains("/etc/passwd"), "{}", outcome.stderr);
    Husk::run(&[], &["/etc"]).output().expect_status(126);
}

#[test]
fn arguments_arrive_as_they_are() {
    let args = ["a b", "", "$HOME", "'quoted'", "--json", "--", "tab\there", "ünïcode", "-i"];
    let command: Vec<&str> = ["sh", "-c", r#"printf '<%s>' "$@""#, "sh"].into_iter().chain(args).collect();
    let outcome = Husk::run(&[], &command).output().expect_status(0);
    let expected: String = args.iter().map(|arg| format!("<{arg}>")).collect();
    assert_eq!(outcome.text(), expected);
}

#[test]
fn environment_directory_and_user_are_as_asked_for() {
    let script = "echo $A/$B; pwd; id -u; id -g; echo ${HUSK_TEST_SECRET-unset}";
    let options = ["--env", "A=1", "--env", "B=x=y", "--workdir", "/tmp", "--user", "nobody"];
    let outcome =
        Husk::run(&options, &["sh", "-c", script]).env("HUSK_TEST_SECRET", "s").output().expect_status(0);
    let text = outcome.text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines, ["1/x=y", "/tmp", "65534", "65534", "unset"], "{text}");
}

#[test]
fn path_and_home_are_set_and_nothing_else_comes_from_the_host() {
    let outcome = Husk::run(&[], &["env"]).env("LD_PRELOAD_X", "1").output().expect_status(0);
    let text = outcome.text();
    let mut names: Vec<&str> = text.lines().filter_map(|line| line.split('=').next()).collect();
    names.sort_unstable();
    assert_eq!(names, ["HOME", "PATH"], "{text}");
    assert!(text.contains("HOME=/root"), "{text}");
}

#[test]
fn a_numeric_user_needs_no_entry() {
    let outcome = Husk::run(&["--user", "4242:4343"], &["id"]).output().expect_status(0);
    assert!(outcome.text().contains("uid=4242 gid=4343"), "{}", outcome.text());
}

#[test]
fn an_unknown_user_or_directory_is_named() {
    let outcome = Husk::run(&["--user", "whoisthis"], &["id"]).output().expect_status(125);
    assert!(outcome.stderr.contains("whoisthis"), "{}", outcome.stderr);
    let outcome = Husk::run(&["--workdir", "/no/such/dir"], &["id"]).output().expect_status(125);
    assert!(outcome.stderr.contains("/no/such/dir"), "{}", outcome.stderr);
}

#[test]
fn the_guest_has_what_programs_expect() {
    let script = r"
        set -e
        for d in /proc/self /sys/kernel /dev/pts /dev/shm /tmp; do test -d $d || { echo missing $d; exit 1; }; done
        for f in /dev/null /dev/zero /dev/random /dev/urandom /dev/tty /dev/ptmx /dev/fd/0 /dev/stdin; do
            test -e $f || { echo missing $f; exit 1; }
        done
        echo x > /tmp/x; echo y > /dev/shm/y; echo z > /root-is-writable
        test $(cat /tmp/x /dev/shm/y /root-is-writable | tr -d '\n') = xyz
        (sleep 0.01 & wait)
        ip addr show lo | grep -q 127.0.0.1
        echo fine";
    let outcome = Husk::sh(script).output().expect_status(0);
    assert_eq!(outcome.text(), "fine\n");
}

#[test]
fn its_leftovers_do_not_keep_the_sandbox() {
    let outcome = Husk::sh("sleep 1000 & setsid sleep 1000 & echo started").output().expect_status(0);
    assert_eq!(outcome.text(), "started\n");
    assert!(outcome.took.as_secs() < 30, "{:?}", outcome.took);
}

#[test]
fn its_orphans_are_reaped() {
    let script = r#"
        for i in 1 2 3 4 5 6 7 8; do (sh -c 'sleep 0.05 & exit 0' &) ; done
        sleep 1
        z=0
        for s in /proc/[0-9]*/stat; do
            read -r line < $s 2>/dev/null || continue
            case "$line" in *") Z "*) z=$((z + 1));; esac
        done
        echo $z zombies"#;
    let outcome = Husk::sh(script).output().expect_status(0);
    assert_eq!(outcome.text(), "0 zombies\n");
}

#[test]
fn without_a_command_husk_says_what_is_missing() {
    let outcome = Husk::new(["run"]).output().expect_status(125);
    assert!(outcome.stderr.contains("command"), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("--help"), "{}", outcome.stderr);
}
