//! The host's end of the wire.
//!
//! Owns a descriptor for each of its queues and what it was last told of the guest's abilities. Refuses nothing. Invariant: it
//! never waits.

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
    first: OwnedFd,
    others: Vec<OwnedFd>,
    /// `TUN_F_*` that are on.
    offloads: AtomicU32,
}

impl Tap {
    /// A tap with all offloads on; `others`: its queues behind the first.
    pub(super) fn new(first: OwnedFd, others: Vec<OwnedFd>) -> Self {
        Self { first, others, offloads: AtomicU32::new(CHECKSUM | TSO4 | TSO6) }
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
            unsafe { libc::ioctl(self.first.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(wanted)) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        self.offloads.store(wanted, Ordering::Relaxed);
        Ok(())
    }
}

impl Tap {
    /// How many queues it has.
    pub(super) fn queues(&self) -> usize {
        1 + self.others.len()
    }

    /// One of them, by its number modulo their number.
    pub(super) fn queue(&self, number: usize) -> BorrowedFd<'_> {
        match (number % self.queues()).checked_sub(1).and_then(|place| self.others.get(place)) {
            Some(other) => other.as_fd(),
            None => self.first.as_fd(),
        }
    }
}
