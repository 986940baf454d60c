//! A tap in a network of its own, and the other end of its wire.
//!
//! Owns nothing but descriptors: the network goes with the last of them. Where this user cannot make one, [`missing`] says why.

#![expect(unsafe_code, reason = "ioctls and a packet socket, which have no safe wrapper")]

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::OnceLock;

const NAME: &[u8] = b"husk0";
/// Bytes of the header before each frame, and what the guest takes: checksums, long TCP frames (linux/if_tun.h).
const HEADER_BYTES: libc::c_int = 12;
const OFFLOADS: libc::c_ulong = 1 | 2 | 4;
/// Where a frame's source address is.
const SOURCE: std::ops::Range<usize> = 6..12;

/// The end at which the host's own network would be.
pub(crate) struct Wire(OwnedFd);

/// The runtime's end, which never waits, and the other.
pub(crate) fn pair() -> io::Result<(OwnedFd, Wire)> {
    #[allow(clippy::disallowed_methods, reason = "tests have no thread policy")]
    // A network belongs to a thread: this one's ends with it, but for what is open.
    std::thread::spawn(make).join().unwrap()
}

fn make() -> io::Result<(OwnedFd, Wire)> {
    // SAFETY: takes no pointer; the network of this thread alone changes.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) })?;
    let mut options = OpenOptions::new();
    let tap = options.read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    // SAFETY: all-zero bytes are a valid ifreq: a name of NULs and a union of integers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(NAME) {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).unwrap();
    // SAFETY: `request` is an ifreq that lives through the call; its name is terminated.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    let bytes = HEADER_BYTES;
    // SAFETY: the kernel reads an int, which lives through the call.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const bytes) })?;
    // SAFETY: the request takes its argument by value.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETOFFLOAD, OFFLOADS) })?;
    Ok((tap.into(), Wire(far_end(&mut request)?)))
}

/// Brings the interface up and listens on it.
#[allow(clippy::cast_possible_truncation, reason = "a request is an int in one C library, a long in another")]
fn far_end(request: &mut libc::ifreq) -> io::Result<OwnedFd> {
    let (domain, kind) = (libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK);
    let every = u16::try_from(libc::ETH_P_ALL).unwrap().to_be();
    // SAFETY: takes no pointer.
    let number = check(unsafe { libc::socket(domain, kind, every.into()) })?;
    // SAFETY: it was just opened, and is nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(number) };
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_UP).unwrap();
    // SAFETY: `request` is an ifreq that lives through the call; its name is terminated.
    check(unsafe { libc::ioctl(number, libc::SIOCSIFFLAGS as _, &raw mut *request) })?;
    // SAFETY: as above; the kernel writes the index.
    check(unsafe { libc::ioctl(number, libc::SIOCGIFINDEX as _, &raw mut *request) })?;
    // SAFETY: the call succeeded and wrote this member; every bit pattern is a number.
    let index = unsafe { request.ifr_ifru.ifru_ifindex };
    // SAFETY: all-zero bytes are a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = u16::try_from(domain).unwrap();
    (address.sll_protocol, address.sll_ifindex) = (every, index);
    let length = libc::socklen_t::try_from(size_of_val(&address)).unwrap();
    // SAFETY: `address` is a sockaddr_ll of `length` bytes that lives through the call.
    check(unsafe { libc::bind(number, (&raw const address).cast(), length) })?;
    Ok(socket)
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

impl Wire {
    /// Sends a frame to the guest; a tap that is full loses it.
    pub(crate) fn send(&self, frame: &[u8]) {
        let _ = rustix::io::write(&self.0, frame);
    }

    /// The source addresses of what has been on the wire since the last look. The host's own network speaks there too, from
    /// the tap's address.
    pub(crate) fn sources(&self) -> Vec<[u8; 6]> {
        let mut frame = vec![0; 1 << 17];
        let mut sources = Vec::new();
        while let Ok(count) = rustix::io::read(&self.0, &mut frame) {
            sources.extend(frame[..count].get(SOURCE).and_then(|source| <[u8; 6]>::try_from(source).ok()));
        }
        sources
    }
}

/// Why this user cannot make one; `None`: he can.
pub(crate) fn missing() -> Option<&'static str> {
    static MISSING: OnceLock<Option<String>> = OnceLock::new();
    MISSING.get_or_init(|| pair().err().map(|error| error.to_string())).as_deref()
}
