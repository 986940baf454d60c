//! virtio-mem (virtio 1.2, 5.15): memory that the guest plugs in and out while it runs, as the host asks it to.
//!
//! Owns what is asked for; [`Hotplug`] owns the memory, `request` the rules. Refuses a driver that would read memory which
//! is not plugged. Invariants: the guest has no more plugged than was asked for when it plugged, and what is plugged
//! outlives a reset of the device, as the standard has it (5.15.5).

mod request;
mod worker;

use super::{ActivateError, Activation, DeviceKind, FEATURE_EVENT_IDX, VirtioDevice, Worker, read_from};
use crate::memory::{BLOCK, Hotplug};
use crate::state::{Format, LoadError, Section};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use worker::MemWorker;

/// Descriptors in the queue: Linux has one request, of two, at a time.
const QUEUE_SIZE: u16 = 64;
/// `VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE`: the driver does not even read what is not plugged.
const FEATURE_UNPLUGGED_INACCESSIBLE: u64 = 1 << 1;
/// What is saved of it: start and size of the region, in bytes, and the runs of plugged blocks, each as its first block and
/// how many. What is asked for is the spec's, and what came after it.
const FORMAT: Format = Format { id: "virtio-mem", version: 1 };

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

    /// Asks for `bytes`: whole blocks of it, and at most what the region holds. Within `Transport::change_config`.
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
    /// Of what was loaded the driver may have heard that something else is asked for.
    loaded: bool,
}

impl Mem {
    /// Memory from `hotplug`, of which nothing is asked for yet.
    #[must_use]
    pub fn new(hotplug: &Hotplug) -> Self {
        let requested = Requested { bytes: Arc::default(), most: hotplug.bytes() };
        Self { hotplug: hotplug.clone(), requested, loaded: false }
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
        if std::mem::take(&mut self.loaded) {
            activation.interrupt.config();
        }
        Ok(Box::new(MemWorker::new(queue, activation.dropped, self.hotplug.clone(), self.requested())))
    }

    fn save(&self) -> Section {
        FORMAT.section(&(self.hotplug.start(), self.hotplug.bytes(), self.hotplug.runs()))
    }

    /// The guest has the blocks in its page tables: they are plugged where they were, which the host may refuse. What is in
    /// them is the memory's to load.
    fn load(&mut self, section: &Section) -> Result<(), LoadError> {
        let (start, bytes, runs): (u64, u64, Vec<(u64, u64)>) = FORMAT.parse(section)?;
        let region = (self.hotplug.start(), self.hotplug.bytes());
        FORMAT.check(
            (start, bytes) == region,
            "region",
            format_args!("{start:#x}+{bytes:#x}"),
            format_args!("{:#x}+{:#x}", region.0, region.1),
        )?;
        let mut next = Some(0);
        for &(first, count) in &runs {
            let behind =
                next.filter(|&next| first >= next && count > 0).and_then(|_| first.checked_add(count));
            let allowed = format_args!("ascending, and within {} blocks", bytes / BLOCK);
            let inside = behind.is_some_and(|end| end <= bytes / BLOCK);
            FORMAT.check(inside, "run of blocks", format_args!("{first}+{count}"), allowed)?;
            // With a block between them, or they were one.
            next = behind.and_then(|end| end.checked_add(1));
        }
        for (first, count) in runs {
            let blocks = self.hotplug.blocks(start + first * BLOCK, count * BLOCK);
            let plugged = blocks.is_some_and(|blocks| self.hotplug.plug(blocks).is_ok());
            if !plugged {
                self.hotplug.unplug_all();
                self.hotplug.take_away();
            }
            FORMAT.check(
                plugged,
                "run of blocks",
                format_args!("{first}+{count}"),
                "as many as the host can map",
            )?;
        }
        self.loaded = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
