use super::*;

const ROOT: Caller = Caller { uid: 0, gid: 0 };

const LEAST: [&str; 8] = ["--id", "a-1", "--uid", "100", "--gid", "101", "--exec-file", "/opt/husk-runtime"];

fn parse(words: &[&str]) -> Result<Args, ArgsError> {
    Args::parse(words.iter().map(OsString::from), ROOT)
}

fn with(words: &[&str]) -> Result<Args, ArgsError> {
    parse(&[&LEAST, words].concat())
}

/// The error of the least command line with one flag replaced.
fn instead(flag: &str, value: &str) -> String {
    let mut words = LEAST;
    let place = words.iter().position(|word| *word == flag).unwrap();
    words[place + 1] = value;
    parse(&words).unwrap_err().to_string()
}

#[test]
fn the_least_is_enough() {
    let args = parse(&LEAST).unwrap();
    assert_eq!((args.uid, args.gid, args.program.as_str()), (100, 101, "husk-runtime"));
    assert_eq!((args.chroot_base_dir, args.isolation), (None, Isolation::Strict));
    assert_eq!(args.parent_cgroup, ["husk"]);
    assert_eq!(args.argv, ["husk-runtime"]);
    assert!(args.settings.is_empty() && args.netns.is_none() && !args.daemonize);
}

#[test]
fn firecrackers_command_line_is_understood() {
    let args = parse(&[
        "--id=vm-1",
        "--exec-file=/usr/bin/firecracker",
        "--uid=123",
        "--gid",
        "100",
        "--cgroup-version=2",
        "--cgroup=cpuset.cpus=0",
        "--cgroup",
        "cpu.max=50000 100000",
        "--parent-cgroup=a/b",
        "--new-pid-ns",
        "--daemonize",
        "--resource-limit=fsize=250000000",
        "--resource-limit",
        "no-file=1024",
        "--netns=/var/run/netns/x",
        "--chroot-base-dir",
        "/srv/jailer",
        "--",
        "--config-file=x",
        "--",
        "-h",
    ])
    .unwrap();
    assert_eq!(args.argv, ["firecracker", "--config-file=x", "--", "-h"]);
    assert_eq!(args.settings[1].file(), "cpu.max");
    assert_eq!(args.settings[1].value(), "50000 100000");
    assert_eq!(args.parent_cgroup, ["a", "b"]);
    assert_eq!(args.cgroup_version, Some(2));
    assert!(args.daemonize);
}

#[test]
fn the_control_socket_is_handed_on_as_3() {
    let args = with(&["--control-fd", "7", "--", "--more"]).unwrap();
    assert_eq!(args.argv, ["husk-runtime", "--control-fd", "3", "--more"]);
    let named = with(&["--control-fd", "7", "--", "--control-fd", "3"]).unwrap();
    assert_eq!(named.argv, ["husk-runtime", "--control-fd", "3"]);
    for bad in ["0", "2", "-1", "x", "65536"] {
        assert!(with(&["--control-fd", bad]).unwrap_err().to_string().contains("from 3 to 65535"), "{bad}");
    }
}

