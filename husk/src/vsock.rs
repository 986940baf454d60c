//! The host's side of vsock, as Firecracker's users know it: one socket to reach the guest, and `<path>_<port>` for each
//! host port that the guest may reach.
//!
//! Owns the listening socket's name. Refuses a path that exists. Invariant: a name is removed only while it still names
//! the socket that was made here.

use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect as connect_socket, listen,
    socket_with, sockopt::set_socket_send_buffer_size,
};
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Connections that may wait for the runtime.
const BACKLOG: i32 = 64;

/// What a connection to a host port holds until its program reads, in bytes: what a Linux guest sends ahead (256 KiB), so that
/// the runtime need not keep any of it in memory of its own.
const SEND_BUFFER_BYTES: usize = 512 << 10;

/// The socket cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("vsock socket {}: {source}", path.display())]
pub(crate) struct VsockError {
    path: PathBuf,
    source: io::Error,
}

/// The name of a listening socket, by which it is known again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SocketName {
    /// Absolute.
    path: PathBuf,
    /// Device and inode of the name; none while it is about to be made.
    identity: Option<(u64, u64)>,
}

impl SocketName {
    /// Removes the name, if it still is this socket's; `NotFound` if it is not. One that was about to be made since `started_ms`
    /// (milliseconds since 1970) is known by its age, its owner, and that nobody listens to it.
    pub(crate) fn remove(&self, started_ms: u64) -> io::Result<()> {
        let named = std::fs::symlink_metadata(&self.path)?;
        let is = match self.identity {
            Some(identity) => (named.dev(), named.ino()) == identity,
            None => {
                let since = u64::try_from(named.ctime()).unwrap_or(0) >= started_ms / 1000;
                let own = named.uid() == rustix::process::geteuid().as_raw();
                named.file_type().is_socket() && since && own && is_deaf(&self.path)
            }
        };
        if is { std::fs::remove_file(&self.path) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// Whether the socket of this name is nobody's.
fn is_deaf(path: &Path) -> bool {
    let connect = || {
        let address = SocketAddrUnix::new(path)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        connect_socket(&socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?, &address)
    };
    connect() == Err(rustix::io::Errno::CONNREFUSED)
}

/// A listening socket with its name.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: OwnedFd,
    name: SocketName,
}

impl Listener {
    /// A socket that is to listen at `path`: nothing is there yet.
    pub(crate) fn new(path: &Path) -> Result<Self, VsockError> {
        let fail = |source| VsockError { path: path.to_owned(), source };
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
        let socket = socket.map_err(|errno| fail(errno.into()))?;
        let path = std::path::absolute(path).map_err(fail)?;
        Ok(Self { socket, name: SocketName { path, identity: None } })
    }

    /// Makes the name, for its owner alone, and listens. To be called when it is on record who is about to.
    pub(crate) fn listen(&mut self) -> Result<(), VsockError> {
        let path = self.name.path.clone();
        let fail = |source| VsockError { path: path.clone(), source };
        let bound = SocketAddrUnix::new(&path).and_then(|address| bind(&self.socket, &address));
        bound.map_err(|errno| fail(errno.into()))?;
        let metadata = std::fs::symlink_metadata(&path).map_err(fail)?;
        self.name.identity = Some((metadata.dev(), metadata.ino()));
        // Nobody can connect before it listens, so the mode is in time.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(fail)?;
        listen(&self.socket, BACKLOG).map_err(|errno| fail(errno.into()))
    }

    /// What its name is known by when nobody holds the listener any more.
    pub(crate) fn name(&self) -> &SocketName {
        &self.name
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if self.name.identity.is_some() {
            let _ = self.name.remove(0);
        }
    }
}

/// A connection to the host's `port`, if somebody listens; never waits.
pub(crate) fn connect(path: &Path, port: u32) -> Option<OwnedFd> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!("_{port}"));
    let address = SocketAddrUnix::new(Path::new(&name)).ok()?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).ok()?;
    connect_socket(&socket, &address).ok()?;
    // A hint: the kernel gives what its limit allows.
    let _ = set_socket_send_buffer_size(&socket, SEND_BUFFER_BYTES);
    Some(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn the_name_lives_as_long_as_the_listener() {
        let path = std::env::temp_dir().join(format!("husk-vsock-{}", std::process::id()));
        let listening = || {
            let mut listener = Listener::new(&path)?;
            listener.listen().map(|()| listener)
        };
        let listener = listening().unwrap();
        UnixStream::connect(&path).unwrap();
        assert!(listening().unwrap_err().to_string().contains("husk-vsock-"));
        assert!(path.exists(), "one that could not be made has no name to remove");
        drop(listener);
        assert!(!path.exists());
        // Somebody else's file under the name stays.
        let listener = listening().unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "x").unwrap();
        drop(listener);
        assert!(path.exists());
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_name_that_was_about_to_be_made_is_removed_if_it_was_and_nobody_listens() {
        let path = std::env::temp_dir().join(format!("husk-vsock-intent-{}", std::process::id()));
        let intent = Listener::new(&path).unwrap().name().clone();
        assert!(intent.remove(0).is_err(), "it was not made");
        let living = UnixListener::bind(&path).unwrap();
        assert!(intent.remove(0).is_err(), "somebody listens");
        drop(living);
        assert!(intent.remove(u64::MAX).is_err(), "it was there before");
        intent.remove(0).unwrap();
        std::fs::write(&path, "x").unwrap();
        assert!(intent.remove(0).is_err() && path.exists(), "it is no socket");
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn host_ports_are_sockets_with_a_suffix() {
        let path = std::env::temp_dir().join(format!("husk-vsock-port-{}", std::process::id()));
        let port = std::env::temp_dir().join(format!("husk-vsock-port-{}_6000", std::process::id()));
        let _listener = UnixListener::bind(&port).unwrap();
        let socket = connect(&path, 6000).unwrap();
        // At least what every Linux allows, which says twice of what was asked for.
        assert!(rustix::net::sockopt::socket_send_buffer_size(&socket).unwrap() >= 2 * 212_992);
        assert!(connect(&path, 6001).is_none());
        std::fs::remove_file(port).unwrap();
    }
}
