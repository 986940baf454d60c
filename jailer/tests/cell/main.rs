//! The cell, built by the jailer's binary and described from inside by a witness. Needs root and cgroups; a machine
//! without is named as skipped.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test ends at its first surprise")]

mod beside;
mod cgroups;
mod layout;
mod obstacles;
mod pool;
mod rootless;
mod start;

use husk_protocol::control::{Fault, FromCell, Stage};
use serde_json::json;
use start::{GROUP, PARENT, USER, World, agree, cgroups, finish, hear, holds, inherited, reap, start};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

#[test]
fn a_cell_is_what_the_documentation_says() {
    let Some(world) = World::new("a_cell_is_what_the_documentation_says") else { return };
    let outcome = world.run("a-cell", &[], &["--word"]);
    assert!(outcome.status.success(), "{outcome:?}");
    let expected = json!({
        "arguments": ["witness", "--control-fd", "3", "--word"],
        "environment": 0,
        "descriptors": [0, 1, 2, 3],
        "standard": [[1, 3], [1, 3], [1, 3]],
        "uids": [54321, 54321, 54321],
        "gids": [54322, 54322, 54322],
        "groups": 0,
        "capabilities": 0,
        "bounding": 0,
        "no_new_privs": true,
        "dies_with_parent": 9,
        "pid": 1,
        "parent": null,
        "session_is_own": true,
        "host": "a-cell",
        "core": 0,
        "files": 10240,
        "umask": 0o077,
        "root": 0,
        "above": 0,
        "directory": "/",
        "write": libc::EROFS,
        "make": libc::EROFS,
        "interfaces": [["lo", false]],
        "signals_not_default": [],
        "signals_blocked": 0,
    });
    agree(&outcome.seen, &expected);
    let mount = outcome.seen["mount"].as_str().unwrap();
    assert!(["RDONLY", "NOSUID", "NODEV", "NOEXEC"].iter().all(|flag| mount.contains(flag)), "{mount}");
    assert!(world.remove("a-cell"));
}

#[test]
fn a_volumes_cell_holds_the_volume_and_is_in_the_sandboxs_cgroup() {
    let Some(world) = World::new("a_volumes_cell_holds_the_volume_and_is_in_the_sandboxs_cgroup") else {
        return;
    };
    let shared = world.base.join("shared");
    std::fs::create_dir(&shared).unwrap();
    std::fs::write(shared.join("file"), "seven b").unwrap();
    let directory = inherited(std::fs::File::open(&shared).unwrap());
    let socket = inherited(UnixStream::pair().unwrap().0);
    let (control, child) = start(world.volume_jailer("beside", &directory, &socket));
    let early = finish(&control, child);
    assert!(!early.status.success() && early.complaint.contains("No such file"), "{early:?}");
    assert!(world.run("beside", &[], &[]).status.success());
    for (flag, write, capabilities) in
        [(None, json!(libc::EROFS), 0x4_0004), (Some(()), json!(null), 0x4_00cf)]
    {
        let mut command = world.volume_jailer("beside", &directory, &socket);
        command.args(flag.map(|()| "--volume-writable"));
        let (control, child) = start(command);
        let outcome = finish(&control, child);
        assert!(outcome.status.success(), "{outcome:?}");
        let expected = json!({
            "environment": 0,
            "descriptors": [0, 1, 2, 3, 4],
            "uids": [0, 0, 0],
            "gids": [0, 0, 0],
            "groups": 0,
            "capabilities": capabilities,
            "no_new_privs": true,
            "dies_with_parent": 9,
            "pid": 1,
            "session_is_own": true,
            "host": "beside",
            "core": 0,
            "root": 2,
            "above": 2,
            "directory": "/",
            "volume": 7,
            "volume_write": write,
            "write": libc::EROFS,
            "make": libc::EROFS,
            "interfaces": [["lo", false]],
        });
        agree(&outcome.seen, &expected);
    }
    assert!(shared.join("new").exists(), "the writable one was the directory itself");
    assert!(world.remove("beside"));
}

