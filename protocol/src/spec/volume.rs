//! A volume's keys.

use super::FileRef;
use serde::{Deserialize, Serialize};

/// A directory of the host, served by a process of its own. Husk's; Firecracker has none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawVolume {
    /// By what the guest mounts it.
    pub tag: String,
    /// The connected stream to its server. Whether the guest may write is the server's to know.
    pub socket: FileRef,
}
