//! Why a sandbox cannot be registered or found, and whose fault that is.
//!
//! Owns the words. Invariant: what names no sandbox says how to see those that there are.

use super::LONGEST_ID;
use crate::uids;
use husk_protocol::control::Fault;
use std::io;
use std::path::PathBuf;

/// Why a sandbox cannot be registered or found.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    /// The directory cannot be used.
    #[error("state {}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// Not an id.
    #[error(
        "id {0:?} is not allowed; letters, digits and hyphens, at most {LONGEST_ID}, not beginning with a hyphen"
    )]
    Id(String),
    /// Taken.
    #[error("id {0} is in use; husk ps lists the sandboxes")]
    Taken(String),
    /// Others could change it.
    #[error("state {}: must be a directory of user {uid}, writable by nobody else", path.display())]
    Shared {
        /// Which.
        path: PathBuf,
        /// Whose it must be.
        uid: u32,
    },
    /// No user id.
    #[error(transparent)]
    Uid(#[from] uids::UidError),
    /// No such sandbox.
    #[error("no sandbox's id begins with {0:?}; husk ps lists the sandboxes")]
    Unknown(String),
    /// Several.
    #[error("{0:?} is ambiguous: {1}")]
    Ambiguous(String, String),
    /// No randomness.
    #[error("no random id can be made: {0}")]
    Random(io::Error),
}

impl StateError {
    /// Who is at fault.
    #[must_use]
    pub(crate) fn fault(&self) -> Fault {
        match self {
            Self::Id(_) | Self::Taken(_) | Self::Unknown(_) | Self::Ambiguous(..) => Fault::Operator,
            Self::Shared { .. } => Fault::Operator,
            Self::Uid(error) => error.fault(),
            Self::Io { .. } | Self::Random(_) => Fault::Host,
        }
    }
}
