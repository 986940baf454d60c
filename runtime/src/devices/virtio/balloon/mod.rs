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
use crate::state::{Format, LoadError, Section};
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
/// What is saved of it: the amount that the driver knows of, and what it said of it. What the guest is to do without is the
/// spec's all the same.
const FORMAT: Format = Format { id: "virtio-balloon", version: 1 };

/// See the module.
pub struct Balloon {
    features: u64,
    /// `num_pages`, which the device sets, and `actual`, which the driver does.
    config: [u8; 8],
    polling: Option<Arc<Polling>>,
    /// The amount that the driver knows of, as in the configuration: another one only between a load and the start.
    known: [u8; ACTUAL.start],
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
        let known = amount_mib.saturating_mul(PAGES_PER_MIB).to_le_bytes();
        config[..ACTUAL.start].copy_from_slice(&known);
        Self { features, config, polling: None, known }
    }

    /// Asks the guest for statistics every `interval` seconds, and hands each answer to `tell`. Makes a descriptor.
    ///
    /// # Errors
    /// No timer can be had.
    pub fn with_statistics(self, interval: NonZeroU16, tell: Tell) -> io::Result<Self> {
        let polling = Some(Arc::new(Polling::new(interval, tell)?));
        Ok(Self { features: self.features | FEATURE_STATS, polling, ..self })
    }

    fn amount(&self) -> [u8; ACTUAL.start] {
        let [amount @ .., _, _, _, _] = self.config;
        amount
    }

    fn set_actual(&mut self, actual: [u8; ACTUAL.end - ACTUAL.start]) {
        self.config[ACTUAL].copy_from_slice(&actual);
        if let Some(polling) = &self.polling {
            polling.actual.store(u32::from_le_bytes(actual), Ordering::Relaxed);
        }
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
            self.set_actual(actual);
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<Box<dyn Worker>, ActivateError> {
        if self.known != self.amount() {
            self.known = self.amount();
            activation.interrupt.config();
        }
        Ok(Box::new(BalloonWorker::new(activation, self.polling.as_ref())?))
    }

    /// A driver reads the amount when it starts.
    fn reset(&mut self) {
        self.known = self.amount();
    }

    fn save(&self) -> Section {
        let [_, _, _, _, actual @ ..] = self.config;
        FORMAT.section(&(self.known, actual))
    }

    fn load(&mut self, section: &Section) -> Result<(), LoadError> {
        let (known, actual) = FORMAT.parse(section)?;
        self.known = known;
        self.set_actual(actual);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
