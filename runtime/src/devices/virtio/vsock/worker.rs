//! The vsock device on an event loop.
//!
//! Owns the order of things: what woke it, then whatever the guest can be given now. Refuses nothing. Invariant: one
//! event costs a bounded number of packets each way; what is left over kicks again.

use super::exchange::Exchange;
use super::host::HostSide;
use crate::devices::virtio::guest_io::GuestIo;
use crate::devices::virtio::queue::{Chain, Popped, QueueError, Virtqueue};
use crate::devices::virtio::{ActivateError, Activation, Busy, DeviceError, Memory, Token, Worker};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use virtio_queue::Queue;
use vm_memory::Permissions;

/// The queues' indexes, which are also the tokens of their kicks (5.10.2).
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const EVENT: u16 = 2;
/// The token of the host's side.
const HOST: Token = Token(3);
/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET`, little-endian.
const TRANSPORT_RESET: [u8; 4] = [0; 4];

pub(super) struct VsockWorker {
    events: Vec<(Token, RawFd)>,
    host: Arc<Mutex<HostSide>>,
    exchange: Exchange,
}

impl VsockWorker {
    pub(super) fn new(mut activation: Activation, host: Arc<Mutex<HostSide>>) -> Result<Self, ActivateError> {
        let receive = activation.take_queue(RECEIVE)?;
        let transmit = activation.take_queue(TRANSMIT)?;
        let event = activation.take_queue(EVENT).ok();
        let mut side = host.lock().unwrap_or_else(PoisonError::into_inner);
        let mut events = vec![(HOST, side.epoll_fd())];
        for queue in [Some(&receive), Some(&transmit), event.as_ref()].into_iter().flatten() {
            events.push((Token(queue.index().into()), queue.kick().as_raw_fd()));
        }
        let mut exchange = Exchange::new(activation.memory, receive, transmit, event, activation.dropped);
        exchange.take_up(side.unpark());
        drop(side);
        Ok(Self { events, host, exchange })
    }

    fn tell_reset(&mut self) -> Result<(), QueueError> {
        let Some(queue) = &mut self.exchange.events else { return Ok(()) };
        if self.exchange.reset_untold && send_event(queue, &self.exchange.memory)? {
            self.exchange.reset_untold = false;
            queue.signal()?;
        }
        Ok(())
    }
}

/// Tells the guest of the transport's reset, if it offers a buffer that holds the event.
fn send_event(queue: &mut Virtqueue, memory: &Memory) -> Result<bool, QueueError> {
    let mut chain = Chain::default();
    // A second look after asking for kicks: the driver may have been faster.
    for _ in 0..2 {
        if queue.pop(&mut chain)? != Popped::Empty {
            let mut pieces = GuestIo::new(memory, &chain.writable, Permissions::Write);
            let written = pieces.as_mut().map_or(0, |pieces| pieces.fill_from(&TRANSPORT_RESET));
            queue.add_used(chain.head, u32::try_from(written).unwrap_or(0))?;
            return Ok(written == TRANSPORT_RESET.len());
        }
        if !queue.want_kicks()? {
            break;
        }
    }
    Ok(false)
}

impl Worker for VsockWorker {
    fn events(&self) -> &[(Token, RawFd)] {
        &self.events
    }

    /// All that is not the host's side is a queue's kick.
    fn by_edge(&self, token: Token) -> bool {
        token != HOST
    }

    fn ready(&mut self, token: Token) -> Result<(), DeviceError> {
        let shared = self.host.clone();
        let mut host = shared.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = |index| move |source| DeviceError::Queue { index, source };
        if token == HOST {
            self.exchange.host_events(&mut host)?;
        } else if token == Token(TRANSMIT.into()) {
            self.exchange.transmit(&mut host).map_err(failed(TRANSMIT))?;
        }
        drop(host);
        self.tell_reset().map_err(failed(EVENT))?;
        self.exchange.receive().map_err(failed(RECEIVE))?;
        // Both at the end: the queues share an interrupt, and two in a row are one to the guest.
        self.exchange.outbound.signal().map_err(failed(TRANSMIT))?;
        self.exchange.inbound.queue.signal().map_err(failed(RECEIVE))
    }

    fn drain(&mut self, _deadline: Instant) -> Result<Vec<(u16, Queue)>, Busy> {
        let mut host = self.host.lock().unwrap_or_else(PoisonError::into_inner);
        host.park(self.exchange.give_up());
        let mut queues = vec![self.exchange.inbound.queue.take(), self.exchange.outbound.take()];
        queues.extend(self.exchange.events.as_mut().map(Virtqueue::take));
        Ok(queues)
    }
}
