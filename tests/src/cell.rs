//! A probe in a cell that the real jailer built, one start an attempt.

use crate::alive::Alive;
use crate::attempts::Targets;
use crate::handed::Files;
use crate::husk::libexec;
use crate::rootfs::sibling;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socketpair};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// It got through.
    Reached,
    /// The kernel said no: the error.
    Denied(String),
    /// A filter ended the process.
    Trapped,
}

/// The user that cells of tests run as.
pub const USER: u32 = 654_321;
/// The cgroup below which they are.
const PARENT: &str = "husk";

/// What the probe takes for a role that is landlock without a filter.
pub const LANDLOCK: &str = "landlock";

/// Runs one attempt without any cell.
///
/// # Panics
/// The probe cannot be run or says nothing.
#[must_use]
#[track_caller]
pub fn outside(world: &Alive, attempt: &str) -> Ending {
    bare(world, attempt, &[])
}

/// The same, behind landlock as the runtime has it and nothing else.
///
/// # Panics
/// The probe cannot be run or says nothing.
#[must_use]
#[track_caller]
pub fn behind_landlock(world: &Alive, attempt: &str) -> Ending {
    bare(world, attempt, &["--role", LANDLOCK])
}

#[track_caller]
fn bare(world: &Alive, attempt: &str, more: &[&str]) -> Ending {
    let mut probe = Command::new(sibling("husk-probe"));
    probe.args(["--control-fd", "3", "--attempt", attempt]).args(more);
    let ours = handed(&mut probe, 3, world.targets(), &world.files());
    // What an attempt makes of its own standard streams is its own business.
    probe.stdin(Stdio::null()).stdout(Stdio::null());
    let child = probe.spawn().unwrap_or_else(|error| panic!("husk-probe: {error}"));
    drop(probe);
    let (_, line) = listen(&ours);
    let output = child.wait_with_output().unwrap_or_else(|error| panic!("husk-probe: {error}"));
    ending(&line, output.status)
}

/// Runs one attempt in a cell of its own. `role`: behind landlock and this role's filters as well; without: the cell
/// alone.
///
/// # Panics
/// The cell cannot be built, or the probe ends without a word.
#[must_use]
#[track_caller]
pub fn inside(world: &Alive, attempt: &str, role: Option<&str>) -> Ending {
    let mut command = Command::new(libexec().join("husk-jailer"));
    command.args(["--uid", &USER.to_string(), "--gid", &USER.to_string()]);
    command.arg("--exec-file").arg(sibling("husk-probe"));
    let id = format!("probe-{}-{attempt}", std::process::id());
    let ending = in_cell(command, &id, world, attempt, role);
    remove(&id);
    ending
}

/// Runs one attempt in the cell that `jailer` builds, whose command line lacks only what this adds.
///
/// # Panics
/// The cell cannot be built, or the probe ends without a word.
#[must_use]
#[track_caller]
pub fn in_cell(mut jailer: Command, id: &str, world: &Alive, attempt: &str, role: Option<&str>) -> Ending {
    jailer.args(["--id", id, "--control-fd", "3", "--", "--control-fd", "3", "--attempt", attempt]);
    if let Some(role) = role {
        jailer.args(["--role", role]);
    }
    let ours = handed(&mut jailer, 3, world.targets(), &world.files());
    let output = jailer.output().unwrap_or_else(|error| panic!("husk-jailer: {error}"));
    drop(jailer);
    assert!(output.status.success(), "husk-jailer: {}", String::from_utf8_lossy(&output.stderr));
    let (pid, line) = listen(&ours);
    assert!(pid > 0, "the jailer named no process");
    ending(&line, reap(pid))
}

/// Places one end of a control socket at `number` in the process that `command` makes, with everything handed over on it; the
/// other end. The first one is open as long as `command`.
#[track_caller]
pub(crate) fn handed(command: &mut Command, number: i32, targets: &Targets, files: &Files) -> OwnedFd {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .unwrap_or_else(|error| panic!("socketpair: {error}"));
    crate::handed::send(&ours, targets, files).unwrap_or_else(|error| panic!("handing over: {error}"));
    let placed = move || place_at(theirs.as_raw_fd(), number);
    #[expect(unsafe_code, reason = "the child's control socket is at a number of its command line")]
    // SAFETY: `place_at` makes one async-signal-safe call, on a descriptor that the closure owns.
    unsafe {
        command.pre_exec(placed);
    }
    ours
}

/// Reads messages to their end: the process id of the clone, or 0, and the probe's own line.
#[track_caller]
pub(crate) fn listen(socket: &OwnedFd) -> (i32, String) {
    let (mut pid, mut answer) = (0, String::new());
    let mut bytes = [0; 4096];
    loop {
        let (count, _) =
            recv(socket, &mut bytes, RecvFlags::empty()).unwrap_or_else(|e| panic!("control: {e}"));
        if count == 0 {
            break;
        }
        let line = String::from_utf8_lossy(&bytes[..count]).into_owned();
        let message = serde_json::from_str::<serde_json::Value>(&line).unwrap_or_default();
        if let Some(cloned) = message["cloned"]["pid"].as_i64() {
            pid = i32::try_from(cloned).unwrap_or_default();
        } else if message.is_null() {
            answer = line;
        }
    }
    (pid, answer)
}

/// The clone is our child: the jailer made it so.
#[track_caller]
pub(crate) fn reap(pid: i32) -> ExitStatus {
    let mut status = 0;
    #[expect(unsafe_code, reason = "waits for a child that std did not make")]
    // SAFETY: `status` lives through the call.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    assert_eq!(waited, pid, "waiting for the cell: {}", std::io::Error::last_os_error());
    ExitStatus::from_raw(status)
}

/// What a jailer leaves to whoever called it.
fn remove(id: &str) {
    for hierarchy in ["", "unified/", "cpu/", "cpuset/", "memory/", "pids/"] {
        drop(std::fs::remove_dir(format!("/sys/fs/cgroup/{hierarchy}{PARENT}/{id}")));
    }
}

/// A probe that ended well without a word became another program.
#[track_caller]
pub(crate) fn ending(line: &str, status: ExitStatus) -> Ending {
    match line.split_once(' ') {
        _ if line == "reached" || line.is_empty() && status.success() => Ending::Reached,
        Some(("denied", error)) => Ending::Denied(error.to_owned()),
        _ if status.signal() == Some(libc::SIGSYS) => Ending::Trapped,
        _ => panic!("the probe said {line:?} and ended with {status}"),
    }
}

fn place_at(raw: i32, number: i32) -> std::io::Result<()> {
    #[expect(unsafe_code, reason = "the number is what the child is told")]
    // SAFETY: no pointer is passed; what was at `number` is the forked child's own.
    let placed = unsafe { libc::dup2(raw, number) };
    if placed < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}
