//! Where virtio devices are: each one's registers, kicks and interrupt, by the transport that was asked for.
//!
//! Owns the guest's two address spaces until they are frozen. Refuses a device for which there is no place. Invariant: each device
//! has addresses, a way to interrupt and ioeventfds of its own, and all devices have the same transport.

use super::{MachineError, descriptor, insert};
use crate::arch::{self, Slot};
use crate::devices::Bus;
use crate::devices::pci::{self, PciBus, PciFunction};
use crate::devices::virtio::event_loop::LoopHandle;
use crate::devices::virtio::mmio::{ACKNOWLEDGE_OFFSET, ACKNOWLEDGED, MmioTransport, NOTIFY_OFFSET};
use crate::devices::virtio::pci::{PORTS, PciTransport, PortWindow, TableWindow, WINDOW_BYTES, Windows};
use crate::devices::virtio::transport::Transport;
use crate::devices::virtio::{Memory, VirtioDevice};
use crate::kvm::Vm;
use crate::vcpu::Buses;
use std::sync::Arc;

/// See the module.
pub(super) struct Places {
    ports: Bus,
    mmio: Bus,
    /// Of devices over MMIO.
    slots: Vec<Slot>,
    /// Of devices on the PCI bus, if that is the transport.
    functions: Option<Vec<Arc<dyn PciFunction>>>,
}

/// The address spaces, frozen.
pub(super) struct Attached {
    pub(super) buses: Buses,
    /// Of devices over MMIO, in the guest's order.
    pub(super) slots: Vec<Slot>,
    pub(super) pci: Option<Arc<PciBus>>,
}

impl Places {
    /// No virtio device yet; at `ports` are the others.
    pub(super) fn new(ports: Bus, pci: bool) -> Self {
        Self { ports, mmio: Bus::new(), slots: Vec::new(), functions: pci.then(Vec::new) }
    }

    /// Gives `device` the next place.
    pub(super) fn add(
        &mut self,
        vm: &Vm,
        name: &str,
        device: Box<dyn VirtioDevice>,
        (memory, workers): (Memory, LoopHandle),
    ) -> Result<Arc<Transport>, MachineError> {
        match self.functions.as_ref().map(Vec::len) {
            Some(number) => self.add_function(vm, name, device, (memory, workers, number)),
            None => self.add_slot(vm, name, device, (memory, workers)),
        }
    }

    fn add_slot(
        &mut self,
        vm: &Vm,
        name: &str,
        device: Box<dyn VirtioDevice>,
        (memory, workers): (Memory, LoopHandle),
    ) -> Result<Arc<Transport>, MachineError> {
        let slot = arch::slot(self.slots.len()).ok_or_else(|| no_place(name))?;
        let line = Box::new(vm.irq_line(slot.irq));
        let shown = MmioTransport::new(device, memory, line, workers).map_err(descriptor(name))?;
        for (queue, kick) in (0_u32..).zip(shown.queue_notifiers()) {
            vm.ioeventfd(kick, slot.address + NOTIFY_OFFSET, Some(queue))?;
        }
        let acknowledgements = shown.acknowledgements();
        vm.ioeventfd(acknowledgements, slot.address + ACKNOWLEDGE_OFFSET, Some(ACKNOWLEDGED))?;
        let transport = Arc::clone(shown.transport());
        insert(&mut self.mmio, (slot.address, arch::MMIO_BYTES), shown, name)?;
        self.slots.push(slot);
        Ok(transport)
    }

    fn add_function(
        &mut self,
        vm: &Vm,
        name: &str,
        device: Box<dyn VirtioDevice>,
        (memory, workers, number): (Memory, LoopHandle, usize),
    ) -> Result<Arc<Transport>, MachineError> {
        let (ports, table) = arch::pci_windows(number).ok_or_else(|| no_place(name))?;
        let messenger = Box::new(vm.messages()?);
        let shown = PciTransport::new(device, memory, Windows { ports, table }, messenger, workers);
        let shown = shown.map_err(descriptor(name))?;
        for (queue, kick) in (0..).zip(shown.queue_notifiers()) {
            vm.port_ioeventfd(kick, u64::from(ports) + PciTransport::notify_port(queue))?;
        }
        insert(&mut self.ports, (ports.into(), PORTS), Arc::new(PortWindow(Arc::clone(&shown))), name)?;
        insert(
            &mut self.mmio,
            (table.into(), WINDOW_BYTES),
            Arc::new(TableWindow(Arc::clone(&shown))),
            name,
        )?;
        let transport = Arc::clone(shown.transport());
        self.functions.get_or_insert_default().push(shown);
        Ok(transport)
    }

    /// Nothing more is added.
    pub(super) fn freeze(mut self) -> Result<Attached, MachineError> {
        let pci = self.functions.map(PciBus::new);
        if let Some(bus) = &pci {
            insert(&mut self.ports, (pci::PORTS, pci::PORT_COUNT), Arc::clone(bus) as _, "the PCI bus")?;
        }
        let buses = Buses { ports: Arc::new(self.ports), mmio: Arc::new(self.mmio) };
        Ok(Attached { buses, slots: self.slots, pci })
    }
}

fn no_place(device: &str) -> MachineError {
    MachineError::NoSlot { device: device.into() }
}
