//! Virtio 1.2 devices: what a device is, whatever transport shows it to the guest.
//!
//! Owns the three traits that keep device, transport and worker apart. A [`VirtioDevice`] keeps configuration and
//! features; [`VirtioDevice::activate`] hands queues and backend to a [`Worker`], which runs on an event loop; the
//! transport keeps everything else. Refuses features that were not offered and queues that are not sound before a
//! device ever sees them. Invariant: a queue has one owner at a time, transport or worker.

pub mod balloon;
pub mod block;
pub mod console;
pub mod entropy;
pub mod event_loop;
pub mod fs;
pub mod gate;
pub mod guest_io;
pub mod guest_ring;
pub mod limiter;
pub mod mem;
pub mod mmio;
pub mod net;
pub mod pci;
mod peer;
pub mod pmem;
pub mod queue;
mod service;
#[cfg(any(test, feature = "fuzzing"))]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a driver that cannot be set up ends its test")]
#[cfg_attr(not(test), allow(dead_code, reason = "the unit tests use all of it"))]
pub(crate) mod testkit;
pub mod transport;
pub mod vsock;

use crate::state::{LoadError, Section};
use queue::{QueueError, Virtqueue};
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;
use virtio_bindings::{virtio_config, virtio_ids, virtio_ring};
use virtio_queue::Queue;

/// Guest memory as devices see it; a clone shares the mappings.
pub type Memory = crate::memory::DeviceMemory;

/// Feature bit: the device is one of virtio 1.0 or later (`VIRTIO_F_VERSION_1`). Every transport here requires it.
pub const FEATURE_VERSION_1: u64 = 1 << virtio_config::VIRTIO_F_VERSION_1;
/// Feature bit: notifications are suppressed by index (`VIRTIO_F_EVENT_IDX`).
pub const FEATURE_EVENT_IDX: u64 = 1 << virtio_ring::VIRTIO_RING_F_EVENT_IDX;
/// Feature bit: a descriptor may name a table of descriptors (`VIRTIO_F_INDIRECT_DESC`).
pub const FEATURE_INDIRECT: u64 = 1 << virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;

/// What a device is (virtio 1.2, section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum DeviceKind {
    /// A network card (5.1).
    Net = virtio_ids::VIRTIO_ID_NET,
    /// A disk (5.2).
    Block = virtio_ids::VIRTIO_ID_BLOCK,
    /// A console (5.3).
    Console = virtio_ids::VIRTIO_ID_CONSOLE,
    /// A source of random bytes (5.4).
    Entropy = virtio_ids::VIRTIO_ID_RNG,
    /// A memory balloon (5.5).
    Balloon = virtio_ids::VIRTIO_ID_BALLOON,
    /// A socket device (5.10).
    Vsock = virtio_ids::VIRTIO_ID_VSOCK,
    /// Memory that comes and goes (5.15).
    Mem = virtio_ids::VIRTIO_ID_MEM,
    /// Persistent memory (5.19).
    Pmem = virtio_ids::VIRTIO_ID_PMEM,
    /// A file system (5.11).
    Fs = virtio_ids::VIRTIO_ID_FS,
}

impl DeviceKind {
    /// The device id that the driver reads.
    #[must_use]
    pub const fn id(self) -> u32 {
        self as u32
    }
}

/// The half of a device that answers the driver's questions. Knows no transport, no queue and no thread.
pub trait VirtioDevice: Send {
    /// What it is.
    fn kind(&self) -> DeviceKind;
    /// The features that it offers.
    fn features(&self) -> u64;
    /// The largest size of each of its queues, in descriptors; powers of two.
    fn queue_sizes(&self) -> &[u16];
    /// Reads the configuration space; what lies outside reads as zero. Fills all of `data`.
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// Writes the configuration space; the default has nothing that could be written.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let _ = (offset, data);
    }
    /// Changes whenever the configuration does by itself (virtio 1.2, 2.5.1); the default never does.
    fn config_generation(&self) -> u32 {
        0
    }
    /// Hands queues and backend over to a worker. Runs on a vCPU thread: allocates at most, makes no descriptor.
    fn activate(&mut self, activation: Activation) -> Result<Box<dyn Worker>, ActivateError>;
    /// The driver has reset the device, and no worker has its queues: what was the driver's is gone. All else stays, such
    /// as the tokens of a rate limiter. The default has nothing that was.
    fn reset(&mut self) {}
    /// What a driver has left here that neither the spec nor the queues say, while no worker has the queues. A device
    /// without any such state has a section all the same: it says what is loaded where.
    fn save(&self) -> Section;
    /// Takes over what another device of the same spec has saved, before the first activation.
    ///
    /// # Errors
    /// What is wrong with the section; then nothing was taken over.
    fn load(&mut self, section: &Section) -> Result<(), LoadError>;
}