#[test]
fn a_networks_cell_has_the_hosts_programs_and_network_and_no_privilege() {
    let Some(world) = World::new("a_networks_cell_has_the_hosts_programs_and_network_and_no_privilege")
    else {
        return;
    };
    assert!(world.run("linked", &[], &[]).status.success());
    let (socket, far) = UnixStream::pair().unwrap();
    let socket = inherited(socket);
    let script = "exec >&2; echo /*; echo /etc/* /tmp/*; echo /proc/self/fd/*; env | sort; hostname; \
                  for f in /x /usr/x /tmp/x /etc/resolv.conf; do (: >> $f) 2>&- && echo wrote $f; done; \
                  grep -E '^(Uid|Gid|Groups|CapEff|CapBnd|NoNewPrivs)' /proc/self/status; \
                  readlink /proc/self/ns/net; echo said >&4";
    let mut command = Command::new(env!("CARGO_BIN_EXE_husk-jailer"));
    command.args(["--id", "linked", "--uid", "54321", "--gid", "54322", "--control-fd", "3"]);
    command.args(["--parent-cgroup", PARENT, "--network-socket-fd", &socket.as_raw_fd().to_string()]);
    command.arg("--exec-file").arg(std::fs::canonicalize("/bin/sh").unwrap()).args(["--", "-c", script]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let (control, child) = start(command);
    drop(socket);
    let outcome = finish(&control, child);
    assert!(outcome.status.success(), "{outcome:?}");
    let network = std::fs::read_link("/proc/self/ns/net").unwrap();
    let system = ["/etc", "/lib", "/lib64", "/proc", "/tmp", "/usr"].map(|name| (name, Path::new(name)));
    let names: Vec<&str> = system
        .iter()
        .filter(|(name, path)| *name != "/lib64" || path.exists())
        .map(|(name, _)| *name)
        .collect();
    let resolvers = if Path::new("/etc/resolv.conf").exists() { "/etc/resolv.conf" } else { "/etc/*" };
    // 3 is the shell's own, of the directory that it lists: were the control socket there, it would be another number.
    let expected = format!(
        "{}\n{resolvers} /tmp/*\n/proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2 /proc/self/fd/3 /proc/self/fd/4\nPWD=/\nlinked\n\
         Uid:\t54321\t54321\t54321\t54321\nGid:\t54322\t54322\t54322\t54322\nGroups:\t \n\
         CapEff:\t0000000000000000\nCapBnd:\t0000000000000000\nNoNewPrivs:\t1\n{}\n",
        names.join(" "),
        network.display()
    );
    assert_eq!(outcome.complaint, expected);
    assert_eq!(std::io::read_to_string(far).unwrap(), "said\n");
    assert!(world.remove("linked"));
}

#[test]
fn the_stages_are_reported_in_the_protocols_words() {
    let Some(world) = World::new("the_stages_are_reported_in_the_protocols_words") else { return };
    let outcome = world.run("stages", &[], &[]);
    let at = |wanted: Stage| {
        outcome.messages.iter().find_map(|message| match message {
            FromCell::Stage { stage, at_ns } if *stage == wanted => Some(*at_ns),
            _ => None,
        })
    };
    let (jailer, jailed) = (at(Stage::Jailer).unwrap(), at(Stage::Jailed).unwrap());
    assert!(jailer < jailed);
    println!("jailer's main to execution: {} ns", jailed - jailer);
    assert!(outcome.messages.contains(&FromCell::Cloned { pid: outcome.pid.unwrap() }));
    assert_eq!(outcome.messages.len(), 3, "{outcome:?}");
    assert!(world.remove("stages"));
}

#[test]
fn limits_are_written_and_the_process_is_under_them() {
    let Some(world) = World::new("limits_are_written_and_the_process_is_under_them") else { return };
    let mut command = world.jailer("limits");
    command.args(["--cgroup", "pids.max=20", "--cpus=0", "--resource-limit", "no-file=64", "--", "--wait"]);
    let (ours, child) = start(command);
    let (mut pid, mut seen) = (0, serde_json::Value::Null);
    while seen.is_null() {
        let bytes = hear(&ours).expect("the witness speaks");
        match serde_json::from_slice(&bytes) {
            Ok(FromCell::Cloned { pid: named }) => pid = named,
            Ok(_) => {}
            Err(_) => seen = serde_json::from_slice(&bytes).unwrap(),
        }
    }
    assert_eq!(seen["files"], 64);
    let found = cgroups("limits");
    assert!(found.iter().any(|path| holds(path, "pids.max", "20")), "{found:?}");
    assert!(found.iter().any(|path| holds(path, "cpuset.cpus", "0")), "{found:?}");
    for path in &found {
        assert!(holds(path, "cgroup.procs", &pid.to_string()), "{}", path.display());
    }
    drop(ours);
    assert!(child.wait_with_output().unwrap().status.success());
    assert!(reap(pid));
    assert!(world.remove("limits"));
}

/// Starts with `arguments`, which must fail with one line that has all of `words`, and leave nothing.
fn refuses(world: &World, id: &str, arguments: &[&str], words: &[&str], fault: Fault) {
    let outcome = world.run(id, arguments, &[]);
    assert_eq!(outcome.status.code(), Some(1), "{outcome:?}");
    assert_eq!(outcome.complaint.lines().count(), 1, "{}", outcome.complaint);
    for word in words {
        assert!(outcome.complaint.contains(word), "{word} is not in {}", outcome.complaint);
    }
    let told = outcome.messages.iter().find_map(|message| match message {
        FromCell::Failed { fault, message } => Some((*fault, message.clone())),
        _ => None,
    });
    let (told, message) = told.expect("husk is told");
    assert_eq!(told, fault, "{message}");
    assert!(outcome.complaint.contains(&message));
    assert!(
        !world.jail(id).exists() && cgroups(id).is_empty(),
        "something of {id} is left: {:?}",
        cgroups(id)
    );
}

#[test]
fn what_cannot_be_is_refused_by_name_and_leaves_nothing() {
    let Some(world) = World::new("what_cannot_be_is_refused_by_name_and_leaves_nothing") else { return };
    let operator = Fault::Operator;
    refuses(
        &world,
        "x",
        &["--cgroup", "pids.max=banana"],
        &["pids.max", "banana", "Invalid argument"],
        operator,
    );
    refuses(&world, "x", &["--cgroup", "pids.none=1"], &["pids.none", "no such file"], operator);
    refuses(&world, "x", &["--cgroup", "nonesuch.max=1"], &["nonesuch", "not offered"], Fault::Host);
    refuses(&world, "x", &["--resource-limit", "files=1"], &["files", "no-file"], operator);
    refuses(&world, "x", &["--netns", "/proc/nonesuch"], &["/proc/nonesuch", "No such file"], operator);
    refuses(&world, "x", &["--frobnicate"], &["--frobnicate"], operator);
    refuses(&world, "x", &["--cgroup-version", "3"], &["cgroup-version", "1 or 2"], operator);
    let dynamic = std::env::var_os("SHELL").unwrap_or_else(|| "/bin/bash".into());
    let dynamic = std::fs::canonicalize(dynamic).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_husk-jailer"));
    command.args(["--id", "x", "--uid", USER, "--gid", GROUP, "--exec-file"]).arg(dynamic);
    let output =
        command.args(["--parent-cgroup", PARENT, "--chroot-base-dir"]).arg(&world.base).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("linked dynamically"), "{output:?}");
}

