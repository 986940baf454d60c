//! Starts the built jailer with the witness as its program, and removes by rule what is left.

use husk_protocol::control::FromCell;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socketpair};
use serde_json::Value;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub(crate) const PARENT: &str = "husk-jailer-test";
pub(crate) const USER: &str = "54321";
pub(crate) const GROUP: &str = "54322";
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A place for jails, and the right to be the only test that runs.
pub(crate) struct World {
    pub(crate) base: PathBuf,
    _alone: MutexGuard<'static, ()>,
}

/// What came of one start.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) status: ExitStatus,
    pub(crate) complaint: String,
    pub(crate) messages: Vec<FromCell>,
    pub(crate) seen: Value,
    pub(crate) pid: Option<i32>,
}

/// Each key of `expected` is in `seen`, with that value.
#[track_caller]
pub(crate) fn agree(seen: &Value, expected: &Value) {
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(seen[key], *value, "{key}: {seen}");
    }
}

impl World {
    /// None: this machine cannot make cells; the test is named as skipped.
    pub(crate) fn new(test: &str) -> Option<Self> {
        let lock = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let lacking = if !cfg!(target_env = "musl") {
            Some("a static target (x86_64-unknown-linux-musl)")
        } else if !rustix::process::geteuid().is_root() {
            Some("root")
        } else {
            None
        };
        if let Some(lacking) = lacking {
            skip(&format!("{test}: needs {lacking}"));
            return None;
        }
        // In the lab a file system of its own: what is mounted on a directory that another machine serves goes when it looks
        // changed.
        let scratch = std::env::var_os("HUSK_SCRATCH").map_or_else(std::env::temp_dir, PathBuf::from);
        let base = std::fs::canonicalize(scratch).unwrap().join(format!("{PARENT}-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&base));
        std::fs::create_dir(&base).unwrap();
        Some(Self { base, _alone: lock })
    }

    /// Names the running test as skipped.
    pub(crate) fn lacks(what: &str) {
        skip(&format!("{}: needs {what}", std::thread::current().name().unwrap_or_default()));
    }

    /// What tells the jailer of a volume.
    pub(crate) fn volume_arguments(directory: &OwnedFd, socket: &OwnedFd) -> [String; 4] {
        let number = |fd: &OwnedFd| fd.as_raw_fd().to_string();
        ["--volume-fd".into(), number(directory), "--volume-socket-fd".into(), number(socket)]
    }

    /// The jailer's command line with the least that it needs.
    pub(crate) fn jailer(&self, id: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_husk-jailer"));
        command.args([
            "--id",
            id,
            "--uid",
            USER,
            "--gid",
            GROUP,
            "--control-fd",
            "3",
            "--parent-cgroup",
            PARENT,
        ]);
        command.arg("--exec-file").arg(witness()).arg("--chroot-base-dir").arg(&self.base);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }

    /// The jailer's command line for a volume of the sandbox `id`; `directory` and `socket` are inherited.
    pub(crate) fn volume_jailer(&self, id: &str, directory: &OwnedFd, socket: &OwnedFd) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_husk-jailer"));
        command.args(["--id", id, "--control-fd", "3", "--parent-cgroup", PARENT]).arg("--exec-file");
        command.arg(witness()).args(Self::volume_arguments(directory, socket));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }

    pub(crate) fn jail(&self, id: &str) -> PathBuf {
        self.base.join("witness").join(id)
    }

    /// Removes what the crate's documentation says is left; true if nothing else is.
    pub(crate) fn remove(&self, id: &str) -> bool {
        drop(std::fs::remove_dir(self.jail(id).join("root")));
        drop(std::fs::remove_dir(self.jail(id)));
        for directory in cgroups(id) {
            // A process that was just reaped may not have left yet.
            for _ in 0..100 {
                if std::fs::remove_dir(&directory).is_ok() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        !self.jail(id).exists() && cgroups(id).is_empty()
    }

    /// Starts, hears all that is said, reaps.
    pub(crate) fn run(&self, id: &str, before: &[&str], after: &[&str]) -> Outcome {
        let mut command = self.jailer(id);
        command.args(before).arg("--").args(after);
        let (ours, child) = start(command);
        finish(&ours, child)
    }
}

fn skip(line: &str) {
    // Not println!, which the test harness swallows.
    use std::io::Write;
    drop(std::io::stderr().write_all(format!("HUSK-SKIP jailer cell::{line}\n").as_bytes()));
}

impl Drop for World {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.base));
        for directory in places().map(|place| place.join(PARENT)) {
            drop(std::fs::remove_dir(directory));
        }
    }
}