#[test]
fn item_25_a_name_cannot_leave_its_directory() {
    let long = "x".repeat(MAX_ID + 1);
    for id in ["", ".", "..", "a/b", "/", "a b", "a_b", "ü", "a\n", &long] {
        let error = instead("--id", id);
        assert!(error.contains("--id") && error.contains("1 to 64"), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
    assert!(parse(&[&["--id", &"x".repeat(MAX_ID)], &LEAST[2..]].concat()).is_ok());
}

#[test]
fn item_25_root_is_refused() {
    for flag in ["--uid", "--gid"] {
        for value in ["0", "-1", "4294967295", "4294967296", "root", "", "00"] {
            let error = instead(flag, value);
            assert!(error.starts_with(flag) && error.contains("never 0"), "{error}");
        }
    }
}

#[test]
fn paths_are_checked() {
    assert!(instead("--exec-file", "/").contains("path of a file"));
    assert!(instead("--exec-file", "/opt/..").contains("path of a file"));
    for base in ["relative", "", "/a/../b"] {
        assert!(
            with(&["--chroot-base-dir", base]).unwrap_err().to_string().contains("absolute path without ..")
        );
    }
    for parent in ["", "/", "/a", "a//b", "..", "a/../b", "a/."] {
        assert!(
            with(&["--parent-cgroup", parent]).unwrap_err().to_string().contains("--parent-cgroup"),
            "{parent}"
        );
    }
}

#[test]
fn wrong_use_is_one_line() {
    for words in [&["--frobnicate"][..], &["stray"], &["--id"], &["--uid", "1", "--cgroup-version", "3"]] {
        let error = with(words).unwrap_err().to_string();
        assert_eq!(error.lines().count(), 1, "{error}");
    }
    assert!(matches!(parse(&LEAST[2..]), Err(ArgsError::Missing("id"))));
    assert!(matches!(parse(&LEAST[..6]), Err(ArgsError::Missing("exec-file"))));
    assert!(matches!(with(&["--help"]), Err(ArgsError::Asked(_))));
    assert!(matches!(with(&["--version"]), Err(ArgsError::Asked(_))));
    assert!(matches!(with(&["--new-pid-ns"; 300]), Err(ArgsError::TooMany(_))));
}

#[test]
fn bytes_that_are_no_text_are_named() {
    use std::os::unix::ffi::OsStringExt;
    let words = [OsString::from("--id"), OsString::from_vec(vec![b'a', 0xff])];
    assert!(Args::parse(words, ROOT).unwrap_err().to_string().contains("UTF-8"));
}

#[test]
fn a_volume_has_two_descriptors_and_no_user() {
    let least = ["--id", "a-1", "--exec-file", "/opt/husk-fs", "--volume-fd", "5", "--volume-socket-fd", "6"];
    let args = parse(&least).unwrap();
    let volume = VolumeArgs { directory: 5, socket: 6, writable: false };
    assert_eq!((args.volume, args.uid, args.gid), (Some(volume), 0, 0));
    let words = [&least[..], &["--volume-writable", "--", "rw"]].concat();
    let args = parse(&words).unwrap();
    assert!(args.volume.is_some_and(|volume| volume.writable));
    assert_eq!(args.argv, ["husk-fs", "rw"]);
    for (more, flag) in [(["--uid", "7"], "uid"), (["--gid", "7"], "gid"), (["--netns", "/n"], "netns")] {
        let error = parse(&[&least[..], &more].concat()).unwrap_err().to_string();
        assert_eq!(error, format!("--{flag} cannot be given with --volume-fd"));
    }
    assert!(parse(&least[..6]).unwrap_err().to_string().contains("--volume-socket-fd is missing"));
    assert!(with(&["--volume-writable"]).unwrap_err().to_string().contains("--volume-fd is missing"));
    assert!(with(&["--volume-socket-fd", "6"]).unwrap_err().to_string().contains("--volume-fd is missing"));
    for bad in ["2", "-1", "x", "65536"] {
        let words = [&["--volume-fd", bad][..], &least[..4], &least[6..]].concat();
        assert!(parse(&words).unwrap_err().to_string().contains("a descriptor from 3 to 65535"), "{bad}");
    }
}

#[test]
fn a_network_has_a_socket_and_a_user_and_is_told_nothing_of_the_control_socket() {
    let args = with(&["--network-socket-fd", "6", "--control-fd", "5", "--", "-f"]).unwrap();
    assert_eq!((args.network, args.control_fd), (Some(6), Some(5)));
    assert_eq!(args.argv[1..], ["-f"]);
    for (flag, value) in [("netns", Some("/run/netns/x")), ("daemonize", None), ("volume-fd", Some("7"))] {
        let flag_word = format!("--{flag}");
        let mut words = vec!["--network-socket-fd", "6", &flag_word];
        words.extend(value);
        let error = with(&words).unwrap_err().to_string();
        assert!(error.contains("cannot be given with") || error.contains("is missing"), "{error}");
    }
    assert!(with(&["--network-socket-fd", "2"]).unwrap_err().to_string().starts_with("--network-socket-fd"));
}

#[test]
fn without_root_the_user_is_the_caller() {
    let caller = Caller { uid: 1000, gid: 100 };
    let parse = |more: &[&str]| {
        let least = ["--id", "a-1", "--exec-file", "/opt/husk-runtime"];
        Args::parse(least.iter().chain(more).map(OsString::from), caller)
    };
    for more in [
        &[][..],
        &["--uid", "1000", "--gid", "100"],
        &["--volume-fd", "5", "--volume-socket-fd", "6"],
        &["--network-socket-fd", "6"],
    ] {
        let args = parse(more).unwrap();
        assert_eq!((args.uid, args.gid, args.caller), (1000, 100, caller), "{more:?}");
    }
    for (flag, value, allowed) in
        [("--uid", "1", "only 1000"), ("--gid", "1000", "only 100"), ("--netns", "/x", "none can be joined")]
    {
        let error = parse(&[flag, value]).unwrap_err().to_string();
        assert!(error.starts_with(flag) && error.contains(value) && error.contains(allowed), "{error}");
    }
}

#[test]
fn isolation_is_strict_or_what_can_be_had() {
    assert_eq!(with(&["--isolation", "best-effort"]).unwrap().isolation, Isolation::BestEffort);
    assert_eq!(with(&["--isolation=strict"]).unwrap().isolation, Isolation::Strict);
    let error = with(&["--isolation", "none"]).unwrap_err().to_string();
    assert_eq!(error, "--isolation \"none\": strict or best-effort is allowed");
}

#[test]
fn firecrackers_layout_has_firecrackers_defaults() {
    let args = with(&["--layout", "firecracker", "--new-pid-ns", "--", "--config-file", "x"]).unwrap();
    assert_eq!(args.layout, Layout::Firecracker { copy: false, new_pid: true });
    assert_eq!(args.chroot_base_dir, Some("/srv/jailer".into()));
    assert_eq!(args.parent_cgroup, ["husk-runtime"]);
    assert!(args.limits.iter().any(|limit| (limit.name(), limit.value()) == ("no-file", 2048)));
    assert_eq!(args.argv, ["husk-runtime", "--id", "a-1", "--config-file", "x"]);
    let told = ["--layout=firecracker", "--copy-binary", "--parent-cgroup=a/b", "--resource-limit=no-file=9"];
    let args = with(&[&told[..], &["--chroot-base-dir", "/x"]].concat()).unwrap();
    assert_eq!(args.layout, Layout::Firecracker { copy: true, new_pid: false });
    assert_eq!((args.chroot_base_dir, args.parent_cgroup), (Some("/x".into()), vec!["a".into(), "b".into()]));
    assert!(args.limits.iter().any(|limit| (limit.name(), limit.value()) == ("no-file", 9)));
    assert_eq!(with(&["--layout", "empty", "--new-pid-ns"]).unwrap().layout, Layout::Empty);
}

#[test]
fn firecrackers_layout_is_refused_where_it_cannot_be() {
    let error = |words: &[&str]| with(words).unwrap_err().to_string();
    assert_eq!(error(&["--layout", "full"]), "--layout \"full\": empty or firecracker is allowed");
    assert_eq!(error(&["--copy-binary"]), "--layout firecracker is missing");
    for (flag, value) in [("control-fd", "7"), ("network-socket-fd", "7")] {
        let word = format!("--{flag}");
        let said = error(&["--layout", "firecracker", &word, value]);
        assert_eq!(said, format!("--{flag} cannot be given with --layout firecracker"));
    }
    let words = ["--id", "x", "--exec-file", "/opt/x", "--layout", "firecracker"].map(OsString::from);
    let error = Args::parse(words, Caller { uid: 7, gid: 7 }).unwrap_err().to_string();
    assert!(error.contains("only empty is possible") && error.contains("not started as root"), "{error}");
    assert!(instead("--id", "../x").contains("--id"), "checked in whatever layout");
}

#[test]
fn the_order_of_flags_is_the_callers() {
    let flags = [
        &["--id", "a"][..],
        &["--daemonize"],
        &["--uid=7"],
        &["--exec-file", "/opt/p"],
        &["--new-pid-ns"],
        &["--gid", "8"],
        &["--layout=firecracker"],
        &["--cgroup", "pids.max=9"],
        &["--cgroup-version", "2"],
        &["--netns", "/n"],
    ];
    let expected = parse(&flags.concat()).unwrap();
    for turn in 1..flags.len() {
        let turned: Vec<_> = flags.iter().cycle().skip(turn).take(flags.len()).copied().collect();
        assert_eq!(parse(&turned.concat()).unwrap(), expected, "{turned:?}");
    }
}

#[test]
fn what_may_have_been_meant_is_named() {
    let error = |word: &str| with(&[word, "x"]).unwrap_err().to_string();
    assert!(error("--chroot-base").contains("did you mean --chroot-base-dir?"), "{}", error("--chroot-base"));
    assert!(error("--api-sock").contains("goes behind --"), "{}", error("--api-sock"));
}

#[test]
fn a_pool_is_an_absolute_directory_and_without_root_a_sandboxs_alone() {
    assert_eq!(with(&["--pool", "/run/husk/ns"]).unwrap().pool, Some("/run/husk/ns".into()));
    for path in ["ns", "/run/../ns", "/", ""] {
        let error = with(&["--pool", path]).unwrap_err().to_string();
        assert_eq!(error, format!("--pool {path:?}: an absolute path without .. is expected"));
    }
    for other in ["--volume-fd=5 --volume-socket-fd=6", "--network-socket-fd=5"] {
        let words = format!("--id x --exec-file /opt/x --pool /run/husk/ns {other}");
        let parse = |uid| Args::parse(words.split(' ').map(OsString::from), Caller { uid, gid: uid });
        let error = parse(7).unwrap_err().to_string();
        let flag = other.split('=').next().unwrap();
        assert_eq!(
            error,
            format!(
                "--pool \"/run/husk/ns\": none is possible with {flag}, for the jailer was not started as root"
            )
        );
    }
    for other in
        [&["--chroot-base-dir", "/x"][..], &["--network-socket-fd", "5"], &["--layout", "firecracker"]]
    {
        assert!(with(&[&["--pool", "/run/husk/ns"], other].concat()).unwrap().pool.is_some(), "{other:?}");
    }
}
