//! virtio-balloon (virtio 1.2, 5.5): memory that the guest does without goes back to the host.
//!
//! Owns configuration and features; the worker has the queues, `pages` the logic, `statistics` what the guest says of its
//! memory. Refuses, on the host's side of each request, every page that is not guest memory. Invariant: what the guest says
//! (which pages, how many, how many it has given so far) is an allegation: a lie costs the guest the content of pages that it
//! named, and nobody anything else.

mod pages;
mod statistics;
mod worker;

pub use statistics::Tell;

use super::{ActivateError, Activation, DeviceKind, FEATURE_EVENT_IDX, VirtioDevice, Worker, read_from};
use statistics::Polling;
use std::io;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use worker::BalloonWorker;

/// Bytes of a page of the balloon, whatever the guest's or the host's are (5.5.6).
const PAGE_BYTES: u64 = 4096;
/// Pages of the balloon in a MiB.
const PAGES_PER_MIB: u32 = 256;
/// Descriptors in each queue: as many as Linux reports free pages in at once; it inflates one request at a time.
const QUEUE_SIZE: u16 = 32;
/// `VIRTIO_BALLOON_F_STATS_VQ`: the guest can be asked how its memory is used.
const FEATURE_STATS: u64 = 1 << 1;
/// `VIRTIO_BALLOON_F_DEFLATE_ON_OOM`: the guest may take pages back when it runs out.
const FEATURE_DEFLATE_ON_OOM: u64 = 1 << 2;
/// `VIRTIO_BALLOON_F_PAGE_REPORTING`: the guest names pages that are free.
const FEATURE_REPORTING: u64 = 1 << 5;
/// Where `actual` lies in the configuration (5.5.4).
const ACTUAL: std::ops::Range<usize> = 4..8;

/// See the module.
pub struct Balloon {
    features: u64,
    /// `num_pages`, which the device sets, and `actual`, which the driver does.
    config: [u8; 8],
    polling: Option<Arc<Polling>>,
}

impl Balloon {
    /// A balloon that asks the guest for `amount_mib` MiB, at most 2^24 - 1.
    #[must_use]
    pub fn new(amount_mib: u32, deflate_on_oom: bool, free_page_reporting: bool) -> Self {
        let mut features = FEATURE_EVENT_IDX;
        if deflate_on_oom {
            features |= FEATURE_DEFLATE_ON_OOM;
        }
        if free_page_reporting {
            features |= FEATURE_REPORTING;
        }
        let mut config = [0; 8];
        config[..4].copy_from_slice(&amount_mib.saturating_mul(PAGES_PER_MIB).to_le_bytes());
        Self { features, config, polling: None }
    }

    /// Asks the guest for statistics every `interval` seconds, and hands each answer to `tell`. Makes a descriptor.
    ///
    /// # Errors
    /// No timer can be had.
    pub fn with_statistics(self, interval: NonZeroU16, tell: Tell) -> io::Result<Self> {
        let polling = Some(Arc::new(Polling::new(interval, tell)?));
        Ok(Self { features: self.features | FEATURE_STATS, polling, ..self })
    }
}

impl VirtioDevice for Balloon {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Balloon
    }

    fn features(&self) -> u64 {
        self.features
    }

    /// Inflate, deflate, and one for statistics and for reports each, if they are offered.
    fn queue_sizes(&self) -> &[u16] {
        match (self.features & (FEATURE_STATS | FEATURE_REPORTING)).count_ones() {
            0 => &[QUEUE_SIZE; 2],
            1 => &[QUEUE_SIZE; 3],
            _ => &[QUEUE_SIZE; 4],
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_from(&self.config, offset, data);
    }

    /// The driver writes `actual`, whole; nothing here goes by it, it only reads back and is told to husk.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let Ok(actual) = <[u8; ACTUAL.end - ACTUAL.start]>::try_from(data)
            && offset == ACTUAL.start as u64
        {
            self.config[ACTUAL].copy_from_slice(data);
            if let Some(polling) = &self.polling {
                polling.actual.store(u32::from_le_bytes(actual), Ordering::Relaxed);
            }
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<Box<dyn Worker>, ActivateError> {
        Ok(Box::new(BalloonWorker::new(activation, self.polling.as_ref())?))
    }
}

#[cfg(test)]
mod tests;
