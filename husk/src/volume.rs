//! Volumes: directories of the host, each with a server in a cell of its own.
//!
//! Owns the open directories, the servers' ends of their sockets and, once they run, the servers. Refuses what is no
//! directory. Invariant: a server is started only when the sandbox's cgroup is there for it to live in, at most once, and
//! none is left after [`Volumes::finish`]. One that cannot be started leaves a socket without a peer, which is an error in the
//! guest, and a line for the operator.

use crate::control::{self, Control, Received};
use crate::options::VolumeOption;
use crate::spawn::{self, Process, VolumeOrder};
use husk_protocol::control::FromCell;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a jailer, and then a server without a guest, may take to end by itself.
const PATIENCE: Duration = Duration::from_secs(2);
/// Bytes of a jailer's standard error that are looked at.
const JAILER_WORDS: u64 = 4096;

/// A volume cannot be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VolumeError {
    /// The directory.
    #[error("--volume {}: {}", path.display(), said(*errno))]
    Directory {
        /// As given.
        path: PathBuf,
        /// The system's word.
        errno: Errno,
    },
    /// No descriptors.
    #[error("--volume {}: no socket: {errno}", path.display())]
    Socket {
        /// As given.
        path: PathBuf,
        /// The system's word.
        errno: Errno,
    },
}

fn said(errno: Errno) -> String {
    match errno {
        Errno::NOTDIR => "is not a directory; a volume is one (a disk image goes to --drive)".into(),
        other => std::io::Error::from(other).to_string(),
    }
}

/// A directory that has no server yet.
#[derive(Debug)]
pub(crate) struct Volume {
    path: PathBuf,
    directory: OwnedFd,
    socket: OwnedFd,
    writable: bool,
}

impl Volume {
    /// Opens what `option` names, once; whatever the name leads to then is the volume. Returns the runtime's end of the
    /// socket as well.
    pub(crate) fn open(option: &VolumeOption) -> Result<(Self, OwnedFd), VolumeError> {
        let path = option.directory.clone();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = open(&path, flags, Mode::empty())
            .map_err(|errno| VolumeError::Directory { path: path.clone(), errno })?;
        let pair = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
        let (ours, socket) = pair.map_err(|errno| VolumeError::Socket { path: path.clone(), errno })?;
        Ok((Self { path, directory, socket, writable: option.writable }, ours))
    }
}

/// A server, or what is left of one.
#[derive(Debug)]
struct Serving {
    path: PathBuf,
    control: Control,
    jailer: Process,
    jailer_stderr: OwnedFd,
    server: Option<Process>,
    failed: Option<String>,
}

/// What all servers of a sandbox are started with.
#[derive(Debug, Clone)]
pub(crate) struct Start {
    /// husk-jailer.
    pub(crate) jailer: PathBuf,
    /// What it is told, but for the volume's own.
    pub(crate) order: VolumeOrder,
}

/// The volumes of one sandbox.
#[derive(Debug, Default)]
pub(crate) struct Volumes {
    waiting: Vec<Volume>,
    start: Option<Start>,
    serving: Vec<Serving>,
    failed: Vec<String>,
}

impl Volumes {
    /// None runs yet. `start`: without it none ever does.
    pub(crate) fn new(waiting: Vec<Volume>, start: Option<Start>) -> Self {
        Self { waiting, start, ..Self::default() }
    }

    /// Starts the servers; nobody waits for them. The sandbox's cgroup must be there.
    pub(crate) fn start(&mut self) {
        let Some(Start { jailer, order }) = self.start.take() else { return };
        for volume in self.waiting.drain(..) {
            let path = volume.path.clone();
            match serve(volume, &jailer, &order) {
                Ok(serving) => self.serving.push(serving),
                Err(error) => self.failed.push(line(&path, &error)),
            }
        }
    }

    /// Ends and reaps what still runs, after the runtime has ended; returns what went wrong, a line each.
    pub(crate) fn finish(mut self) -> Vec<String> {
        self.waiting.clear();
        for serving in &mut self.serving {
            self.failed.extend(serving.finish());
        }
        self.failed
    }
}

fn line(path: &Path, error: &dyn std::fmt::Display) -> String {
    crate::text::line(&format!("--volume {}: {error}", path.display()))
}

fn serve(volume: Volume, jailer: &Path, order: &VolumeOrder) -> Result<Serving, Box<dyn std::error::Error>> {
    let order = VolumeOrder { writable: volume.writable, ..order.clone() };
    let (control, theirs) = control::pair()?;
    let files = vec![theirs, volume.directory, volume.socket];
    let (jailer, jailer_stderr) = spawn::jailer(jailer, order.arguments(), files)?;
    Ok(Serving { path: volume.path, control, jailer, jailer_stderr, server: None, failed: None })
}

impl Serving {
    fn hear(&mut self) {
        while let Ok(Received::Message(message)) = self.control.receive() {
            match message {
                FromCell::Cloned { pid } if self.server.is_none() => self.server = Process::child(pid),
                FromCell::Failed { message, .. } => {
                    self.failed.get_or_insert(message);
                }
                _ => {}
            }
        }
    }

    /// The line to report, if there is one.
    fn finish(&mut self) -> Option<String> {
        end(&mut self.jailer);
        self.hear();
        if let Some(server) = &mut self.server {
            end(server);
            self.hear();
        }
        if self.failed.is_none() && self.server.is_none() {
            let mut words = Vec::new();
            let stderr = self.jailer_stderr.try_clone().ok()?;
            let _ = std::fs::File::from(stderr).take(JAILER_WORDS).read_to_end(&mut words);
            let said = crate::text::last_line(&words).unwrap_or_else(|| "the jailer says nothing".into());
            self.failed = Some(format!("no server was started; {said}"));
        }
        self.failed.take().map(|error| line(&self.path, &error))
    }
}

/// Waits for its end, brings it about if it takes too long, and reaps.
fn end(process: &mut Process) {
    if !process.wait(PATIENCE) {
        process.kill();
        process.wait(PATIENCE);
    }
    let _ = process.reap();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn option(path: &str) -> VolumeOption {
        format!("{path}:/data").parse().unwrap()
    }

    #[test]
    fn what_is_no_directory_is_named() {
        let error = |path| Volume::open(&option(path)).unwrap_err().to_string();
        assert!(error("/proc/version").starts_with("--volume /proc/version: is not a directory"));
        assert!(error("/no/such").starts_with("--volume /no/such: No such file"), "{}", error("/no/such"));
        Volume::open(&option("/proc")).unwrap();
    }

    #[test]
    fn a_server_that_cannot_be_started_is_told_and_its_socket_ends() {
        let (volume, socket) = Volume::open(&option("/proc")).unwrap();
        let order = VolumeOrder {
            id: "one".into(),
            server: "/no/husk-fs".into(),
            parent_cgroup: "husk".into(),
            limits: Vec::new(),
            writable: false,
            rootless: false,
            isolation: crate::isolation::Isolation::Strict,
        };
        // A jailer that says something and ends, whatever it is told.
        let start = Start { jailer: "/bin/false".into(), order };
        let mut volumes = Volumes::new(vec![volume], Some(start));
        volumes.start();
        volumes.start();
        let failed = volumes.finish();
        assert_eq!(failed.len(), 1);
        assert!(failed[0].starts_with("--volume /proc: no server was started"), "{failed:?}");
        assert_eq!(rustix::io::read(socket, &mut [0; 1]), Ok(0));
    }
}