/// The half of a device that does its work, on an event loop.
pub trait Worker: Send {
    /// The descriptors that it waits for; constant for its life.
    fn events(&self) -> &[(Token, RawFd)];
    /// Whether it wants to hear of `token`'s descriptor now; asked at the start and after each event. One that is not
    /// wanted is not looked at, so data may wait in it without keeping the loop busy.
    fn wants(&self, token: Token) -> bool {
        let _ = token;
        true
    }
    /// Whether it hears of each write to `token`'s descriptor, an eventfd, and need not read it; else as long as there is
    /// something to read. A system call less for each kick.
    fn by_edge(&self, token: Token) -> bool {
        let _ = token;
        false
    }
    /// One of them is readable. Does a bounded amount of work; if there is more, leaves a descriptor readable, or
    /// writes to one that it hears of by its edges.
    fn ready(&mut self, token: Token) -> Result<(), DeviceError>;
    /// Ends what is in flight and gives the queues back, each with its index, or says that it is not done yet. It loses
    /// nothing: a chain that was not answered is in its queue again, whatever else the driver has here stays with the device,
    /// and the next worker goes on where this one stopped. Past `deadline` the driver has asked for a reset, and nobody
    /// needs the answers any more.
    fn drain(&mut self, deadline: Instant) -> Result<Vec<(u16, Queue)>, Busy>;
}

/// Which of a worker's descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token(pub u32);

/// Requests are still in flight; ask again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Busy;

/// How a device tells its driver that something happened.
pub trait Interrupt: Send + Sync {
    /// Buffers of queue `index` were used.
    fn queue(&self, index: u16);
    /// The configuration, or the device's status, changed.
    fn config(&self);
}

/// Everything that a worker gets.
pub struct Activation {
    /// The features that the driver acknowledged: a subset of those offered.
    pub features: u64,
    /// Guest memory.
    pub memory: Memory,
    /// For changes of the configuration; queues carry their own.
    pub interrupt: Arc<dyn Interrupt>,
    /// By index; empty where the driver did not set the queue up.
    pub queues: Vec<Option<Virtqueue>>,
    /// Counts requests that made no sense and were dropped.
    pub dropped: Arc<AtomicU64>,
}

impl Activation {
    /// Takes queue `index`, which the device cannot do without.
    pub fn take_queue(&mut self, index: u16) -> Result<Virtqueue, ActivateError> {
        self.queues
            .get_mut(usize::from(index))
            .and_then(Option::take)
            .ok_or(ActivateError::QueueMissing(index))
    }
}

/// A device that cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// Guest's fault.
    #[error("the driver started the device without queue {0}, which it needs")]
    QueueMissing(u16),
    /// Guest's fault.
    #[error("the driver does without {0}, which the device needs")]
    FeatureMissing(&'static str),
    /// Guest's fault.
    #[error("queue {index}: {source}")]
    Queue {
        /// Which.
        index: u16,
        /// What is wrong with it.
        source: QueueError,
    },
}

/// A device that cannot go on. Its driver sees `DEVICE_NEEDS_RESET`; everything else goes on.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// Guest's fault: a queue is corrupt.
    #[error("queue {index}: {source}")]
    Queue {
        /// Which.
        index: u16,
        /// What is wrong with it.
        source: QueueError,
    },
    /// The host refused something that the device depends on.
    #[error("{what}: {source}")]
    Host {
        /// What was asked of it.
        what: &'static str,
        /// Its answer.
        source: io::Error,
    },
}

impl DeviceError {
    /// For `map_err` on a host operation called `what`.
    pub(crate) fn host<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Host { what, source: source.into() }
    }
}

/// Fills `data` from `config` at `offset`; what lies outside reads as zero.
pub(crate) fn read_from(config: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let Some(rest) = usize::try_from(offset).ok().and_then(|offset| config.get(offset..)) else { return };
    let len = rest.len().min(data.len());
    data[..len].copy_from_slice(&rest[..len]);
}

#[cfg(test)]
mod tests;
