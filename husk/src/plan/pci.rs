//! The PCI bus, and a kernel that is told not to look for it.

use super::PlanError;
use husk_protocol::spec::RawSpec;

/// A kernel that is told so finds nothing on a PCI bus. What stands behind ` -- ` is not for it.
pub(super) fn check(spec: &RawSpec) -> Result<(), PlanError> {
    let args = spec.boot_source.boot_args.as_deref().unwrap_or_default();
    let kernel = args.split_once(" -- ").map_or(args, |(kernel, _)| kernel);
    let off = kernel.split_ascii_whitespace().any(|word| word == "pci=off");
    if off && spec.machine_config.pci { Err(PlanError::PciOff) } else { Ok(()) }
}
