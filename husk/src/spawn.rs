//! Starts the jailer and keeps hold of the two processes of a cell: the jailer, and the runtime that it clones.
//!
//! Owns their pidfds and the duty to reap them. Refuses a process id that is not a child of ours, whoever names it.
//! Invariant: only these two children are ever waited for; other children of the program that uses this library are
//! its own.

use crate::isolation::Isolation;
use crate::sys::{self, ChildEnd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, getpid, getppid, pidfd_open, pidfd_send_signal,
    set_parent_process_death_signal, waitid,
};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Descriptor at which jailer and runtime find the control socket; what else is handed over lies behind it.
pub(crate) const CONTROL_FD: i32 = 3;
/// Descriptors at which a volume's jailer finds the directory and the socket that it is served on.
const VOLUME_FDS: [i32; 2] = [CONTROL_FD + 1, CONTROL_FD + 2];
/// Files that a volume's server may have open: what the guest knows of, and what it has opened.
const VOLUME_FILES: u64 = 65_536;

/// The cell cannot be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpawnError {
    /// The jailer cannot be executed.
    #[error("jailer {} cannot be started: {source}", path.display())]
    Jailer {
        /// Where it is.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// No pidfd or pipe.
    #[error("the jailer cannot be watched: {0}")]
    Watch(io::Error),
}

/// A child.
#[derive(Debug)]
pub(crate) struct Process {
    pid: Pid,
    pidfd: OwnedFd,
    end: Option<ChildEnd>,
}

impl Process {
    /// Takes charge of the child `pid`; `None` if there is no such child.
    pub(crate) fn child(pid: i32) -> Option<Self> {
        // Checked first: from_raw does not take negative numbers.
        let pid = Some(pid).filter(|&pid| pid > 1).and_then(Pid::from_raw)?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        // Only of a child can one ask this; anything else is ECHILD.
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        loop {
            match waitid(WaitId::PidFd(pidfd.as_fd()), look) {
                Ok(_) => return Some(Self { pid, pidfd, end: None }),
                Err(Errno::INTR) => {}
                Err(_) => return None,
            }
        }
    }

    /// Kills it, if it still runs.
    pub(crate) fn kill(&self) {
        if self.end.is_none() {
            let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        }
    }

    /// Reaps it; to be called when its descriptor says that it has ended, or after [`Process::kill`].
    pub(crate) fn reap(&mut self) -> io::Result<ChildEnd> {
        if let Some(end) = self.end {
            return Ok(end);
        }
        let end = sys::reap(self.pid.as_raw_nonzero().get())?;
        self.end = Some(end);
        Ok(end)
    }

    /// How it ended, once it is reaped.
    pub(crate) fn end(&self) -> Option<ChildEnd> {
        self.end
    }

    /// Waits for its end for at most `patience`; whether it has ended.
    pub(crate) fn wait(&self, patience: Duration) -> bool {
        let timeout = Timespec::try_from(patience).ok();
        let mut fds = [PollFd::from_borrowed_fd(self.pidfd.as_fd(), PollFlags::IN)];
        loop {
            match poll(&mut fds, timeout.as_ref()) {
                Err(Errno::INTR) => {}
                Ok(count) => return count > 0,
                Err(_) => return false,
            }
        }
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// Nobody else would reap it.
impl Drop for Process {
    fn drop(&mut self) {
        if self.end.is_none() {
            self.kill();
            // One that hangs in the kernel is left to whoever inherits it.
            if self.wait(Duration::from_secs(1)) {
                let _ = self.reap();
            }
        }
    }
}

/// What the jailer is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct JailerOrder {
    pub(crate) id: String,
    /// User and group, if they are not the caller's.
    pub(crate) uid: Option<u32>,
    pub(crate) runtime: PathBuf,
    /// Namespaces that are made once for all cells.
    pub(crate) pool: Option<PathBuf>,
    /// The cgroup below which the sandbox's is made.
    pub(crate) parent_cgroup: String,
    /// `FILE=VALUE`.
    pub(crate) limits: Vec<String>,
    pub(crate) isolation: Isolation,
}

/// What the jailer is told alike of a sandbox, of its volumes and of its network.
pub(crate) fn walls(isolation: Isolation, rootless: bool) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = Vec::new();
    if isolation == Isolation::BestEffort {
        arguments.extend(["--isolation".into(), "best-effort".into()]);
    }
    if rootless {
        // No other is ever delegated.
        arguments.extend(["--cgroup-version".into(), "2".into()]);
    }
    arguments
}

