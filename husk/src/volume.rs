//! Volumes: directories of the host, each with a server in a cell of its own.
//!
//! Owns the open directories, the servers' ends of their sockets and, once they run, the servers. Refuses what is no
//! directory. Invariant: a server is started only when the sandbox's cgroup is there for it to live in, at most once, and
//! none is left after [`Volumes::finish`]. One that cannot be started leaves a socket without a peer, which is an error in the
//! guest, and a line for the operator.

use crate::options::VolumeOption;
use crate::serving::Serving;
use crate::spawn::VolumeOrder;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

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

/// A server of the directory at this path.
#[derive(Debug)]
struct Server {
    path: PathBuf,
    serving: Serving,
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
    serving: Vec<Server>,
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
                Ok(server) => self.serving.push(server),
                Err(error) => self.failed.push(line(&path, &error)),
            }
        }
    }

    /// Ends and reaps what still runs, after the runtime has ended; returns what went wrong, a line each.
    pub(crate) fn finish(mut self) -> Vec<String> {
        self.waiting.clear();
        for Server { path, serving } in self.serving {
            self.failed.extend(serving.finish().failed.map(|error| line(&path, &error)));
        }
        self.failed
    }
}

fn line(path: &Path, error: &dyn std::fmt::Display) -> String {
    crate::text::line(&format!("--volume {}: {error}", path.display()))
}

fn serve(volume: Volume, jailer: &Path, order: &VolumeOrder) -> Result<Server, Box<dyn std::error::Error>> {
    let order = VolumeOrder { writable: volume.writable, ..order.clone() };
    let serving = Serving::start(jailer, order.arguments(), vec![volume.directory, volume.socket])?;
    Ok(Server { path: volume.path, serving })
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
            pool: None,
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
