//! A network card as it is asked for. Raw, as the rest of the specification.

use super::{FileRef, RawRateLimiter};
use serde::{Deserialize, Serialize};

/// One network card.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawNetwork {
    /// Its name on the host.
    pub iface_id: String,
    /// Its Ethernet address; absent: husk picks one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_mac: Option<String>,
    /// The tap's name on the host; husk opens it and puts `tap` in its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_dev_name: Option<String>,
    /// Husk: the open tap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tap: Option<FileRef>,
    /// Husk: how many pairs of queues the card has, 1 to 8 and at most one a vCPU; absent: one. The tap must have as many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queues: Option<u64>,
    /// Husk: the open tap's queues behind the first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tap_queues: Vec<FileRef>,
    /// Husk: in place of a tap the connected stream socket of a process that is the network; each frame goes over it behind
    /// its length in four bytes, the most significant first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<FileRef>,
    /// Husk: largest packet in bytes; absent: the tap's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u64>,
    /// Husk: where the guest may send to, each `CIDR:PORT`; none: nowhere.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<String>,
    /// Husk: the guest's addresses, each `ADDRESS/PREFIX`, from which alone it may send; none: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub guest_ip: Vec<String>,
    /// How much the guest receives in a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RawRateLimiter>,
    /// How much the guest sends in a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RawRateLimiter>,
}
