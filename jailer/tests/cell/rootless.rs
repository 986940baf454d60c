//! The cell of somebody who is not root. The test is root only to become him: all privileges are gone before the jailer is
//! executed, and with `no_new_privs` none comes back.

use crate::start::{
    Outcome, PARENT, World, agree, cgroups, finish, hear, holds, inherited, reap, start, witness,
};
use husk_protocol::control::{Fault, FromCell};
use serde_json::json;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub(crate) const SOMEBODY: u32 = 54_400;

/// Programs that he may execute, and a cgroup that is his, with himself in it.
pub(crate) struct Somebody<'a> {
    world: &'a World,
    programs: PathBuf,
    /// His cgroup, below version 2's mount, and himself in it.
    delegated: PathBuf,
    /// A directory that becomes his root.
    root: Option<PathBuf>,
}

impl<'a> Somebody<'a> {
    /// None: no version 2 here.
    pub(crate) fn new(world: &'a World) -> Option<Self> {
        let programs = world.base.join("programs");
        std::fs::create_dir(&programs).unwrap();
        for directory in [&world.base, &programs] {
            std::fs::set_permissions(directory, PermissionsExt::from_mode(0o755)).unwrap();
        }
        std::fs::copy(env!("CARGO_BIN_EXE_husk-jailer"), programs.join("husk-jailer")).unwrap();
        std::fs::copy(witness(), programs.join("witness")).unwrap();
        // Not root's: it is executed from a copy.
        chown(programs.join("witness"), Some(SOMEBODY), None).unwrap();
        let mount = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(PathBuf::from);
        let mount = mount.into_iter().find(|mount| mount.join("cgroup.controllers").exists())?;
        let delegated = mount.join(PARENT);
        std::fs::create_dir_all(delegated.join("callers")).unwrap();
        for name in ["", "cgroup.procs", "cgroup.subtree_control", "callers", "callers/cgroup.procs"] {
            chown(delegated.join(name), Some(SOMEBODY), Some(SOMEBODY)).unwrap();
        }
        Some(Self { world, programs, delegated, root: None })
    }

    /// The jailer as he starts it.
    pub(crate) fn jailer(&self, id: &str, exec_file: &str) -> Command {
        let mut command = self.bare_jailer();
        command.args(["--id", id, "--control-fd", "3", "--parent-cgroup", PARENT, "--exec-file"]);
        command.arg(self.programs().join(exec_file));
        command
    }

    fn programs(&self) -> &Path {
        if self.root.is_some() { Path::new("/programs") } else { &self.programs }
    }

