//! Composition: from a validated spec and open files to a machine at reset.
//!
//! Owns everything that makes up one microVM (its addresses in `space`, its devices in `virtio` and `drives`, their places in `attach`). Refuses nothing that `spec` and
//! `resources` have let pass but what the host refuses. Invariant: [`Machine::build`] never writes guest memory and runs
//! nothing; what is written into the machine comes after, by `boot` (or, one day, from a snapshot).

mod attach;
mod drives;
mod space;
mod virtio;

pub use drives::Drives;

use crate::arch::{self, Found, Slot, VcpuSetup};
use crate::confine::{self, ConfineError};
use crate::console::{self, Console};
use crate::devices::state::{Busy, Devices};
use crate::devices::virtio::balloon::Tell;
use crate::devices::virtio::block::BlockError;
use crate::devices::virtio::event_loop::EventLoop;
use crate::devices::virtio::mem::Requested;
use crate::devices::virtio::transport::{NotPaused, Transport};
use crate::devices::virtio::vsock::VsockAnswers;
use crate::devices::{Bus, BusError, i8042::I8042, serial::Serial};
use crate::kvm::{Hypervisor, KvmError, Vm};
use crate::memory::{self, GuestMemory, Hotplug, MemoryError};
use crate::resources::DeviceFiles;
use crate::spec::{HotplugSpec, MachineSpec};
use crate::state::{LoadError, Section};
use crate::vcpu::{self, Buses, Exits, Vcpu, VcpuHandle};
use attach::{Attached, Places};
use husk_seccomp::Role;
use kvm_ioctls::VcpuFd;
use space::{Space, address_space};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;
use virtio::Virtio;
use vmm_sys_util::eventfd::EventFd;

/// Asks husk for a stream to a host port: (request, port); false if it cannot be asked now.
pub type Ask = Box<dyn Fn(u32, u32) -> bool + Send>;

/// The devices' ways to husk.
pub struct Voices {
    /// The vsock device's.
    pub ask: Ask,
    /// The balloon's.
    pub tell: Tell,
}

/// Ports of the serial port's registers.
const SERIAL_PORTS: u64 = 8;
/// Ports of the keyboard controller.
const I8042_PORTS: u64 = 5;

/// A machine cannot be composed.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// KVM refused.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// Guest memory cannot be had.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A device's addresses clash.
    #[error("{device}: {source}")]
    Bus {
        /// Which device.
        device: String,
        /// Why.
        source: BusError,
    },
    /// A drive's file cannot be used.
    #[error("drive {id:?}: {source}")]
    Drive {
        /// Its id.
        id: String,
        /// Why.
        source: BlockError,
    },
    /// A descriptor that a device needs cannot be made.
    #[error("{device}: {source} (the limit of open files)")]
    Descriptor {
        /// Which device.
        device: String,
        /// What the host said.
        source: io::Error,
    },
    /// There is no place for a device.
    #[error("{device}: no place for another virtio device is left")]
    NoSlot {
        /// Which device.
        device: String,
    },
}

/// The part of a machine that depends on nothing but the number of its vCPUs.
#[derive(Debug)]
pub struct Shell {
    hypervisor: Hypervisor,
    vm: Vm,
    vcpus: Vec<VcpuFd>,
}

impl Shell {
    /// A virtual machine with `vcpus` vCPUs, each with its CPUID.
    ///
    /// # Errors
    /// What KVM says.
    pub fn new(kvm: OwnedFd, vcpus: u8) -> Result<Self, KvmError> {
        let hypervisor = Hypervisor::new(kvm)?;
        let vm = hypervisor.create_vm()?;
        let setup = VcpuSetup::new(&hypervisor, vcpus)?;
        let fds = (0..vcpus).map(|index| vcpu::create(&vm, &setup, index)).collect::<Result<_, _>>()?;
        Ok(Self { hypervisor, vm, vcpus: fds })
    }
}

/// An event loop that has no thread yet.
struct Loop {
    role: Role,
    thread: String,
    event_loop: EventLoop,
}

/// A microVM.
pub struct Machine {
    spec: MachineSpec,
    memory: GuestMemory,
    slots: Vec<Slot>,
    devices: Devices,
    vcpus: Vec<Vcpu>,
    handles: Vec<VcpuHandle>,
    loops: Vec<Loop>,
    exits: Arc<Exits>,
    reset: EventFd,
    console: Arc<Console>,
    vsock: Option<VsockAnswers>,
    /// What is asked for of the memory that comes and goes, and who tells the guest.
    requested: Option<(Requested, Arc<Transport>)>,
    drives: Drives,
    /// Kept for as long as the machine: closing it would end it.
    _vm: Vm,
    _hypervisor: Hypervisor,
}

