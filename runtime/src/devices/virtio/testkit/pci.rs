//! A device on a PCI bus, driven by the offsets of MMIO: what is tested at one transport's registers can be tested at the other's.
//!
//! Owns the translation, and what firmware and the kernel's PCI code do before a driver comes: windows decoded, MSI-X on, each
//! queue with a vector of its own.

use super::super::pci::{Message, Messenger, PciTransport, PortWindow, TableWindow, Windows};
use super::super::transport::Transport;
use crate::devices::BusDevice;
use crate::devices::pci::PciFunction;
use std::ops::Deref;
use std::sync::Arc;
use vmm_sys_util::eventfd::EventFd;

/// Where the windows are.
pub(crate) const WINDOWS: Windows = Windows { ports: 0x1000, table: 0xd000_0000 };
/// Where the device's configuration is, over MMIO and in the ports' window.
const CONFIG: u64 = 0x100;
const DEVICE: u64 = 0x80;

/// For a driver that is a test: an interrupt is written.
impl Messenger for EventFd {
    fn send(&self, _message: Message) {
        // It fails only at 2^64 - 2 interrupts that nobody has taken.
        let _ = self.write(1);
    }
}

/// A register over MMIO as a field of the common configuration: offset and bytes.
const FIELDS: [(u64, u64, usize); 16] = [
    (0x10, 0x04, 4),
    (0x14, 0x00, 4),
    (0x20, 0x0c, 4),
    (0x24, 0x08, 4),
    (0x30, 0x16, 2),
    (0x34, 0x18, 2),
    (0x38, 0x18, 2),
    (0x44, 0x1c, 2),
    (0x70, 0x14, 1),
    (0xfc, 0x15, 1),
    (0x80, 0x20, 4),
    (0x84, 0x24, 4),
    (0x90, 0x28, 4),
    (0x94, 0x2c, 4),
    (0xa0, 0x30, 4),
    (0xa4, 0x34, 4),
];

/// See the module.
#[derive(Clone)]
pub(crate) struct OverPci {
    pub(crate) function: Arc<PciTransport>,
}

impl OverPci {
    pub(crate) fn new(function: Arc<PciTransport>) -> Self {
        let it = Self { function };
        it.set_up();
        it
    }

    /// Whatever was there before.
    pub(crate) fn set_up(&self) {
        self.function.write_space(0x10, &u32::from(WINDOWS.ports).to_le_bytes());
        self.function.write_space(0x14, &WINDOWS.table.to_le_bytes());
        self.function.write_space(4, &7_u16.to_le_bytes());
        for vector in 0..self.vectors() {
            let entry = u64::from(vector) * 16;
            self.table().write(entry, &(0xfee0_0000_u64).to_le_bytes());
            self.table().write(entry + 8, &u64::from(0x30 + vector).to_le_bytes());
        }
        self.function.write_space(self.control(), &0x8000_u16.to_le_bytes());
        self.give_vectors();
    }

    /// Each queue its own vector, the configuration the first; as each driver does after a reset.
    pub(crate) fn give_vectors(&self) {
        self.ports().write(0x10, &0_u16.to_le_bytes());
        let selected = self.field(0x16, 2);
        for queue in 0..self.vectors() - 1 {
            self.ports().write(0x16, &queue.to_le_bytes());
            self.ports().write(0x1a, &(queue + 1).to_le_bytes());
        }
        self.ports().write(0x16, &selected.to_le_bytes()[..2]);
    }

    pub(crate) fn ports(&self) -> PortWindow {
        PortWindow(Arc::clone(&self.function))
    }

    pub(crate) fn table(&self) -> TableWindow {
        TableWindow(Arc::clone(&self.function))
    }

    /// Where message control is: MSI-X is the last capability.
    pub(crate) fn control(&self) -> u8 {
        let byte = |at: u8| {
            let mut data = [0];
            self.function.read_space(at, &mut data);
            data[0]
        };
        let mut at = byte(0x34);
        while byte(at) != 0x11 {
            at = byte(at + 1);
        }
        at + 2
    }

    /// Entries of MSI-X's table.
    pub(crate) fn vectors(&self) -> u16 {
        let mut control = [0; 2];
        self.function.read_space(self.control(), &mut control);
        (u16::from_le_bytes(control) & 0x7ff) + 1
    }

    fn field(&self, offset: u64, len: usize) -> u32 {
        let mut value = [0; 4];
        self.ports().read(offset, &mut value[..len]);
        u32::from_le_bytes(value)
    }
}

impl Deref for OverPci {
    type Target = Transport;

    fn deref(&self) -> &Transport {
        &self.function
    }
}

impl BusDevice for OverPci {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            return self.ports().read(DEVICE + offset, data);
        }
        data.fill(0);
        let Ok(data) = <&mut [u8; 4]>::try_from(data) else { return };
        let field = FIELDS.iter().find(|(register, ..)| *register == offset);
        *data = match (offset, field) {
            (0x60, _) => self.field(0x38, 1),
            (_, Some((_, at, len))) => self.field(*at, *len),
            _ => 0,
        }
        .to_le_bytes();
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            return self.ports().write(DEVICE + offset, data);
        }
        let Ok(data) = <[u8; 4]>::try_from(data) else { return };
        let value = u32::from_le_bytes(data);
        match (offset, FIELDS.iter().find(|(register, ..)| *register == offset)) {
            (0x50, _) if value < 32 => self.ports().write(0x40 + 2 * u64::from(value), &data[..2]),
            (0x70, Some(_)) if value == 15 => {
                self.give_vectors();
                self.ports().write(0x14, &data[..1]);
            }
            (_, Some((_, at, len))) => self.ports().write(*at, &data[..*len]),
            _ => {}
        }
    }
}

/// A device over either.
#[derive(Clone)]
pub(crate) enum Shown {
    Mmio(Arc<super::MmioTransport>),
    Pci(OverPci),
}

impl Deref for Shown {
    type Target = Transport;

    fn deref(&self) -> &Transport {
        match self {
            Self::Mmio(it) => it,
            Self::Pci(it) => it,
        }
    }
}

impl BusDevice for Shown {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match self {
            Self::Mmio(it) => it.read(offset, data),
            Self::Pci(it) => it.read(offset, data),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match self {
            Self::Mmio(it) => it.write(offset, data),
            Self::Pci(it) => it.write(offset, data),
        }
    }
}
