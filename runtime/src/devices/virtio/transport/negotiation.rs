//! What a driver and a transport agree on (virtio 1.2, 2.1 to 2.7 and 3.1), as a state machine without side effects.
//!
//! Owns negotiation, status and the set-up of queues, whatever registers they are read and written by. Refuses, by ignoring the
//! write: features outside the driver's turn, status bits out of order or taken back, a queue's set-up before `FEATURES_OK` and
//! after `DRIVER_OK`. `FEATURES_OK` does not stick if a feature was acknowledged that was not offered. Invariant: from the
//! [`Effect::Activate`] to the end of the reset nothing that a worker was built from can change.
//!
//! ```text
//! 0 ── ACKNOWLEDGE ── DRIVER ──(features)── FEATURES_OK ──(queues)── DRIVER_OK ⇒ Activate
//! └────────────────── reset done ◄── drained ◄── resetting ◄── 0 written ⇒ Reset
//! ```

mod saved;

use crate::devices::virtio::FEATURE_VERSION_1;
use crate::devices::virtio::queue::QueueSetup;
pub(in crate::devices::virtio) use saved::Saved;
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE as ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER as DRIVER,
    VIRTIO_CONFIG_S_DRIVER_OK as DRIVER_OK, VIRTIO_CONFIG_S_FAILED as FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK as FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET as NEEDS_RESET,
};

/// What the transport has to do after a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::devices::virtio) enum Effect {
    /// Nothing.
    None,
    /// The driver is ready: build a worker, or call [`Negotiation::fail`].
    Activate,
    /// The driver wants a reset: drain the worker, then call [`Negotiation::reset`].
    Reset,
    /// The driver kicks a queue that exists.
    Notify(u16),
}

/// What a driver writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::devices::virtio) enum Write {
    /// The device status.
    Status(u32),
    /// The index of the queue that it kicks.
    Notify(u32),
    /// Which 32 of the features that are offered it wants to read.
    SelectOffered(u32),
    /// Which 32 features it is going to acknowledge.
    SelectAcknowledged(u32),
    /// Features that it acknowledges, of those selected.
    Acknowledge(u32),
    /// The queue that it is going to set up.
    SelectQueue(u32),
    /// A part of that queue's set-up.
    Queue(Part, u32),
}

/// A part of a queue's set-up; addresses come in halves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::devices::virtio) enum Part {
    Size,
    Ready,
    DescriptorsLow,
    DescriptorsHigh,
    AvailableLow,
    AvailableHigh,
    UsedLow,
    UsedHigh,
}

/// See the module.
#[derive(Debug)]
pub(in crate::devices::virtio) struct Negotiation {
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

impl Negotiation {
    pub(in crate::devices::virtio) fn new(offered: u64, maxima: &[u16]) -> Self {
        let mut negotiation = Self {
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
        negotiation.reset();
        negotiation
    }

    /// Back to the state after power-on; ends a reset.
    pub(in crate::devices::virtio) fn reset(&mut self) {
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
    pub(in crate::devices::virtio) fn is_live(&self) -> bool {
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

    pub(in crate::devices::virtio) fn is_resetting(&self) -> bool {
        self.resetting
    }

    /// The device status.
    pub(in crate::devices::virtio) fn status(&self) -> u32 {
        self.status
    }

    /// All features that the driver has acknowledged so far.
    pub(in crate::devices::virtio) fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// The selected half of the features that are offered.
    pub(in crate::devices::virtio) fn selected_offered(&self) -> u32 {
        half(self.offered, self.device_features_sel)
    }

    /// Each queue's index, set-up and largest size.
    pub(in crate::devices::virtio) fn queues(&self) -> impl Iterator<Item = (u16, QueueSetup, u16)> {
        (0..).zip(&self.queues).zip(&self.maxima).map(|((index, setup), &max)| (index, *setup, max))
    }

    /// The selected queue, if there is such a one. While the device is reset no queue is ready: Linux looks right after it has
    /// asked for the reset.
    pub(in crate::devices::virtio) fn selected_queue(&self) -> Option<(u16, QueueSetup, u16)> {
        let (index, setup, max) = self.queues().nth(self.selected()?)?;
        Some((index, QueueSetup { ready: setup.ready && !self.resetting, ..setup }, max))
    }

    /// What the driver has last selected: 32 offered features, 32 acknowledged ones, a queue.
    pub(in crate::devices::virtio) fn selectors(&self) -> (u32, u32, u32) {
        (self.device_features_sel, self.driver_features_sel, self.queue_sel)
    }

    /// Takes what the driver has written.
    pub(in crate::devices::virtio) fn write(&mut self, write: Write) -> Effect {
        if self.resetting {
            // A reset under way takes nothing, or the driver could set up what a worker still uses.
            return Effect::None;
        }
        match write {
            Write::Status(value) => return self.write_status(value),
            Write::Notify(index) => return self.notify(index),
            Write::SelectOffered(half) => self.device_features_sel = half,
            Write::SelectAcknowledged(half) => self.driver_features_sel = half,
            Write::Acknowledge(features) => self.acknowledge(features),
            Write::SelectQueue(index) => self.queue_sel = index,
            Write::Queue(part, value) => self.write_queue(part, value),
        }
        Effect::None
    }

    fn notify(&self, index: u32) -> Effect {
        match u16::try_from(index) {
            Ok(index) if self.is_live() && usize::from(index) < self.queues.len() => Effect::Notify(index),
            _ => Effect::None,
        }
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

    fn write_queue(&mut self, part: Part, value: u32) {
        let open = self.status & (FEATURES_OK | DRIVER_OK | FAILED) == FEATURES_OK;
        let Some(queue) = self.selected().filter(|_| open).and_then(|index| self.queues.get_mut(index))
        else {
            return;
        };
        match part {
            Part::Size => queue.size = value,
            Part::Ready => queue.ready = value == 1,
            Part::DescriptorsLow => set_low(&mut queue.descriptors, value),
            Part::DescriptorsHigh => set_high(&mut queue.descriptors, value),
            Part::AvailableLow => set_low(&mut queue.available, value),
            Part::AvailableHigh => set_high(&mut queue.available, value),
            Part::UsedLow => set_low(&mut queue.used, value),
            Part::UsedHigh => set_high(&mut queue.used, value),
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

    pub(in crate::devices::virtio) fn features_are_sound(&self) -> bool {
        self.acknowledged & !self.offered == 0 && self.acknowledged & FEATURE_VERSION_1 != 0
    }

    fn selected(&self) -> Option<usize> {
        usize::try_from(self.queue_sel).ok().filter(|&index| index < self.queues.len())
    }
}

/// Which 32 bits of `value` the driver has selected; there are none past the second.
#[expect(clippy::cast_possible_truncation, reason = "takes a half")]
pub(in crate::devices::virtio) fn half(value: u64, select: u32) -> u32 {
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
