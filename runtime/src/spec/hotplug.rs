//! Memory that is plugged in while the guest runs, and its rules.
//!
//! Invariant: it fits the largest machine together with the memory that is there from the start.

use super::{MAX_MEMORY_MIB, MemorySpec, SpecError};
use crate::memory::{BLOCK, Backing};
use husk_protocol::spec::RawMemoryHotplug;

/// Least unit of the region's size in MiB: Linux adds memory in sections of it.
const LEAST_SLOT_MIB: u64 = 128;
/// Bytes of a block in MiB.
const BLOCK_MIB: u64 = BLOCK >> 20;

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HotplugSpec {
    bytes: u64,
    requested: u64,
}

impl HotplugSpec {
    pub(super) fn new(raw: &RawMemoryHotplug, memory: MemorySpec) -> Result<Self, SpecError> {
        let wrong = |key: &str, value, allowed: String| {
            Err(SpecError::OutOfRange { key: format!("memory-hotplug.{key}"), value, allowed })
        };
        let (total, slot, requested) = (raw.total_size_mib, raw.slot_size_mib, raw.requested_size_mib);
        if memory.backing() != Backing::Anonymous {
            let allowed = "memory without machine-config.huge_pages: huge pages are not given back".into();
            return wrong("total_size_mib", total, allowed);
        }
        if raw.block_size_mib != BLOCK_MIB {
            return wrong("block_size_mib", raw.block_size_mib, format!("{BLOCK_MIB} MiB"));
        }
        if slot < LEAST_SLOT_MIB || !slot.is_power_of_two() || slot > MAX_MEMORY_MIB {
            let allowed = format!("a power of two of {LEAST_SLOT_MIB} to {MAX_MEMORY_MIB} MiB");
            return wrong("slot_size_mib", slot, allowed);
        }
        let most = MAX_MEMORY_MIB - (memory.bytes() >> 20);
        if total == 0 || total > most || !total.is_multiple_of(slot) {
            let allowed = format!(
                "a multiple of {slot} (slot_size_mib) up to {most} MiB: with mem_size_mib {MAX_MEMORY_MIB}"
            );
            return wrong("total_size_mib", total, allowed);
        }
        if requested > total || !requested.is_multiple_of(BLOCK_MIB) {
            return wrong(
                "requested_size_mib",
                requested,
                format!("a multiple of {BLOCK_MIB} up to {total} MiB"),
            );
        }
        Ok(Self { bytes: total << 20, requested: requested << 20 })
    }

    /// The most that is plugged in, in bytes: whole blocks.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What is asked for from the start, in bytes: whole blocks of it, at most all.
    #[must_use]
    pub fn requested(&self) -> u64 {
        self.requested
    }
}
