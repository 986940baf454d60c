//! What devices may be called.
//!
//! Invariant: a name has no byte that a log, a path or a command line would take for something else.

use super::{MAX_DRIVE_ID, SpecError};

/// Whether `name` is 1 to `longest` bytes of letters, digits, `_`, `-` and `.`.
pub(super) fn is_plain(name: &str, longest: usize) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    (1..=longest).contains(&name.len()) && name.bytes().all(plain)
}

/// Refuses what cannot name a drive, an image in memory or a network card.
pub(super) fn check(key: impl FnOnce() -> String, name: &str) -> Result<(), SpecError> {
    if is_plain(name, MAX_DRIVE_ID) {
        return Ok(());
    }
    Err(SpecError::malformed(key(), name, "1 to 64 of A-Z, a-z, 0-9, '_', '-' and '.'"))
}