/// The example, which cargo builds beside the tests.
pub(crate) fn witness() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.ancestors().nth(2).unwrap().join("examples/witness");
    assert!(path.exists(), "{}: build it with `cargo build -p husk-jailer --examples`", path.display());
    path
}

fn places() -> impl Iterator<Item = PathBuf> {
    let below = std::fs::read_dir("/sys/fs/cgroup")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()));
    std::iter::once(PathBuf::from("/sys/fs/cgroup")).chain(below.filter(|path| path.is_dir()))
}

/// The cgroups of `id`, in whatever hierarchy.
pub(crate) fn cgroups(id: &str) -> Vec<PathBuf> {
    let mut found: Vec<_> =
        places().map(|place| place.join(PARENT).join(id)).filter(|path| path.exists()).collect();
    // Some hierarchies have a second name, by a symbolic link.
    found.retain(|path| std::fs::canonicalize(path).is_ok_and(|real| real == **path));
    found
}

/// Spawns with the other end of a control socket at descriptor 3, and with secrets that must not get through.
pub(crate) fn start(mut command: Command) -> (OwnedFd, Child) {
    let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
    let (ours, theirs) = pair.unwrap();
    rustix::net::sockopt::set_socket_timeout(
        &ours,
        rustix::net::sockopt::Timeout::Recv,
        Some(Duration::from_secs(20)),
    )
    .unwrap();
    command.env("SECRET", "x");
    let raw = theirs.as_raw_fd();
    #[expect(unsafe_code, reason = "descriptors and signals of the child")]
    // SAFETY: `inherit` makes async-signal-safe calls only, and `theirs` is open until after the spawn.
    unsafe {
        command.pre_exec(move || inherit(raw))
    };
    let child = command.spawn().unwrap();
    (ours, child)
}

/// What a careless caller leaves to its child: the socket at more places than the promised one, a signal ignored.
fn inherit(socket: i32) -> std::io::Result<()> {
    for number in [3, 4, 5, 7, 77, 900] {
        #[expect(unsafe_code, reason = "between fork and exec")]
        // SAFETY: descriptors of the new process only; nothing in it owns any.
        if unsafe { libc::dup2(socket, number) } < 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    #[expect(unsafe_code, reason = "between fork and exec")]
    // SAFETY: no handler is set.
    unsafe {
        libc::signal(libc::SIGUSR1, libc::SIG_IGN)
    };
    Ok(())
}

/// Where a child finds it too, above the numbers that [`start`] overwrites.
pub(crate) fn inherited(fd: impl AsFd) -> OwnedFd {
    let fd = rustix::io::fcntl_dupfd_cloexec(fd, 1000).unwrap();
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::empty()).unwrap();
    fd
}

/// One message; none at the end.
pub(crate) fn hear(socket: &OwnedFd) -> Option<Vec<u8>> {
    let mut bytes = vec![0; 65536];
    let (count, _) = recv(socket, &mut bytes[..], RecvFlags::empty()).unwrap();
    bytes.truncate(count);
    (count > 0).then_some(bytes)
}

/// Hears everything to the end, then reaps jailer and cell.
pub(crate) fn finish(ours: &OwnedFd, child: Child) -> Outcome {
    let (mut messages, mut seen, mut pid) = (Vec::new(), Value::Null, None);
    while let Some(bytes) = hear(ours) {
        match serde_json::from_slice(&bytes) {
            Ok(message) => {
                if let FromCell::Cloned { pid: named } = message {
                    pid = Some(named);
                }
                messages.push(message);
            }
            Err(_) => seen = serde_json::from_slice(&bytes).unwrap(),
        }
    }
    let output = child.wait_with_output().unwrap();
    if let Some(pid) = pid {
        reap(pid);
    }
    let complaint = String::from_utf8(output.stderr).unwrap();
    Outcome { status: output.status, complaint, messages, seen, pid }
}

/// Waits for a child that std did not make: the cell is a child of whoever started the jailer.
pub(crate) fn reap(pid: i32) -> bool {
    let pid = rustix::process::Pid::from_raw(pid);
    rustix::process::waitpid(pid, rustix::process::WaitOptions::empty()).is_ok()
}

/// Whether a line of a cgroup's file is `text`.
pub(crate) fn holds(directory: &Path, file: &str, text: &str) -> bool {
    std::fs::read_to_string(directory.join(file)).unwrap_or_default().lines().any(|line| line == text)
}
