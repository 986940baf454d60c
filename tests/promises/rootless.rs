//! Whoever is not root gets the same sandbox: as himself, without a program that would make him root, and with nothing left.

use crate::cgroups::share;
use crate::jail::none;
use crate::net::{BODY_BYTES, Server, fetch};
use crate::net_user::Uplink;
use husk_tests::alive::Alive;
use husk_tests::attempts::{Wall, all};
use husk_tests::cell::{Ending, in_cell};
use husk_tests::footprint::Footprint;
use husk_tests::ordinary::{Ordinary, UID};
use husk_tests::processes;
use husk_tests::rootfs::{self, sibling};
use husk_tests::skip;
use rustix::process::Signal;
use std::collections::BTreeSet;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

const NEEDS: &str = "needs cgroup v2 with the controllers memory and pids";

#[test]
fn uid_0_is_never_used() {
    let Some(him) = Ordinary::new() else { skip!("{NEEDS}") };
    let shared = him.path("home/shared");
    std::fs::create_dir(&shared).unwrap();
    std::fs::write(shared.join("file"), "what he wrote\n").unwrap();
    std::fs::set_permissions(shared.join("file"), PermissionsExt::from_mode(0o600)).unwrap();
    him.own(&shared);
    him.own(&shared.join("file"));
    // Root's, and nobody else's to read.
    std::fs::write(shared.join("roots"), "x").unwrap();
    std::fs::set_permissions(shared.join("roots"), PermissionsExt::from_mode(0o600)).unwrap();
    let before = Footprint::now();
    let volume = format!("{}:/data:rw", shared.display());
    let script = "cat /data/file; stat -c %u:%g /data/file /data/roots; cat /data/roots; echo new > /data/new; \
                  chown 5:6 /data/new; stat -c %u /data/new; sleep 1";
    let watch = him.watch();
    let husk = him.husk(["run", "--json", "--volume", &volume, "--", "sh", "-c", script]);
    let outcome = husk.output().expect_status(0);
    let seen = watch.end();
    let text = outcome.text();
    assert_eq!(text, "what he wrote\n0:0\n65534:65534\n0\n", "{}", outcome.stderr);
    assert_eq!(
        outcome.stderr.matches("ermi").count(),
        2,
        "roots' file and another's name: {}",
        outcome.stderr
    );
    let result = outcome.json();
    assert_eq!(result["isolation"], serde_json::json!({"user": "caller", "missing": []}), "{result}");
    assert!(
        result["resources"]["host_peak_memory_bytes"].as_u64().is_some_and(|bytes| bytes > 1 << 20),
        "{result}"
    );
    for process in &seen {
        let his = format!("{UID}\t{UID}\t{UID}\t{UID}");
        assert_eq!((&process.uids, &process.gids, process.strict.as_str()), (&his, &his, "1"), "{process:?}");
    }
    for name in ["husk", "husk-control", "husk-fs-rw"] {
        assert!(seen.iter().any(|process| process.name == name), "no {name} among {seen:#?}");
    }
    assert_eq!(std::fs::metadata(shared.join("new")).unwrap().uid(), UID);
    std::fs::set_permissions(&shared, PermissionsExt::from_mode(0o777)).unwrap();
    let script = "echo more > /data/more && stat -c %u /data/more";
    let husk = him.husk(["run", "--user", "1000:1000", "--volume", &volume, "--", "sh", "-c", script]);
    assert_eq!(
        husk.output().expect_status(0).text(),
        "0\n",
        "any user's file is his, whom the guest calls root"
    );
    // Where husk was before it made room for sandboxes: in a real session with the caller's shell.
    assert_eq!(him.cgroups().into_iter().collect::<Vec<_>>(), ["husk-callers"]);
    // The process that holds his namespaces is there, until it is told to end.
    him.husk(["gc", "--all"]).output().expect_status(0);
    std::fs::remove_dir(format!("/sys/fs/cgroup/husk-test-{}/husk-callers", std::process::id())).unwrap();
    before.assert_restored();
}

