//! virtio-entropy (virtio 1.2, 5.4): random bytes of the host's.
//!
//! Owns its features and its rate limiter; the bytes are `getrandom(2)`'s. Refuses, as a request that makes no sense, one without
//! room for a byte, or with something to read. Invariant: however much room a request has, at most [`REQUEST_BYTES`] are
//! written for it, which the standard allows, and one event costs at most [`EVENT_BYTES`] and one request more.

use super::gate::{self, Gate, Limit};
use super::guest_io::GuestIo;
use super::queue::Chain;
use super::service::{Answer, Budget, Service};
use super::{
    ActivateError, Activation, Busy, DeviceError, DeviceKind, FEATURE_EVENT_IDX, Memory, Token, VirtioDevice,
    Worker,
};
use crate::state::{Format, LoadError, Section};
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Instant;
use virtio_queue::Queue;
use vm_memory::Permissions;

/// Descriptors in the queue: Linux has one request at a time.
const QUEUE_SIZE: u16 = 64;
/// Most bytes for one request.
const REQUEST_BYTES: usize = 64 << 10;
/// Most bytes for one event, give or take the last request.
const EVENT_BYTES: u64 = 256 << 10;
/// Most requests for one event.
const EVENT_REQUESTS: u32 = 64;
/// Bytes on their way from the host to the guest, on the stack.
const STEP_BYTES: usize = 4096;

/// What is saved of it: nothing. A limiter is full again after a load.
const FORMAT: Format = Format { id: "virtio-entropy", version: 1 };

/// The token of the limiter's timer; that of the kick is 0.
const TIMER: Token = Token(1);

/// See the module.
#[derive(Debug, Default)]
pub struct Entropy {
    limit: Option<Arc<Limit>>,
}

impl Entropy {
    /// The device; `limit` counts its requests, and the bytes that they get.
    #[must_use]
    pub fn new(limit: Option<Limit>) -> Self {
        Self { limit: limit.map(Arc::new) }
    }
}

impl VirtioDevice for Entropy {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Entropy
    }

    fn features(&self) -> u64 {
        FEATURE_EVENT_IDX
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    /// It has none (5.4.4).
    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<Box<dyn Worker>, ActivateError> {
        let queue = activation.take_queue(0)?;
        let gate = self.limit.clone().map(Gate::new);
        let mut events = vec![(Token(0), queue.kick().as_raw_fd())];
        events.extend(gate.as_ref().map(|gate| (TIMER, gate.timer())));
        let budget = Budget { looks: EVENT_REQUESTS, cost: EVENT_BYTES };
        Ok(Box::new(EntropyWorker {
            events,
            requests: Service::new(queue, budget, activation.dropped),
            gate,
        }))
    }

    fn save(&self) -> Section {
        FORMAT.section(&())
    }

    fn load(&mut self, section: &Section) -> Result<(), LoadError> {
        FORMAT.parse_empty(section)
    }
}

struct EntropyWorker {
    events: Vec<(Token, RawFd)>,
    requests: Service,
    gate: Option<Gate>,
}

impl Worker for EntropyWorker {
    fn events(&self) -> &[(Token, RawFd)] {
        &self.events
    }

    fn wants(&self, token: Token) -> bool {
        (token == TIMER) != gate::is_open(self.gate.as_ref())
    }

    fn ready(&mut self, token: Token) -> Result<(), DeviceError> {
        if let Some(gate) = &mut self.gate
            && token == TIMER
        {
            gate.rang();
        }
        let bytes = |chain: &Chain| chain.writable_bytes().min(REQUEST_BYTES as u64);
        self.requests.serve_through(self.gate.as_mut(), bytes, fill).map(drop)
    }

    fn drain(&mut self, _deadline: Instant) -> Result<Vec<(u16, Queue)>, Busy> {
        Ok(vec![self.requests.queue.take()])
    }
}

/// Writes random bytes into what `chain` has room for, up to [`REQUEST_BYTES`].
fn fill(memory: &Memory, chain: &Chain) -> Result<Option<Answer>, DeviceError> {
    let Ok(mut room) = GuestIo::new(memory, &chain.writable, Permissions::Write) else { return Ok(None) };
    if room.is_empty() || !chain.readable.is_empty() {
        return Ok(None);
    }
    room.truncate(REQUEST_BYTES);
    let mut written = 0;
    let mut bytes = [0; STEP_BYTES];
    while !room.is_empty() {
        let step = room.len().min(STEP_BYTES);
        let count = match getrandom(&mut bytes[..step], GetRandomFlags::empty()) {
            Ok(count) => room.fill_from(&bytes[..count]),
            Err(Errno::INTR) => continue,
            Err(error) => return Err(DeviceError::host("getrandom")(error)),
        };
        written += count;
    }
    // REQUEST_BYTES bounds it.
    let written = u32::try_from(written).unwrap_or(u32::MAX);
    Ok(Some(Answer { written, cost: written.into() }))
}

#[cfg(test)]
mod tests;
