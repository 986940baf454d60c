//! A driver, and the kernel's PCI code, at a device on a PCI bus.
//!
//! Owns what of [`super::registers`] is PCI's: configuration space, the ports' window, MSI-X. Refuses, by a panic, what that does,
//! and a function that firmware's values do not bring back. Invariant: as there, the same input does the same.

use super::input::Input;
use super::registers::{DEVICES, Rig, device};
use crate::devices::BusDevice;
use crate::devices::pci::PciFunction;
use crate::devices::virtio::testkit::pci::{OverPci, Shown};

/// What an operation is; its operands follow. Any byte below is one of [`super::registers`].
pub(super) mod op {
    pub(crate) const READ_SPACE: u8 = 0x80;
    pub(crate) const WRITE_SPACE: u8 = 0x81;
    pub(crate) const READ_PORTS: u8 = 0x82;
    pub(crate) const WRITE_PORTS: u8 = 0x83;
    pub(crate) const READ_TABLE: u8 = 0x84;
    pub(crate) const WRITE_TABLE: u8 = 0x85;
    pub(super) const COUNT: u8 = WRITE_TABLE - READ_SPACE + 1;
}

/// Most bytes of an access: KVM's.
const WIDEST: usize = 9;

/// Runs one input; the device answers at least once, or it panics.
pub(super) fn run(mut input: Input<'_>) -> u32 {
    let choice = input.below(DEVICES);
    let mut rig = Rig::on_bus(device(choice));
    let mut operations = 0;
    while let Some(&next) = input.0.first() {
        operations += 1;
        match &rig.transport {
            Shown::Pci(pci) if next >= op::READ_SPACE => step(pci, &mut input),
            _ => rig.step(&mut input, choice),
        }
    }
    assert!(rig.transport.faults().failures <= operations, "a failure that nobody caused");
    if let Shown::Pci(pci) = &rig.transport {
        pci.set_up();
    }
    rig.finish()
}

fn step(pci: &OverPci, input: &mut Input<'_>) {
    let operation = op::READ_SPACE + input.u8() % op::COUNT;
    let (place, width) = (u64::from(input.u16()), input.below(WIDEST));
    let mut data = [0xaa; WIDEST];
    match operation {
        op::READ_SPACE => pci.function.read_space(place as u8, &mut data[..width]),
        op::WRITE_SPACE => pci.function.write_space(place as u8, input.bytes(width)),
        op::READ_PORTS => pci.ports().read(place, &mut data[..width]),
        op::WRITE_PORTS => pci.ports().write(place, input.bytes(width)),
        op::READ_TABLE => pci.table().read(place, &mut data[..width]),
        _ => pci.table().write(place, input.bytes(width)),
    }
}
