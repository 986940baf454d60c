//! A guest's way to its host (`vsock(7)`).
//!
//! Owns the layout of a vsock address, which no safe binding knows.

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// Connects to a port of the host.
///
/// # Errors
/// There is no vsock here, or nobody listens.
pub fn connect(port: u32) -> io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::VSOCK, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    let mut bytes = [0u8; size_of::<libc::sockaddr_vm>()];
    bytes[..2].copy_from_slice(&AddressFamily::VSOCK.as_raw().to_ne_bytes());
    bytes[4..8].copy_from_slice(&port.to_ne_bytes());
    bytes[8..12].copy_from_slice(&libc::VMADDR_CID_HOST.to_ne_bytes());
    let length = libc::socklen_t::try_from(bytes.len()).map_err(io::Error::other)?;
    #[expect(unsafe_code, reason = "no safe binding knows vsock addresses")]
    // SAFETY: the pointer and the length are those of `bytes`, laid out above as a sockaddr_vm (family, reserved, port,
    // cid, zero); the kernel copies it before the call returns.
    let status = unsafe { libc::connect(socket.as_raw_fd(), bytes.as_ptr().cast(), length) };
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(socket) }
}
