//! The registers of a virtio-mmio device (virtio 1.2, 4.2.2), as a state machine without side effects.
//!
//! Owns negotiation, status and the set-up of queues. Refuses, by ignoring the write: features outside the driver's
//! turn, status bits out of order or taken back, queue registers before `FEATURES_OK` and after `DRIVER_OK`.
//! `FEATURES_OK` does not stick if a feature was acknowledged that was not offered. Invariant: from the
//! [`Effect::Activate`] to the end of the reset nothing that a worker was built from can change.
//!
//! ```text
//! 0 ── ACKNOWLEDGE ── DRIVER ──(features)── FEATURES_OK ──(queues)── DRIVER_OK ⇒ Activate
//! └────────────────── reset done ◄── drained ◄── resetting ◄── 0 written ⇒ Reset
//! ```

mod saved;

use crate::devices::virtio::FEATURE_VERSION_1;
use crate::devices::virtio::queue::QueueSetup;
pub(super) use saved::Saved;
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE as ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER as DRIVER,
    VIRTIO_CONFIG_S_DRIVER_OK as DRIVER_OK, VIRTIO_CONFIG_S_FAILED as FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK as FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET as NEEDS_RESET,
};
use virtio_bindings::virtio_mmio as mmio;

/// Reads "virt".
const MAGIC: u32 = 0x7472_6976;
/// Virtio 1.0 and later, no legacy interface.
const VERSION: u32 = 2;
/// Nobody in particular.
const VENDOR: u32 = 0;

/// What the transport has to do after a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing.
    None,
    /// The driver is ready: build a worker, or call [`Registers::fail`].
    Activate,
    /// The driver wants a reset: drain the worker, then call [`Registers::reset`].
    Reset,
    /// The driver kicks a queue that exists.
    Notify(u16),
}

#[derive(Debug)]
pub(super) struct Registers {
    device_id: u32,
    offered: u64,
    /// Largest sizes, by queue.
    maxima: Vec<u16>,
    status: u32,
    resetting: bool,
    acknowledged: u64,
    device_features_sel: u32,
    driver_features_sel: u32,
    queue_sel: u32,
    queues: Vec<QueueSetup>,
}

impl Registers {
    pub(super) fn new(device_id: u32, offered: u64, maxima: &[u16]) -> Self {
        let mut registers = Self {
            device_id,
            offered: offered | FEATURE_VERSION_1,
            maxima: maxima.to_vec(),
            status: 0,
            resetting: false,
            acknowledged: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            queue_sel: 0,
            queues: Vec::new(),
        };
        registers.reset();
        registers
    }

    /// Back to the state after power-on; ends a reset.
    pub(super) fn reset(&mut self) {
        self.status = 0;
        self.resetting = false;
        self.acknowledged = 0;
        self.device_features_sel = 0;
        self.driver_features_sel = 0;
        self.queue_sel = 0;
        self.queues =
            self.maxima.iter().map(|&max| QueueSetup { size: max.into(), ..QueueSetup::default() }).collect();
    }

    /// The device cannot go on until it is reset.
    pub(super) fn fail(&mut self) {
        self.status |= NEEDS_RESET;
    }

    /// Whether a worker runs, or would.
    pub(super) fn is_live(&self) -> bool {
        self.status & DRIVER_OK != 0 && !self.resetting
    }

    /// Whether a worker runs, and has not failed.
    pub(super) fn runs(&self) -> bool {
        self.is_live() && self.status & NEEDS_RESET == 0
    }

    /// Whether no driver has come yet, or the last one has reset the device.
    pub(super) fn is_at_reset(&self) -> bool {
        self.status == 0 && !self.resetting
    }

    pub(super) fn is_resetting(&self) -> bool {
        self.resetting
    }

    pub(super) fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    pub(super) fn queues(&self) -> impl Iterator<Item = (u16, QueueSetup, u16)> {
        (0..).zip(&self.queues).zip(&self.maxima).map(|((index, setup), &max)| (index, *setup, max))
    }

    /// The register at `offset`, below the configuration space; interrupt status and generation are the transport's.
    pub(super) fn read(&self, offset: u32) -> u32 {
        let queue = self.selected();
        match offset {
            mmio::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            mmio::VIRTIO_MMIO_VERSION => VERSION,
            mmio::VIRTIO_MMIO_DEVICE_ID => self.device_id,
            mmio::VIRTIO_MMIO_VENDOR_ID => VENDOR,
            mmio::VIRTIO_MMIO_DEVICE_FEATURES => half(self.offered, self.device_features_sel),
            mmio::VIRTIO_MMIO_QUEUE_NUM_MAX => queue.map_or(0, |index| self.maxima[index].into()),
            // Linux looks whether a queue is off right after it asked for a reset.
            mmio::VIRTIO_MMIO_QUEUE_READY if self.resetting => 0,
            mmio::VIRTIO_MMIO_QUEUE_READY => queue.map_or(0, |index| self.queues[index].ready.into()),
            mmio::VIRTIO_MMIO_STATUS => self.status,
            // No shared memory region has any length (4.2.2: all ones).
            mmio::VIRTIO_MMIO_SHM_LEN_LOW..=mmio::VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            _ => 0,
        }
    }