#[test]
fn no_attempt_succeeds_in_the_cell_without_root() {
    let Some(him) = Ordinary::new() else { skip!("{NEEDS}") };
    let probe = him.path("husk-probe");
    std::fs::copy(sibling("husk-probe"), &probe).unwrap();
    him.own(&probe);
    std::os::unix::fs::symlink("/bin/sleep", him.path("sleep")).unwrap();
    // The victim is his as well: nothing but the cell keeps them apart.
    let mut world = Alive::with_victim(him.command("sleep", false));
    let parent = format!("husk-test-{}", std::process::id());
    let mut wrong = Vec::new();
    let cell = all().filter(|attempt| attempt.wall == Wall::Cell).map(|attempt| (None, attempt));
    let filters = all().filter(|attempt| attempt.wall == Wall::Filter).map(|attempt| (Some("vcpu"), attempt));
    for (role, attempt) in cell.chain(filters) {
        let mut jailer = him.command("husk-jailer", true);
        jailer.args(["--parent-cgroup", &parent, "--exec-file"]).arg(&probe);
        let id = format!("probe-{}", attempt.name);
        let ending = in_cell(jailer, &id, &world, attempt.name, role);
        let held = matches!(ending, Ending::Denied(_)) || role.is_some() && ending == Ending::Trapped;
        if !held {
            wrong.push(format!("{role:?} {}: {ending:?}", attempt.name));
        }
        std::fs::remove_dir(format!("/sys/fs/cgroup/{parent}/{id}")).unwrap();
    }
    none("attempts that neither the cell nor the filter denies", wrong);
    assert!(world.is_unharmed().unwrap());
}

#[test]
fn what_is_not_delegated_is_refused_by_name_or_reported() {
    let Some(him) = Ordinary::new() else { skip!("{NEEDS}") };
    let outcome = him.husk_undelegated(["run", "--", "true"]).output().expect_status(125);
    assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
    for word in
        ["is not delegated to user 54500", "systemd-run --user --scope -p Delegate=yes", "best-effort"]
    {
        assert!(outcome.stderr.contains(word), "{word}: {}", outcome.stderr);
    }
    let before = Footprint::now();
    let command = ["run", "--isolation", "best-effort", "--", "echo", "hi"];
    let outcome = him.husk_undelegated(command).output().expect_status(0);
    assert_eq!(outcome.text(), "hi\n");
    assert!(
        outcome.stderr.starts_with("husk: the sandbox is without cgroup (cgroup /"),
        "{}",
        outcome.stderr
    );
    assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
    before.assert_restored();
}

#[test]
fn a_killed_husk_leaves_what_gc_removes() {
    let Some(him) = Ordinary::new() else { skip!("{NEEDS}") };
    let husk = him.husk(["run", "--", "sh", "-c", "echo up; sleep 1000"]).spawn().up();
    let listed = him.husk(["ps", "--json"]).output().expect_status(0).text();
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert_eq!((&listed[0]["uid"], listed.as_array().unwrap().len()), (&UID.into(), 1), "{listed}");
    assert_eq!(him.cgroups().len(), 3, "{:?}", him.cgroups());
    husk.signal(Signal::KILL);
    assert_eq!(husk.finish().status, 1009);
    let deadline = Instant::now() + Duration::from_secs(5);
    while !processes::named("husk-control").is_empty() {
        assert!(Instant::now() < deadline, "the runtime outlives husk");
        std::thread::sleep(Duration::from_millis(10));
    }
    // From anywhere: where the cgroup is stands in the state.
    him.husk_undelegated(["gc"]).output().expect_status(0);
    assert_eq!(him.cgroups().into_iter().collect::<Vec<_>>(), ["husk-callers"]);
    let left = |name: &str| -> BTreeSet<_> {
        let entries = std::fs::read_dir(him.path("runtime/husk").join(name)).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    assert_eq!(left("sandboxes"), BTreeSet::new());
    assert_eq!(left(""), BTreeSet::from(["ns", "sandboxes"].map(str::to_owned)));
    // And what is ready for the next one.
    him.husk_undelegated(["gc", "--all"]).output().expect_status(0);
    assert_eq!(left(""), BTreeSet::from(["sandboxes".to_owned()]));
    assert_eq!(him.husk(["ps", "--json"]).output().expect_status(0).text().trim(), "[]");
}

#[test]
fn husk_kill_ends_a_sandbox_of_ones_own() {
    let Some(him) = Ordinary::new() else { skip!("{NEEDS}") };
    let husk = him.husk(["run", "--id", "own", "--", "sh", "-c", "echo up; sleep 1000"]).spawn().up();
    him.husk(["kill", "--signal", "KILL", "own"]).output().expect_status(0);
    assert_ne!(husk.finish().status, 0);
    assert_eq!(him.cgroups().into_iter().collect::<Vec<_>>(), ["husk-callers"]);
}

#[test]
fn item_30_a_device_that_is_not_his_is_named() {
    let Some(him) = Ordinary::new() else { skip!("{NEEDS}") };
    // A device that only root may open in the place of /dev/kvm, for this husk alone.
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "sh", "-c", "mount --bind /dev/mem /dev/kvm && exec setpriv \"$@\"", "sh"]);
    unshare.args([
        "--reuid",
        &UID.to_string(),
        "--regid",
        &UID.to_string(),
        "--clear-groups",
        "--no-new-privs",
    ]);
    unshare.arg(him.path("husk")).args(["run", "--", "true"]).env("XDG_RUNTIME_DIR", him.path("runtime"));
    unshare.process_group(0);
    let outcome = husk_tests::husk::Husk::from_command(unshare).output().expect_status(125);
    let line = "husk: no permission to open /dev/kvm; it is root's alone here";
    assert!(outcome.stderr.starts_with(line), "{}", outcome.stderr);
}

