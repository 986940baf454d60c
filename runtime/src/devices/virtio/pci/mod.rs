//! The virtio PCI transport (virtio 1.2, 4.1): a device's function with its registers, and an interrupt a queue by MSI-X.
//!
//! Owns the function's configuration space and MSI-X; nothing of the device: that is [`Transport`]'s, as is what the registers
//! mean. There is no line interrupt: a driver without MSI-X has the ISR status to look at. Refuses, by ignoring it, an access of
//! another width than the register's, and to move the windows: a function whose address registers are not what they were, or
//! which does not decode, answers nowhere (its kicks, which KVM takes, do no harm). Invariant: a vCPU thread takes short locks,
//! the configuration space's before MSI-X's, and never waits for a worker.

mod common;
mod layout;
mod msix;

use super::event_loop::LoopHandle;
use super::transport::negotiation::Write;
use super::transport::{Face, Transport};
use super::{DeviceKind, Interrupt, Memory, VirtioDevice};
use crate::devices::BusDevice;
use crate::devices::pci::{ConfigSpace, PciFunction};
use crate::state::{Format, LoadError, Section};
use common::Field;
use layout::{COMMAND, COMMAND_MEMORY, COMMAND_PORTS, DEVICE, ISR, Layout, NOTIFY, NOTIFY_STRIDE};
pub use layout::{PORTS, Windows};
use layout::{PORTS_BAR, TABLE_BAR};
use msix::Msix;
pub use msix::{Message, Messenger, WINDOW_BYTES};
use serde::{Deserialize, Serialize};
use std::io;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const FORMAT: Format = Format { id: "virtio-pci", version: 1 };

/// What a driver has of the function.
struct Function {
    /// As it is at power-on.
    layout: Layout,
    space: Mutex<ConfigSpace>,
    msix: Msix,
}

/// The function as it is saved.
#[derive(Serialize, Deserialize)]
struct Saved {
    space: Vec<u8>,
    msix: msix::State,
}

impl Function {
    fn new(kind: DeviceKind, windows: Windows, queues: usize, messenger: Box<dyn Messenger>) -> Self {
        let msix = Msix::new(queues, messenger);
        let layout = Layout::new(kind, windows, msix.vectors());
        Self { space: Mutex::new(layout.space.clone()), layout, msix }
    }

    fn space(&self) -> MutexGuard<'_, ConfigSpace> {
        self.space.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the function answers in the window of address register `bar`, which `bit` of the command register turns on.
    fn decodes(&self, bar: usize, bit: u16) -> bool {
        let space = self.space();
        let command = u16::from_le_bytes(space.get(COMMAND));
        command & bit != 0 && space.get::<4>(bar) == self.layout.space.get(bar)
    }

    fn control(&self, space: &ConfigSpace) -> u16 {
        u16::from_le_bytes(space.get(self.layout.control))
    }
}

impl Interrupt for Function {
    fn queue(&self, index: u16) {
        self.msix.queue(index);
    }

    fn config(&self) {
        self.msix.config();
    }
}

impl Face for Function {
    fn reset(&self) {
        self.msix.reset();
    }

    fn repeat(&self) {
        self.msix.repeat();
    }

    fn save(&self) -> Section {
        let space = self.space().bytes().to_vec();
        FORMAT.section(&Saved { space, msix: self.msix.save() })
    }

    fn loaded<'a>(&'a self, section: &Section) -> Result<Box<dyn FnOnce() + 'a>, LoadError> {
        let Saved { space, msix } = FORMAT.parse(section)?;
        let space = self.layout.space.with(&space);
        let key = "configuration space: byte that is not what it was";
        FORMAT.check(
            space.is_ok(),
            key,
            format_args!("{:#x}", space.as_ref().err().unwrap_or(&0)),
            "none",
        )?;
        self.msix.check(&msix)?;
        Ok(Box::new(move || {
            if let Ok(loaded) = space {
                self.msix.take_over(msix, self.control(&loaded));
                *self.space() = loaded;
            }
        }))
    }
}

/// A transport, seen through its function.
pub struct PciTransport {
    transport: Arc<Transport>,
    function: Arc<Function>,
}