    /// The same without any argument.
    pub(crate) fn bare_jailer(&self) -> Command {
        let mut command = Command::new(self.programs().join("husk-jailer"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let callers = self.delegated.join("callers/cgroup.procs");
        let root = self.root.clone();
        #[expect(unsafe_code, reason = "between fork and exec")]
        // SAFETY: the tests' other threads hold no lock that is needed here for longer than an instant; what is done is
        // opening a file and a few system calls on the child itself.
        unsafe {
            command.pre_exec(move || become_somebody(&callers, root.as_deref()))
        };
        command
    }

    pub(crate) fn run(&self, id: &str, before: &[&str]) -> Outcome {
        let mut command = self.jailer(id, "witness");
        let (control, child) = start({
            command.args(before);
            command
        });
        finish(&control, child)
    }
}

impl Drop for Somebody<'_> {
    fn drop(&mut self) {
        drop(std::fs::remove_dir(self.delegated.join("callers")));
        assert!(self.world.base.exists());
    }
}

fn become_somebody(callers: &Path, root: Option<&Path>) -> std::io::Result<()> {
    std::fs::write(callers, "0")?;
    if let Some(root) = root {
        rustix::process::chroot(root)?;
        rustix::process::chdir("/")?;
    }
    let (uid, gid) = (rustix::thread::Uid::from_raw(SOMEBODY), rustix::thread::Gid::from_raw(SOMEBODY));
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    Ok(rustix::thread::set_no_new_privs(true)?)
}

/// What the cell is without, each with the reason.
fn missing(outcome: &Outcome) -> Vec<(&str, &str)> {
    let mut missing = Vec::new();
    for message in &outcome.messages {
        if let FromCell::Missing { part, why } = message {
            missing.push((part.as_str(), why.as_str()));
        }
    }
    missing
}

#[test]
fn without_root_it_is_the_same_cell() {
    let Some(world) = World::new("rootless::without_root_it_is_the_same_cell") else { return };
    let Some(somebody) = Somebody::new(&world) else { return World::lacks("cgroup v2") };
    let mut command = somebody.jailer("rootless", "witness");
    command.args(["--", "--wait"]);
    let (control, child) = start(command);
    let (mut pid, mut seen) = (0, serde_json::Value::Null);
    while seen.is_null() {
        let bytes = hear(&control).expect("the witness speaks");
        match serde_json::from_slice(&bytes) {
            Ok(FromCell::Cloned { pid: named }) => pid = named,
            Ok(FromCell::Stage { .. }) => {}
            Ok(other) => panic!("{other:?}"),
            Err(_) => seen = serde_json::from_slice(&bytes).unwrap(),
        }
    }
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let ids = status.lines().find(|line| line.starts_with("Uid:")).unwrap();
    assert_eq!(ids, format!("Uid:{}", format!("\t{SOMEBODY}").repeat(4)), "outside he is himself as well");
    assert!(cgroups("rootless").iter().any(|path| holds(path, "cgroup.procs", &pid.to_string())));
    let memory = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap();
    assert!(memory.to_string_lossy().contains("memfd:"), "executed from {}", memory.display());
    for namespace in ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        let of = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/{namespace}")).unwrap();
        assert_ne!(of(&pid.to_string()), of("self"), "{namespace}");
    }
    drop(control);
    assert!(child.wait_with_output().unwrap().status.success());
    assert!(reap(pid));
    let expected = json!({
        "environment": 0,
        "descriptors": [0, 1, 2, 3],
        "uids": [SOMEBODY, SOMEBODY, SOMEBODY],
        "gids": [SOMEBODY, SOMEBODY, SOMEBODY],
        "capabilities": 0,
        "bounding": 0,
        "no_new_privs": true,
        "dies_with_parent": 9,
        "pid": 1,
        "parent": null,
        "session_is_own": true,
        "host": "rootless",
        "core": 0,
        "files": 10240,
        "root": 0,
        "above": 0,
        "directory": "/",
        "write": libc::EROFS,
        "make": libc::EROFS,
        "interfaces": [["lo", false]],
    });
    agree(&seen, &expected);
    assert!(world.remove("rootless"));
}

#[test]
fn without_root_a_volume_is_the_callers_to_serve() {
    let Some(world) = World::new("rootless::without_root_a_volume_is_the_callers_to_serve") else { return };
    let Some(somebody) = Somebody::new(&world) else { return World::lacks("cgroup v2") };
    let shared = world.base.join("shared");
    std::fs::create_dir(&shared).unwrap();
    std::fs::write(shared.join("file"), "seven b").unwrap();
    chown(&shared, Some(SOMEBODY), Some(SOMEBODY)).unwrap();
    let directory = inherited(std::fs::File::open(&shared).unwrap());
    let socket = inherited(UnixStream::pair().unwrap().0);
    assert!(somebody.run("beside", &[]).status.success());
    let mut command = somebody.jailer("beside", "witness");
    command.arg("--volume-writable");
    command.args(World::volume_arguments(&directory, &socket));
    let (control, child) = start(command);
    let outcome = finish(&control, child);
    assert!(outcome.status.success(), "{outcome:?}");
    let expected = json!({
        "descriptors": [0, 1, 2, 3, 4],
        "uids": [0, 0, 0],
        "capabilities": 0x4_00cf,
        "no_new_privs": true,
        "pid": 1,
        "host": "beside",
        "root": 2,
        "volume": 7,
        "volume_write": null,
        "write": libc::EROFS,
        "interfaces": [["lo", false]],
    });
    agree(&outcome.seen, &expected);
    let made = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(shared.join("new")).unwrap());
    assert_eq!(made, SOMEBODY, "what the server calls root is himself");
    assert!(world.remove("beside"));
}

