//! A volume's keys.

use super::{FileRef, RawRateLimiter};
use serde::{Deserialize, Serialize};

/// Most volumes of a machine; each is a process on the host.
pub const MAX_VOLUMES: usize = 8;

/// A directory of the host, served by a process of its own. Husk's; Firecracker has none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawVolume {
    /// By what the guest mounts it.
    pub tag: String,
    /// The connected stream to its server. Whether the guest may write is the server's to know.
    pub socket: FileRef,
    /// How much goes to and from its server in a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RawRateLimiter>,
}
