//! Where a virtio PCI device has what: its configuration space, and the two windows that this names.
//!
//! Owns nothing. All registers are ports (virtio 1.2, 4.1.4 allows it): an access to a port leaves the guest without KVM
//! decoding an instruction, and a kick is one. MSI-X has its table in memory, as PCI wants it. Invariant: the structures in the
//! ports' window do not overlap.

use super::{common, msix};
use crate::devices::pci::ConfigSpace;
use crate::devices::virtio::DeviceKind;

/// Bytes of the ports' window: the most that PCI allows.
pub const PORTS: u64 = 0x100;

/// The structures in the ports' window: common configuration at 0, then the ISR status, the kicks, the device's configuration.
pub(super) const ISR: u64 = 0x38;
/// A queue's kick is 2 bytes.
pub(super) const NOTIFY: u64 = 0x40;
pub(super) const DEVICE: u64 = 0x80;
/// Bytes from one queue's kick to the next.
pub(super) const NOTIFY_STRIDE: u64 = 2;
/// Most queues of a device: as many kicks as there is room for.
#[cfg(test)]
pub(super) const MOST_QUEUES: u64 = (DEVICE - NOTIFY) / NOTIFY_STRIDE;

/// Registers of the header.
pub(super) const COMMAND: usize = 0x04;
pub(super) const PORTS_BAR: usize = 0x10;
pub(super) const TABLE_BAR: usize = 0x14;
const INTERRUPT_LINE: usize = 0x3c;

/// Command: the function answers at its ports; in memory.
pub(super) const COMMAND_PORTS: u16 = 1;
pub(super) const COMMAND_MEMORY: u16 = 2;
/// Command: what can be written: these, bus master, and no line interrupts, which there are not anyway.
const COMMAND_WRITABLE: u16 = COMMAND_PORTS | COMMAND_MEMORY | 1 << 2 | 1 << 10;
/// An address register's lowest bit: ports.
const BAR_PORTS: u32 = 1;

/// Red Hat's vendor id, by which virtio devices are found; a device's id is its kind above this (4.1.2).
const VENDOR: u16 = 0x1af4;
const FIRST_DEVICE: u16 = 0x1040;

/// Capabilities of PCI.
const CAP_VENDOR: u8 = 0x09;
const CAP_MSIX: u8 = 0x11;

/// Kinds of virtio's capability (4.1.4).
mod kind {
    pub(super) const COMMON: u8 = 1;
    pub(super) const NOTIFY: u8 = 2;
    pub(super) const ISR: u8 = 3;
    pub(super) const DEVICE: u8 = 4;
    pub(super) const PCI: u8 = 5;
}

/// Where a device's windows are; the guest does not move them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Windows {
    /// Its first port, a multiple of [`PORTS`].
    pub ports: u16,
    /// Guest address of MSI-X's table and pending bits, a multiple of [`msix::WINDOW_BYTES`].
    pub table: u32,
}

/// The configuration space of a device of `kind` with `vectors`, and where in it what changes is.
pub(super) struct Layout {
    pub(super) space: ConfigSpace,
    /// Message control of MSI-X.
    pub(super) control: usize,
    /// The capability by which configuration space leads to the window (4.1.4.9): it begins here.
    pub(super) access: usize,
}

impl Layout {
    pub(super) fn new(device: DeviceKind, windows: Windows, vectors: usize) -> Self {
        let number = u16::try_from(device.id()).unwrap_or_default();
        let id = (VENDOR, FIRST_DEVICE + number);
        let mut space = ConfigSpace::new(id, class(device), id);
        space.allow(COMMAND, &COMMAND_WRITABLE.to_le_bytes());
        space.set(PORTS_BAR, &(u32::from(windows.ports) | BAR_PORTS).to_le_bytes());
        space.allow(PORTS_BAR, &mask(PORTS).to_le_bytes());
        space.set(TABLE_BAR, &windows.table.to_le_bytes());
        space.allow(TABLE_BAR, &mask(msix::WINDOW_BYTES).to_le_bytes());
        space.allow(INTERRUPT_LINE, &[0xff]);
        structure(&mut space, kind::COMMON, (0, common::BYTES.into()), &[]);
        structure(&mut space, kind::ISR, (ISR, 1), &[]);
        let stride = u32::try_from(NOTIFY_STRIDE).unwrap_or_default().to_le_bytes();
        structure(&mut space, kind::NOTIFY, (NOTIFY, DEVICE - NOTIFY), &stride);
        structure(&mut space, kind::DEVICE, (DEVICE, PORTS - DEVICE), &[]);
        let access = structure(&mut space, kind::PCI, (0, 0), &[0; 4]);
        // Which window, offset and length, and the data.
        space.allow(access + 4, &[0xff]);
        space.allow(access + 8, &[0xff; 12]);
        let last = u16::try_from(vectors.saturating_sub(1)).unwrap_or_default();
        let [low, high] = last.to_le_bytes();
        let [a, b, c, d] = (msix::PENDING | 1).to_le_bytes();
        let control = msix::CONTROL.to_le_bytes();
        // Table and pending bits are in window 1.
        let content = [low, high, 1, 0, 0, 0, a, b, c, d];
        let at = space.add(CAP_MSIX, &content, &control);
        Self { space, control: at + 2, access }
    }
}

/// Bits of an address register that can be written, of a window of so many bytes.
fn mask(bytes: u64) -> u32 {
    u32::MAX << bytes.trailing_zeros()
}

/// Adds virtio's capability for `length` bytes at `offset` of the ports' window; returns where it begins.
fn structure(space: &mut ConfigSpace, kind: u8, (offset, length): (u64, u64), more: &[u8]) -> usize {
    let dword = |value: u64| u32::try_from(value).unwrap_or_default().to_le_bytes();
    // Length of all of it, kind, window 0, no id, padding.
    let mut content = vec![u8::try_from(16 + more.len()).unwrap_or_default(), kind, 0, 0, 0, 0];
    content.extend(dword(offset));
    content.extend(dword(length));
    content.extend(more);
    space.add(CAP_VENDOR, &content, &[])
}

/// Class, subclass and programming interface.
fn class(device: DeviceKind) -> u32 {
    match device {
        DeviceKind::Block => 0x01_8000,
        DeviceKind::Net => 0x02_0000,
        DeviceKind::Console => 0x07_8000,
        // Of none of PCI's classes.
        _ => 0xff_0000,
    }
}

#[cfg(test)]
mod tests;
