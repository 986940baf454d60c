//! virtio-fs (virtio 1.2, 5.11): a directory of the host, served by a process of its own.
//!
//! Owns the tag, the rate limiter, and the connection to the server across resets. The worker carries FUSE messages to and fro; it knows
//! their headers and their lengths and nothing of files. Refuses, by an error in the guest's own request, what is longer
//! than a message may be, what lies about its length, and everything once the server is gone. Invariant: no memory of the
//! guest's is shared with the server; an answer goes only into the buffers of the request that it answers.
//!
//! What the guest has open is the server's to know, and is not saved: after a load the server is another, and what the guest
//! had mounted is stale, as a network file system whose server forgot. The requests of before are not in flight then: a pause
//! waits for their answers.

mod link;
mod message;
mod worker;

use super::gate::{Gate, Limit};
use super::{
    ActivateError, Activation, DeviceKind, FEATURE_EVENT_IDX, FEATURE_INDIRECT, VirtioDevice, Worker,
    read_from,
};
use crate::state::{Format, LoadError, Section};
use link::Link;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

/// Descriptors in each queue: a message of 32 pages and its headers, three times.
const QUEUE_SIZE: u16 = 128;
/// Bytes of the tag (5.11.4).
pub const TAG_BYTES: usize = 36;
/// `virtio_fs_config`: the tag and the number of request queues.
const CONFIG_BYTES: usize = TAG_BYTES + 4;

/// What is saved of it: nothing.
const FORMAT: Format = Format { id: "virtio-fs", version: 1 };

/// See the module.
pub struct Fs {
    config: [u8; CONFIG_BYTES],
    link: Arc<Mutex<Link>>,
    limit: Option<Arc<Limit>>,
}

impl Fs {
    /// The directory that the server behind `socket`, a connected stream, serves; the guest mounts it by `tag`, of which
    /// [`TAG_BYTES`] count.
    ///
    /// # Errors
    /// No descriptor can be made.
    pub fn new(tag: &str, socket: OwnedFd) -> io::Result<Self> {
        let mut config = [0; CONFIG_BYTES];
        let length = tag.len().min(TAG_BYTES);
        config[..length].copy_from_slice(&tag.as_bytes()[..length]);
        config[TAG_BYTES..].copy_from_slice(&1_u32.to_le_bytes());
        Ok(Self { config, link: Arc::new(Mutex::new(Link::new(socket)?)), limit: None })
    }

    /// The same volume behind `limit`, which counts the guest's messages, and the bytes of messages and answers.
    #[must_use]
    pub fn with_limit(mut self, limit: Option<Limit>) -> Self {
        self.limit = limit.map(Arc::new);
        self
    }
}

impl VirtioDevice for Fs {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Fs
    }

    fn features(&self) -> u64 {
        FEATURE_EVENT_IDX | FEATURE_INDIRECT
    }

    /// High priority first, then requests (5.11.2).
    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE, QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_from(&self.config, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<Box<dyn Worker>, ActivateError> {
        let gate = self.limit.clone().map(Gate::new);
        Ok(Box::new(worker::FsWorker::new(activation, Arc::clone(&self.link), gate)?))
    }

    /// What the driver had open is to be forgotten, before the next one's first message.
    fn reset(&mut self) {
        self.link.lock().unwrap_or_else(PoisonError::into_inner).new_driver();
    }

    fn save(&self) -> Section {
        FORMAT.section(&())
    }

    fn load(&mut self, section: &Section) -> Result<(), LoadError> {
        FORMAT.parse_empty(section)
    }
}

#[cfg(test)]
mod tests;
