//! PID 1 of the peer's guest: the least that a command needs, so that the comparison flatters the peer.
//!
//! Owns the guest's life: mounts, one vsock connection to the host, one command, and a reboot when the host hangs up.
//! Refuses nothing: a failure ends PID 1 and so the guest, which the benchmark reports. Invariant: the first thing it
//! does is to read the time-stamp counter.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};

use husk_tests::bench::guest_clock::ticks;
use husk_tests::bench::peer::wire;
use rustix::mount::{MountFlags, mount};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

fn main() -> io::Result<()> {
    let init = ticks();
    let nodev = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV;
    if let Some(root) = root_image() {
        mount(root, "/root", "erofs", MountFlags::RDONLY, None)?;
        rustix::process::chroot("/root")?;
        rustix::process::chdir("/")?;
        mount("dev", "/dev", "devtmpfs", MountFlags::NOSUID, None)?;
    }
    mount("proc", "/proc", "proc", nodev, None)?;
    mount("sys", "/sys", "sysfs", nodev, None)?;
    mount("tmp", "/tmp", "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, None)?;
    let mut host = File::from(connect()?);
    wire::Hello { init, connected: ticks() }.send(&mut host)?;
    let command = wire::receive_command(&mut host)?;
    let (program, args) = command.split_first().ok_or_else(|| io::Error::other("no command"))?;
    Command::new(program)
        .args(args)
        .env("PATH", "/bin:/usr/bin")
        .stdin(Stdio::null())
        .stdout(host.try_clone()?)
        .stderr(host.try_clone()?)
        .status()?;
    // The host hangs up when it has what it wants.
    host.read_to_end(&mut Vec::new())?;
    rustix::system::reboot(rustix::system::RebootCommand::Restart)?;
    Ok(())
}

/// The drive, if the machine has one. The device node needs a devtmpfs, which the initramfs does not have by itself.
fn root_image() -> Option<&'static Path> {
    mount("dev", "/dev", "devtmpfs", MountFlags::NOSUID, None).ok()?;
    let drive = Path::new("/dev/vda");
    drive.exists().then_some(drive)
}

/// Connects to the host (`vsock(7)`).
fn connect() -> io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::VSOCK, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    let mut bytes = [0u8; size_of::<libc::sockaddr_vm>()];
    bytes[..2].copy_from_slice(&AddressFamily::VSOCK.as_raw().to_ne_bytes());
    bytes[4..8].copy_from_slice(&wire::PORT.to_ne_bytes());
    bytes[8..12].copy_from_slice(&libc::VMADDR_CID_HOST.to_ne_bytes());
    let length = libc::socklen_t::try_from(bytes.len()).map_err(io::Error::other)?;
    #[expect(unsafe_code, reason = "no safe binding knows vsock addresses")]
    // SAFETY: the pointer and the length are those of `bytes`, laid out above as a sockaddr_vm (family, reserved, port,
    // cid, zero); the kernel copies it before the call returns.
    let status = unsafe { libc::connect(socket.as_raw_fd(), bytes.as_ptr().cast(), length) };
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(socket) }
}
