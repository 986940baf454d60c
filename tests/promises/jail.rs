//! The jail holds. Each attempt is a start of its own, of code that wears the runtime's confinement in a cell that the
//! real jailer built; and each attempt succeeds outside, so that what is denied inside is denied by the cell.

use husk_tests::cell::{Ending, inside, outside};
use husk_tests::husk::Husk;
use husk_tests::processes;
use husk_tests::scratch::Scratch;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::process::{Child, Command, Stdio};

/// Everything that the attempts aim at, alive while the test runs.
pub(crate) struct Outside {
    scratch: Scratch,
    file: String,
    socket: String,
    abstract_name: String,
    port: String,
    victim: Child,
    _unix: UnixListener,
    _abstract: UnixListener,
    _inet: TcpListener,
}

impl Outside {
    pub(crate) fn new() -> Self {
        Self::with_victim(Command::new("sleep"))
    }

    /// `sleep` is the start of the process that attempts aim at.
    pub(crate) fn with_victim(mut sleep: Command) -> Self {
        let scratch = Scratch::new();
        let file = scratch.file("secret", b"x");
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(&file, open).unwrap();
        let socket = scratch.name("socket");
        let abstract_name = format!("husk-test-{}", std::process::id());
        let inet = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = SocketAddr::from_abstract_name(abstract_name.as_bytes()).unwrap();
        Self {
            file,
            port: inet.local_addr().unwrap().port().to_string(),
            victim: sleep.arg("1000").stdin(Stdio::null()).spawn().unwrap(),
            _unix: UnixListener::bind(&socket).unwrap(),
            _abstract: UnixListener::bind_addr(&address).unwrap(),
            _inet: inet,
            socket,
            abstract_name,
            scratch,
        }
    }

    /// Each attempt and what it aims at.
    pub(crate) fn attempts(&self) -> Vec<(&'static str, String)> {
        let pid = self.victim.id().to_string();
        vec![
            ("open-file", self.file.clone()),
            ("stat-file", self.file.clone()),
            ("list-root", String::new()),
            ("create-file", self.scratch.name("new")),
            ("create-file", "/husk-probe-was-here".into()),
            ("signal-process", pid.clone()),
            ("trace-process", pid.clone()),
            ("read-process-memory", pid),
            ("see-processes", String::new()),
            ("connect-unix", self.socket.clone()),
            ("connect-abstract", self.abstract_name.clone()),
            ("connect-inet", self.port.clone()),
            ("make-inet-socket", String::new()),
            ("mount", String::new()),
            ("unshare", String::new()),
            ("new-user-namespace", String::new()),
            ("become-root", String::new()),
            ("execute", "/bin/true".into()),
            ("set-hostname", String::new()),
        ]
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        drop(self.victim.kill());
        drop(self.victim.wait());
    }
}

#[test]
fn every_attempt_succeeds_outside() {
    let world = Outside::new();
    for (attempt, target) in world.attempts() {
        assert_eq!(outside(attempt, &target), Ending::Reached, "{attempt} {target}");
    }
}

#[test]
fn no_attempt_succeeds_in_the_cell_alone() {
    let world = Outside::new();
    // A user namespace gives nothing that is not the cell's own: only the filter forbids it.
    for (attempt, target) in world.attempts().into_iter().filter(|(name, _)| *name != "new-user-namespace") {
        let ending = inside(attempt, &target, None);
        assert!(matches!(ending, Ending::Denied(_)), "{attempt} {target}: {ending:?}");
    }
}

#[test]
fn no_attempt_succeeds_behind_the_filters() {
    let world = Outside::new();
    for role in ["build", "control", "vcpu", "device"] {
        for (attempt, target) in world.attempts() {
            let ending = inside(attempt, &target, Some(role));
            assert!(
                matches!(ending, Ending::Denied(_) | Ending::Trapped),
                "{role}: {attempt} {target}: {ending:?}"
            );
        }
    }
}

#[test]
fn a_guest_has_no_virtualization_of_its_own() {
    let outcome = Husk::sh("grep -c hypervisor /proc/cpuinfo; grep -cwE 'svm|vmx' /proc/cpuinfo").output();
    assert_eq!(outcome.text(), "1\n0\n", "{}", outcome.stderr);
}

/// Descriptors of a process that lead to `path`.
fn descriptors_of(pid: u32, path: &str) -> usize {
    let links = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    links
        .filter(|link| std::fs::read_link(link.path()).is_ok_and(|target| target.to_str() == Some(path)))
        .count()
}

#[test]
fn item_26_the_runtime_inherits_neither_environment_nor_descriptors() {
    let scratch = Scratch::new();
    let path = scratch.file("secret", b"x");
    let secret = std::fs::File::open(&path).unwrap();
    // Left open across execve, as a careless parent leaves one.
    rustix::io::fcntl_setfd(&secret, rustix::io::FdFlags::empty()).unwrap();
    let husk = Husk::sh("echo up; sleep 1000").env("HUSK_TEST_SECRET", "hunter2").spawn().up();
    let runtimes = processes::named("husk-control");
    assert_eq!(runtimes.len(), 1, "one runtime, not {runtimes:?}");
    assert_eq!(descriptors_of(husk.pid(), &path), 1, "husk itself did not inherit it, so this says nothing");
    assert_eq!(descriptors_of(runtimes[0], &path), 0);
    let environment =
        |pid| String::from_utf8_lossy(&std::fs::read(format!("/proc/{pid}/environ")).unwrap()).into_owned();
    assert!(environment(husk.pid()).contains("hunter2"));
    assert_eq!(environment(runtimes[0]), "");
    husk.terminate();
}

#[test]
fn item_25_the_same_cell_cannot_be_made_twice() {
    let scratch = Scratch::new();
    let base = scratch.name("jail");
    let jail = format!("{base}/husk-probe/twice/root");
    let jailer = |id: &str| {
        let output = Command::new(husk_tests::husk::libexec().join("husk-jailer"))
            .args([
                "--id",
                id,
                "--uid",
                "654321",
                "--gid",
                "654321",
                "--chroot-base-dir",
                &base,
                "--exec-file",
            ])
            .arg(husk_tests::rootfs::sibling("husk-probe"))
            .args(["--", "--attempt", "list-root"])
            .output()
            .unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    std::fs::create_dir_all(&jail).unwrap();
    let (made, error) = jailer("twice");
    assert!(!made && error.contains("twice"), "an existing jail was taken: {error}");
    std::os::unix::fs::symlink("/etc", format!("{base}/husk-probe/link")).unwrap();
    let (made, error) = jailer("link");
    assert!(!made && error.contains("link"), "a symlinked jail was taken: {error}");
    for id in ["", "..", "a/b", "a b", &"x".repeat(65)] {
        let (made, error) = jailer(id);
        assert!(!made, "the id {id:?} was taken");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
    assert!(!std::path::Path::new("/sys/fs/cgroup/husk/twice").exists());
}
