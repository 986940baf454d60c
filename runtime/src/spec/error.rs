//! What is wrong with a request, in the operator's words.

use crate::arch::cmdline::CmdlineError;

/// A request that cannot be a machine. Each message names the key, its value and what is allowed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// A number is out of its range.
    #[error("{key}: {value} is not allowed; allowed is {allowed}")]
    OutOfRange {
        /// Path of the key.
        key: String,
        /// Its value.
        value: u64,
        /// The range.
        allowed: String,
    },
    /// A text is not of the form that it must have.
    #[error("{key}: {value:?} is not allowed; allowed is {allowed}")]
    Malformed {
        /// Path of the key.
        key: String,
        /// Its value, cut to 64 characters.
        value: String,
        /// The form.
        allowed: &'static str,
    },
    /// An address or rule of a network card.
    #[error("{key}: {value:?} is not allowed; {allowed}")]
    Network {
        /// Path of the key.
        key: String,
        /// Its value, cut to 64 characters.
        value: String,
        /// The form.
        allowed: husk_protocol::network::NetworkError,
    },
    /// Something that may be there once is there twice.
    #[error(
        "{key}: {value:?} is there already (of a drive_id the first 20 bytes count); each may be there once"
    )]
    Duplicate {
        /// Path of the second key.
        key: String,
        /// Its value.
        value: String,
    },
    /// A list has the wrong length.
    #[error("{key}: {length} entries; {allowed} are needed, one a vCPU (or none)")]
    Length {
        /// Path of the key.
        key: &'static str,
        /// Entries that there are.
        length: usize,
        /// Entries that there should be.
        allowed: usize,
    },
    /// Known, but not built yet.
    #[error("{key}: true is not supported: {reason}; allowed is false")]
    NotYet {
        /// Path of the key.
        key: &'static str,
        /// Why.
        reason: &'static str,
    },
    /// More devices than interrupts.
    #[error(
        "drives, network-interfaces, vsock, entropy, balloon, memory-hotplug, pmem, volumes and console: {wanted} devices; at most {allowed} are allowed, and {first} is one too many"
    )]
    TooManyDevices {
        /// How many there are.
        wanted: usize,
        /// How many there may be.
        allowed: usize,
        /// The first that does not fit.
        first: String,
    },
    /// The command line.
    #[error(transparent)]
    Cmdline(#[from] CmdlineError),
}

impl SpecError {
    pub(super) fn not_yet(key: &'static str, reason: &'static str) -> Self {
        Self::NotYet { key, reason }
    }

    pub(super) fn malformed(key: impl Into<String>, value: &str, allowed: &'static str) -> Self {
        Self::Malformed { key: key.into(), value: value.chars().take(64).collect(), allowed }
    }
}
