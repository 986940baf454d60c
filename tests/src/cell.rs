//! A probe in a cell that the real jailer built, one start an attempt.

use crate::husk::libexec;
use crate::rootfs::sibling;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socketpair};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus};

/// How an attempt ended.
#[derive(Debug, PartialEq, Eq)]
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

/// Runs one attempt without any cell, as root.
///
/// # Panics
/// The probe cannot be run or says nothing.
#[must_use]
#[track_caller]
pub fn outside(attempt: &str, target: &str) -> Ending {
    let output =
        Command::new(sibling("husk-probe")).args(["--attempt", attempt, "--target", target]).output();
    let output = output.unwrap_or_else(|error| panic!("husk-probe: {error}"));
    assert!(output.status.success(), "{attempt}: {}", String::from_utf8_lossy(&output.stderr));
    ending(String::from_utf8_lossy(&output.stdout).trim(), output.status)
}

/// Runs one attempt in a cell of its own. `role`: behind landlock and this role's filters as well; without: the cell
/// alone.
///
/// # Panics
/// The cell cannot be built, or the probe ends without a word.
#[must_use]
#[track_caller]
pub fn inside(attempt: &str, target: &str, role: Option<&str>) -> Ending {
    let mut command = Command::new(libexec().join("husk-jailer"));
    command.args(["--uid", &USER.to_string(), "--gid", &USER.to_string()]);
    command.arg("--exec-file").arg(sibling("husk-probe"));
    let id = format!("probe-{}-{attempt}", std::process::id());
    let ending = in_cell(command, &id, [attempt, target], role);
    remove(&id);
    ending
}

/// Runs one attempt, with what it aims at, in the cell that `jailer` builds, whose command line lacks only what this adds.
///
/// # Panics
/// The cell cannot be built, or the probe ends without a word.
#[must_use]
#[track_caller]
pub fn in_cell(mut jailer: Command, id: &str, [attempt, target]: [&str; 2], role: Option<&str>) -> Ending {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .unwrap_or_else(|error| panic!("socketpair: {error}"));
    jailer.args(["--id", id, "--control-fd", "3", "--"]);
    jailer.args(["--control-fd", "3", "--attempt", attempt, "--target", target]);
    if let Some(role) = role {
        jailer.args(["--layer", "whole", "--role", role]);
    }
    let raw = theirs.as_raw_fd();
    let at_three = move || place_at_three(raw);
    #[expect(unsafe_code, reason = "the child's descriptor 3 is the control socket")]
    // SAFETY: `place_at_three` makes one async-signal-safe call, and `theirs` is open until after the spawn.
    unsafe {
        jailer.pre_exec(at_three);
    }
    let output = jailer.output().unwrap_or_else(|error| panic!("husk-jailer: {error}"));
    drop(theirs);
    assert!(output.status.success(), "husk-jailer: {}", String::from_utf8_lossy(&output.stderr));
    let (pid, line) = listen(&ours);
    ending(&line, reap(pid))
}

/// Reads messages to their end: the process id of the clone, and the probe's own line.
#[track_caller]
fn listen(socket: &OwnedFd) -> (i32, String) {
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
    assert!(pid > 0, "the jailer named no process");
    (pid, answer)
}

/// The clone is our child: the jailer made it so.
#[track_caller]
fn reap(pid: i32) -> ExitStatus {
    let mut status = 0;
    #[expect(unsafe_code, reason = "waits for a child that std did not make")]
    // SAFETY: `status` lives through the call.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    assert_eq!(waited, pid, "waiting for the cell: {}", std::io::Error::last_os_error());
    ExitStatus::from_raw(status)
}

/// What a jailer leaves to whoever called it.
fn remove(id: &str) {
    for hierarchy in ["", "cpu/", "cpuset/", "memory/", "pids/"] {
        drop(std::fs::remove_dir(format!("/sys/fs/cgroup/{hierarchy}{PARENT}/{id}")));
    }
}

#[track_caller]
fn ending(line: &str, status: ExitStatus) -> Ending {
    match line.split_once(' ') {
        _ if line == "reached" => Ending::Reached,
        Some(("denied", error)) => Ending::Denied(error.to_owned()),
        _ if status.signal() == Some(libc::SIGSYS) => Ending::Trapped,
        _ => panic!("the probe said {line:?} and ended with {status}"),
    }
}

fn place_at_three(raw: i32) -> std::io::Result<()> {
    #[expect(unsafe_code, reason = "the number 3 is what the jailer is told")]
    // SAFETY: no pointer is passed; what was at 3 is the forked child's own.
    let placed = unsafe { libc::dup2(raw, 3) };
    if placed < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}