#[test]
fn a_network_in_user_mode_is_his_as_well() {
    let Some(him) = Ordinary::new() else { skip!("{NEEDS}") };
    let (_uplink, server) = (Uplink::new("husk-user", "10.77.13"), Server::new());
    let before = Footprint::now();
    let root = rootfs::busybox_and_tool(&him.path("home"));
    let (root, rule) = (root.display().to_string(), format!("10.77.13.1:{}", server.port));
    let watch = him.watch();
    let script = format!("{} && sleep 1", fetch("10.77.13.1", server.port));
    let command =
        ["run", "--json", "--rootfs", &root, "--net", "user", "--allow", &rule, "--", "sh", "-c", &script];
    let outcome = him.husk(command).output().expect_status(0);
    let seen = watch.end();
    assert_eq!(outcome.text().trim(), BODY_BYTES.to_string(), "{}", outcome.stderr);
    assert_eq!(server.asked.load(Ordering::SeqCst), 1);
    let passt = seen.iter().find(|process| process.name.starts_with("passt")).expect("passt ran");
    let his = format!("{UID}\t{UID}\t{UID}\t{UID}");
    assert_eq!((&passt.uids, passt.strict.as_str()), (&his, "1"), "{passt:?}");
    // The process that holds his namespaces is there, until it is told to end.
    him.husk(["gc", "--all"]).output().expect_status(0);
    std::fs::remove_dir(format!("/sys/fs/cgroup/husk-test-{}/husk-callers", std::process::id())).unwrap();
    before.assert_restored();
}

#[test]
fn limits_hold_without_root_and_change_while_it_runs() {
    let Some(him) = Ordinary::new() else { skip!("{NEEDS}") };
    let options =
        ["run", "--id", "mine", "--limit", "pids.max=40", "--", "sh", "-c", "echo up; while :; do :; done"];
    let husk = him.husk(options).spawn().up();
    let cgroup = him.cgroups().into_iter().find(|path| path.ends_with("/mine")).unwrap();
    let cgroup = format!("/sys/fs/cgroup/husk-test-{}/{cgroup}", std::process::id());
    let read = |name: &str| std::fs::read_to_string(format!("{cgroup}/{name}")).unwrap().trim().to_owned();
    assert_eq!((read("pids.max").as_str(), read("memory.swap.max").as_str()), ("40", "0"));
    // The controller of processors was not handed down so far.
    let update =
        |limits: [&str; 2]| him.husk(["update", "mine", "--limit", limits[0], "--limit", limits[1]]).output();
    update(["cpu.max=20%", "memory.high=300M"]).expect_status(0);
    let held = share(processes::named("husk-control")[0]);
    assert!((0.1..0.3).contains(&held), "{held} of a CPU with a quota of 0.2");
    let refused = update(["cpu.max=40%", "cpuset.cpus=4000"]).expect_status(125);
    assert!(
        refused.stderr.contains("cpuset.cpus") && refused.stderr.contains("no limit was changed"),
        "{}",
        refused.stderr
    );
    assert_eq!((read("cpu.max").as_str(), read("memory.high").as_str()), ("20000 100000", "314572800"));
    husk.terminate();
    assert_eq!(him.cgroups().into_iter().collect::<Vec<_>>(), ["husk-callers"]);
}