#[test]
fn a_cell_is_not_made_twice() {
    let Some(world) = World::new("a_cell_is_not_made_twice") else { return };
    let first = world.run("twice", &["--cgroup", "pids.max=20"], &[]);
    assert!(first.status.success(), "{first:?}");
    let (jails, groups) = (world.jail("twice"), cgroups("twice"));
    let again = world.run("twice", &["--cgroup", "pids.max=20"], &[]);
    assert!(again.complaint.contains("exists already"), "{again:?}");
    // What was there before stays: it is not the second one's to remove.
    assert!(jails.exists());
    assert_eq!(cgroups("twice"), groups);
    assert!(world.remove("twice"));
    std::fs::create_dir_all(jails).unwrap();
    let third = world.run("twice", &[], &[]);
    assert!(third.complaint.contains("jail") && third.complaint.contains("exists already"), "{third:?}");
    assert!(cgroups("twice").is_empty(), "the cgroups of a jail that could not be are left");
    assert!(world.remove("twice"));
}

#[test]
fn a_daemon_is_nobodys_child() {
    let Some(world) = World::new("a_daemon_is_nobodys_child") else { return };
    let mut command = world.jailer("daemon");
    command.args(["--daemonize"]);
    let (ours, child) = start(command);
    let outcome = finish(&ours, child);
    assert_eq!(outcome.seen["dies_with_parent"], serde_json::Value::Null, "{outcome:?}");
    assert!(!reap(outcome.pid.unwrap()), "it is our child");
    assert!(world.remove("daemon"));
}

#[test]
fn a_network_namespace_is_joined() {
    let Some(world) = World::new("a_network_namespace_is_joined") else { return };
    let outcome = world.run("netns", &["--netns", "/proc/self/ns/net"], &[]);
    assert!(outcome.status.success(), "{outcome:?}");
    let ours = std::fs::read_dir("/sys/class/net")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    for name in ours.filter(|name| std::path::Path::new("/sys/class/net").join(name).is_dir()).take(3) {
        assert!(outcome.seen["interfaces"].to_string().contains(&name), "{name} is not in {}", outcome.seen);
    }
    assert!(world.remove("netns"));
}

