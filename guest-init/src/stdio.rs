//! What a command has at its descriptors 0, 1 and 2. Owns both ends until the fork; refuses nothing. Invariant: every
//! descriptor here is close-on-exec, and the ends that PID 1 keeps are non-blocking.

use husk_protocol::exec::{Exec, WindowSize};
use rustix::fd::OwnedFd;
use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

/// The command's ends.
#[derive(Debug)]
pub(crate) enum CommandEnds {
    /// Standard input, output and error.
    Pipes([OwnedFd; 3]),
    /// A terminal, to become the controlling one.
    Terminal(OwnedFd),
}

/// The ends that PID 1 keeps.
#[derive(Debug)]
pub(crate) struct OurEnds {
    /// Into the command; `None`: it reads /dev/null.
    pub(crate) stdin: Option<OwnedFd>,
    /// Out of it.
    pub(crate) stdout: OwnedFd,
    /// Out of it; a terminal has none.
    pub(crate) stderr: Option<OwnedFd>,
    /// Whether they are a terminal's master.
    pub(crate) terminal: bool,
}

/// Makes the descriptors that `exec` asks for, for a command that runs as `uid`.
///
/// # Errors
/// The kernel's: too many open files, no terminals.
pub(crate) fn open(exec: &Exec, uid: u32) -> Result<(CommandEnds, OurEnds), Errno> {
    match exec.terminal {
        Some(size) => terminal(size, uid),
        None => pipes(exec.stdin, uid),
    }
}

fn pipes(stdin: bool, uid: u32) -> Result<(CommandEnds, OurEnds), Errno> {
    let (zero, ours) = if stdin {
        let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        (theirs, Some(ours))
    } else {
        let null = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        (null, None)
    };
    let (stdout, one) = output(uid)?;
    let (stderr, two) = output(uid)?;
    if let (Some(_), true) = (&ours, uid != 0) {
        rustix::fs::fchown(&zero, Some(Uid::from_raw(uid)), None)?;
    }
    let ours = OurEnds { stdin: ours, stdout, stderr: Some(stderr), terminal: false };
    Ok((CommandEnds::Pipes([zero, one, two]), ours))
}

/// A pipe out of a command: our end, its end.
fn output(uid: u32) -> Result<(OwnedFd, OwnedFd), Errno> {
    let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    // It is the command's: it may open /dev/stdout again.
    if uid != 0 {
        rustix::fs::fchown(&theirs, Some(Uid::from_raw(uid)), None)?;
    }
    Ok((ours, theirs))
}

fn terminal(size: WindowSize, uid: u32) -> Result<(CommandEnds, OurEnds), Errno> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let master = rustix::fs::open("/dev/ptmx", flags, Mode::empty())?;
    rustix::pty::unlockpt(&master)?;
    let peer = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, peer)?;
    rustix::termios::tcsetwinsize(&slave, winsize(size))?;
    if uid != 0 {
        rustix::fs::fchown(&slave, Some(Uid::from_raw(uid)), None::<Gid>)?;
    }
    // Two descriptors, so that each direction is listened for by itself.
    let keys = fcntl_dupfd_cloexec(&master, 3)?;
    let ours = OurEnds { stdin: Some(keys), stdout: master, stderr: None, terminal: true };
    Ok((CommandEnds::Terminal(slave), ours))
}

/// A window as the kernel takes it.
pub(crate) fn winsize(size: WindowSize) -> Winsize {
    Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 }
}
