//! The devices of a machine, to be paused, saved and loaded as one.
//!
//! Owns a share of each device that has state: the serial port, the PCI bus if there is one, and the virtio devices with their
//! names, in the order of their places. The keyboard controller has none. Refuses a list of sections that is another machine's. Invariant: either every
//! device stands still or none was told to for good: a pause that one of them cannot keep is taken back for all.

use super::pci::PciBus;
use super::serial::Serial;
use super::virtio::DeviceKind;
use super::virtio::transport::{NotPaused, Transport};
use crate::state::{LoadError, Section};
use std::sync::Arc;
use std::time::Instant;

/// See the module.
pub struct Devices {
    serial: Arc<Serial>,
    virtio: Vec<(String, Arc<Transport>)>,
    pci: Option<Arc<PciBus>>,
}

/// A device did not come to rest in time. Host's fault: it waits for an answer of the host's, as of a disk or of a volume's
/// server. All devices go on as if nothing had been asked of them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{device}: the host has not answered its requests in time for a pause")]
pub struct Busy {
    /// Which.
    pub device: String,
}

impl Devices {
    /// A machine that has a serial port and no virtio device yet.
    #[must_use]
    pub fn new(serial: Arc<Serial>) -> Self {
        Self { serial, virtio: Vec::new(), pci: None }
    }

    /// Adds the next virtio device, called `name`; at most as many as a machine has places.
    pub fn add(&mut self, name: &str, transport: Arc<Transport>) {
        self.virtio.push((name.to_owned(), transport));
    }

    /// The bus that the virtio devices are on, if they are on one.
    pub fn add_bus(&mut self, pci: Option<Arc<PciBus>>) {
        self.pci = pci;
    }

    /// Has every device stand still, and lose nothing, by `deadline`. The vCPUs are stopped already. Waits.
    ///
    /// # Errors
    /// One cannot; then all go on.
    pub fn pause(&self, deadline: Instant) -> Result<(), Busy> {
        // All are asked before one is waited for.
        self.virtio.iter().for_each(|(_, transport)| transport.pause());
        let late = self.virtio.iter().find(|(_, transport)| transport.wait_paused(deadline).is_err());
        let Some((device, _)) = late else { return Ok(()) };
        self.resume();
        Err(Busy { device: device.clone() })
    }

    /// Lets every device go on. Never waits.
    pub fn resume(&self) {
        self.virtio.iter().for_each(|(_, transport)| transport.resume());
    }

    /// A section for each, in an order that is always the same.
    ///
    /// # Errors
    /// They are not paused.
    pub fn save(&self) -> Result<Vec<Section>, NotPaused> {
        let mut sections = vec![self.serial.save()];
        sections.extend(self.pci.iter().map(|bus| bus.save()));
        for (name, transport) in &self.virtio {
            sections.push(transport.save(name)?);
        }
        Ok(sections)
    }

    /// Takes over what [`Self::save`] of a machine of the same spec said, with guest memory as it was then. The devices are
    /// paused afterwards.
    ///
    /// # Errors
    /// See [`LoadError`]. The machine is of no use then: some of its devices may have been loaded.
    pub fn load(&self, sections: &[Section]) -> Result<(), LoadError> {
        let others = 1 + usize::from(self.pci.is_some());
        let (found, expected) = (sections.len(), others + self.virtio.len());
        let Some((serial, rest)) = sections.split_first().filter(|_| found == expected) else {
            return Err(LoadError::Count { found, expected });
        };
        self.serial.load(serial)?;
        let (bus, virtio) = rest.split_at(others - 1);
        for (pci, section) in self.pci.iter().zip(bus) {
            pci.load(section)?;
        }
        // First the memory that comes and goes: others' rings and buffers may be in it.
        let (memory, others): (Vec<_>, Vec<_>) = self
            .virtio
            .iter()
            .zip(virtio)
            .partition(|((_, transport), _)| transport.kind() == DeviceKind::Mem);
        for ((name, transport), section) in memory.into_iter().chain(others) {
            transport.load(name, section)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
