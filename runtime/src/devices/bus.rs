//! A bus: address ranges and the devices behind them.
//!
//! Owns the table from address to device, for MMIO and for port I/O alike. Refuses empty, wrapping and overlapping
//! ranges when it is built. Invariant: once shared the table never changes, so a lookup takes no lock; a device locks
//! inside itself what it must.

use std::sync::Arc;

/// What an unclaimed address reads as: an open bus has its lines pulled up.
const OPEN_BUS: u8 = 0xff;

/// A device on a bus. Called by every vCPU thread at once.
///
/// Accesses have 1, 2, 4 or 8 bytes as KVM delivers them, but an implementation must stand any length and offset.
pub trait BusDevice: Send + Sync {
    /// Reads `data.len()` bytes at `offset` from the start of the device's range. Fills all of `data`.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Writes `data` at `offset` from the start of the device's range.
    fn write(&self, offset: u64, data: &[u8]);
}

/// A range that cannot be put on a bus.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BusError {
    /// Nothing in it, or it passes the end of the address space.
    #[error(
        "device range {base:#x}+{len:#x} is empty or wraps; a range has at least one address and ends below 2^64"
    )]
    Range {
        /// First address.
        base: u64,
        /// Number of addresses.
        len: u64,
    },
    /// Something is there already.
    #[error(
        "device range {base:#x}+{len:#x} overlaps the one at {other:#x}; each device needs addresses of its own"
    )]
    Overlap {
        /// First address.
        base: u64,
        /// Number of addresses.
        len: u64,
        /// First address of the range that is there.
        other: u64,
    },
}

struct Slot {
    base: u64,
    last: u64,
    device: Arc<dyn BusDevice>,
}

/// Devices by address; put it in an `Arc` to freeze it.
#[derive(Default)]
pub struct Bus {
    /// Sorted by `base`, disjoint.
    slots: Vec<Slot>,
}

impl std::fmt::Debug for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.slots.iter().map(|slot| slot.base..=slot.last)).finish()
    }
}

impl Bus {
    /// An empty bus.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `device` at the `len` addresses from `base`.
    pub fn insert(&mut self, base: u64, len: u64, device: Arc<dyn BusDevice>) -> Result<(), BusError> {
        let last = len
            .checked_sub(1)
            .and_then(|rest| base.checked_add(rest))
            .ok_or(BusError::Range { base, len })?;
        let at = self.slots.partition_point(|slot| slot.base <= last);
        if let Some(below) = at.checked_sub(1).and_then(|index| self.slots.get(index))
            && below.last >= base
        {
            return Err(BusError::Overlap { base, len, other: below.base });
        }
        self.slots.insert(at, Slot { base, last, device });
        Ok(())
    }

    /// Reads at `addr`. False if nobody is there or the access leaves the device's range: then `data` reads as an
    /// open bus.
    pub fn read(&self, addr: u64, data: &mut [u8]) -> bool {
        match self.find(addr, data.len()) {
            Some((device, offset)) => {
                device.read(offset, data);
                true
            }
            None => {
                data.fill(OPEN_BUS);
                false
            }
        }
    }

    /// Writes at `addr`. False if nobody is there or the access leaves the device's range: then nothing happens.
    pub fn write(&self, addr: u64, data: &[u8]) -> bool {
        match self.find(addr, data.len()) {
            Some((device, offset)) => {
                device.write(offset, data);
                true
            }
            None => false,
        }
    }

    fn find(&self, addr: u64, len: usize) -> Option<(&dyn BusDevice, u64)> {
        let at = self.slots.partition_point(|slot| slot.base <= addr).checked_sub(1)?;
        let slot = self.slots.get(at)?;
        let end = addr.checked_add(u64::try_from(len).ok()?.checked_sub(1)?)?;
        (end <= slot.last).then(|| (&*slot.device, addr - slot.base))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Recorder {
        seen: Mutex<Vec<(u64, Vec<u8>)>>,
    }

    impl BusDevice for Recorder {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(u8::try_from(offset).unwrap());
        }
        fn write(&self, offset: u64, data: &[u8]) {
            self.seen.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    #[test]
    fn overlapping_empty_and_wrapping_ranges_are_refused() {
        let mut bus = Bus::new();
        let device: Arc<dyn BusDevice> = Arc::new(Recorder::default());
        bus.insert(0x1000, 0x1000, device.clone()).unwrap();
        bus.insert(0x3000, 0x1000, device.clone()).unwrap();
        for (base, len) in
            [(0x1000, 1), (0x1fff, 1), (0x0, 0x1001), (0x1800, 0x2000), (0x0, 0x10000), (0x3fff, 0x1000)]
        {
            assert!(
                matches!(bus.insert(base, len, device.clone()), Err(BusError::Overlap { .. })),
                "{base:#x}+{len:#x}"
            );
        }
        assert_eq!(bus.insert(5, 0, device.clone()), Err(BusError::Range { base: 5, len: 0 }));
        assert!(matches!(bus.insert(u64::MAX, 2, device.clone()), Err(BusError::Range { .. })));
        bus.insert(0x2000, 0x1000, device.clone()).unwrap();
        bus.insert(u64::MAX, 1, device).unwrap();
    }

    #[test]
    fn an_access_reaches_its_device_with_its_offset() {
        let mut bus = Bus::new();
        let low = Arc::new(Recorder::default());
        let high = Arc::new(Recorder::default());
        bus.insert(0x2000, 0x10, high.clone()).unwrap();
        bus.insert(0x1000, 0x10, low.clone()).unwrap();
        let mut data = [0; 4];
        assert!(bus.read(0x2004, &mut data));
        assert_eq!(data, [4; 4]);
        assert!(bus.write(0x100c, &[1, 2, 3, 4]));
        assert_eq!(*low.seen.lock().unwrap(), [(0xc, vec![1, 2, 3, 4])]);
        assert!(high.seen.lock().unwrap().is_empty());
    }

    #[test]
    fn what_leaves_a_range_is_an_open_bus() {
        let mut bus = Bus::new();
        let device = Arc::new(Recorder::default());
        bus.insert(0x1000, 0x10, device.clone()).unwrap();
        for addr in [0, 0xfff, 0x100d, 0x1010, u64::MAX, u64::MAX - 3] {
            let mut data = [0; 4];
            assert!(!bus.read(addr, &mut data), "{addr:#x}");
            assert_eq!(data, [0xff; 4]);
            assert!(!bus.write(addr, &data));
        }
        assert!(!bus.read(0x1000, &mut []));
        assert!(device.seen.lock().unwrap().is_empty());
    }
}
