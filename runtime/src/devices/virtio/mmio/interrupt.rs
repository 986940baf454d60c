//! The interrupt of a virtio-mmio device: a line, and a status that says why it was raised.
//!
//! Owns the status. Invariant: a bit that is set stays until the driver has acknowledged it, or has reset the device.

use super::ACKNOWLEDGED;
use crate::devices::virtio::Interrupt;
use crate::devices::virtio::transport::Face;
use crate::kvm::IrqLine;
use crate::state::{Format, LoadError, Section};
use std::io;
use std::sync::{Mutex, PoisonError};
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use vmm_sys_util::eventfd::EventFd;

/// The status, as it is saved.
pub(super) const FORMAT: Format = Format { id: "virtio-mmio", version: 2 };

/// Every bit of the interrupt status.
const INTERRUPTS: u32 = VIRTIO_MMIO_INT_VRING | VIRTIO_MMIO_INT_CONFIG;

/// A device's interrupt line; its rising edge is the interrupt.
pub trait Line: Send + Sync {
    /// Raises and lowers it; never waits.
    fn pulse(&self);
}

impl Line for IrqLine {
    fn pulse(&self) {
        Self::pulse(self);
    }
}

/// For a driver that is a test.
impl Line for EventFd {
    fn pulse(&self) {
        // It fails only at 2^64 - 2 interrupts that nobody has taken: the line is up.
        let _ = self.write(1);
    }
}

/// The interrupt's status, and its acknowledgements. Linux acknowledges each interrupt of a queue by a write of
/// [`ACKNOWLEDGED`], which KVM turns into a signal of `acknowledged` without leaving the guest. Each that is signalled clears
/// the queues' bit, no later than anybody looks at it. While a bit is set its edge is still to be answered: the driver
/// acknowledges it and looks at what it stands for after that, so there is no other edge for it.
pub(super) struct MmioInterrupt {
    status: Mutex<u32>,
    pub(super) acknowledged: EventFd,
    line: Box<dyn Line>,
}

impl MmioInterrupt {
    pub(super) fn new(line: Box<dyn Line>) -> io::Result<Self> {
        let acknowledged = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        Ok(Self { status: Mutex::new(0), acknowledged, line })
    }

    fn raise(&self, bits: u32) {
        let news = self.with_status(|status| {
            let news = bits & !*status != 0;
            *status |= bits;
            news
        });
        if news {
            self.line.pulse();
        }
    }

    /// Applies the acknowledgements that have come, then `f`. One that comes between the two is applied later and clears the
    /// bit that `f` may have set: its driver looks at the queues after it, and finds what the bit was set for.
    pub(super) fn with_status<T>(&self, f: impl FnOnce(&mut u32) -> T) -> T {
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        if self.acknowledged.read().is_ok() {
            *status &= !ACKNOWLEDGED;
        }
        f(&mut status)
    }
}

impl Interrupt for MmioInterrupt {
    fn queue(&self, _index: u16) {
        self.raise(VIRTIO_MMIO_INT_VRING);
    }

    fn config(&self) {
        self.raise(VIRTIO_MMIO_INT_CONFIG);
    }
}

impl Face for MmioInterrupt {
    fn reset(&self) {
        self.with_status(|status| *status = 0);
    }

    fn repeat(&self) {
        if self.with_status(|status| *status) != 0 {
            self.line.pulse();
        }
    }

    fn save(&self) -> Section {
        FORMAT.section(&self.with_status(|status| *status))
    }

    fn loaded<'a>(&'a self, section: &Section) -> Result<Box<dyn FnOnce() + 'a>, LoadError> {
        let bits: u32 = FORMAT.parse(section)?;
        FORMAT.check(bits & !INTERRUPTS == 0, "interrupt status", bits, "0 to 3")?;
        Ok(Box::new(move || self.with_status(|status| *status = bits)))
    }
}