#[test]
fn without_root_a_networks_cell_is_the_callers_and_another_namespace_fits_into_it() {
    let Some(world) = World::new(
        "rootless::without_root_a_networks_cell_is_the_callers_and_another_namespace_fits_into_it",
    ) else {
        return;
    };
    let Some(somebody) = Somebody::new(&world) else { return World::lacks("cgroup v2") };
    let (socket, far) = UnixStream::pair().unwrap();
    let socket = inherited(socket);
    assert!(somebody.run("linked", &[]).status.success());
    let shell = std::fs::canonicalize("/bin/sh").unwrap();
    let script = "exec >&2; grep -E '^(Uid|CapEff|CapBnd|NoNewPrivs)' /proc/self/status; readlink /proc/self/ns/net; \
                  unshare -Um true && echo nested; echo said >&4";
    let mut command = somebody.jailer("linked", shell.to_str().unwrap());
    command.args(["--network-socket-fd", &socket.as_raw_fd().to_string(), "--", "-c", script]);
    let (control, child) = start(command);
    drop(socket);
    let outcome = finish(&control, child);
    let network = std::fs::read_link("/proc/self/ns/net").unwrap();
    let expected = format!(
        "Uid:{}\nCapEff:\t0000000000000000\nCapBnd:\t0000000000000000\nNoNewPrivs:\t1\n{}\nnested\n",
        format!("\t{SOMEBODY}").repeat(4),
        network.display()
    );
    assert_eq!(outcome.complaint, expected);
    assert_eq!(std::io::read_to_string(far).unwrap(), "said\n");
    assert!(world.remove("linked"));
}

#[test]
fn a_cgroup_that_is_not_his_is_refused_or_left_out() {
    let Some(world) = World::new("rootless::a_cgroup_that_is_not_his_is_refused_or_left_out") else { return };
    let Some(somebody) = Somebody::new(&world) else { return World::lacks("cgroup v2") };
    chown(&somebody.delegated, Some(0), Some(0)).unwrap();
    let outcome = somebody.run("strict", &[]);
    assert_eq!(outcome.status.code(), Some(1), "{outcome:?}");
    assert!(outcome.complaint.contains(&format!("{PARENT}/strict: Permission denied")), "{outcome:?}");
    let outcome = somebody.run("lenient", &["--isolation", "best-effort", "--cgroup", "pids.max=20"]);
    assert!(outcome.status.success(), "{outcome:?}");
    let missing = missing(&outcome);
    assert_eq!(missing.len(), 1, "{outcome:?}");
    assert!(missing[0].0 == "cgroup" && missing[0].1.contains("Permission denied"), "{missing:?}");
    assert_eq!((&outcome.seen["root"], &outcome.seen["pid"]), (&json!(0), &json!(1)), "the walls stand");
    assert!(cgroups("strict").is_empty() && cgroups("lenient").is_empty());
}

#[test]
fn no_user_namespace_is_refused_or_left_out() {
    let Some(world) = World::new("rootless::no_user_namespace_is_refused_or_left_out") else { return };
    let Some(mut somebody) = Somebody::new(&world) else { return World::lacks("cgroup v2") };
    // The kernel gives none to whoever lives in a changed root.
    somebody.root = Some(world.base.clone());
    std::fs::create_dir(world.base.join("dev")).unwrap();
    std::fs::write(world.base.join("dev/null"), "").unwrap();
    std::fs::set_permissions(world.base.join("dev/null"), PermissionsExt::from_mode(0o666)).unwrap();
    let outcome = somebody.run("strict", &[]);
    assert_eq!(outcome.status.code(), Some(1), "{outcome:?}");
    for word in ["user namespace: Operation not permitted", "a chroot", "--isolation best-effort"] {
        assert!(outcome.complaint.contains(word), "{word}: {}", outcome.complaint);
    }
    let told =
        outcome.messages.iter().any(|message| matches!(message, FromCell::Failed { fault: Fault::Host, .. }));
    assert!(told, "{outcome:?}");
    // Without one there is no cell for a network's program, whatever is asked for.
    let socket = inherited(UnixStream::pair().unwrap().0);
    let number = socket.as_raw_fd().to_string();
    let outcome = somebody.run("network", &["--isolation", "best-effort", "--network-socket-fd", &number]);
    assert_eq!(outcome.status.code(), Some(1), "{outcome:?}");
    assert!(outcome.complaint.contains("user namespace: Operation not permitted"), "{outcome:?}");
    let outcome = somebody.run("lenient", &["--isolation", "best-effort"]);
    assert!(outcome.status.success(), "{outcome:?}");
    let parts: Vec<_> = missing(&outcome).into_iter().map(|(part, _)| part).collect();
    assert_eq!(parts, ["namespaces and empty root"], "{outcome:?}");
    let expected = json!({
        "uids": [SOMEBODY, SOMEBODY, SOMEBODY],
        "descriptors": [0, 1, 2, 3],
        "capabilities": 0,
        "no_new_privs": true,
        "core": 0,
        "environment": 0,
        "session_is_own": true,
    });
    agree(&outcome.seen, &expected);
}
