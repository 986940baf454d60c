//! A device that stands still, and its state: out of this process and into another.
//!
//! Owns the way from a worker that runs to queues that nobody touches and back, and the sections. Refuses to load what no
//! driver could have brought about: features that were not offered, status bits out of order, queues that are not sound,
//! positions that the rings in guest memory contradict, another device's state. Invariant: a pause loses nothing. What is in
//! flight is waited for; if that takes longer than the caller has, the pause is taken back and nothing has happened.
//!
//! ```text
//! Running ──pause──► Pausing ──drained──► Paused ──resume──► Running
//!    ▲                  └──resume──► Resuming ──drained──────►┘
//!    └── load, into a device at reset ──► Paused
//! ```
//!
//! Whoever pauses has stopped the vCPUs first: then nobody reads a status or a configuration in between. A register that is
//! written all the same does what it says; what it starts, starts at the resume.

use super::negotiation::{self, Negotiation};
use super::{State, Transport};
use crate::devices::virtio::{Busy, FEATURE_EVENT_IDX};
use crate::state::{Format, LoadError, Section};
use serde::{Deserialize, Serialize};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Instant;
use virtio_queue::{Queue, QueueT};

pub(super) const FORMAT: Format = Format { id: "virtio", version: 1 };

/// How far a pause is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Running,
    /// The worker has been asked for the queues.
    Pausing,
    /// So it has, but somebody has thought better of it.
    Resuming,
    Paused,
}

/// Only a device that is paused can be saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the device is not paused; only one that is can be saved")]
pub struct NotPaused;

/// What is saved of a transport with its device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Saved {
    /// Which of the machine's devices.
    pub(super) name: String,
    /// What it is: the device id that the driver reads.
    pub(super) kind: u32,
    pub(super) negotiation: negotiation::Saved,
    /// Of the configuration.
    pub(super) generation: u32,
    /// By queue; none where no worker had it.
    pub(super) positions: Vec<Option<Position>>,
    /// What the driver has of the transport at hand.
    pub(super) face: Section,
    pub(super) device: Section,
}

/// How far the device is in a queue's rings, modulo 2^16.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Position {
    /// Chains taken out of the available ring.
    pub(super) next_avail: u16,
    /// Chains put into the used ring.
    pub(super) next_used: u16,
}

impl Transport {
    /// Asks the device to stand still, and to lose nothing. It does once [`Self::wait_paused`] says so. Never waits.
    pub fn pause(&self) {
        let mut state = self.lock();
        state.phase = match (state.phase, state.worker) {
            (Phase::Paused, _) => Phase::Paused,
            (Phase::Running, Some(key)) => {
                // One that is being reset was asked already.
                if !state.negotiation.is_resetting() {
                    self.event_loop.pause(key);
                }
                Phase::Pausing
            }
            (Phase::Running, None) => Phase::Paused,
            (Phase::Pausing | Phase::Resuming, _) => Phase::Pausing,
        };
    }