impl JailerOrder {
    /// The pool for what is beside the sandbox and takes mounts of the host's along, which root alone can do ahead.
    pub(crate) fn pool_beside(&self) -> Option<PathBuf> {
        self.pool.clone().filter(|_| self.uid.is_some())
    }

    /// The jailer's arguments.
    pub(crate) fn arguments(&self) -> Vec<OsString> {
        let mut arguments = walls(self.isolation, self.uid.is_none());
        let mut option = |name: &str, value: OsString| arguments.extend([name.into(), value]);
        option("--id", self.id.clone().into());
        if let Some(uid) = self.uid {
            option("--uid", uid.to_string().into());
            option("--gid", uid.to_string().into());
        }
        option("--exec-file", self.runtime.clone().into());
        if let Some(pool) = &self.pool {
            option("--pool", pool.into());
        }
        option("--parent-cgroup", self.parent_cgroup.clone().into());
        for limit in &self.limits {
            option("--cgroup", limit.into());
        }
        option("--control-fd", CONTROL_FD.to_string().into());
        arguments.push("--".into());
        arguments
    }
}

/// What the jailer is told about a volume of a sandbox that runs already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VolumeOrder {
    pub(crate) id: String,
    pub(crate) server: PathBuf,
    /// Directory of namespaces that are made once; none without root.
    pub(crate) pool: Option<PathBuf>,
    /// The cgroup below which the sandbox's is.
    pub(crate) parent_cgroup: String,
    /// `FILE=VALUE`, as for the sandbox: by them its cgroups are found.
    pub(crate) limits: Vec<String>,
    pub(crate) writable: bool,
    /// The server is the caller, who is not root, and so is whatever it makes.
    pub(crate) rootless: bool,
    pub(crate) isolation: Isolation,
}

impl VolumeOrder {
    /// The jailer's arguments.
    pub(crate) fn arguments(&self) -> Vec<OsString> {
        let mut arguments = walls(self.isolation, self.rootless);
        let mut option = |name: &str, value: OsString| arguments.extend([name.into(), value]);
        option("--id", self.id.clone().into());
        option("--exec-file", self.server.clone().into());
        if let Some(pool) = &self.pool {
            option("--pool", pool.into());
        }
        option("--parent-cgroup", self.parent_cgroup.clone().into());
        for limit in &self.limits {
            option("--cgroup", limit.into());
        }
        option("--resource-limit", format!("no-file={VOLUME_FILES}").into());
        option("--volume-fd", VOLUME_FDS[0].to_string().into());
        option("--volume-socket-fd", VOLUME_FDS[1].to_string().into());
        option("--control-fd", CONTROL_FD.to_string().into());
        if self.writable {
            arguments.push("--volume-writable".into());
        }
        arguments.push("--".into());
        arguments.extend(self.writable.then(|| "rw".into()));
        arguments.extend(self.rootless.then(|| "single-owner".into()));
        arguments
    }
}

