//! virtio-mem (virtio 1.2, 5.15): memory that the guest plugs in and out while it runs, as the host asks it to.
//!
//! Owns what is asked for; [`Hotplug`] owns the memory, `request` the rules. Refuses a driver that would read memory which
//! is not plugged. Invariants: the guest has no more plugged than was asked for when it plugged, and what is plugged
//! outlives a reset of the device, as the standard has it (5.15.5).

mod request;
mod worker;

use super::{ActivateError, Activation, DeviceKind, FEATURE_EVENT_IDX, VirtioDevice, Worker, read_from};
use crate::memory::{BLOCK, Hotplug};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use worker::MemWorker;

/// Descriptors in the queue: Linux has one request, of two, at a time.
const QUEUE_SIZE: u16 = 64;
/// `VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE`: the driver does not even read what is not plugged.
const FEATURE_UNPLUGGED_INACCESSIBLE: u64 = 1 << 1;

/// How much the guest is asked to have plugged in, in bytes; a clone is the same number.
#[derive(Debug, Clone)]
pub struct Requested {
    bytes: Arc<AtomicU64>,
    most: u64,
}

impl Requested {
    fn get(&self) -> u64 {
        self.bytes.load(Ordering::SeqCst)
    }

    /// Asks for `bytes`: whole blocks of it, and at most what the region holds. Within `MmioTransport::change_config`.
    pub fn set(&self, bytes: u64) {
        let bytes = bytes.min(self.most);
        self.bytes.store(bytes - bytes % BLOCK, Ordering::SeqCst);
    }
}

/// See the module.
#[derive(Debug)]
pub struct Mem {
    hotplug: Hotplug,
    requested: Requested,
}

impl Mem {
    /// Memory from `hotplug`, of which nothing is asked for yet.
    #[must_use]
    pub fn new(hotplug: &Hotplug) -> Self {
        let requested = Requested { bytes: Arc::default(), most: hotplug.bytes() };
        Self { hotplug: hotplug.clone(), requested }
    }

    /// What the host changes.
    #[must_use]
    pub fn requested(&self) -> Requested {
        self.requested.clone()
    }

    /// 5.15.4. All of the region is usable: blocks that are not asked for are refused one by one.
    fn config(&self) -> [u8; 56] {
        let (bytes, plugged) = (self.hotplug.bytes(), self.hotplug.plugged_bytes());
        // The second is the node, which the driver does not look at without a feature that is not offered.
        let words = [BLOCK, 0, self.hotplug.start(), bytes, bytes, plugged, self.requested.get()];
        let mut config = [0; 56];
        for (place, word) in config.as_chunks_mut().0.iter_mut().zip(words) {
            *place = word.to_le_bytes();
        }
        config
    }
}

impl VirtioDevice for Mem {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Mem
    }

    fn features(&self) -> u64 {
        FEATURE_EVENT_IDX | FEATURE_UNPLUGGED_INACCESSIBLE
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_from(&self.config(), offset, data);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<Box<dyn Worker>, ActivateError> {
        if activation.features & FEATURE_UNPLUGGED_INACCESSIBLE == 0 {
            return Err(ActivateError::FeatureMissing("VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE"));
        }
        let queue = activation.take_queue(0)?;
        Ok(Box::new(MemWorker::new(queue, activation.dropped, self.hotplug.clone(), self.requested())))
    }
}

#[cfg(test)]
mod tests;
