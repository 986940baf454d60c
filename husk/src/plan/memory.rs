//! vCPUs and memory of the machine, what comes to that while the guest runs, and the balloon that takes a part of it.
//!
//! Refuses sizes out of bounds, and a balloon that leaves the guest nothing. Invariants: what is in the balloon is at least
//! [`LEAST_MEMORY_MIB`] less than the machine has; whatever is plugged in, it has at most [`MOST_MEMORY_MIB`].

use super::{LEAST_MEMORY_MIB, MOST_MEMORY_MIB, MOST_VCPUS, PlanError};
use crate::options::Options;
use husk_protocol::spec::{HugePages, RawMachineConfig, RawMemoryHotplug, RawSpec};

/// Memory that a guest needs beside kernel and initrd, at least, in MiB.
const WORKING_MEMORY_MIB: u64 = 4;
/// The unit in MiB in which memory is plugged in and out.
pub(crate) const BLOCK_MIB: u64 = 2;
/// Linux adds memory in units of so many MiB.
const SMALL_UNIT_MIB: u64 = 128;
/// And of up to so many in a guest that has [`LARGE_MIB`] (64 GiB, the hole for devices included) from the start.
const LARGE_UNIT_MIB: u64 = 2 << 10;
const LARGE_MIB: u64 = 63 << 10;

/// vCPUs, and the memory that the machine has from the start.
pub(super) fn machine_config(
    options: &Options,
    base: &RawMachineConfig,
) -> Result<RawMachineConfig, PlanError> {
    let range = |name, value: u64, least: u64, most: u64, unit: &str| {
        if (least..=most).contains(&value) {
            return Ok(value);
        }
        Err(PlanError::Range {
            name,
            value: format!("{value}{unit}"),
            allowed: format!("{least}{unit} to {most}{unit}"),
        })
    };
    let mut config = base.clone();
    config.vcpu_count = match options.vcpus {
        Some(value) => range("--vcpus", value, 1, MOST_VCPUS, "")?,
        None => range("config: machine-config.vcpu_count", base.vcpu_count, 1, MOST_VCPUS, "")?,
    };
    let (least, most) = (LEAST_MEMORY_MIB, MOST_MEMORY_MIB);
    config.mem_size_mib = match options.memory_mib {
        Some(value) => range("--memory", value, least, most, "M")?,
        None => range("config: machine-config.mem_size_mib", base.mem_size_mib, least, most, "")?,
    };
    config.pci |= options.pci;
    if options.hugepages {
        config.huge_pages = HugePages::TwoMiB;
    }
    if config.huge_pages == HugePages::TwoMiB && !config.mem_size_mib.is_multiple_of(2) {
        let (name, allowed) = ("--memory", "with --hugepages 2M an even number of MiB".to_owned());
        return Err(PlanError::Range { name, value: format!("{}M", config.mem_size_mib), allowed });
    }
    Ok(config)
}

/// The bounds of a configuration's balloon.
pub(super) fn check_balloon(spec: &RawSpec) -> Result<(), PlanError> {
    let Some(balloon) = &spec.balloon else { return Ok(()) };
    let most = spec.machine_config.mem_size_mib.saturating_sub(LEAST_MEMORY_MIB);
    if balloon.amount_mib > most {
        let allowed = format!("0 to {most}, {LEAST_MEMORY_MIB} less than the machine's memory in MiB,");
        return refuse("config: balloon.amount_mib", balloon.amount_mib, allowed);
    }
    let most = u64::from(u16::MAX);
    if balloon.stats_polling_interval_s > most {
        let allowed = format!("0 (never) to {most} seconds");
        return refuse("config: balloon.stats_polling_interval_s", balloon.stats_polling_interval_s, allowed);
    }
    Ok(())
}

