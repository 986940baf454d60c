//! PID 1 of the peer's guest: the least that a command needs, so that the comparison flatters the peer.
//!
//! Owns the guest's life: mounts, one vsock connection to the host, one command, and a reboot when the host hangs up.
//! Refuses nothing: a failure ends PID 1 and so the guest, which the benchmark reports. Invariant: the first thing it
//! does is to read the time-stamp counter.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::process::{Command, Stdio};

use husk_tests::bench::guest_clock::ticks;
use husk_tests::bench::peer::wire;
use rustix::mount::{MountFlags, mount};

fn main() -> io::Result<()> {
    let init = ticks();
    let nodev = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV;
    // A drive without a root on it is the command's to use.
    if let Some(drive) = drive()
        && mount(drive, "/root", "erofs", MountFlags::RDONLY, None).is_ok()
    {
        rustix::process::chroot("/root")?;
        rustix::process::chdir("/")?;
        mount("dev", "/dev", "devtmpfs", MountFlags::NOSUID, None)?;
    }
    mount("proc", "/proc", "proc", nodev, None)?;
    mount("sys", "/sys", "sysfs", nodev, None)?;
    mount("tmp", "/tmp", "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, None)?;
    let mut host = File::from(husk_tests::guest_vsock::connect(wire::PORT)?);
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
fn drive() -> Option<&'static Path> {
    mount("dev", "/dev", "devtmpfs", MountFlags::NOSUID, None).ok()?;
    let drive = Path::new("/dev/vda");
    drive.exists().then_some(drive)
}
