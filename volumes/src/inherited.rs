//! The descriptors that the jailer leaves open. The only place that takes a number for one.

#![expect(unsafe_code, reason = "a descriptor that was inherited is a number, and nobody's")]

use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// The control socket, and behind it the guest's.
const NUMBERS: [i32; 2] = [3, 4];

/// Both, once; none if the process was started otherwise than by the jailer.
#[must_use]
pub fn descriptors() -> Option<[OwnedFd; 2]> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    // SAFETY: asking for a descriptor's flags changes nothing, open or not.
    let open = |number: &i32| unsafe { libc::fcntl(*number, libc::F_GETFD) } >= 0;
    if TAKEN.swap(true, Ordering::Relaxed) || !NUMBERS.iter().all(open) {
        return None;
    }
    // SAFETY: it is open, was so when the program started, and is taken once: no other value owns it.
    Some(NUMBERS.map(|number| unsafe { OwnedFd::from_raw_fd(number) }))
}