/// The memory that is plugged in while the guest runs: what `--memory-max` asks for, in place of the configuration's.
pub(super) fn hotplug(
    options: &Options,
    machine: &RawMachineConfig,
    spec: &mut RawSpec,
) -> Result<(), PlanError> {
    let (memory, huge) = (machine.mem_size_mib, machine.huge_pages != HugePages::None);
    let Some(max) = options.memory_max_mib else {
        return spec
            .memory_hotplug
            .as_ref()
            .map_or(Ok(()), |configured| check_hotplug(configured, memory, huge));
    };
    if !(memory..=MOST_MEMORY_MIB).contains(&max) {
        let allowed = format!("{memory}M to {MOST_MEMORY_MIB}M");
        return Err(PlanError::Range { name: "--memory-max", value: format!("{max}M"), allowed });
    }
    if huge {
        return Err(PlanError::MemoryMax(max));
    }
    // The region is whole units of what the guest's kernel adds memory in; it is asked to fill only what was asked for.
    let unit = if memory < LARGE_MIB { SMALL_UNIT_MIB } else { LARGE_UNIT_MIB };
    let room = MOST_MEMORY_MIB - memory;
    let total = (max - memory).next_multiple_of(unit).min(room - room % unit);
    let requested = (max - memory).min(total) / BLOCK_MIB * BLOCK_MIB;
    spec.memory_hotplug = (requested > 0).then_some(RawMemoryHotplug {
        total_size_mib: total,
        block_size_mib: BLOCK_MIB,
        slot_size_mib: unit,
        requested_size_mib: requested,
    });
    Ok(())
}

fn check_hotplug(configured: &RawMemoryHotplug, memory: u64, huge: bool) -> Result<(), PlanError> {
    let RawMemoryHotplug { total_size_mib: total, block_size_mib: block, slot_size_mib: slot, .. } =
        *configured;
    let requested = configured.requested_size_mib;
    if huge {
        let allowed = "no memory-hotplug with huge pages, which are not given back,".to_owned();
        return refuse("config: memory-hotplug.total_size_mib", total, allowed);
    }
    if block != BLOCK_MIB {
        return refuse("config: memory-hotplug.block_size_mib", block, format!("{BLOCK_MIB} (MiB)"));
    }
    if !(SMALL_UNIT_MIB..=MOST_MEMORY_MIB).contains(&slot) || !slot.is_power_of_two() {
        let allowed = format!("a power of two of {SMALL_UNIT_MIB} to {MOST_MEMORY_MIB} (MiB)");
        return refuse("config: memory-hotplug.slot_size_mib", slot, allowed);
    }
    let most = MOST_MEMORY_MIB.saturating_sub(memory);
    if total == 0 || total > most || !total.is_multiple_of(slot) {
        let allowed = format!("a multiple of {slot}, the slot_size_mib, up to {most} (MiB)");
        return refuse("config: memory-hotplug.total_size_mib", total, allowed);
    }
    if requested > total || !requested.is_multiple_of(BLOCK_MIB) {
        let allowed = format!("a multiple of {BLOCK_MIB} up to {total} (MiB)");
        return refuse("config: memory-hotplug.requested_size_mib", requested, allowed);
    }
    Ok(())
}

fn refuse(name: &'static str, value: u64, allowed: String) -> Result<(), PlanError> {
    Err(PlanError::Range { name, value: value.to_string(), allowed })
}

/// What the guest is asked to have once it is ready, in MiB: all that `--memory-max` says.
pub(crate) fn wanted_memory_mib(spec: &RawSpec) -> u64 {
    let hotplug = spec.memory_hotplug.as_ref().map_or(0, |hotplug| hotplug.requested_size_mib);
    spec.machine_config.mem_size_mib.saturating_add(hotplug)
}

/// The most memory that the guest can ever have, in MiB.
pub(crate) fn most_memory_mib(spec: &RawSpec) -> u64 {
    let hotplug = spec.memory_hotplug.as_ref().map_or(0, |hotplug| hotplug.total_size_mib);
    spec.machine_config.mem_size_mib.saturating_add(hotplug)
}

/// Whether kernel and initrd fit, and the 64 bytes that Linux keeps for each page of an image; all but memory in bytes.
pub(crate) fn check_memory(
    memory_mib: u64,
    kernel_end: u64,
    initrd: u64,
    images: u64,
) -> Result<(), PlanError> {
    let bytes = kernel_end.saturating_add(initrd.saturating_mul(2)).saturating_add(images / 64);
    let needs = bytes.div_ceil(1 << 20).saturating_add(WORKING_MEMORY_MIB);
    if needs <= memory_mib { Ok(()) } else { Err(PlanError::Memory { memory: memory_mib, needs }) }
}
