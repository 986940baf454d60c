//! The host's end of a sandbox's network: a tap that the operator has made.
//!
//! Owns no state. Refuses an interface that is not there (opening it would make one), is no tap, or has a user already, which of
//! a tap with several queues the kernel itself does not: each opening adds one.
//! Invariant: what is returned never waits, and puts a virtio header of 12 bytes before each frame.

use crate::sys;
use husk_protocol::control::Fault;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice, socket_with};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

const TUN: &str = "/dev/net/tun";
/// Longest name of an interface in bytes (`IFNAMSIZ`, without the NUL).
const LONGEST_NAME: usize = 15;

/// The tap cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TapError {
    /// No interface can be called that.
    #[error(
        "tap {0:?}: an interface's name has 1 to {LONGEST_NAME} printable characters without / and space"
    )]
    Name(String),
    /// Nothing is called that.
    #[error("tap {0} does not exist; make it: ip tuntap add dev {0} mode tap && ip link set {0} up")]
    Missing(String),
    /// Somebody has it.
    #[error("tap {0} is in use by another process; each sandbox needs one of its own")]
    Busy(String),
    /// A card, a bridge, a tun, or a tap with one queue.
    #[error("{0} is no tap with several queues; make one: ip tuntap add dev NAME mode tap multi_queue")]
    NotSeveral(String),
    /// A card, a bridge, a tun, or a tap with several queues.
    #[error("{0} is no tap with one queue; make one: ip tuntap add dev NAME mode tap")]
    NotATap(String),
    /// No privilege.
    #[error("no permission to open tap {0}; run husk with CAP_NET_ADMIN, or make the tap for this user")]
    Permission(String),
    /// No driver.
    #[error("{TUN} does not exist; load the module: modprobe tun")]
    NoDriver,
    /// Something else.
    #[error("tap {name}: {what}: {source}")]
    Host {
        /// The tap.
        name: String,
        /// What was asked.
        what: &'static str,
        /// The answer.
        source: io::Error,
    },
}

impl TapError {
    /// Who is at fault.
    pub(crate) fn fault(&self) -> Fault {
        match self {
            Self::Permission(_) | Self::NoDriver | Self::Host { .. } => Fault::Host,
            _ => Fault::Operator,
        }
    }
}

/// An open tap.
#[derive(Debug)]
pub(crate) struct Tap {
    /// One for each queue.
    pub(crate) files: Vec<OwnedFd>,
    /// Largest packet in bytes.
    pub(crate) mtu: u64,
}

/// Opens `queues` queues, one at least, of the tap `name`.
pub(crate) fn open(name: &str, queues: u64) -> Result<Tap, TapError> {
    let plain = name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/');
    if name.is_empty() || name.len() > LONGEST_NAME || !plain {
        return Err(TapError::Name(crate::text::line(name)));
    }
    let host = |what| move |source| TapError::Host { name: name.to_owned(), what, source };
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
        .map_err(|errno| host("asking for it")(errno.into()))?;
    netdevice::name_to_index(&socket, name).map_err(|_| TapError::Missing(name.to_owned()))?;
    let files = (0..queues.max(1)).map(|_| open_queue(name, queues > 1)).collect::<Result<Vec<_>, _>>()?;
    if queues > 1 && attached(name).map_err(host("counting its queues"))? != queues {
        return Err(TapError::Busy(name.to_owned()));
    }
    let mtu = sys::mtu(socket.as_fd(), name).map_err(host("reading its MTU"))?;
    Ok(Tap { files, mtu })
}

/// A queue of the tap `name`, which has `several` of them or one.
fn open_queue(name: &str, several: bool) -> Result<OwnedFd, TapError> {
    let host = |what| move |source| TapError::Host { name: name.to_owned(), what, source };
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::open(TUN, flags, Mode::empty()).map_err(|errno| match errno {
        Errno::NOENT | Errno::NODEV => TapError::NoDriver,
        Errno::ACCESS | Errno::PERM => TapError::Permission(name.to_owned()),
        errno => host("opening /dev/net/tun")(errno.into()),
    })?;
    sys::attach_tap(file.as_fd(), name, several).map_err(|error| match error.raw_os_error() {
        Some(libc::EBUSY) => TapError::Busy(name.to_owned()),
        Some(libc::EPERM | libc::EACCES) => TapError::Permission(name.to_owned()),
        Some(libc::EINVAL) if several => TapError::NotSeveral(name.to_owned()),
        Some(libc::EINVAL) => TapError::NotATap(name.to_owned()),
        _ => host("attaching to it")(error),
    })?;
    sys::prepare_tap(file.as_fd()).map_err(host("setting its header and offloads"))?;
    Ok(file)
}

/// How many queues of the tap `name` somebody has open: the driver makes the interface have as many.
fn attached(name: &str) -> io::Result<u64> {
    let mut count = 0;
    for entry in std::fs::read_dir(format!("/sys/class/net/{name}/queues"))? {
        count += u64::from(entry?.file_name().as_encoded_bytes().starts_with(b"tx-"));
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_tap_is_named() {
        for name in ["", "0123456789abcdef", "a/b", "a b", "\u{e4}"] {
            assert!(matches!(open(name, 1).unwrap_err(), TapError::Name(_)), "{name}");
        }
        let text = open("husk-no-such", 2).unwrap_err().to_string();
        assert!(text.starts_with("tap husk-no-such does not exist"), "{text}");
    }
}
