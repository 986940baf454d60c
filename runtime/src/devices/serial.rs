//! The 16550 serial port: what the guest prints before it has anything better.
//!
//! Owns the registers (vm-superio's) behind one lock. Refuses input: nothing is ever received. Invariant: output goes
//! to the console a byte at a time, and neither blocks for long nor grows anything (see [`Console`]).

use crate::console::Console;
use crate::devices::BusDevice;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};
use vm_superio::Trigger;
use vm_superio::serial::NoEvents;
use vmm_sys_util::eventfd::EventFd;

/// Ports that the device answers.
pub const PORTS: u64 = 8;

/// See the module.
#[derive(Debug)]
pub struct Serial {
    uart: Mutex<vm_superio::Serial<Line, NoEvents, Sink>>,
}

#[derive(Debug)]
struct Line(EventFd);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

#[derive(Debug)]
struct Sink(Arc<Console>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Serial {
    /// A port that raises `irq` and prints to `console`.
    #[must_use]
    pub fn new(irq: EventFd, console: Arc<Console>) -> Self {
        Self { uart: Mutex::new(vm_superio::Serial::new(Line(irq), Sink(console))) }
    }
}

impl BusDevice for Serial {
    /// A register is one byte wide; a wider access is one to the first register, and the other bytes read as zero.
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let (Ok(offset), Some(first)) = (u8::try_from(offset), data.first_mut()) {
            *first = self.uart.lock().unwrap_or_else(PoisonError::into_inner).read(offset);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (Ok(offset), Some(&first)) = (u8::try_from(offset), data.first()) {
            // Errors: the interrupt line is full (then it is raised already), or loopback is on and nobody reads
            // what it echoes (the real port drops it too).
            let _ = self.uart.lock().unwrap_or_else(PoisonError::into_inner).write(offset, first);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATA: u64 = 0;
    const IER: u64 = 1;
    const MCR: u64 = 4;
    const LSR: u64 = 5;

    fn port() -> (Serial, Arc<Console>, EventFd) {
        let irq = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let console = Arc::new(Console::new(None));
        (Serial::new(irq.try_clone().unwrap(), console.clone()), console, irq)
    }

    #[test]
    fn what_is_written_is_printed() {
        let (serial, console, _irq) = port();
        for byte in b"Linux\n" {
            serial.write(DATA, &[*byte]);
        }
        assert_eq!(console.tail(), ["Linux"]);
    }

    #[test]
    fn an_empty_transmitter_interrupts_when_asked() {
        let (serial, _console, irq) = port();
        serial.write(DATA, b"a");
        assert!(irq.read().is_err());
        serial.write(IER, &[2]);
        serial.write(DATA, b"b");
        assert!(irq.read().is_ok());
    }

    #[test]
    fn odd_widths_and_offsets_are_harmless() {
        let (serial, console, _irq) = port();
        let mut data = [9; 8];
        serial.read(LSR, &mut data);
        assert_eq!(data, [0x60, 0, 0, 0, 0, 0, 0, 0]);
        for offset in [8, 0xff, 0x100, u64::MAX] {
            serial.read(offset, &mut data);
            assert_eq!(data, [0; 8]);
            serial.write(offset, &data);
        }
        serial.read(DATA, &mut []);
        serial.write(DATA, &[]);
        serial.write(DATA, b"xyz");
        assert_eq!(console.tail(), ["x"]);
    }

    #[test]
    fn a_loopback_flood_does_not_grow() {
        let (serial, console, _irq) = port();
        serial.write(MCR, &[0x10]);
        for _ in 0..1_000_000 {
            serial.write(DATA, b"f");
        }
        assert!(serial.uart.lock().unwrap().state().in_buffer.len() <= 64);
        assert!(console.tail().is_empty());
    }
}
