//! virtio-console (virtio 1.2, 5.3): what the guest prints, many characters an exit.
//!
//! Owns nothing but its share of the console; the worker has the queues. Offers one port, without size and without the
//! control queues. Refuses input (buffers to receive into stay with the driver), and whatever is no text to print: room to
//! write, or more than [`REQUEST_BYTES`]. Invariant: the worker never waits for who reads the console; what does not fit
//! is lost and counted there.

mod worker;

use super::{ActivateError, Activation, DeviceKind, FEATURE_EVENT_IDX, Memory, VirtioDevice, Worker};
use crate::console::Console;
use crate::state::{Format, LoadError, Section};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use vmm_sys_util::epoll::Epoll;
use worker::ConsoleWorker;

/// Descriptors in each queue: Linux has one request at a time for its messages, and posts as many buffers to receive.
const QUEUE_SIZE: u16 = 64;
/// Most bytes in one request, twice what Linux takes from a program at once.
const REQUEST_BYTES: usize = 64 << 10;

/// What is saved of it: whether anything was printed.
const FORMAT: Format = Format { id: "virtio-console", version: 1 };

/// What the guest printed elsewhere before it had this device.
pub type Earlier = fn(&Memory) -> Vec<u8>;

/// See the module.
pub struct VirtioConsole {
    printer: Arc<Printer>,
}

/// What outlives the driver's resets.
struct Printer {
    console: Arc<Console>,
    /// Readable while the console's reader takes something; none for one that always does.
    reader: Option<Epoll>,
    earlier: Earlier,
    /// Whether anything was printed, and so what came earlier.
    began: AtomicBool,
}

impl Printer {
    fn print(&self, memory: &Memory, text: &[u8]) {
        if !self.began.swap(true, Ordering::Relaxed) {
            self.console.post(&(self.earlier)(memory));
        }
        self.console.post(text);
    }
}

impl VirtioConsole {
    /// A device that prints to `console`, after what `earlier` knows of. Makes a descriptor.
    ///
    /// # Errors
    /// No descriptor can be had.
    pub fn new(console: Arc<Console>, earlier: Earlier) -> io::Result<Self> {
        let reader = console.reader()?;
        Ok(Self { printer: Arc::new(Printer { console, reader, earlier, began: AtomicBool::new(false) }) })
    }
}

impl VirtioDevice for VirtioConsole {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Console
    }

    fn features(&self) -> u64 {
        FEATURE_EVENT_IDX
    }

    /// To receive, and to transmit.
    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE; 2]
    }

    /// Nothing of it is offered (5.3.4).
    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, activation: Activation) -> Result<Box<dyn Worker>, ActivateError> {
        Ok(Box::new(ConsoleWorker::new(activation, Arc::clone(&self.printer))?))
    }

    fn save(&self) -> Section {
        FORMAT.section(&self.printer.began.load(Ordering::Relaxed))
    }

    /// What came before the first words is not printed again.
    fn load(&mut self, section: &Section) -> Result<(), LoadError> {
        self.printer.began.store(FORMAT.parse(section)?, Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
