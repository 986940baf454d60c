//! MSI-X (PCI Local Bus 3.0, 6.8.2): an interrupt is a message, with an address and data that the driver has chosen.
//!
//! Owns table, pending bits, and which queue has which vector. Refuses a vector that the table does not have (virtio 1.2,
//! 4.1.5.1.2.1: it reads back as none) and messages to any other address than a local APIC's: nothing else of the machine takes
//! messages. Invariant: a message that is not sent because its vector is masked is pending, and is sent at the unmasking.

use super::FORMAT;
use crate::devices::virtio::Interrupt;
use crate::devices::virtio::transport::negotiation::half;
use crate::kvm::MessageSender;
use crate::state::LoadError;
use serde::{Deserialize, Serialize};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes of the window with table and pending bits.
pub const WINDOW_BYTES: u64 = 0x1000;
/// Where in the window the pending bits are.
pub(super) const PENDING: u32 = 0x800;
/// Bytes of an entry of the table.
const ENTRY: u64 = 16;
/// Most vectors: pending bits are one word, and no device has as many queues.
const MOST_VECTORS: usize = 64;

/// No vector (`VIRTIO_MSI_NO_VECTOR`).
pub(super) const NO_VECTOR: u16 = 0xffff;

/// Message control: the function's vectors are all masked, and MSI-X is on.
const FUNCTION_MASK: u16 = 1 << 14;
const ENABLE: u16 = 1 << 15;
/// Message control: what can be written.
pub(super) const CONTROL: u16 = FUNCTION_MASK | ENABLE;

/// ISR status (virtio 1.2, 4.1.4.5): a queue's interrupt, the configuration's.
const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

/// Message addresses: every local APIC's are in the MiB at 0xfee00000.
const APICS: u64 = 0xfee;

/// A message that interrupts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// Guest address that it is written to.
    pub address: u64,
    /// What is written.
    pub data: u32,
}

/// Delivers messages.
pub trait Messenger: Send + Sync {
    /// Delivers `message`; never waits.
    fn send(&self, message: Message);
}

impl Messenger for MessageSender {
    fn send(&self, message: Message) {
        Self::send(self, message.address, message.data);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    address: u64,
    data: u32,
    /// Vector control; bit 0 masks.
    control: u32,
}

/// All that a driver has here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    /// Message control, as in configuration space.
    #[serde(skip)]
    control: u16,
    entries: Vec<Entry>,
    pending: u64,
    config_vector: u16,
    queue_vectors: Vec<u16>,
    isr: u8,
}

/// See the module.
pub(super) struct Msix {
    state: Mutex<State>,
    messenger: Box<dyn Messenger>,
}

impl State {
    /// A vector for each of `queues` and one for the configuration; all masked, as after power-on.
    fn new(queues: usize) -> Self {
        let vectors = (queues + 1).min(MOST_VECTORS);
        Self {
            control: 0,
            entries: vec![Entry { address: 0, data: 0, control: 1 }; vectors],
            pending: 0,
            config_vector: NO_VECTOR,
            queue_vectors: vec![NO_VECTOR; queues],
            isr: 0,
        }
    }

    fn is_enabled(&self) -> bool {
        self.control & ENABLE != 0
    }

    /// What is to be sent for `vector`, if it can be now.
    fn fire(&mut self, vector: u16) -> Option<Message> {
        let entry = self.entries.get(usize::from(vector)).filter(|_| self.control & ENABLE != 0)?;
        if self.control & FUNCTION_MASK != 0 || entry.control & 1 != 0 {
            self.pending |= 1 << vector;
            return None;
        }
        (entry.address >> 20 == APICS).then_some(Message { address: entry.address, data: entry.data })
    }

    /// What was pending and is not masked any more.
    fn unmasked(&mut self) -> Vec<Message> {
        let waiting = std::mem::take(&mut self.pending);
        let vectors = (0..64).filter(|vector| waiting & 1 << vector != 0);
        vectors.filter_map(|vector| self.fire(vector)).collect()
    }

    fn vectors(&self) -> usize {
        self.entries.len()
    }

    fn known(&self, vector: u16) -> u16 {
        if usize::from(vector) < self.vectors() { vector } else { NO_VECTOR }
    }

    /// The 4 bytes at `offset` of the window.
    fn dword(&self, offset: u64) -> u32 {
        if let Some(offset) = offset.checked_sub(PENDING.into()) {
            return if offset < 8 { half(self.pending, (offset == 4).into()) } else { 0 };
        }
        let entry = usize::try_from(offset / ENTRY).ok().and_then(|index| self.entries.get(index));
        let Some(entry) = entry else { return 0 };
        match offset % ENTRY {
            0 => half(entry.address, 0),
            4 => half(entry.address, 1),
            8 => entry.data,
            _ => entry.control,
        }
    }

    fn set_dword(&mut self, offset: u64, value: u32) {
        let entry = usize::try_from(offset / ENTRY).ok().and_then(|index| self.entries.get_mut(index));
        let Some(entry) = entry else { return };
        match offset % ENTRY {
            0 => entry.address = entry.address & !0xffff_ffff | u64::from(value & !3),
            4 => entry.address = entry.address & 0xffff_ffff | u64::from(value) << 32,
            8 => entry.data = value,
            _ => entry.control = value & 1,
        }
    }
}

/// Whether an access is one that PCI allows in the window.
fn is_sound(offset: u64, len: usize) -> bool {
    offset < WINDOW_BYTES && matches!(len, 4 | 8) && offset.is_multiple_of(len as u64)
}

