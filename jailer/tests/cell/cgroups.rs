//! Hierarchies as hosts have them, of version 1, version 2 and both: what they refuse is named, and nothing is left.

use crate::refuses;
use crate::start::{PARENT, World, cgroups, finish, holds, start};
use husk_protocol::control::Fault;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where hierarchies are mounted.
fn mounts() -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mounted = table.lines().filter_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        right.starts_with("cgroup").then(|| PathBuf::from(left.split(' ').nth(4).unwrap()))
    });
    mounted.collect()
}

#[test]
fn item_28_a_missing_controller_is_named_or_done_without_where_that_was_said() {
    let Some(world) =
        World::new("cgroups::item_28_a_missing_controller_is_named_or_done_without_where_that_was_said")
    else {
        return;
    };
    let words = ["nonesuch", "nonesuch.max", "not offered"];
    refuses(
        &world,
        "absent",
        &["--cgroup", "pids.max=20", "--cgroup", "nonesuch.max=1"],
        &words,
        Fault::Host,
    );
    // Memory is where it is: the other version does not have it.
    let two = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let other = if two { "1" } else { "2" };
    if two || Path::new("/sys/fs/cgroup/memory/tasks").exists() {
        let arguments = ["--cgroup-version", other, "--cgroup", "memory.max=64M"];
        refuses(
            &world,
            "absent",
            &arguments,
            &["memory", "not offered", &format!("version {other}")],
            Fault::Host,
        );
    }
    let optional = ["--cgroup", "pids.max=20", "--cgroup", "nonesuch.max?=1", "--cgroup", "pids.nonesuch?=1"];
    let outcome = world.run("without", &optional, &[]);
    assert!(outcome.status.success(), "{outcome:?}");
    assert!(cgroups("without").iter().any(|path| holds(path, "pids.max", "20")));
    assert!(world.remove("without"));
}

#[test]
fn item_28_a_read_only_hierarchy_is_named_and_nothing_is_left() {
    let Some(world) = World::new("cgroups::item_28_a_read_only_hierarchy_is_named_and_nothing_is_left")
    else {
        return;
    };
    // The parent is there: what is refused is the sandbox's own.
    assert!(world.run("before", &["--cgroup", "pids.max=20"], &[]).status.success());
    assert!(world.remove("before"));
    for mount in mounts().into_iter().filter(|mount| mount.join(PARENT).exists()) {
        let jailer = world.jailer("locked");
        let mut shell = Command::new("unshare");
        // A mount of the shell's own over the host's, and the jailer in the shell's place.
        let script = "mount --bind \"$0\" \"$0\" && mount -o remount,bind,ro \"$0\" && exec \"$@\"";
        shell
            .args(["--mount", "sh", "-c", script])
            .arg(&mount)
            .arg(jailer.get_program())
            .args(jailer.get_args());
        shell.args(["--cgroup", "pids.max=20", "--"]).stderr(std::process::Stdio::piped());
        let (control, child) = start(shell);
        let outcome = finish(&control, child);
        assert_eq!(outcome.status.code(), Some(1), "{}: {outcome:?}", mount.display());
        let named = format!("{}/{PARENT}/locked: Read-only file system", mount.display());
        assert!(outcome.complaint.contains(&named), "{outcome:?}");
        assert!(cgroups("locked").is_empty(), "{:?}", cgroups("locked"));
    }
    assert!(world.remove("locked"));
}

#[test]
fn item_28_an_id_that_exists_in_one_hierarchy_is_refused_and_stays() {
    let Some(world) = World::new("cgroups::item_28_an_id_that_exists_in_one_hierarchy_is_refused_and_stays")
    else {
        return;
    };
    let limits = ["--cgroup", "pids.max=20", "--cpus=0"];
    assert!(world.run("taken", &limits, &[]).status.success());
    let all = cgroups("taken");
    assert!(world.remove("taken"));
    for path in &all {
        std::fs::create_dir(path).unwrap();
        let outcome = world.run("taken", &limits, &[]);
        assert_eq!(outcome.status.code(), Some(1), "{outcome:?}");
        assert!(outcome.complaint.contains(&format!("{}: exists already", path.display())), "{outcome:?}");
        assert_eq!(
            cgroups("taken"),
            std::slice::from_ref(path),
            "what was there stays, and nothing else does"
        );
        std::fs::remove_dir(path).unwrap();
    }
    assert!(world.remove("taken"));
}

#[test]
fn item_28_a_limit_that_cannot_be_set_leaves_no_cgroup_of_any_hierarchy() {
    let Some(world) =
        World::new("cgroups::item_28_a_limit_that_cannot_be_set_leaves_no_cgroup_of_any_hierarchy")
    else {
        return;
    };
    let limits = |last| ["--cpus=0", "--cgroup", "pids.max=20", "--cgroup", last];
    for last in ["pids.nonesuch=1", "cpuset.mems=4000"] {
        let (file, _) = last.split_once('=').unwrap();
        refuses(&world, "unset", &limits(last), &[file], Fault::Operator);
    }
    refuses(
        &world,
        "unset",
        &["--cgroup", "pids.max=-7"],
        &["pids.max", "\"-7\"", "Invalid argument"],
        Fault::Operator,
    );
    let outcome = world.run(
        "lenient",
        &["--isolation", "best-effort", "--cgroup", "pids.max=20", "--cgroup", "pids.nonesuch=1"],
        &[],
    );
    assert!(outcome.status.success(), "{outcome:?}");
    assert!(cgroups("lenient").iter().any(|path| holds(path, "pids.max", "20")), "the others hold");
    assert!(world.remove("lenient"));
}
