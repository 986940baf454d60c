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
use std::os::unix::fs::{MetadataExt, PermissionsExt};
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
    /// Device and inode of the name.
    identity: (u64, u64),
}

impl SocketName {
    /// Removes the name, if it still is this socket's; `NotFound` if it is not.
    pub(crate) fn remove(&self) -> io::Result<()> {
        let named = std::fs::symlink_metadata(&self.path)?;
        if (named.dev(), named.ino()) != self.identity {
            return Err(io::ErrorKind::NotFound.into());
        }
        std::fs::remove_file(&self.path)
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// A listening socket with its name.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: OwnedFd,
    name: SocketName,
}

impl Listener {
    /// Makes the socket at `path`, for its owner alone.
    pub(crate) fn new(path: &Path) -> Result<Self, VsockError> {
        let fail = |source| VsockError { path: path.to_owned(), source };
        let make = || {
            let address = SocketAddrUnix::new(path)?;
            let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
            bind(&socket, &address)?;
            Ok::<_, rustix::io::Errno>(socket)
        };
        let socket = make().map_err(|errno| fail(errno.into()))?;
        let metadata = std::fs::symlink_metadata(path).map_err(fail)?;
        let name = SocketName {
            path: std::path::absolute(path).map_err(fail)?,
            identity: (metadata.dev(), metadata.ino()),
        };
        let listener = Self { socket, name };
        // Nobody can connect before it listens, so the mode is in time.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(fail)?;
        listen(&listener.socket, BACKLOG).map_err(|errno| fail(errno.into()))?;
        Ok(listener)
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
        let _ = self.name.remove();
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
        let listener = Listener::new(&path).unwrap();
        UnixStream::connect(&path).unwrap();
        assert!(Listener::new(&path).unwrap_err().to_string().contains("husk-vsock-"));
        drop(listener);
        assert!(!path.exists());
        // Somebody else's file under the name stays.
        let listener = Listener::new(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "x").unwrap();
        drop(listener);
        assert!(path.exists());
        std::fs::remove_file(&path).unwrap();
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