impl Msix {
    /// For a device with so many queues.
    pub(super) fn new(queues: usize, messenger: Box<dyn Messenger>) -> Self {
        Self { state: Mutex::new(State::new(queues)), messenger }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what `change` says, when the lock is free again: a worker does not wait for another thread's message.
    fn after<T: IntoIterator<Item = Message>>(&self, change: impl FnOnce(&mut State) -> T) {
        let messages = change(&mut self.lock());
        messages.into_iter().for_each(|message| self.messenger.send(message));
    }

    pub(super) fn vectors(&self) -> usize {
        self.lock().vectors()
    }

    /// The driver has written message control.
    pub(super) fn set_control(&self, control: u16) {
        self.after(|state| {
            state.control = control & CONTROL;
            state.unmasked()
        });
    }

    pub(super) fn config_vector(&self) -> u16 {
        self.lock().config_vector
    }

    pub(super) fn set_config_vector(&self, vector: u16) {
        let mut state = self.lock();
        state.config_vector = state.known(vector);
    }

    pub(super) fn queue_vector(&self, queue: u16) -> u16 {
        self.lock().queue_vectors.get(usize::from(queue)).copied().unwrap_or(NO_VECTOR)
    }

    pub(super) fn set_queue_vector(&self, queue: u16, vector: u16) {
        let mut state = self.lock();
        let vector = state.known(vector);
        if let Some(place) = state.queue_vectors.get_mut(usize::from(queue)) {
            *place = vector;
        }
    }

    /// Reads the ISR status, which clears it.
    pub(super) fn take_isr(&self) -> u8 {
        std::mem::take(&mut self.lock().isr)
    }

    /// Reads the window, 4 or 8 bytes at a time, aligned (6.8.2); anything else reads as zero.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if is_sound(offset, data.len()) {
            let state = self.lock();
            for (place, data) in (offset..).step_by(4).zip(data.chunks_mut(4)) {
                data.copy_from_slice(&state.dword(place).to_le_bytes());
            }
        }
    }

    /// Writes the window, likewise.
    pub(super) fn write(&self, offset: u64, data: &[u8]) {
        if is_sound(offset, data.len()) {
            self.after(|state| {
                for (place, data) in (offset..).step_by(4).zip(data.as_chunks().0) {
                    state.set_dword(place, u32::from_le_bytes(*data));
                }
                state.unmasked()
            });
        }
    }

    /// The driver has reset the device. Table and message control are the function's, and stay.
    pub(super) fn reset(&self) {
        let mut state = self.lock();
        (state.isr, state.pending, state.config_vector) = (0, 0, NO_VECTOR);
        state.queue_vectors.fill(NO_VECTOR);
    }

    /// Nobody acknowledges a message: each vector in use has one more, and a driver finds nothing new where it was too many.
    pub(super) fn repeat(&self) {
        self.after(|state| {
            let vectors = state.queue_vectors.iter().chain([&state.config_vector]);
            let vectors = vectors.filter(|&&vector| vector != NO_VECTOR);
            state.pending |= vectors.fold(0_u64, |used, vector| used | 1 << vector);
            state.unmasked()
        });
    }

    pub(super) fn save(&self) -> State {
        self.lock().clone()
    }

    /// Whether `saved` is what a driver of this function brings about.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn check(&self, saved: &State) -> Result<(), LoadError> {
        let State { entries, pending, config_vector, queue_vectors, isr, .. } = saved;
        let (vectors, queues) = {
            let state = self.lock();
            (state.vectors(), state.queue_vectors.len())
        };
        FORMAT.check(entries.len() == vectors, "number of vectors", entries.len(), vectors)?;
        let sound = |entry: &Entry| entry.control <= 1 && entry.address & 3 == 0;
        let allowed = "an address by fours and a mask of one bit";
        FORMAT.check(entries.iter().all(sound), "vector's entry", "another one", allowed)?;
        let count = queue_vectors.len();
        FORMAT.check(count == queues, "number of queues with vectors", count, queues)?;
        let nobodys = pending.checked_shr(u32::try_from(vectors).unwrap_or(64)).unwrap_or(0);
        FORMAT.check(nobodys == 0, "pending bits", format_args!("{pending:#x}"), "one a vector")?;
        for &vector in queue_vectors.iter().chain([config_vector]) {
            let allowed = format_args!("0 to {} or {NO_VECTOR}", vectors - 1);
            FORMAT.check(saved.known(vector) == vector, "vector", vector, allowed)?;
        }
        FORMAT.check(isr & !(ISR_QUEUE | ISR_CONFIG) == 0, "ISR status", isr, "0 to 3")
    }

    /// Takes over what [`Self::check`] has found sound, with `control` of the configuration space.
    pub(super) fn take_over(&self, saved: State, control: u16) {
        *self.lock() = State { control: control & CONTROL, ..saved };
    }
}

impl Interrupt for Msix {
    fn queue(&self, index: u16) {
        self.after(|state| {
            if !state.is_enabled() {
                state.isr |= ISR_QUEUE;
            }
            let vector = state.queue_vectors.get(usize::from(index)).copied().unwrap_or(NO_VECTOR);
            state.fire(vector)
        });
    }

    fn config(&self) {
        self.after(|state| {
            state.isr |= ISR_CONFIG;
            state.fire(state.config_vector)
        });
    }
}

#[cfg(test)]
mod tests;
