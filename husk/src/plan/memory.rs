//! vCPUs and memory of the machine, and the balloon that takes a part of it.
//!
//! Refuses sizes out of bounds, and a balloon that leaves the guest nothing. Invariant: what is in the balloon is at least
//! [`LEAST_MEMORY_MIB`] less than the machine has.

use super::{LEAST_MEMORY_MIB, MOST_MEMORY_MIB, MOST_VCPUS, PlanError};
use crate::options::Options;
use husk_protocol::spec::{HugePages, RawBalloon, RawMachineConfig, RawSpec};

/// Memory that a guest needs beside kernel and initrd, at least, in MiB.
const WORKING_MEMORY_MIB: u64 = 4;

/// vCPUs and memory. With `--memory-max` memory is that much, and [`balloon`] takes the difference.
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
    if options.hugepages {
        config.huge_pages = HugePages::TwoMiB;
    }
    if config.huge_pages == HugePages::TwoMiB && !config.mem_size_mib.is_multiple_of(2) {
        let (name, allowed) = ("--memory", "with --hugepages 2M an even number of MiB".to_owned());
        return Err(PlanError::Range { name, value: format!("{}M", config.mem_size_mib), allowed });
    }
    if let Some(value) = options.memory_max_mib {
        if config.huge_pages != HugePages::None {
            return Err(PlanError::MemoryMax(value));
        }
        config.mem_size_mib = range("--memory-max", value, config.mem_size_mib, most, "M")?;
    }
    Ok(config)
}

/// The balloon that `--memory-max` needs (a configuration's gets its amount, and may deflate), and the bounds of whichever
/// there is then.
pub(super) fn balloon(
    options: &Options,
    base: &RawMachineConfig,
    spec: &mut RawSpec,
) -> Result<(), PlanError> {
    let refuse = |name, value: u64, allowed| {
        let value = value.to_string();
        Err(PlanError::Range { name, value, allowed })
    };
    let mib = spec.machine_config.mem_size_mib;
    if options.memory_max_mib.is_some() {
        let least = options.memory_mib.unwrap_or(base.mem_size_mib);
        let configured = spec.balloon.take();
        spec.balloon = Some(RawBalloon {
            amount_mib: mib.saturating_sub(least),
            deflate_on_oom: true,
            stats_polling_interval_s: configured.as_ref().map_or(0, |it| it.stats_polling_interval_s),
            free_page_reporting: configured.is_some_and(|it| it.free_page_reporting),
        });
    }
    let Some(balloon) = &spec.balloon else { return Ok(()) };
    let most = mib.saturating_sub(LEAST_MEMORY_MIB);
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

/// The memory in MiB that the guest has to boot in: with `--memory-max` not what is in the balloon.
pub(crate) fn least_memory_mib(options: &Options, spec: &RawSpec) -> u64 {
    let balloon = spec.balloon.as_ref().filter(|_| options.memory_max_mib.is_some());
    spec.machine_config.mem_size_mib.saturating_sub(balloon.map_or(0, |balloon| balloon.amount_mib))
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
