//! Who this guest is: host name, clock, randomness, loopback. Owns the taking on of an identity, at first and after
//! each fork; refuses a host name that the kernel would. Invariant: the clock is only stepped if it is wrong by more
//! than the time that the host's word may have been under way.

use crate::sys;
use husk_protocol::exec::Identity;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

/// The host says what time it is before the guest boots. A guest whose clock is ahead of that by less than this
/// (it got the time from its kernel, or from an earlier word) is right.
const UNDER_WAY_NS: u64 = 10_000_000_000;
const NS: u64 = 1_000_000_000;

/// An identity cannot be taken on.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Not a host name.
    #[error("cannot take on the host name {name:?}: {errno}; at most 64 bytes are allowed")]
    Hostname {
        /// The name.
        name: String,
        /// Why.
        errno: Errno,
    },
    /// The clock cannot be set.
    #[error("cannot set the clock to {ns} ns since 1970: {errno}")]
    Clock {
        /// The time.
        ns: u64,
        /// Why.
        errno: Errno,
    },
    /// The generator does not take it.
    #[error("cannot give entropy to the kernel through /dev/urandom: {0}")]
    Entropy(Errno),
}

/// Becomes `identity`.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn take_on(identity: &Identity) -> Result<(), IdentityError> {
    // Randomness first: everything after may draw from it.
    add_entropy(&identity.entropy).map_err(IdentityError::Entropy)?;
    rustix::system::sethostname(identity.hostname.as_bytes())
        .map_err(|errno| IdentityError::Hostname { name: identity.hostname.clone(), errno })?;
    set_clock(identity.realtime_ns)
}

/// Brings loopback up; a kernel without network is no fault.
pub(crate) fn loopback() {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None);
    let _ = socket.and_then(sys::loopback_up);
}

fn add_entropy(entropy: &[u8; 32]) -> Result<(), Errno> {
    let device = rustix::fs::open("/dev/urandom", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    sys::add_entropy(device, entropy)
}

fn set_clock(said: u64) -> Result<(), IdentityError> {
    let now = clock_gettime(ClockId::Realtime);
    let now =
        u64::try_from(now.tv_sec).unwrap_or(0).saturating_mul(NS) + u64::try_from(now.tv_nsec).unwrap_or(0);
    if !is_wrong(now, said) {
        return Ok(());
    }
    let seconds = i64::try_from(said / NS).unwrap_or(i64::MAX);
    let time = Timespec { tv_sec: seconds, tv_nsec: i64::try_from(said % NS).unwrap_or(0) };
    clock_settime(ClockId::Realtime, time).map_err(|errno| IdentityError::Clock { ns: said, errno })
}

/// Whether a clock that says `now` is wrong, when the host's said `said` a little earlier.
fn is_wrong(now: u64, said: u64) -> bool {
    now < said || now - said > UNDER_WAY_NS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_wrong_clock_is_stepped() {
        assert!(is_wrong(0, 5), "a machine without a clock of its own");
        assert!(!is_wrong(5, 5));
        assert!(!is_wrong(5 + UNDER_WAY_NS, 5), "the host's word was under way while the guest booted");
        assert!(is_wrong(6 + UNDER_WAY_NS, 5), "the host's clock was set back");
    }
}