/// Starts the jailer with `files` as its descriptors from 3 on; returns it and the end of its standard error.
#[expect(
    unsafe_code,
    reason = "only between fork and exec can a descriptor be given a number for the child alone"
)]
pub(crate) fn jailer(
    program: &Path,
    arguments: Vec<OsString>,
    files: Vec<OwnedFd>,
) -> Result<(Process, OwnedFd), SpawnError> {
    let watch = |errno: Errno| SpawnError::Watch(errno.into());
    let behind = (CONTROL_FD..).nth(files.len()).unwrap_or(CONTROL_FD);
    let duplicates = |from| {
        let duplicate = |file| rustix::io::fcntl_dupfd_cloexec(file, from);
        files.iter().map(duplicate).collect::<Result<Vec<_>, _>>()
    };
    // From here on the numbers are taken, by these duplicates or by something that was there before: the pipe over which
    // std reports a failed exec cannot be what the child overwrites.
    let taken = duplicates(CONTROL_FD).map_err(watch)?;
    // And these lie behind them, so that none is overwritten before it was put in its place.
    let sources = duplicates(behind).map_err(watch)?;
    let numbers: Vec<i32> = sources.iter().map(AsRawFd::as_raw_fd).collect();
    drop(files);
    let (stderr, stderr_end) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(watch)?;
    rustix::fs::fcntl_setfl(&stderr, rustix::fs::OFlags::NONBLOCK).map_err(watch)?;
    let mut command = Command::new(program);
    command.arg0("husk-jailer").args(arguments).env_clear();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr_end);
    // A group of its own: keys on husk's terminal are husk's to translate.
    command.process_group(0);
    let husk = getpid();
    // SAFETY: the closure runs in the forked child and makes only the async-signal-safe calls prctl, getppid and dup2, the last on
    // numbers that are open there because `sources` lives until spawn has returned; it allocates nothing.
    unsafe {
        command.pre_exec(move || {
            // What a jailer makes once husk is dead, nobody would look for.
            set_parent_process_death_signal(Some(Signal::KILL))?;
            if getppid() != Some(husk) {
                return Err(Errno::SRCH.into());
            }
            (CONTROL_FD..).zip(&numbers).try_for_each(|(to, &from)| place(from, to))
        });
    }
    let child = command.spawn().map_err(|source| SpawnError::Jailer { path: program.to_owned(), source })?;
    drop((taken, sources));
    let pid = i32::try_from(child.id()).unwrap_or(0);
    let process = Process::child(pid).ok_or_else(|| SpawnError::Watch(io::Error::last_os_error()))?;
    Ok((process, stderr))
}