#[test]
fn a_cell_dies_with_its_parent() {
    let Some(world) = World::new("a_cell_dies_with_its_parent") else { return };
    let jailer = world.jailer("orphan");
    let mut shell = Command::new("/bin/sh");
    // The shell starts the jailer, so the cell is the shell's child.
    shell
        .args(["-c", "\"$0\" \"$@\" & wait; exec sleep 1000"])
        .arg(jailer.get_program())
        .args(jailer.get_args());
    shell.args(["--", "--wait"]).stderr(std::process::Stdio::null());
    let (ours, mut child) = start(shell);
    while let Some(bytes) = hear(&ours) {
        if serde_json::from_slice::<FromCell>(&bytes).is_err() {
            break;
        }
    }
    assert!(cgroups("orphan").iter().any(|path| !holds(path, "cgroup.procs", "")));
    child.kill().unwrap();
    child.wait().unwrap();
    // Its end of the socket closes when it is dead; the receive's own time limit is the deadline.
    assert!(hear(&ours).is_none());
    assert!(world.remove("orphan"));
}

#[test]
fn item_31_a_jailer_killed_at_any_moment_leaves_what_is_documented() {
    let Some(world) = World::new("item_31_a_jailer_killed_at_any_moment_leaves_what_is_documented") else {
        return;
    };
    let mut cut_short = 0;
    for round in 0..60_u64 {
        let mut command = world.jailer("killed");
        command.args(["--cgroup", "pids.max=20"]);
        let (ours, mut child) = start(command);
        std::thread::sleep(Duration::from_micros(round * 100));
        child.kill().unwrap();
        cut_short += u32::from(!child.wait().unwrap().success());
        // A cell that was cloned goes on by itself and ends; it is ours to reap even if nobody told us of it.
        while hear(&ours).is_some() {}
        while rustix::process::wait(rustix::process::WaitOptions::empty()).is_ok() {}
        assert!(world.remove("killed"), "round {round}: {:?}", cgroups("killed"));
    }
    println!("{cut_short} of 60 jailers were killed before their end");
    assert!(cut_short > 0);
}

#[test]
fn item_31_cells_one_after_another_leave_nothing() {
    let Some(world) = World::new("item_31_cells_one_after_another_leave_nothing") else { return };
    // `HUSK_CYCLES=1000` makes a thousand; an emulated machine takes minutes for them.
    let cycles = std::env::var("HUSK_CYCLES").ok().and_then(|text| text.parse().ok()).unwrap_or(200_u32);
    let mounts = || std::fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count();
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = (mounts(), descriptors());
    for _ in 0..cycles {
        let outcome = world.run("again", &["--cgroup", "pids.max=20"], &[]);
        assert_eq!(outcome.seen["pid"], 1, "{outcome:?}");
        assert!(world.remove("again"));
    }
    assert_eq!((mounts(), descriptors()), before);
}

#[test]
fn item_25_a_jail_that_is_swapped_in_a_loop_is_never_followed() {
    let Some(world) = World::new("item_25_a_jail_that_is_swapped_in_a_loop_is_never_followed") else {
        return;
    };
    assert!(world.run("first", &[], &[]).status.success() && world.remove("first"));
    let (jail, outside) = (world.jail("swapped"), world.base.join("outside"));
    std::fs::create_dir(&outside).unwrap();
    let over = std::sync::atomic::AtomicBool::new(false);
    let (mut made, mut refused) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                drop(std::os::unix::fs::symlink(&outside, &jail));
                std::thread::sleep(Duration::from_micros(300));
                drop(std::fs::remove_file(&jail));
                std::thread::sleep(Duration::from_micros(300));
            }
        });
        for _ in 0..60 {
            let outcome = world.run("swapped", &[], &[]);
            if outcome.status.success() {
                made += 1
            } else {
                refused += 1
            }
            // A directory is what the jailer made, and stays until it is removed. Nothing is asserted while the other one swaps.
            drop(std::fs::remove_dir(jail.join("root")));
            drop(std::fs::remove_dir(&jail));
            world.remove("swapped");
        }
        over.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    println!("{made} cells were made, {refused} refused");
    assert!(made > 0 && refused > 0, "{made} made, {refused} refused: nothing raced");
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0, "a link was followed");
    drop(std::fs::remove_file(&jail));
    assert!(world.remove("swapped"));
}