impl PciTransport {
    /// Shows `device` to the guest, with its registers at `windows`. Its worker will run on `event_loop`; interrupts go to
    /// `messenger`.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: Memory,
        windows: Windows,
        messenger: Box<dyn Messenger>,
        event_loop: LoopHandle,
    ) -> io::Result<Arc<Self>> {
        let queues = device.queue_sizes().len();
        let function = Arc::new(Function::new(device.kind(), windows, queues, messenger));
        let transport = Transport::new(device, memory, function.clone(), event_loop)?;
        Ok(Arc::new(Self { transport, function }))
    }

    /// What its registers show.
    #[must_use]
    pub fn transport(&self) -> &Arc<Transport> {
        &self.transport
    }

    /// The port that kicks queue `index`, from the first one on: for an ioeventfd, whatever is written.
    #[must_use]
    pub fn notify_port(index: u16) -> u64 {
        NOTIFY + NOTIFY_STRIDE * u64::from(index)
    }

    fn read_port(&self, offset: u64, data: &mut [u8]) {
        if let Some(offset) = offset.checked_sub(DEVICE) {
            self.read_config(offset, data);
            return;
        }
        data.fill(0);
        let value = match (common::field(offset, data.len()), data.len()) {
            (Some(field), _) => self.read_field(field),
            (None, 1) if offset == ISR => self.function.msix.take_isr().into(),
            _ => return,
        };
        for (byte, value) in data.iter_mut().zip(value.to_le_bytes()) {
            *byte = value;
        }
    }

    fn read_field(&self, field: Field) -> u32 {
        let msix = &self.function.msix;
        match field {
            Field::ConfigVector => msix.config_vector().into(),
            Field::QueueVector => {
                self.selected().map_or(msix::NO_VECTOR, |queue| msix.queue_vector(queue)).into()
            }
            Field::Generation => self.generation(),
            _ => self.look(|negotiation| common::read(negotiation, field)),
        }
    }

    fn write_port(&self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(DEVICE) {
            self.write_config(offset, data);
        } else if let Some(offset) = offset.checked_sub(NOTIFY) {
            if let (Ok(queue), 2) = (u32::try_from(offset / NOTIFY_STRIDE), data.len())
                && offset.is_multiple_of(NOTIFY_STRIDE)
            {
                self.take(Write::Notify(queue));
            }
        } else if let Some(field) = common::field(offset, data.len()) {
            let value = data.iter().rev().fold(0, |value, &byte| value << 8 | u32::from(byte));
            self.write_field(field, value);
        }
    }

    fn write_field(&self, field: Field, value: u32) {
        let vector = u16::try_from(value).unwrap_or(msix::NO_VECTOR);
        match field {
            Field::ConfigVector | Field::QueueVector
                if self.look(|negotiation| negotiation.is_resetting()) => {}
            Field::ConfigVector => self.function.msix.set_config_vector(vector),
            Field::QueueVector => {
                if let Some(queue) = self.selected() {
                    self.function.msix.set_queue_vector(queue, vector);
                }
            }
            _ => {
                if let Some(write) = common::write(field, value) {
                    self.take(write);
                }
            }
        }
    }

    fn selected(&self) -> Option<u16> {
        self.look(|negotiation| negotiation.selected_queue()).map(|(index, ..)| index)
    }

    /// Where the access capability leads: offset and bytes in the ports' window (virtio 1.2, 4.1.4.9).
    fn accessed(&self) -> Option<(u64, usize)> {
        let (space, at) = (self.function.space(), self.function.layout.access);
        let [window] = space.get(at + 4);
        let offset = u64::from(u32::from_le_bytes(space.get(at + 8)));
        let length = u32::from_le_bytes(space.get(at + 12));
        let inside = offset + u64::from(length) <= PORTS && offset.is_multiple_of(u64::from(length).max(1));
        (window == 0 && matches!(length, 1 | 2 | 4) && inside).then_some((offset, length as usize))
    }

    /// Whether an access to configuration space touches the data of that capability.
    fn touches_data(&self, offset: u8, len: usize) -> bool {
        let data = self.function.layout.access + 16;
        (data..data + 4).contains(&usize::from(offset)) && len > 0
    }
}

impl Deref for PciTransport {
    type Target = Transport;

    fn deref(&self) -> &Transport {
        &self.transport
    }
}

impl PciFunction for PciTransport {
    fn read_space(&self, offset: u8, data: &mut [u8]) {
        let (function, at) = (&self.function, self.function.layout.access + 16);
        if self.touches_data(offset, data.len())
            && let Some((place, length)) = self.accessed()
        {
            let mut value = [0; 4];
            self.read_port(place, &mut value[..length]);
            function.space().set(at, &value[..length]);
        }
        function.space().read(offset, data);
    }

    fn write_space(&self, offset: u8, data: &[u8]) {
        let function = &self.function;
        {
            let mut space = function.space();
            let before = function.control(&space);
            space.write(offset, data);
            let control = function.control(&space);
            if control != before {
                function.msix.set_control(control);
            }
        }
        if self.touches_data(offset, data.len())
            && let Some((place, length)) = self.accessed()
        {
            let value: [u8; 4] = function.space().get(function.layout.access + 16);
            self.write_port(place, &value[..length]);
        }
    }
}

/// The window of a function's ports, on the ports' bus.
pub struct PortWindow(pub Arc<PciTransport>);

impl BusDevice for PortWindow {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if self.0.function.decodes(PORTS_BAR, COMMAND_PORTS) {
            self.0.read_port(offset, data);
        } else {
            data.fill(0xff);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if self.0.function.decodes(PORTS_BAR, COMMAND_PORTS) {
            self.0.write_port(offset, data);
        }
    }
}

/// The window of a function's MSI-X table, on the bus of memory.
pub struct TableWindow(pub Arc<PciTransport>);

impl BusDevice for TableWindow {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if self.0.function.decodes(TABLE_BAR, COMMAND_MEMORY) {
            self.0.function.msix.read(offset, data);
        } else {
            data.fill(0xff);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if self.0.function.decodes(TABLE_BAR, COMMAND_MEMORY) {
            self.0.function.msix.write(offset, data);
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