    /// Waits until the device stands still.
    ///
    /// # Errors
    /// It does not by the deadline. It still may later, unless it is resumed.
    pub fn wait_paused(&self, deadline: Instant) -> Result<(), Busy> {
        let mut state = self.lock();
        while state.phase == Phase::Pausing {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Busy);
            }
            state = self.settled.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        if state.phase == Phase::Paused { Ok(()) } else { Err(Busy) }
    }

    /// Lets the device go on: at once if it is paused, as soon as it is if it is about to be. Each of its queues is kicked
    /// and what interrupts the driver has not acknowledged are raised again, for neither is saved. Never waits.
    pub fn resume(&self) {
        let mut state = self.lock();
        match state.phase {
            Phase::Running | Phase::Resuming => {}
            Phase::Pausing => state.phase = Phase::Resuming,
            Phase::Paused => self.go_on(&mut state),
        }
    }

    /// The worker is gone, and with it what a pause has waited for.
    pub(super) fn settle(&self, state: &mut State) {
        match state.phase {
            Phase::Running | Phase::Paused => {}
            Phase::Pausing => state.phase = Phase::Paused,
            Phase::Resuming => self.go_on(state),
        }
        self.settled.notify_all();
    }

    fn go_on(&self, state: &mut State) {
        state.phase = Phase::Running;
        if state.negotiation.runs() {
            self.start(state);
        }
        for kick in self.notifiers.iter() {
            // It fails only at 2^64 - 2 kicks: readable all the same.
            let _ = kick.write(1);
        }
        self.face.repeat();
    }

    /// What there is of the device called `name`. Not saved: what it counted of its driver's faults.
    ///
    /// # Errors
    /// It is not paused.
    pub fn save(&self, name: &str) -> Result<Section, NotPaused> {
        let state = self.lock();
        if state.phase != Phase::Paused {
            return Err(NotPaused);
        }
        let position = |index| {
            let (_, queue) = state.kept.iter().find(|(kept, _)| *kept == index)?;
            Some(Position { next_avail: queue.next_avail(), next_used: queue.next_used() })
        };
        // A device that needs a reset goes on with no queue; where it had stopped means nothing.
        let runs = state.negotiation.runs();
        let saved = Saved {
            name: name.to_owned(),
            kind: self.kind.id(),
            negotiation: state.negotiation.save(),
            generation: self.config_generation(&state),
            positions: state
                .negotiation
                .queues()
                .map(|(index, ..)| position(index).filter(|_| runs))
                .collect(),
            face: self.face.save(),
            device: state.device.save(),
        };
        Ok(FORMAT.section(&saved))
    }

    /// Takes over what was saved of the device called `name`, with guest memory as it was then. Then it is paused.
    ///
    /// # Errors
    /// See [`LoadError`]; nothing was taken over then, but for a device that has started already.
    pub fn load(&self, name: &str, section: &Section) -> Result<(), LoadError> {
        self.take_over(name, section).map_err(|error| error.inside(name))
    }

    fn take_over(&self, name: &str, section: &Section) -> Result<(), LoadError> {
        let saved: Saved = FORMAT.parse(section)?;
        let kind = self.kind.id();
        FORMAT.check(saved.name == name, "name", format_args!("{:.64?}", saved.name), name)?;
        FORMAT.check(saved.kind == kind, "kind", saved.kind, kind)?;
        let mut state = self.lock();
        if state.worker.is_some() || !state.negotiation.is_at_reset() {
            return Err(LoadError::Started { section: FORMAT.id.to_owned() });
        }
        let negotiation = state.negotiation.loaded(&saved.negotiation)?;
        let take_over_face = self.face.loaded(&saved.face)?;
        let (count, queues) = (saved.positions.len(), self.notifiers.len());
        FORMAT.check(count == queues, "number of positions", count, queues)?;
        let kept =
            if negotiation.runs() { self.queues_at(&negotiation, &saved.positions)? } else { Vec::new() };
        state.device.load(&saved.device)?;
        take_over_face();
        let own = state.device.config_generation();
        self.generation.store(saved.generation.wrapping_sub(own), Ordering::SeqCst);
        (state.negotiation, state.kept, state.phase) = (negotiation, kept, Phase::Paused);
        Ok(())
    }

    /// The queues that a driver has set up, as far as they were.
    fn queues_at(
        &self,
        negotiation: &Negotiation,
        positions: &[Option<Position>],
    ) -> Result<Vec<(u16, Queue)>, LoadError> {
        let event_idx = negotiation.acknowledged() & FEATURE_EVENT_IDX != 0;
        let mut queues = Vec::new();
        for ((index, setup, max), position) in negotiation.queues().zip(positions) {
            // One that no worker has had yet is looked at when one gets it.
            let Some(position) = position else { continue };
            FORMAT.check(setup.ready, "position of a queue that is not ready", index, "none")?;
            let sound = setup.check(max, event_idx, &self.memory);
            let mut queue = sound.map_err(|error| unsound(index, &error.to_string()))?;
            self.check_position(index, &queue, *position)?;
            queue.set_next_avail(position.next_avail);
            queue.set_next_used(position.next_used);
            queues.push((index, queue));
        }
        Ok(queues)
    }

    /// Nothing is in flight, the driver knows of everything that was used, and has made available no more than fits.
    fn check_position(&self, index: u16, queue: &Queue, position: Position) -> Result<(), LoadError> {
        let Position { next_avail, next_used } = position;
        let failed = |error: virtio_queue::Error| unsound(index, &error.to_string());
        let used = queue.used_idx(&self.memory, Ordering::Acquire).map_err(failed)?.0;
        let available = queue.avail_idx(&self.memory, Ordering::Acquire).map_err(failed)?.0;
        FORMAT.check(
            next_used == used,
            "next_used",
            next_used,
            format_args!("{used}, as in the used ring"),
        )?;
        FORMAT.check(next_avail == next_used, "next_avail", next_avail, format_args!("{next_used}"))?;
        let (waiting, size) = (available.wrapping_sub(next_avail), queue.size());
        FORMAT.check(waiting <= size, "number of chains that wait", waiting, format_args!("0 to {size}"))
    }
}

fn unsound(index: u16, reason: &str) -> LoadError {
    let (section, value) = (FORMAT.id.to_owned(), format!("{index}: {reason}"));
    LoadError::Value { section, key: "queue", value, allowed: "a sound one".to_owned() }
}

#[cfg(test)]
mod tests;