/// In the child: descriptor `from`, which is another, becomes `to` and survives exec.
#[expect(unsafe_code, reason = "rustix's dup2 wants to own a descriptor that nobody owns in the child")]
fn place(from: i32, to: i32) -> io::Result<()> {
    // SAFETY: plain numbers; what the child had there was close-on-exec anyway.
    let result = unsafe { libc::dup2(from, to) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{Received, pair};
    use crate::sys::ChildExit;
    use husk_protocol::control::FromCell;
    use std::io::{Read, Write};
    use std::os::unix::fs::OpenOptionsExt;

    fn order() -> JailerOrder {
        JailerOrder {
            id: "one".into(),
            uid: Some(7),
            runtime: "/lib/husk-runtime".into(),
            pool: Some("/run/husk/ns".into()),
            parent_cgroup: "husk".into(),
            limits: vec!["pids.max=3".into()],
            isolation: Isolation::Strict,
        }
    }

    #[test]
    fn the_jailer_is_told_everything() {
        let text: Vec<String> = order().arguments().into_iter().map(|a| a.into_string().unwrap()).collect();
        assert_eq!(
            text.join(" "),
            "--id one --uid 7 --gid 7 --exec-file /lib/husk-runtime --pool /run/husk/ns --parent-cgroup husk \
             --cgroup pids.max=3 --control-fd 3 --"
        );
        let rootless = JailerOrder { uid: None, isolation: Isolation::BestEffort, ..order() };
        let text: Vec<String> = rootless.arguments().into_iter().map(|a| a.into_string().unwrap()).collect();
        assert!(
            text.join(" ").starts_with("--isolation best-effort --cgroup-version 2 --id one --exec-file")
        );
    }

    #[test]
    fn the_child_finds_the_control_socket_at_three_and_a_clean_environment() {
        let path = std::env::temp_dir().join(format!("husk-spawn-{}", std::process::id()));
        let mut script =
            std::fs::File::options().create_new(true).write(true).mode(0o755).open(&path).unwrap();
        script
            .write_all(
                b"#!/bin/sh\nprintf '{\"cloned\":{\"pid\":5}}' >&3\necho \"${HOME-none} $2\" >&2\nexit 3\n",
            )
            .unwrap();
        drop(script);
        let (mut control, cell) = pair().unwrap();
        let (mut process, stderr) = jailer(&path, order().arguments(), vec![cell]).unwrap();
        assert!(process.wait(Duration::from_secs(10)));
        assert_eq!(process.reap().unwrap().how, ChildExit::Status(3));
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(control.receive().unwrap(), Received::Message(FromCell::Cloned { pid: 5 })));
        assert!(matches!(control.receive().unwrap(), Received::End));
        let mut text = String::new();
        std::fs::File::from(stderr).read_to_string(&mut text).unwrap();
        assert_eq!(text, "none one\n");
    }

    #[test]
    fn several_files_arrive_in_their_order() {
        let read = |text: &str| {
            let (reader, writer) = rustix::pipe::pipe().unwrap();
            rustix::io::write(&writer, text.as_bytes()).unwrap();
            reader
        };
        // A shell in the jailer's place: `sh -c` would be its arguments, had it any say in them.
        let script = "read a <&3; read b <&4; read c <&5; echo $a $b $c >&2".to_owned();
        let files = vec![read("one\n"), read("two\n"), read("three\n")];
        let arguments = vec!["-c".into(), script.into()];
        let (mut process, stderr) = jailer(Path::new("/bin/sh"), arguments, files).unwrap();
        assert!(process.wait(Duration::from_secs(10)));
        assert_eq!(process.reap().unwrap().how, ChildExit::Status(0));
        let mut text = String::new();
        std::fs::File::from(stderr).read_to_string(&mut text).unwrap();
        assert_eq!(text, "one two three\n");
    }

    #[test]
    fn a_volumes_jailer_is_told_everything() {
        let order = VolumeOrder {
            id: "one".into(),
            server: "/lib/husk-fs".into(),
            pool: Some("/run/husk/ns".into()),
            parent_cgroup: "husk".into(),
            limits: vec!["pids.max=3".into()],
            writable: true,
            rootless: false,
            isolation: Isolation::Strict,
        };
        let text: Vec<String> = order.arguments().into_iter().map(|a| a.into_string().unwrap()).collect();
        assert_eq!(
            text.join(" "),
            "--id one --exec-file /lib/husk-fs --pool /run/husk/ns --parent-cgroup husk --cgroup pids.max=3 \
             --resource-limit no-file=65536 --volume-fd 4 --volume-socket-fd 5 --control-fd 3 \
             --volume-writable -- rw"
        );
    }

    #[test]
    fn a_missing_jailer_is_named() {
        let (_control, cell) = pair().unwrap();
        let error = jailer(Path::new("/no/jailer"), order().arguments(), vec![cell]).unwrap_err().to_string();
        assert!(error.contains("/no/jailer"), "{error}");
    }

    #[test]
    fn only_children_are_accepted() {
        assert!(Process::child(1).is_none() && Process::child(-1).is_none());
        assert!(Process::child(std::os::unix::process::parent_id().cast_signed()).is_none());
        #[expect(clippy::zombie_processes, reason = "reaped as what is tested here")]
        let child = Command::new("sleep").arg("100").spawn().unwrap();
        let mut process = Process::child(child.id().cast_signed()).unwrap();
        assert!(!process.wait(Duration::ZERO));
        process.kill();
        assert_eq!(process.reap().unwrap().how, ChildExit::Signal(9));
    }
}
