//! A network card as it is asked for. Raw, as the rest of the specification; a rate limiter is refused while it is read,
//! because what it would say has no place here.

use super::FileRef;
use serde::de::{self, Deserializer};
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
    /// Husk: largest packet in bytes; absent: the tap's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u64>,
    /// Husk: where the guest may send to, each `CIDR:PORT`; none: nowhere.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<String>,
    /// Husk: the guest's addresses, each `ADDRESS/PREFIX`, from which alone it may send; none: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub guest_ip: Vec<String>,
    /// Refused, but for `null`.
    #[serde(default, skip_serializing)]
    pub rx_rate_limiter: Option<NoLimiter>,
    /// Refused, but for `null`.
    #[serde(default, skip_serializing)]
    pub tx_rate_limiter: Option<NoLimiter>,
}

/// What there is of rate limiters: no value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoLimiter {}

impl<'de> Deserialize<'de> for NoLimiter {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(de::Error::custom("rate limiters are not supported; leave the key out, or use tc on the tap"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_limiter_is_refused_and_null_is_none() {
        let card = |limiter| {
            format!(r#"{{"iface_id": "net0", "host_dev_name": "tap0", "rx_rate_limiter": {limiter}}}"#)
        };
        assert!(serde_json::from_str::<RawNetwork>(&card("null")).is_ok());
        let error = serde_json::from_str::<RawNetwork>(&card(r#"{"bandwidth": {}}"#)).unwrap_err();
        assert!(error.to_string().contains("rate limiters are not supported"), "{error}");
    }
}