impl Machine {
    /// Composes the machine that `spec` describes, at reset.
    ///
    /// # Errors
    /// See [`MachineError`].
    pub fn build(
        shell: Shell,
        spec: MachineSpec,
        mut files: DeviceFiles,
        voices: Voices,
    ) -> Result<Self, MachineError> {
        let Shell { hypervisor, mut vm, vcpus } = shell;
        let Space { memory, images, hotplug, seen } = address_space(&mut vm, &spec, &files.images)?;
        let (event_loop, workers) = EventLoop::new().map_err(descriptor("the device thread"))?;
        let console = Arc::new(Console::new(files.console.take()));
        let reset = event("i8042")?;
        let (ports, serial) = ports(&vm, &console, &reset)?;
        let (places, devices) = (Places::new(ports, spec.pci()), Devices::new(serial));
        let loops = vec![Loop { role: Role::Device, thread: "husk-device".into(), event_loop }];
        let drives = Drives::new().map_err(descriptor("drives"))?;
        let mut virtio = Virtio::on(&vm, &seen, hotplug.as_ref(), (places, workers, loops, devices, drives));
        let vsock = virtio.add_all(&spec, files, &images, (voices, &console))?;
        let Virtio { places, loops, mut devices, drives, requested, .. } = virtio;
        let Attached { buses, slots, pci } = places.freeze()?;
        devices.add_bus(pci);
        let exits = Arc::new(Exits::new().map_err(descriptor("vCPUs"))?);
        let (vcpus, handles) = make_vcpus(vcpus, &buses, &exits, hotplug.as_ref());
        Ok(Self {
            spec,
            memory,
            slots,
            devices,
            vcpus,
            handles,
            loops,
            exits,
            reset,
            console,
            vsock,
            requested,
            drives,
            _vm: vm,
            _hypervisor: hypervisor,
        })
    }

    /// What it was built from.
    #[must_use]
    pub fn spec(&self) -> &MachineSpec {
        &self.spec
    }

