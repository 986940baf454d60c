//! A tap on this machine, with addresses, as an operator would make one (busybox's `ip` makes none).
//!
//! Owns the interface: it is there as long as the value.

#![expect(unsafe_code, reason = "ioctls without a safe wrapper")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::process::Command;

/// An interface that nobody is attached to yet.
#[derive(Debug)]
pub struct Tap {
    name: String,
    /// `IFF_MULTI_QUEUE`, or nothing.
    queues: libc::c_int,
}

impl Tap {
    /// Makes the tap `name`, gives it `addresses` (each `ADDRESS/PREFIX`) and brings it up.
    ///
    /// # Panics
    /// The machine has no tun driver, or refuses.
    #[must_use]
    #[track_caller]
    pub fn new(name: &str, addresses: &[&str]) -> Self {
        Self::made(name, addresses, 0)
    }

    /// The same with several queues, as many as whoever opens it wants.
    ///
    /// # Panics
    /// As [`Tap::new`].
    #[must_use]
    #[track_caller]
    pub fn with_queues(name: &str, addresses: &[&str]) -> Self {
        Self::made(name, addresses, libc::IFF_MULTI_QUEUE)
    }

    #[track_caller]
    fn made(name: &str, addresses: &[&str], queues: libc::c_int) -> Self {
        let file = attach(name, queues).unwrap_or_else(|error| panic!("tap {name}: {error}"));
        persist(&file, true).unwrap_or_else(|error| panic!("tap {name} cannot stay: {error}"));
        let tap = Self { name: name.to_owned(), queues };
        // Its addresses are nobody else's, and are needed at once.
        let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/accept_dad"), "0");
        for address in addresses {
            ip(&["addr", "add", address, "dev", name]);
        }
        ip(&["link", "set", name, "up"]);
        tap
    }

    /// Lets a user attach to it who may not make one (`TUNSETOWNER`).
    ///
    /// # Panics
    /// The driver refuses.
    #[must_use]
    #[track_caller]
    pub fn owned_by(self, uid: u32) -> Self {
        let file =
            attach(&self.name, self.queues).unwrap_or_else(|error| panic!("tap {}: {error}", self.name));
        // SAFETY: the request takes its argument by value.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOWNER, libc::c_ulong::from(uid)) };
        assert!(result == 0, "tap {}: {}", self.name, io::Error::last_os_error());
        self
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What `--net` calls it.
    #[must_use]
    pub fn option(&self) -> String {
        format!("tap={}", self.name)
    }

    /// Attaches to it: nobody else can then.
    ///
    /// # Errors
    /// Somebody has done so already.
    pub fn occupy(&self) -> io::Result<File> {
        attach(&self.name, self.queues)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        // A husk that is just ending may hold it for a moment yet; then the deletion by name does it.
        let gone = attach(&self.name, self.queues).and_then(|file| persist(&file, false));
        if gone.is_err() {
            let _ = Command::new("/bin/busybox").args(["ip", "link", "del", &self.name]).status();
        }
    }
}

#[track_caller]
fn ip(args: &[&str]) {
    let output = Command::new("/bin/busybox").arg("ip").args(args).output();
    let output = output.unwrap_or_else(|error| panic!("busybox ip: {error}"));
    assert!(output.status.success(), "ip {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn attach(name: &str, queues: libc::c_int) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: all-zero bytes are a valid ifreq: a name of NULs and a union of integers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..room].iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | queues;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).unwrap_or(0);
    // SAFETY: `request` is an ifreq that lives through the call; its name is terminated.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result == 0 { Ok(file) } else { Err(io::Error::last_os_error()) }
}

fn persist(file: &File, stay: bool) -> io::Result<()> {
    // SAFETY: the request takes its argument by value.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETPERSIST, libc::c_ulong::from(stay)) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
