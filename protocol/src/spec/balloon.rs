//! The balloon device's keys.

use super::{is_false, is_zero};
use serde::{Deserialize, Serialize};

/// The balloon device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawBalloon {
    /// What the guest is asked to do without, in MiB.
    pub amount_mib: u64,
    /// Whether the guest may take memory back when it runs out.
    pub deflate_on_oom: bool,
    /// Seconds between two statistics of the guest's, at most 65535; 0: it is not asked.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub stats_polling_interval_s: u64,
    /// Whether the guest says which pages are free, so that the host need not keep them.
    #[serde(default, skip_serializing_if = "is_false")]
    pub free_page_reporting: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amount_and_deflate_on_oom_are_needed_as_by_firecracker() {
        let balloon: RawBalloon =
            serde_json::from_str(r#"{"amount_mib": 7, "deflate_on_oom": false}"#).unwrap();
        assert_eq!((balloon.amount_mib, balloon.stats_polling_interval_s), (7, 0));
        assert!(!balloon.deflate_on_oom && !balloon.free_page_reporting);
        assert_eq!(serde_json::to_string(&balloon).unwrap(), r#"{"amount_mib":7,"deflate_on_oom":false}"#);
        for missing in [r#"{"amount_mib": 7}"#, r#"{"deflate_on_oom": true}"#] {
            let error = serde_json::from_str::<RawBalloon>(missing).unwrap_err().to_string();
            assert!(error.contains("missing field"), "{error}");
        }
    }
}
