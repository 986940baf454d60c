//! The host's end of the wire.
//!
//! Owns the descriptor and what it was last told of the guest's abilities. Refuses nothing. Invariant: it never waits.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use virtio_bindings::virtio_net as net;

/// What the guest takes: partial checksums, long TCP frames over IPv4, and over IPv6 (linux/if_tun.h).
const CHECKSUM: u32 = 1;
const TSO4: u32 = 2;
const TSO6: u32 = 4;

#[derive(Debug)]
pub(super) struct Tap {
    fd: OwnedFd,
    /// `TUN_F_*` that are on.
    offloads: AtomicU32,
}

impl Tap {
    /// A tap with all offloads on.
    pub(super) fn new(fd: OwnedFd) -> Self {
        Self { fd, offloads: AtomicU32::new(CHECKSUM | TSO4 | TSO6) }
    }

    /// Keeps back what a driver with `features` did not agree to receive.
    pub(super) fn offload(&self, features: u64) -> io::Result<()> {
        let has = |feature: u32| features & super::bit(feature) != 0;
        let mut wanted = 0;
        if has(net::VIRTIO_NET_F_GUEST_CSUM) {
            wanted |= CHECKSUM;
            // Long frames come with partial checksums only (virtio 1.2, 5.1.3.1).
            wanted |= if has(net::VIRTIO_NET_F_GUEST_TSO4) { TSO4 } else { 0 };
            wanted |= if has(net::VIRTIO_NET_F_GUEST_TSO6) { TSO6 } else { 0 };
        }
        if self.offloads.load(Ordering::Relaxed) == wanted {
            return Ok(());
        }
        #[expect(unsafe_code, reason = "an ioctl without a safe wrapper")]
        // SAFETY: the request takes its argument by value; a descriptor that is no tap is refused by the kernel.
        let result =
            unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(wanted)) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        self.offloads.store(wanted, Ordering::Relaxed);
        Ok(())
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
