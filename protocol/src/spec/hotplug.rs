//! The keys of memory that is plugged in while the guest runs.

use super::is_zero;
use serde::{Deserialize, Serialize};

/// The memory device (virtio-mem).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawMemoryHotplug {
    /// The most that the guest can have beside `mem_size_mib`, in MiB; a multiple of `slot_size_mib`.
    pub total_size_mib: u64,
    /// The unit in MiB in which the guest takes and gives; 2 is what there is.
    #[serde(default = "two")]
    pub block_size_mib: u64,
    /// The unit of `total_size_mib` in MiB: a power of two from 128 on. The host takes memory away block by block, whatever it is.
    #[serde(default = "default_slot_size_mib")]
    pub slot_size_mib: u64,
    /// Husk: what the guest is asked to have of it at first, in MiB.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub requested_size_mib: u64,
}

const fn two() -> u64 {
    2
}

const fn default_slot_size_mib() -> u64 {
    128
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn firecrackers_keys_and_defaults_are_understood() {
        let all = r#"{"total_size_mib": 1024, "block_size_mib": 2, "slot_size_mib": 256}"#;
        let hotplug: RawMemoryHotplug = serde_json::from_str(all).unwrap();
        assert_eq!(
            (hotplug.total_size_mib, hotplug.slot_size_mib, hotplug.requested_size_mib),
            (1024, 256, 0)
        );
        let least: RawMemoryHotplug = serde_json::from_str(r#"{"total_size_mib": 128}"#).unwrap();
        assert_eq!((least.block_size_mib, least.slot_size_mib), (2, 128));
        let error = serde_json::from_str::<RawMemoryHotplug>("{}").unwrap_err().to_string();
        assert!(error.contains("missing field `total_size_mib`"), "{error}");
    }
}
