//! virtio-vsock (virtio 1.2, 5.10): streams between the guest and the host, without a network.
//!
//! Owns the configuration, and the host's side while no worker has it: a listener on which the host's programs say
//! `CONNECT <port>`, the exec channel, and the way to ask husk for a connected socket. Refuses every other way into
//! the host: the runtime opens nothing. Invariant: the guest's words are allegations; buffers, connections, questions
//! and half-open handshakes are all bounded, and a guest that breaks the protocol loses its connection, nothing else.
//!
//! Connections outlive a worker: while the device is paused nothing is read or written, credit bounds what comes meanwhile,
//! and deadlines stand still. They do not outlive the process: after a load the guest is told first of all that the transport
//! was reset (5.10.6.7), so that it closes what it had.

mod backlog;
mod connection;
mod exchange;
mod greeting;
mod host;
mod packet;
mod peers;
mod receive;
mod streams;
mod transmit;
mod worker;

use super::{ActivateError, Activation, DeviceKind, FEATURE_EVENT_IDX, VirtioDevice, Worker, read_from};
use crate::state::{Format, LoadError, Section};
use host::{Answer, HostSide};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use streams::Streams;
use vmm_sys_util::eventfd::EventFd;

/// Descriptors in the queues for receiving and sending, as the guest sees it.
const DATA_QUEUE_SIZE: u16 = 128;
/// Descriptors in the queue for events: as many as Linux posts.
const EVENT_QUEUE_SIZE: u16 = 8;

/// What is saved of it: nothing. Context id and ports are the spec's.
const FORMAT: Format = Format { id: "virtio-vsock", version: 1 };

/// Asks husk for a connected socket to a port: request number, port. It must not wait; false if it could not ask.
pub type Ask = Box<dyn Fn(u32, u32) -> bool + Send>;

/// What the host lends to the device.
#[derive(Default)]
pub struct VsockHost {
    /// The port of the exec channel, and the connected stream socket that the guest's first connection to it is
    /// bound to.
    pub exec: Option<(u32, OwnedFd)>,
    /// A listening stream socket for `CONNECT <port>\n`.
    pub listener: Option<OwnedFd>,
    /// For the guest's connections to any other port; absent: all are reset.
    pub ask: Option<Ask>,
}

/// Answers what [`VsockHost::ask`] asked, from any thread.
#[derive(Clone)]
pub struct VsockAnswers {
    answers: Sender<Answer>,
    wake: Arc<EventFd>,
}

impl VsockAnswers {
    /// Answers `request` with a connected stream socket, or refuses.
    pub fn connected(&self, request: u32, socket: Option<OwnedFd>) {
        self.send(Answer::Connected { request, socket });
    }

    /// Ends all connections and tells the guest that the transport was reset: after a restore.
    pub fn reset_transport(&self) {
        self.send(Answer::ResetTransport);
    }

    fn send(&self, answer: Answer) {
        // It fails only when the device is gone, and then nobody waits for an answer.
        if self.answers.send(answer).is_ok() {
            let _ = self.wake.write(1);
        }
    }
}

/// See the module.
pub struct Vsock {
    config: [u8; 8],
    host: Arc<Mutex<HostSide>>,
}

impl Vsock {
    /// The device of the guest with context id `guest_cid`.
    pub fn new(guest_cid: u64, host: VsockHost) -> io::Result<(Self, VsockAnswers)> {
        let (side, answers, wake) = HostSide::new(guest_cid, host)?;
        let device = Self { config: guest_cid.to_le_bytes(), host: Arc::new(Mutex::new(side)) };
        Ok((device, VsockAnswers { answers, wake }))
    }

    fn host(&self) -> MutexGuard<'_, HostSide> {
        self.host.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl VirtioDevice for Vsock {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Vsock
    }

    /// No indirect descriptors: a packet is two descriptors, and a table for them costs the driver an allocation each.
    fn features(&self) -> u64 {
        FEATURE_EVENT_IDX
    }

    fn queue_sizes(&self) -> &[u16] {
        &[DATA_QUEUE_SIZE, DATA_QUEUE_SIZE, EVENT_QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_from(&self.config, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<Box<dyn Worker>, ActivateError> {
        Ok(Box::new(worker::VsockWorker::new(activation, self.host.clone())?))
    }

    /// Every connection was the driver's.
    fn reset(&mut self) {
        self.host().reset();
    }

    fn save(&self) -> Section {
        FORMAT.section(&())
    }

    fn load(&mut self, section: &Section) -> Result<(), LoadError> {
        FORMAT.parse_empty(section)?;
        self.host().park(Streams::after_load());
        Ok(())
    }
}

#[cfg(test)]
mod tests;
