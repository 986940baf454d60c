//! The 16550 serial port: what the guest prints before it has anything better.
//!
//! Owns the registers (vm-superio's) behind one lock. Refuses input: nothing is ever received. Invariant: output goes
//! to the console a byte at a time, and neither blocks for long nor grows anything (see [`Console`]).

use crate::console::Console;
use crate::devices::BusDevice;
use crate::state::{Format, LoadError, Section};
use serde::{Deserialize, Serialize};
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};
use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, SerialState};
use vmm_sys_util::eventfd::EventFd;

/// Ports that the device answers.
pub const PORTS: u64 = 8;

/// What is saved of it: its registers, and what was looped back.
const FORMAT: Format = Format { id: "serial", version: 1 };
/// Most bytes that the port loops back before the guest reads them.
const LOOPED: usize = 64;
/// Interrupts that can be enabled.
const ENABLED: u8 = 0xf;
/// What the interrupt identification has: nothing, that the transmitter is empty, that there is a byte.
const IDENTIFIED: u8 = 7;
/// In the line status: there is a byte; the transmitter, which has no wire to wait for, is empty.
const DATA_READY: u8 = 1;
const EMPTY: u8 = 0x60;
/// In the modem status: clear to send, set ready, carrier.
const CONNECTED: u8 = 0xb0;

/// See the module.
#[derive(Debug)]
pub struct Serial {
    uart: Mutex<vm_superio::Serial<Line, NoEvents, Sink>>,
}

/// The registers that a driver can change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Saved {
    divisor: [u8; 2],
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
    looped: Vec<u8>,
}

#[derive(Debug, Clone)]
struct Line(Arc<EventFd>);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

#[derive(Debug, Clone)]
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
        Self { uart: Mutex::new(vm_superio::Serial::new(Line(Arc::new(irq)), Sink(console))) }
    }

    /// What there is of it. While no vCPU runs.
    #[must_use]
    pub fn save(&self) -> Section {
        let state = self.uart.lock().unwrap_or_else(PoisonError::into_inner).state();
        FORMAT.section(&Saved {
            divisor: [state.baud_divisor_low, state.baud_divisor_high],
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            modem_control: state.modem_control,
            scratch: state.scratch,
            looped: state.in_buffer,
        })
    }

    /// Takes over what was saved, and raises an interrupt that was pending.
    ///
    /// # Errors
    /// See [`LoadError`]; nothing was taken over then.
    pub fn load(&self, section: &Section) -> Result<(), LoadError> {
        let saved: Saved = FORMAT.parse(section)?;
        let (enabled, identified) = (saved.interrupt_enable, saved.interrupt_identification);
        FORMAT.check(enabled <= ENABLED, "interrupt enable", enabled, format_args!("0 to {ENABLED}"))?;
        let range = format_args!("0 to {IDENTIFIED}");
        FORMAT.check(identified <= IDENTIFIED, "interrupt identification", identified, range)?;
        let count = saved.looped.len();
        FORMAT.check(count <= LOOPED, "number of bytes looped back", count, format_args!("0 to {LOOPED}"))?;
        let [baud_divisor_low, baud_divisor_high] = saved.divisor;
        let state = SerialState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable: enabled,
            interrupt_identification: identified,
            line_control: saved.line_control,
            line_status: if count == 0 { EMPTY } else { EMPTY | DATA_READY },
            modem_control: saved.modem_control,
            modem_status: CONNECTED,
            scratch: saved.scratch,
            in_buffer: saved.looped,
        };
        let mut uart = self.uart.lock().unwrap_or_else(PoisonError::into_inner);
        let (line, sink) = (uart.interrupt_evt().clone(), uart.writer().clone());
        // It fails only where a line cannot be raised any further, or more is looped back than was let through above.
        if let Ok(loaded) = vm_superio::Serial::from_state(&state, line, NoEvents, sink) {
            *uart = loaded;
        }
        Ok(())
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
    fn what_a_driver_has_set_is_loaded_and_what_it_cannot_set_is_refused() {
        let (serial, _console, _irq) = port();
        for (register, value) in [(3, 0x83), (0, 7), (1, 9), (3, 0x1b), (IER, 3), (7, 0x5a), (MCR, 0x18)] {
            serial.write(register, &[value]);
        }
        serial.write(DATA, b"x");
        serial.write(DATA, b"y");
        let section = serial.save();
        let (other, console, irq) = port();
        other.load(&section).unwrap();
        assert_eq!(other.save(), section);
        assert!(irq.read().is_ok(), "the interrupt that was pending");
        let registers = |port: &Serial| {
            let read = |register| {
                let mut byte = [0];
                port.read(register, &mut byte);
                byte[0]
            };
            [1, 2, 3, 4, 5, 6, 7, 0, 5, 0, 5, 0].map(read)
        };
        let now = registers(&other);
        assert_eq!(now, registers(&serial));
        assert_eq!((now[4], now[7], now[9], now[10]), (EMPTY | DATA_READY, b'x', b'y', EMPTY));
        other.write(MCR, &[8]);
        other.write(DATA, b"z");
        assert_eq!(console.tail(), ["z"]);
        let good: Saved = FORMAT.parse(&section).unwrap();
        for (bad, said) in [
            (Saved { interrupt_enable: 16, ..good.clone() }, "interrupt enable is 16; 0 to 15"),
            (Saved { interrupt_identification: 8, ..good.clone() }, "interrupt identification is 8; 0 to 7"),
            (Saved { looped: vec![0; 65], ..good }, "number of bytes looped back is 65; 0 to 64"),
        ] {
            let error = other.load(&FORMAT.section(&bad)).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
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
