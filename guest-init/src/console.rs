//! The last resort: the kernel's log, which the host keeps even when the connection is gone. Owns /dev/kmsg and the
//! end of the machine; refuses nothing. Invariant: whoever calls [`die`] has been heard by the host, as far as that is
//! possible, before the machine is gone.

use rustix::fd::OwnedFd;
use rustix::fs::{FileType, Mode, OFlags, makedev};
use rustix::io::Errno;
use rustix::system::{RebootCommand, reboot};
use std::fmt::Display;

/// Priority 0: printed whatever the command line says about quiet.
const EMERGENCY: &str = "<0>";
/// Longest line; the kernel refuses more than about 1,000 bytes.
const MOST_BYTES: usize = 900;

/// Puts one line into the kernel's log.
pub(crate) fn log(message: &impl Display) {
    let mut line = format!("{EMERGENCY}husk-init: {message}").replace('\n', " ");
    while line.len() > MOST_BYTES {
        line.pop();
    }
    if let Ok(log) = kmsg() {
        let _ = rustix::io::write(log, line.as_bytes());
    }
}

fn kmsg() -> Result<OwnedFd, Errno> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    rustix::fs::open("/dev/kmsg", flags, Mode::empty()).or_else(|_| {
        // Before /dev is mounted, or after a command took it away.
        let mode = Mode::RUSR | Mode::WUSR;
        let node = "/.kmsg";
        rustix::fs::mknodat(rustix::fs::CWD, node, FileType::CharacterDevice, mode, makedev(1, 11))?;
        let log = rustix::fs::open(node, flags, Mode::empty());
        let _ = rustix::fs::unlink(node);
        log
    })
}

/// Says why, and ends the machine. The kernel's own panic would say more, but push the reason out of the last lines.
pub(crate) fn die(reason: &impl Display) -> ! {
    log(reason);
    restart()
}

/// Ends the machine. A reset is what every machine can do; the host takes it for the end.
pub(crate) fn restart() -> ! {
    if let Err(error) = reboot(RebootCommand::Restart) {
        log(&format_args!("cannot reset the machine: {error}"));
    }
    // Not allowed to (another PID namespace than the first): then this process is the machine.
    crate::sys::exit_now(1)
}

/// A bug in PID 1 must reach the host too.
pub(crate) fn install_panic_hook() {
    std::panic::set_hook(Box::new(|info| die(&format_args!("bug: {info}"))));
}
