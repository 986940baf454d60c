use super::*;
use crate::args::ArgsError;

const ROOT: Caller = Caller { uid: 0, gid: 0 };

fn planned(more: &[&str]) -> Plan {
    let least =
        ["--id", "x", "--uid", "5", "--gid", "6", "--exec-file", "/opt/prog", "--layout", "firecracker"];
    let words = least.iter().chain(more).map(OsString::from);
    Plan::from(&Args::parse(words, ROOT).unwrap())
}

fn place(plan: &Plan, wanted: &Step) -> Option<usize> {
    plan.steps().iter().position(|step| step == wanted)
}

fn names(plan: &Plan) -> Vec<String> {
    let name = |step: &Step| {
        let text = format!("{step:?}");
        let text = text.strip_prefix("Chroot(").unwrap_or(&text);
        text.split(['(', ' ', ')']).next().unwrap().to_owned()
    };
    plan.steps().iter().map(name).collect()
}

#[test]
fn the_order_is_this() {
    let expected = [
        "OpenProgram",
        "Directory",
        "MakeCgroups",
        "TakeRoot",
        "Namespaces",
        "Hostname",
        "Mounts",
        "PidFile",
        "CoreScheduling",
        "EnterCgroups",
        "CgroupNamespace",
        "Enter",
        "HandOver",
        "KeepStandard",
        "ResetSignals",
        "Limit",
        "Limit",
        "DropBoundingSet",
        "BecomeUser",
        "DropCapabilities",
        "NoNewPrivileges",
        "Landlock",
        "Execute",
    ];
    assert_eq!(names(&planned(&[])), expected);
    let mut with_pool = expected.to_vec();
    with_pool.insert(4, "EnterPool");
    assert_eq!(names(&planned(&["--pool", "/run/husk/ns"])), with_pool);
}

#[test]
fn each_flag_has_its_step() {
    let plan = planned(&["--daemonize", "--new-pid-ns", "--copy-binary", "--netns", "/n"]);
    let at = |step: Step| place(&plan, &step).unwrap();
    let chroot = |step| at(Step::Chroot(step));
    let order = [
        at(Step::OpenNull),
        at(Step::OpenNetns("/n".into())),
        at(Step::JoinNetns),
        chroot(ChrootStep::CopyProgram("prog".into())),
        chroot(ChrootStep::Namespaces),
        chroot(ChrootStep::Enter),
        chroot(ChrootStep::Detach),
        chroot(ChrootStep::HandOver { new_pid: true, detached: true }),
        chroot(ChrootStep::KeepStandard { null: true }),
    ];
    assert!(order.is_sorted(), "{order:?}");
    let plain = planned(&[]);
    assert!(place(&plain, &Step::OpenNull).is_none(), "the standard streams are the caller's");
    assert!(place(&plain, &Step::JoinNetns).is_none(), "the network is the caller's, as Firecracker's");
    assert!(place(&plain, &Step::DieWithParent).is_none(), "its caller may go");
    assert!(place(&plain, &Step::Umask).is_none());
}

#[test]
fn a_given_parent_cgroup_is_entered_itself_with_version_2_and_no_limit_alone() {
    let given = |more: &[&str]| names(&planned(more)).contains(&"FindParentCgroup".to_owned());
    assert!(given(&["--cgroup-version", "2"]) && given(&["--cgroup-version", "2", "--parent-cgroup", "a"]));
    assert!(!given(&[]) && !given(&["--cgroup-version", "1"]));
    assert!(!given(&["--cgroup-version", "2", "--cgroup", "pids.max=9"]));
}

#[test]
fn privileges_are_used_before_they_are_given_up() {
    let plan = planned(&["--daemonize", "--new-pid-ns", "--copy-binary", "--netns", "/n"]);
    let dropped = place(&plan, &Step::DropBoundingSet).unwrap();
    let user = place(&plan, &Step::BecomeUser { uid: 5, gid: 6 }).unwrap();
    let capabilities = place(&plan, &Step::DropCapabilities).unwrap();
    assert!(dropped < user && user < capabilities);
    let behind: Vec<_> = names(&plan).split_off(dropped);
    let expected =
        ["DropBoundingSet", "BecomeUser", "DropCapabilities", "NoNewPrivileges", "Landlock", "Execute"];
    assert_eq!(behind, expected);
}

#[test]
fn a_jailer_is_firecrackers_unless_it_is_told_otherwise() {
    let called = |words: &[&str]| called(words.iter().map(OsString::from));
    assert_eq!(called(&["/usr/bin/jailer", "--id", "x"]), ["--layout", "firecracker", "--id", "x"]);
    assert_eq!(called(&["jailer", "--", "--layout", "x"])[..2], ["--layout", "firecracker"]);
    for (words, rest) in [
        (&["husk-jailer", "--id", "x"][..], &["--id", "x"][..]),
        (&["jailer", "--layout", "empty"], &["--layout", "empty"]),
        (&["jailer", "--layout=empty"], &["--layout=empty"]),
        (&[], &[]),
    ] {
        assert_eq!(called(words), rest);
    }
    let error = Args::parse(called(&["jailer", "--uid", "0"]), ROOT).unwrap_err();
    assert!(matches!(error, ArgsError::Number { flag: "uid", .. }), "{error}");
}

#[test]
fn the_programs_name_is_that_of_the_file_behind_the_path() {
    let layout = Layout::Firecracker { copy: false, new_pid: false };
    assert_eq!(layout.program("/proc/self/exe".into()), std::env::current_exe().unwrap());
    assert_eq!(Layout::Empty.program("/proc/self/exe".into()), Path::new("/proc/self/exe"));
    assert_eq!(layout.program("/nonesuch/x".into()), Path::new("/nonesuch/x"));
}
