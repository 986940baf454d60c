//! virtio-pmem (virtio 1.2, 5.19): tells the driver where in its address space an image lies.
//!
//! Owns two numbers; the image itself is the guest's to read without this device. Refuses, as a request that makes no sense,
//! one that is not four bytes to read and four to write. Invariant: nothing here or anywhere writes to the image, so a
//! flush has nothing to do and is a success.

use super::guest_io::GuestIo;
use super::queue::Chain;
use super::service::{Answer, Budget, Service};
use super::{
    ActivateError, Activation, Busy, DeviceError, DeviceKind, FEATURE_EVENT_IDX, Memory, Token, VirtioDevice,
    Worker, read_from,
};
use crate::memory::Image;
use crate::state::{Format, LoadError, Section};
use std::os::fd::{AsRawFd, RawFd};
use std::time::Instant;
use virtio_queue::Queue;
use vm_memory::Permissions;

/// Descriptors in the queue: Linux has one request, of two, at a time.
const QUEUE_SIZE: u16 = 64;
/// What is saved of it: where the guest has found the image, and its size, as in the configuration.
const FORMAT: Format = Format { id: "virtio-pmem", version: 1 };
/// Most requests for one event.
const EVENT_REQUESTS: u32 = 64;
/// Bytes of a request's type and of its result (5.19.6).
const WORD: usize = 4;
/// The one type of request: what was written is to last.
const FLUSH: u32 = 0;
/// Results.
const OK: u32 = 0;
const EIO: u32 = 1;

/// See the module.
#[derive(Debug)]
pub struct Pmem {
    /// Address and size in bytes (5.19.4).
    config: [u8; 16],
}

impl Pmem {
    /// Tells of `image`.
    #[must_use]
    pub fn new(image: &Image) -> Self {
        let mut config = [0; 16];
        config[..8].copy_from_slice(&image.start().to_le_bytes());
        config[8..].copy_from_slice(&image.bytes().to_le_bytes());
        Self { config }
    }
}

impl VirtioDevice for Pmem {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Pmem
    }

    fn features(&self) -> u64 {
        FEATURE_EVENT_IDX
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_from(&self.config, offset, data);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<Box<dyn Worker>, ActivateError> {
        let queue = activation.take_queue(0)?;
        let events = [(Token(0), queue.kick().as_raw_fd())];
        let budget = Budget { looks: EVENT_REQUESTS, cost: EVENT_REQUESTS.into() };
        Ok(Box::new(PmemWorker { events, requests: Service::new(queue, budget, activation.dropped) }))
    }

    fn save(&self) -> Section {
        FORMAT.section(&self.config)
    }

    /// The guest has the image in its page tables: it has to be where it was, and as large.
    fn load(&mut self, section: &Section) -> Result<(), LoadError> {
        let config: [u8; 16] = FORMAT.parse(section)?;
        let (is, was) = (u128::from_le_bytes(self.config), u128::from_le_bytes(config));
        FORMAT.check(is == was, "size and address", format_args!("{was:#x}"), format_args!("{is:#x}"))
    }
}

struct PmemWorker {
    events: [(Token, RawFd); 1],
    requests: Service,
}

impl Worker for PmemWorker {
    fn events(&self) -> &[(Token, RawFd)] {
        &self.events
    }

    fn ready(&mut self, _token: Token) -> Result<(), DeviceError> {
        self.requests.serve(|memory, chain| Ok(answer(memory, chain)))
    }

    fn drain(&mut self, _deadline: Instant) -> Result<Vec<(u16, Queue)>, Busy> {
        Ok(vec![self.requests.queue.take()])
    }
}

/// Answers the request in `chain`. `None`: it makes no sense.
fn answer(memory: &Memory, chain: &Chain) -> Option<Answer> {
    let mut asked = GuestIo::new(memory, &chain.readable, Permissions::Read).ok()?;
    let mut result = GuestIo::new(memory, &chain.writable, Permissions::Write).ok()?;
    if asked.len() != WORD || result.len() != WORD {
        return None;
    }
    let mut kind = [0; WORD];
    if asked.copy_into(&mut kind) != WORD {
        return None;
    }
    let told = if u32::from_le_bytes(kind) == FLUSH { OK } else { EIO };
    // Four bytes.
    let written = u32::try_from(result.fill_from(&told.to_le_bytes())).unwrap_or(u32::MAX);
    Some(Answer { written, cost: 1 })
}

#[cfg(test)]
mod tests;
