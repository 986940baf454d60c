//! What the guest finds at its addresses: its memory, images above it, and above them the memory that comes and goes.
//!
//! Owns the order of the three. Refuses what the host cannot map. Invariant: none of them overlaps another, nor the hole below
//! 4 GiB where devices' registers are.

use super::MachineError;
use crate::arch;
use crate::kvm::Vm;
use crate::memory::{self, DeviceMemory, GuestMemory, Hotplug, Image, MemoryError};
use crate::spec::{MachineSpec, PmemSpec};
use std::fs::File;
use vm_memory::GuestAddress;

/// What the guest finds at its addresses beside devices' registers.
pub(super) struct Space {
    /// What is there from the start.
    pub(super) memory: GuestMemory,
    pub(super) images: Vec<Image>,
    pub(super) hotplug: Option<Hotplug>,
    /// All of it, as devices see it.
    pub(super) seen: DeviceMemory,
}

/// Maps it, and gives it to the guest.
pub(super) fn address_space(
    vm: &mut Vm,
    spec: &MachineSpec,
    files: &[(File, u64)],
) -> Result<Space, MachineError> {
    let ranges = arch::memory_ranges(spec.memory().bytes());
    let memory = memory::map(&ranges, spec.memory().backing())?;
    let images = map_images(spec, files)?;
    vm.add_memory(&memory)?;
    vm.add_images(&images)?;
    let mut seen = DeviceMemory::new(&memory, &images)?;
    let end = images.last().map_or(0, |image| image.start() + image.bytes());
    let start = GuestAddress(arch::hotplug_start(end.max(arch::images_start(spec.memory().bytes()))));
    let hotplug = spec.hotplug().map(|it| Hotplug::map(it.bytes(), start)).transpose()?;
    if let Some(hotplug) = &hotplug {
        vm.add_hotplug(hotplug)?;
        seen = seen.with_hotplug(hotplug)?;
    }
    Ok(Space { memory, images, hotplug, seen })
}

/// The images in the spec's order, one above the other, above the guest's memory. The files are not needed any more then.
fn map_images(spec: &MachineSpec, files: &[(File, u64)]) -> Result<Vec<Image>, MemoryError> {
    let mut start = arch::images_start(spec.memory().bytes());
    let map = |(image, (file, bytes)): (&PmemSpec, &(File, u64))| {
        let image = Image::map(file, image.id(), *bytes, GuestAddress(start))?;
        start = arch::after(image.start() + image.bytes());
        Ok(image)
    };
    spec.pmem().iter().zip(files).map(map).collect()
}
