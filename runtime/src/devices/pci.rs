//! A PCI bus: the host bridge, and configuration space by the ports 0xcf8 and 0xcfc (PCI Local Bus 3.0, 3.2.2.3.2).
//!
//! Owns the address register, the host bridge at device 0, and the table from device number to function. Refuses, as an open bus
//! does (reads are all ones, writes nothing), buses, devices and functions that are not there and accesses that cross a
//! register. Invariant: once shared the table never changes; a function locks inside itself what it must.

mod space;

use super::BusDevice;
use crate::state::{Format, LoadError, Section};
pub use space::ConfigSpace;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// First port: the address register.
pub const PORTS: u64 = 0xcf8;
/// The address register's and the data register's.
pub const PORT_COUNT: u64 = 8;
/// Most devices behind the host bridge.
pub const MOST_DEVICES: usize = 31;

/// Offset of the data register from [`PORTS`].
const DATA: u64 = 4;
const ENABLE: u32 = 1 << 31;
/// Bits of the address register that can be written: enable, bus, device, function and register.
const ADDRESS: u32 = ENABLE | 0x00ff_fffc;

/// QEMU's host bridge, as which others know what has no behaviour of its own.
const HOST_BRIDGE: (u16, u16) = (0x1b36, 0x0008);
/// Bridge, of the host.
const HOST_BRIDGE_CLASS: u32 = 0x06_0000;

const FORMAT: Format = Format { id: "pci", version: 1 };

/// A device with one function.
pub trait PciFunction: Send + Sync {
    /// Reads configuration space, `data.len()` bytes at `offset` that lie within one register of 4 bytes.
    fn read_space(&self, offset: u8, data: &mut [u8]);
    /// Writes configuration space, likewise.
    fn write_space(&self, offset: u8, data: &[u8]);
}

/// See the module.
pub struct PciBus {
    address: AtomicU32,
    host_bridge: ConfigSpace,
    /// By device number, from 1.
    functions: Vec<Arc<dyn PciFunction>>,
}

impl PciBus {
    /// A bus with `functions` as devices 1 and up; those past [`MOST_DEVICES`] have no number and are never found.
    #[must_use]
    pub fn new(functions: Vec<Arc<dyn PciFunction>>) -> Arc<Self> {
        let host_bridge = ConfigSpace::new(HOST_BRIDGE, HOST_BRIDGE_CLASS, (0, 0));
        Arc::new(Self { address: AtomicU32::new(0), host_bridge, functions })
    }

    /// What the guest has left here.
    pub fn save(&self) -> Section {
        FORMAT.section(&self.address.load(Ordering::SeqCst))
    }

    /// Takes over what [`Self::save`] said.
    ///
    /// # Errors
    /// What is wrong with the section.
    pub fn load(&self, section: &Section) -> Result<(), LoadError> {
        let address: u32 = FORMAT.parse(section)?;
        let allowed = "enable, bus, device, function and register";
        FORMAT.check(address & !ADDRESS == 0, "address", format_args!("{address:#x}"), allowed)?;
        self.address.store(address, Ordering::SeqCst);
        Ok(())
    }

    /// The device that the address register names, and the register's offset; a device 0 is the host bridge.
    fn selected(&self) -> Option<(usize, u8)> {
        let [register, function, bus, enable] = self.address.load(Ordering::SeqCst).to_le_bytes();
        let (device, function) = (function >> 3, function & 7);
        (enable == 0x80 && bus == 0 && function == 0).then_some((device.into(), register))
    }

    fn read_data(&self, byte: u8, data: &mut [u8]) {
        data.fill(0xff);
        let Some((device, register)) = self.selected() else { return };
        match device.checked_sub(1) {
            None => self.host_bridge.read(register | byte, data),
            Some(index) => {
                if let Some(function) = self.functions.get(index) {
                    function.read_space(register | byte, data);
                }
            }
        }
    }

    fn write_data(&self, byte: u8, data: &[u8]) {
        // Nothing of the host bridge can be written.
        let Some((device, register)) = self.selected() else { return };
        if let Some(function) = device.checked_sub(1).and_then(|index| self.functions.get(index)) {
            function.write_space(register | byte, data);
        }
    }
}

/// The byte of the data register that an access of `len` bytes at `offset` starts with, if it stays within the register.
fn data_byte(offset: u64, len: usize) -> Option<u8> {
    let byte = u8::try_from(offset.checked_sub(DATA)?).ok()?;
    let fits = matches!((byte, len), (0, 4) | (0 | 2, 2) | (0..=3, 1));
    fits.then_some(byte)
}

impl BusDevice for PciBus {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some(byte) = data_byte(offset, data.len()) {
            self.read_data(byte, data);
        } else if offset == 0 && data.len() == 4 {
            data.copy_from_slice(&self.address.load(Ordering::SeqCst).to_le_bytes());
        } else {
            data.fill(0xff);
        }
    }

    /// The address register takes 4 bytes at a time; anything else there is not for it.
    fn write(&self, offset: u64, data: &[u8]) {
        if let Some(byte) = data_byte(offset, data.len()) {
            self.write_data(byte, data);
        } else if let (0, Ok(data)) = (offset, <[u8; 4]>::try_from(data)) {
            self.address.store(u32::from_le_bytes(data) & ADDRESS, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests;