    pub(super) fn write(&mut self, offset: u32, value: u32) -> Effect {
        match offset {
            // A reset under way answers nothing else, or the driver could set up what a worker still uses.
            _ if self.resetting => {}
            mmio::VIRTIO_MMIO_STATUS => return self.write_status(value),
            mmio::VIRTIO_MMIO_QUEUE_NOTIFY if self.is_live() => {
                if let Ok(index) = u16::try_from(value)
                    && usize::from(index) < self.queues.len()
                {
                    return Effect::Notify(index);
                }
            }
            mmio::VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_sel = value,
            mmio::VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            mmio::VIRTIO_MMIO_DRIVER_FEATURES => self.acknowledge(value),
            mmio::VIRTIO_MMIO_QUEUE_SEL => self.queue_sel = value,
            _ => self.write_queue(offset, value),
        }
        Effect::None
    }

    fn acknowledge(&mut self, value: u32) {
        if self.status & (DRIVER | FEATURES_OK | FAILED) != DRIVER {
            return;
        }
        match self.driver_features_sel {
            0 => set_low(&mut self.acknowledged, value),
            1 => set_high(&mut self.acknowledged, value),
            // No features there: acknowledging one is as wrong as any that was not offered. There is no bit to
            // remember it in, so the one that is required goes.
            _ if value != 0 => self.acknowledged &= !FEATURE_VERSION_1,
            _ => {}
        }
    }

    fn write_queue(&mut self, offset: u32, value: u32) {
        let open = self.status & (FEATURES_OK | DRIVER_OK | FAILED) == FEATURES_OK;
        let Some(queue) = self.selected().filter(|_| open).and_then(|index| self.queues.get_mut(index))
        else {
            return;
        };
        match offset {
            mmio::VIRTIO_MMIO_QUEUE_NUM => queue.size = value,
            mmio::VIRTIO_MMIO_QUEUE_READY => queue.ready = value == 1,
            mmio::VIRTIO_MMIO_QUEUE_DESC_LOW => set_low(&mut queue.descriptors, value),
            mmio::VIRTIO_MMIO_QUEUE_DESC_HIGH => set_high(&mut queue.descriptors, value),
            mmio::VIRTIO_MMIO_QUEUE_AVAIL_LOW => set_low(&mut queue.available, value),
            mmio::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => set_high(&mut queue.available, value),
            mmio::VIRTIO_MMIO_QUEUE_USED_LOW => set_low(&mut queue.used, value),
            mmio::VIRTIO_MMIO_QUEUE_USED_HIGH => set_high(&mut queue.used, value),
            _ => {}
        }
    }

    fn write_status(&mut self, value: u32) -> Effect {
        if value == 0 {
            self.resetting = true;
            return Effect::Reset;
        }
        let taken_back = self.status & !value & !NEEDS_RESET != 0;
        if taken_back || self.status & FAILED != 0 {
            return Effect::None;
        }
        let new = value & !self.status;
        // Each bit on top of those before it; what comes too early is ignored with all that follows.
        for (bit, before) in [
            (ACKNOWLEDGE, 0),
            (DRIVER, ACKNOWLEDGE),
            (FEATURES_OK, ACKNOWLEDGE | DRIVER),
            (DRIVER_OK, ACKNOWLEDGE | DRIVER | FEATURES_OK),
        ] {
            let wanted = new & bit != 0 && self.status & before == before;
            if wanted && (bit != FEATURES_OK || self.features_are_sound()) {
                self.status |= bit;
            }
        }
        if new & FAILED != 0 {
            self.status |= FAILED;
        } else if new & self.status & DRIVER_OK != 0 {
            return Effect::Activate;
        }
        Effect::None
    }

    fn features_are_sound(&self) -> bool {
        self.acknowledged & !self.offered == 0 && self.acknowledged & FEATURE_VERSION_1 != 0
    }

    fn selected(&self) -> Option<usize> {
        usize::try_from(self.queue_sel).ok().filter(|&index| index < self.queues.len())
    }
}

#[expect(clippy::cast_possible_truncation, reason = "takes a half")]
fn half(value: u64, select: u32) -> u32 {
    match select {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

fn set_low(target: &mut u64, value: u32) {
    *target = *target & !u64::from(u32::MAX) | u64::from(value);
}

fn set_high(target: &mut u64, value: u32) {
    *target = *target & u64::from(u32::MAX) | u64::from(value) << 32;
}

#[cfg(test)]
mod tests;
