//! The virtio-mmio transport (virtio 1.2, 4.2): a device's registers in a window of 4 KiB, and its interrupt's line.
//!
//! Owns nothing of the device: that is [`Transport`]'s, as is what the registers mean. Refuses, by ignoring it, an access of
//! another width than the register's. Invariant: a vCPU thread takes one short lock and never waits for a worker.

mod interrupt;
mod registers;

use super::event_loop::LoopHandle;
use super::transport::Transport;
use super::{Memory, VirtioDevice};
use crate::devices::BusDevice;
pub use interrupt::Line;
use interrupt::MmioInterrupt;
use std::io;
use std::ops::Deref;
use std::sync::Arc;
use virtio_bindings::virtio_mmio as mmio;
use vmm_sys_util::eventfd::EventFd;

/// Bytes of a device's window.
pub const WINDOW_BYTES: u64 = 0x1000;
/// Where in the window the driver writes a queue's index (4 bytes) to kick it: for an ioeventfd.
pub const NOTIFY_OFFSET: u64 = mmio::VIRTIO_MMIO_QUEUE_NOTIFY as u64;
/// Where in the window the driver acknowledges an interrupt, and the value (4 bytes) by which it acknowledges one of queues
/// alone: for an ioeventfd.
pub const ACKNOWLEDGE_OFFSET: u64 = mmio::VIRTIO_MMIO_INTERRUPT_ACK as u64;
/// See [`ACKNOWLEDGE_OFFSET`].
pub const ACKNOWLEDGED: u32 = mmio::VIRTIO_MMIO_INT_VRING;
const CONFIG: u64 = mmio::VIRTIO_MMIO_CONFIG as u64;

/// A transport, seen through its registers.
pub struct MmioTransport {
    transport: Arc<Transport>,
    interrupt: Arc<MmioInterrupt>,
}

impl MmioTransport {
    /// Shows `device` to the guest. Its worker will run on `event_loop`; `line` is its interrupt's.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: Memory,
        line: Box<dyn Line>,
        event_loop: LoopHandle,
    ) -> io::Result<Arc<Self>> {
        let interrupt = Arc::new(MmioInterrupt::new(line)?);
        let transport = Transport::new(device, memory, interrupt.clone(), event_loop)?;
        Ok(Arc::new(Self { transport, interrupt }))
    }

    /// What its registers show.
    #[must_use]
    pub fn transport(&self) -> &Arc<Transport> {
        &self.transport
    }

    /// The eventfd to be written when the driver writes [`ACKNOWLEDGED`] at [`ACKNOWLEDGE_OFFSET`].
    #[must_use]
    pub fn acknowledgements(&self) -> &EventFd {
        &self.interrupt.acknowledged
    }

    fn read_register(&self, offset: u32) -> u32 {
        match offset {
            mmio::VIRTIO_MMIO_DEVICE_ID => self.kind().id(),
            mmio::VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt.with_status(|status| *status),
            mmio::VIRTIO_MMIO_CONFIG_GENERATION => self.generation(),
            _ => self.look(|negotiation| registers::read(negotiation, offset)),
        }
    }

    fn write_register(&self, offset: u32, value: u32) {
        if offset == mmio::VIRTIO_MMIO_INTERRUPT_ACK {
            self.interrupt.with_status(|status| *status &= !value);
        } else if let Some(write) = registers::write(offset, value) {
            self.take(write);
        }
    }
}

impl Deref for MmioTransport {
    type Target = Transport;

    fn deref(&self) -> &Transport {
        &self.transport
    }
}

impl BusDevice for MmioTransport {
    /// Registers are read 4 bytes at a time (4.2.2.2); any other access to them reads as zero.
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            self.read_config(offset, data);
            return;
        }
        data.fill(0);
        if let (Ok(register), Ok(data)) = (register(offset), <&mut [u8; 4]>::try_from(data)) {
            *data = self.read_register(register).to_le_bytes();
        }
    }

    /// Registers are written 4 bytes at a time (4.2.2.2); any other access to them is ignored.
    fn write(&self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            self.write_config(offset, data);
        } else if let (Ok(register), Ok(data)) = (register(offset), <[u8; 4]>::try_from(data)) {
            self.write_register(register, u32::from_le_bytes(data));
        }
    }
}

/// Which register is at `offset`, if one starts there.
fn register(offset: u64) -> Result<u32, ()> {
    if offset.is_multiple_of(4) { u32::try_from(offset).map_err(drop) } else { Err(()) }
}

#[cfg(test)]
pub(super) mod tests;
