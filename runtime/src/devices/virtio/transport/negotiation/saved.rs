//! What was negotiated, as it is saved and loaded.
//!
//! Refuses what no sequence of writes brings about. Invariant: what a driver may write at any time (a selector, a feature
//! before `FEATURES_OK`, a queue's addresses before `DRIVER_OK`) is as good as if it had; whether the queues are sound is
//! looked at where a driver's are, before a worker gets them.

use super::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FAILED, FEATURES_OK, NEEDS_RESET, Negotiation};
use crate::devices::virtio::queue::QueueSetup;
use crate::devices::virtio::transport::pause::FORMAT;
use crate::state::LoadError;
use serde::{Deserialize, Serialize};

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::devices::virtio) struct Saved {
    pub(in crate::devices::virtio) status: u32,
    pub(in crate::devices::virtio) acknowledged: u64,
    device_features_sel: u32,
    driver_features_sel: u32,
    queue_sel: u32,
    pub(in crate::devices::virtio) queues: Vec<QueueSetup>,
}

/// Each status bit, and those that stand before it.
const ORDER: [(u32, u32); 6] = [
    (ACKNOWLEDGE, 0),
    (DRIVER, ACKNOWLEDGE),
    (FEATURES_OK, ACKNOWLEDGE | DRIVER),
    (DRIVER_OK, ACKNOWLEDGE | DRIVER | FEATURES_OK),
    (NEEDS_RESET, DRIVER_OK),
    (FAILED, 0),
];

impl Negotiation {
    /// What a driver has written. Not while it is being reset.
    pub(in crate::devices::virtio) fn save(&self) -> Saved {
        Saved {
            status: self.status,
            acknowledged: self.acknowledged,
            device_features_sel: self.device_features_sel,
            driver_features_sel: self.driver_features_sel,
            queue_sel: self.queue_sel,
            queues: self.queues.clone(),
        }
    }

    /// The same device's negotiation with what was saved of it.
    pub(in crate::devices::virtio) fn loaded(&self, saved: &Saved) -> Result<Self, LoadError> {
        let Saved { status, acknowledged, .. } = *saved;
        let known = ORDER.iter().fold(0, |known, (bit, _)| known | bit);
        let in_order = ORDER.iter().all(|(bit, before)| status & bit == 0 || status & before == *before);
        let allowed = "each bit of virtio 1.2, 2.1, after those before it";
        FORMAT.check(status & !known == 0 && in_order, "status", format_args!("{status:#x}"), allowed)?;
        let (count, queues) = (saved.queues.len(), self.maxima.len());
        FORMAT.check(count == queues, "number of queues", count, queues)?;
        let negotiation = Self {
            offered: self.offered,
            maxima: self.maxima.clone(),
            status,
            resetting: false,
            acknowledged,
            device_features_sel: saved.device_features_sel,
            driver_features_sel: saved.driver_features_sel,
            queue_sel: saved.queue_sel,
            queues: saved.queues.clone(),
        };
        let sound = status & FEATURES_OK == 0 || negotiation.features_are_sound();
        let offered = format!("VIRTIO_F_VERSION_1 and what of {:#x} else", self.offered);
        FORMAT.check(sound, "acknowledged features", format_args!("{acknowledged:#x}"), offered)?;
        Ok(negotiation)
    }
}