    /// Its memory.
    #[must_use]
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// How the guest finds its virtio devices.
    #[must_use]
    pub fn found(&self) -> Found<'_> {
        if self.spec.pci() { Found::Pci } else { Found::Mmio(&self.slots) }
    }

    /// The first vCPU, until the threads are started.
    #[must_use]
    pub fn first_vcpu(&self) -> Option<&VcpuFd> {
        self.vcpus.first().map(Vcpu::fd)
    }

    /// What the vCPUs report.
    #[must_use]
    pub fn exits(&self) -> &Exits {
        &self.exits
    }

    /// Readable when the guest asked for a reset through the keyboard controller.
    #[must_use]
    pub fn reset(&self) -> &EventFd {
        &self.reset
    }

    /// What the guest printed last, printable: on its consoles, or on its screen if there it said nothing.
    #[must_use]
    pub fn last_lines(&self) -> Vec<String> {
        let printed = self.console.tail();
        if printed.is_empty() { console::last_lines(&arch::screen::text(&self.memory)) } else { printed }
    }

    /// Hands husk's answer about a guest's connection to the vsock device.
    pub fn answer_vsock(&self, request: u32, stream: Option<OwnedFd>) {
        if let Some(vsock) = &self.vsock {
            vsock.connected(request, stream);
        }
    }

    /// Asks the guest to have so many MiB of the memory that comes and goes.
    ///
    /// # Errors
    /// It has none, or not so much, or it is no whole number of blocks: in a line.
    pub fn request_memory(&self, mib: u64) -> Result<(), String> {
        let has = self.spec.hotplug().map_or(0, HotplugSpec::bytes) >> 20;
        let Some((requested, transport)) = self.requested.as_ref().filter(|_| mib <= has) else {
            return Err(format!(
                "memory: requested_size_mib {mib}: 0 to {has} is allowed, the total_size_mib"
            ));
        };
        let block = memory::BLOCK >> 20;
        if !mib.is_multiple_of(block) {
            return Err(format!("memory: requested_size_mib {mib}: a multiple of {block} is allowed"));
        }
        transport.change_config(|| requested.set(mib << 20));
        Ok(())
    }

    /// Its drives, for who changes them.
    #[must_use]
    pub fn drives(&self) -> &Drives {
        &self.drives
    }

    /// Makes the device thread, a thread a drive and the vCPU threads, each confined; the vCPUs wait. Once.
    ///
    /// # Errors
    /// See [`ConfineError`].
    pub fn start_threads(&mut self) -> Result<(), ConfineError> {
        for Loop { role, thread, event_loop } in self.loops.drain(..) {
            confine::spawn(role, &thread, None, move |_| {
                // It ends only if epoll fails, which would be a bug: the panic hook reports it.
                let ended = event_loop.run();
                assert!(ended.is_ok(), "the {} thread's event loop: {ended:?}", role.name());
            })?;
        }
        for (index, vcpu) in (0_u8..).zip(self.vcpus.drain(..)) {
            let name = format!("husk-vcpu{index}");
            confine::spawn(Role::Vcpu, &name, self.spec.placement().cpu(index), move |thread| {
                vcpu.run(thread)
            })?;
        }
        Ok(())
    }

    /// Has every device stand still by `deadline`, with nothing in flight and nothing lost. The vCPUs are stopped already.
    ///
    /// # Errors
    /// One of them waits for the host; then all go on.
    pub fn pause_devices(&self, deadline: Instant) -> Result<(), Busy> {
        self.devices.pause(deadline)
    }

    /// Lets every device go on.
    pub fn resume_devices(&self) {
        self.devices.resume();
    }

    /// What the guest has left in the devices.
    ///
    /// # Errors
    /// They are not paused.
    pub fn save_devices(&self) -> Result<Vec<Section>, NotPaused> {
        self.devices.save()
    }

    /// Takes over what a machine of the same spec has saved; its memory has to be there already. The devices are paused then.
    ///
    /// # Errors
    /// See [`LoadError`]; then the machine is of no use.
    pub fn load_devices(&self, sections: &[Section]) -> Result<(), LoadError> {
        self.devices.load(sections)
    }

    /// Lets the vCPUs run.
    pub fn resume(&self) {
        self.handles.iter().for_each(VcpuHandle::run);
    }
}

/// What has come along for `device`.
fn next_of<T>(files: &mut impl Iterator<Item = T>, device: &str) -> Result<T, MachineError> {
    files.next().ok_or_else(|| MachineError::NoSlot { device: device.into() })
}

fn make_vcpus(
    fds: Vec<VcpuFd>,
    buses: &Buses,
    exits: &Arc<Exits>,
    hotplug: Option<&Hotplug>,
) -> (Vec<Vcpu>, Vec<VcpuHandle>) {
    let make = |(index, fd)| {
        let (vcpu, handle) = Vcpu::new(fd, index, buses.clone(), Arc::clone(exits));
        (vcpu.with_hotplug(hotplug.cloned()), handle)
    };
    (0..).zip(fds).map(make).unzip()
}

/// The I/O ports: serial port and keyboard controller.
fn ports(vm: &Vm, console: &Arc<Console>, reset: &EventFd) -> Result<(Bus, Arc<Serial>), MachineError> {
    let line = event("serial")?;
    vm.irqfd(&line, arch::SERIAL_IRQ)?;
    let mut ports = Bus::new();
    let serial = Arc::new(Serial::new(line, Arc::clone(console)));
    insert(&mut ports, (arch::SERIAL_PORT, SERIAL_PORTS), Arc::clone(&serial) as _, "serial")?;
    let reset = reset.try_clone().map_err(descriptor("i8042"))?;
    insert(&mut ports, (arch::I8042_PORT, I8042_PORTS), Arc::new(I8042::new(reset)), "i8042")?;
    Ok((ports, serial))
}

fn insert(
    bus: &mut Bus,
    (base, length): (u64, u64),
    device: Arc<dyn crate::devices::BusDevice>,
    name: &str,
) -> Result<(), MachineError> {
    bus.insert(base, length, device).map_err(|source| MachineError::Bus { device: name.into(), source })
}

fn event(device: &str) -> Result<EventFd, MachineError> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(descriptor(device))
}

fn descriptor(device: &str) -> impl FnOnce(io::Error) -> MachineError + '_ {
    move |source| MachineError::Descriptor { device: device.to_owned(), source }
}
