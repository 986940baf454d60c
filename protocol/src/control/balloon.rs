//! What a balloon's driver says of its guest's memory.

use serde::{Deserialize, Serialize};

/// One answer of the guest's. All of it is what the guest says, whatever the truth.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonReport {
    /// When it came: `CLOCK_MONOTONIC`, nanoseconds.
    pub at_ns: u64,
    /// What is in the balloon, in MiB.
    pub actual_mib: u32,
    /// How the rest is used.
    pub statistics: BalloonStatistics,
}

/// A guest's statistics (virtio 1.2, 5.5.6.4, and linux/virtio_balloon.h for later ones), under the names that Firecracker gives
/// them; `None`: the guest does not say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BalloonStatistics {
    /// Bytes swapped in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_in: Option<u64>,
    /// Bytes swapped out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_out: Option<u64>,
    /// Page faults that waited for a disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub major_faults: Option<u64>,
    /// Page faults that did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minor_faults: Option<u64>,
    /// Bytes that nothing uses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub free_memory: Option<u64>,
    /// Bytes in all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_memory: Option<u64>,
    /// Bytes that can be had without swapping.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub available_memory: Option<u64>,
    /// Bytes of files that are cached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_caches: Option<u64>,
    /// hugetlb pages that were allocated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hugetlb_allocations: Option<u64>,
    /// hugetlb pages that could not be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hugetlb_failures: Option<u64>,
    /// Processes killed for want of memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_kill: Option<u64>,
    /// Allocations that waited for memory to be reclaimed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alloc_stall: Option<u64>,
    /// Bytes that were looked at for reclaim in the background.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub async_scan: Option<u64>,
    /// Bytes that were looked at for reclaim by who wanted memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direct_scan: Option<u64>,
    /// Bytes that were reclaimed in the background.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub async_reclaim: Option<u64>,
    /// Bytes that were reclaimed by who wanted memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direct_reclaim: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_guest_does_not_say_is_not_there() {
        let statistics = BalloonStatistics { free_memory: Some(u64::MAX), ..BalloonStatistics::default() };
        let report = BalloonReport { at_ns: 1, actual_mib: 2, statistics };
        let json = serde_json::to_string(&report).unwrap();
        assert_eq!(json, r#"{"at_ns":1,"actual_mib":2,"statistics":{"free_memory":18446744073709551615}}"#);
        assert_eq!(serde_json::from_str::<BalloonReport>(&json).unwrap(), report);
    }
}
