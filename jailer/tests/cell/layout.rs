//! `--layout firecracker`, called as Firecracker's jailer is, and described from inside by a witness.

use crate::obstacles::refuses;
use crate::start::{GROUP, PARENT, USER, World, agree, cgroups, holds, inherited, witness};
use rustix::fs::CWD;
use serde_json::{Value, json};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(20);

impl World {
    pub(crate) fn root(&self, id: &str) -> PathBuf {
        self.jail(id).join("root")
    }

    /// Firecracker's jailer's command line for the witness, which says what it sees in a file of its root.
    pub(crate) fn drop_in(&self, id: &str, flags: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_husk-jailer"));
        command.args(["--layout", "firecracker", "--id", id, "--uid", USER, "--gid", GROUP]);
        command.args(["--parent-cgroup", PARENT, "--exec-file"]).arg(witness());
        command.arg("--chroot-base-dir").arg(&self.base).args(flags).args(["--", "--report", "/seen"]);
        command.env("SECRET", "x").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// What the witness has said.
    pub(crate) fn seen(&self, id: &str) -> Value {
        let begun = Instant::now();
        loop {
            let text = fs::read_to_string(self.root(id).join("seen")).unwrap_or_default();
            if text.ends_with('\n') {
                return serde_json::from_str(&text).unwrap();
            }
            assert!(begun.elapsed() < LIMIT, "the witness says nothing");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn pid(&self, id: &str) -> i32 {
        fs::read_to_string(self.root(id).join("witness.pid")).unwrap().parse().unwrap()
    }

    /// Removes what the operator removes; true if nothing else is left.
    pub(crate) fn clear(&self, id: &str) -> bool {
        fs::remove_dir_all(self.jail(id)).unwrap();
        self.remove(id)
    }
}

/// The names in the root, as the witness lists them: path, mode, owner, group, device.
fn nodes(seen: &Value) -> Vec<Value> {
    let (user, group): (u32, u32) = (USER.parse().unwrap(), GROUP.parse().unwrap());
    let about = |path: &str, mode: &str, device: (u32, u32)| json!([path, mode, user, group, device]);
    let mut nodes = vec![
        about("/dev/kvm", "20600", (10, 232)),
        about("/dev/net", "40700", (0, 0)),
        about("/dev/urandom", "20600", (1, 9)),
    ];
    let misc = fs::read_to_string("/proc/misc").unwrap();
    if let Some(line) = misc.lines().find(|line| line.ends_with(" userfaultfd")) {
        let minor = line.trim().split(' ').next().unwrap().parse().unwrap();
        nodes.push(about("/dev/userfaultfd", "20600", (10, minor)));
    }
    nodes.push(about("/dev/net/tun", "20600", (10, 200)));
    nodes.insert(0, about("/run", "40700", (0, 0)));
    nodes.insert(0, about("/dev", "40700", (0, 0)));
    nodes.retain(|node| !seen["names"].as_array().unwrap().contains(node));
    nodes
}

#[test]
fn firecrackers_layout_is_what_its_users_know() {
    let Some(world) = World::new("layout::firecrackers_layout_is_what_its_users_know") else { return };
    fs::create_dir_all(world.root("fc")).unwrap();
    fs::write(world.root("fc").join("vmlinux"), "a kernel").unwrap();
    let leak = inherited(fs::File::open("/dev/null").unwrap());
    let mut command = world.drop_in("fc", &[]);
    let child = command.spawn().unwrap();
    drop(leak);
    let pid = i32::try_from(child.id()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let seen = world.seen("fc");
    agree(
        &seen,
        &json!({
            "environment": 0,
            "descriptors": [0, 1, 2],
            "standard": [[1, 3], [0, 0], [0, 0]],
            "uids": [54321, 54321, 54321],
            "gids": [54322, 54322, 54322],
            "groups": 0,
            "capabilities": 0,
            "bounding": 0,
            "no_new_privs": true,
            "dies_with_parent": null,
            "pid": pid,
            "session_is_own": false,
            "host": "fc",
            "core": 0,
            "files": 2048,
            "umask": 0o022,
            "directory": "/",
            "signals_not_default": [],
            "signals_blocked": 0,
        }),
    );
    let words: Vec<_> =
        seen["arguments"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
    assert_eq!(words[..4], ["witness", "--id", "fc", "--start-time-us"]);
    assert_eq!((words[5], words[7]), ("--start-time-cpu-us", "--parent-cpu-time-us"));
    assert!([4, 6, 8].iter().all(|&at| words[at].parse::<u64>().is_ok()), "{words:?}");
    assert_eq!(words[9..], ["--report", "/seen"]);
    assert_eq!(nodes(&seen), Vec::<Value>::new(), "{seen}");
    assert!(seen["names"].to_string().contains("\"/vmlinux\""), "{seen}");
    assert_eq!(world.pid("fc"), pid);
    let outside: Vec<_> = fs::read_dir(world.root("fc").join("dev")).unwrap().collect();
    assert!(outside.is_empty(), "nodes are on a mount of their own: {outside:?}");
    assert_eq!(fs::metadata(world.root("fc")).unwrap().mode() & 0o7777, 0o700);
    assert!(world.clear("fc"));
}

#[test]
fn in_firecrackers_layout_the_root_alone_is_reached() {
    let Some(world) = World::new("layout::in_firecrackers_layout_the_root_alone_is_reached") else { return };
    let output = world.drop_in("walls", &[]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let seen = world.seen("walls");
    for (mount, flags) in
        [("mount", &["NOSUID", "NOEXEC"][..]), ("mount_of_nodes", &["NOSUID", "NOEXEC", "RDONLY"])]
    {
        let text = seen[mount].as_str().unwrap();
        assert!(flags.iter().all(|flag| text.contains(flag)), "{mount}: {text}");
    }
    // What landlock denies by itself is told only where the kernel has it; then the jailer said nothing.
    let landlock = !String::from_utf8_lossy(&output.stderr).contains("without landlock");
    let denied = |errno: i32| json!(errno);
    let behind = |errno: i32| if landlock { json!(errno) } else { Value::Null };
    let expected = json!({
        "make a FIFO": null,
        "make a socket": null,
        "open /dev/urandom": null,
        "make a node": denied(if landlock { libc::EACCES } else { libc::EPERM }),
        "make a node among the nodes": denied(libc::EROFS),
        "make a link": behind(libc::EACCES),
        "open /proc": denied(libc::ENOENT),
        "remove a node": denied(libc::EROFS),
        "execute": denied(libc::EACCES),
        "signal the parent": denied(libc::EPERM),
        "become root": denied(libc::EPERM),
        "listen": behind(libc::EACCES),
    });
    agree(&seen["attempts"], &expected);
    assert!(world.clear("walls"));
}

#[test]
fn a_process_is_new_only_if_that_was_asked_for() {
    let Some(world) = World::new("layout::a_process_is_new_only_if_that_was_asked_for") else { return };
    for (id, flags, first, null) in [
        ("newpid", &["--new-pid-ns"][..], true, false),
        ("daemon", &["--daemonize"], false, true),
        ("both", &["--daemonize", "--new-pid-ns"], true, true),
    ] {
        let mut command = world.drop_in(id, flags);
        let mut child = command.spawn().unwrap();
        let jailer = i32::try_from(child.id()).unwrap();
        assert!(child.wait().unwrap().success());
        let seen = world.seen(id);
        let pid = world.pid(id);
        assert_ne!(pid, jailer);
        assert_eq!(seen["pid"], if first { json!(1) } else { json!(pid) }, "{id}");
        let standard = if null { json!([[1, 3], [1, 3], [1, 3]]) } else { json!([[1, 3], [0, 0], [0, 0]]) };
        assert_eq!(seen["standard"], standard, "{id}");
        assert_eq!(seen["session_is_own"], false, "{id}: it could take a terminal");
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(said, "", "{id}");
        assert!(world.clear(id));
    }
}

#[test]
fn cgroups_are_as_documented_in_firecrackers_layout() {
    let Some(world) = World::new("layout::cgroups_are_as_documented_in_firecrackers_layout") else { return };
    let mut command = world.drop_in("limited", &["--cgroup", "pids.max=20", "--cpus=0"]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    world.seen("limited");
    let pid = world.pid("limited").to_string();
    let found = cgroups("limited");
    assert!(found.iter().any(|path| holds(path, "pids.max", "20")), "{found:?}");
    assert!(found.iter().any(|path| holds(path, "cpuset.cpus", "0")), "{found:?}");
    assert!(found.iter().all(|path| holds(path, "cgroup.procs", &pid)), "{found:?}");
    end(&mut child);
    assert!(world.clear("limited"));
    // Without a limit, version 2 has the process enter a cgroup that the operator made, and make none.
    let unified = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(PathBuf::from);
    let unified = unified.iter().find(|path| path.join("cgroup.controllers").exists());
    let Some(unified) = unified else { return World::lacks("cgroup v2") };
    let parent = unified.join(PARENT).join("made");
    fs::create_dir_all(&parent).unwrap();
    let mut command = world.drop_in("given", &["--cgroup-version", "2"]);
    // The last one counts for nobody: it is given once.
    command = instead(command, "--parent-cgroup", &format!("{PARENT}/made"));
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    world.seen("given");
    assert!(holds(&parent, "cgroup.procs", &world.pid("given").to_string()));
    end(&mut child);
    fs::remove_dir(&parent).unwrap();
    assert!(world.clear("given"));
}

/// The same command with another value of one flag.
pub(crate) fn instead(command: Command, flag: &str, value: &str) -> Command {
    let mut words: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
    let place = words.iter().position(|word| word == flag).unwrap();
    words[place + 1] = value.into();
    let mut other = Command::new(command.get_program());
    other.args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    other
}

fn end(child: &mut Child) {
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_copied_program_is_the_one_that_runs_and_nobody_can_write_to_it() {
    let Some(world) = World::new("layout::a_copied_program_is_the_one_that_runs_and_nobody_can_write_to_it")
    else {
        return;
    };
    let mut command = world.drop_in("copied", &["--copy-binary"]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    world.seen("copied");
    let copy = fs::metadata(world.root("copied").join("witness")).unwrap();
    assert_eq!((copy.mode() & 0o7777, copy.uid()), (0o555, 0));
    let running = fs::metadata(format!("/proc/{}/exe", child.id())).unwrap();
    assert_eq!((running.ino(), running.dev()), (copy.ino(), copy.dev()));
    end(&mut child);
    assert!(world.clear("copied"));
}

#[test]
fn a_link_called_jailer_has_firecrackers_layout() {
    let Some(world) = World::new("layout::a_link_called_jailer_has_firecrackers_layout") else { return };
    let link = world.base.join("jailer");
    symlink(env!("CARGO_BIN_EXE_husk-jailer"), &link).unwrap();
    let mut command = Command::new(&link);
    // Its program too is named through a link; the directory has the file's name.
    symlink(witness(), world.base.join("program")).unwrap();
    command.args(["--id", "linked", "--uid", USER, "--gid", GROUP, "--parent-cgroup", PARENT, "--exec-file"]);
    command.arg(world.base.join("program")).arg("--chroot-base-dir").arg(&world.base);
    let output = command.args(["--", "--report", "/seen"]).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(world.seen("linked")["arguments"][0], "witness");
    assert!(world.clear("linked"));
}

#[test]
fn what_the_operator_mounts_later_is_seen_and_nothing_goes_the_other_way() {
    let Some(world) =
        World::new("layout::what_the_operator_mounts_later_is_seen_and_nothing_goes_the_other_way")
    else {
        return;
    };
    let script = "base=$1 root=$2 jailer=$3 parent=$4 program=$5 fifo=$6; shift 6; \
                  mount -t tmpfs -o mode=755 base \"$base\" && mount --make-shared \"$base\" && mkdir -p \"$root/later\" && \
                  \"$jailer\" --layout firecracker --id mounts --uid 54321 --gid 54322 --parent-cgroup \"$parent\" \
                  --exec-file \"$program\" --chroot-base-dir \"$base\" \"$@\" -- --report /seen < \"$fifo\" & pid=$!; \
                  while [ ! -s \"$root/seen\" ]; do sleep 0.05; done; mount -t tmpfs later \"$root/later\"; \
                  grep -c ' /later ' /proc/$pid/mountinfo; grep -c \"$root/dev\" /proc/self/mountinfo; kill $pid";
    let fifo = world.base.join("fifo");
    rustix::fs::mknodat(CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o600), 0)
        .unwrap();
    let keep = fs::OpenOptions::new().read(true).write(true).open(&fifo).unwrap();
    let base = world.base.join("shared");
    fs::create_dir(&base).unwrap();
    let root = base.join("witness/mounts/root");
    fs::set_permissions(&world.base, fs::Permissions::from_mode(0o755)).unwrap();
    for pool in [None, Some(world.base.join("ns"))] {
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", script, "sh"]).arg(&base).arg(&root);
        command.arg(env!("CARGO_BIN_EXE_husk-jailer")).arg(PARENT).arg(witness()).arg(&fifo);
        command.args(pool.iter().flat_map(|pool| ["--pool".as_ref(), pool.as_os_str()]));
        let output = command.output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "1\n0\n", "{pool:?}: {output:?}");
        assert!(world.remove("mounts"));
    }
    drop(keep);
}

#[test]
fn a_cell_of_firecrackers_layout_that_cannot_be_leaves_nothing() {
    let Some(world) = World::new("layout::a_cell_of_firecrackers_layout_that_cannot_be_leaves_nothing")
    else {
        return;
    };
    for (flags, words) in [
        (&["--cgroup", "pids.max=banana"][..], &["pids.max", "banana"][..]),
        (&["--netns", "/proc/nonesuch"], &["/proc/nonesuch"]),
        (&["--netns", "/dev/null"], &["--netns"]),
    ] {
        refuses(&world, "cannot", flags, words);
        assert!(!world.jail("cannot").exists());
    }
    // A cgroup that exists: known only after the directory was made.
    let output = world.drop_in("twice", &["--cgroup", "pids.max=20"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    fs::remove_dir_all(world.jail("twice")).unwrap();
    let output = world.drop_in("twice", &["--cgroup", "pids.max=20"]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("exists already"), "{output:?}");
    assert!(!world.jail("twice").exists());
    assert!(world.remove("twice"));
}
