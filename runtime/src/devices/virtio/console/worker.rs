//! The queues of a virtio console, on an event loop.
//!
//! Owns the queues and the bytes of one request on their way. Refuses requests that are no text. Invariant: one event
//! costs at most [`EVENT_BYTES`] and one request; a request is answered at once, whether somebody reads or not, because
//! Linux waits for the answer with interrupts off.

use super::{Printer, QUEUE_SIZE, REQUEST_BYTES};
use crate::devices::virtio::guest_io::GuestIo;
use crate::devices::virtio::queue::{Chain, Virtqueue};
use crate::devices::virtio::service::{Answer, Budget, Service};
use crate::devices::virtio::{ActivateError, Activation, Busy, DeviceError, Memory, Token, Worker};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Instant;
use virtio_queue::Queue;
use vm_memory::Permissions;

/// The queues' indexes (5.3.2); that to transmit has its index as its kick's token.
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
/// The token of the console's reader.
const READER: Token = Token(2);
/// Bytes that one event prints, give or take the last request.
const EVENT_BYTES: u64 = 256 << 10;

pub(super) struct ConsoleWorker {
    events: Vec<(Token, RawFd)>,
    /// Never looked at: there is no input.
    receive: Virtqueue,
    transmit: Service,
    printer: Arc<Printer>,
    text: Vec<u8>,
}

impl ConsoleWorker {
    pub(super) fn new(mut activation: Activation, printer: Arc<Printer>) -> Result<Self, ActivateError> {
        let receive = activation.take_queue(RECEIVE)?;
        let transmit = activation.take_queue(TRANSMIT)?;
        let mut events = vec![(Token(TRANSMIT.into()), transmit.kick().as_raw_fd())];
        events.extend(printer.reader.as_ref().map(|reader| (READER, reader.as_raw_fd())));
        let budget = Budget { looks: QUEUE_SIZE.into(), cost: EVENT_BYTES };
        let transmit = Service::new(transmit, budget, activation.dropped);
        Ok(Self { events, receive, transmit, printer, text: Vec::new() })
    }
}

impl Worker for ConsoleWorker {
    fn events(&self) -> &[(Token, RawFd)] {
        &self.events
    }

    /// The reader, only while something waits for him.
    fn wants(&self, token: Token) -> bool {
        token != READER || self.printer.console.waits()
    }

    fn ready(&mut self, token: Token) -> Result<(), DeviceError> {
        if token == READER {
            self.printer.console.flush();
            return Ok(());
        }
        let Self { transmit, printer, text, .. } = self;
        transmit.serve(|memory, chain| Ok(read(memory, chain, text).inspect(|_| printer.print(memory, text))))
    }

    fn drain(&mut self, _deadline: Instant) -> Result<Vec<(u16, Queue)>, Busy> {
        Ok(vec![self.receive.take(), self.transmit.queue.take()])
    }
}

/// Puts what `chain` holds into `text`. `None`: it is no text.
fn read(memory: &Memory, chain: &Chain, text: &mut Vec<u8>) -> Option<Answer> {
    text.clear();
    let mut readable = GuestIo::new(memory, &chain.readable, Permissions::Read).ok()?;
    if !(1..=REQUEST_BYTES).contains(&readable.len()) || !chain.writable.is_empty() {
        return None;
    }
    readable.append_to(text);
    Some(Answer { written: 0, cost: text.len() as u64 })
}
