//! Composition: from a validated spec and open files to a machine at reset.
//!
//! Owns everything that makes up one microVM, and the one `match` from spec to device. Refuses nothing that `spec` and
//! `resources` have let pass but what the host refuses. Invariant: [`Machine::build`] never writes guest memory and runs
//! nothing; what is written into the machine comes after, by `boot` (or, one day, from a snapshot).

use crate::arch::{self, Slot, VcpuSetup};
use crate::confine::{self, ConfineError};
use crate::console::{self, Console};
use crate::devices::state::{Busy, Devices};
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::balloon::{Balloon, Tell};
use crate::devices::virtio::block::{Block, BlockError};
use crate::devices::virtio::console::VirtioConsole;
use crate::devices::virtio::entropy::Entropy;
use crate::devices::virtio::event_loop::{EventLoop, LoopHandle};
use crate::devices::virtio::fs::Fs;
use crate::devices::virtio::gate::Limit;
use crate::devices::virtio::limiter::{RateLimiter, TokenBucket};
use crate::devices::virtio::mem::{Mem, Requested};
use crate::devices::virtio::mmio::NotPaused;
use crate::devices::virtio::mmio::{MmioTransport, NOTIFY_OFFSET};
use crate::devices::virtio::net::{Net, policy::Policy};
use crate::devices::virtio::pmem::Pmem;
use crate::devices::virtio::vsock::{Vsock, VsockAnswers, VsockHost};
use crate::devices::{Bus, BusError, i8042::I8042, serial::Serial};
use crate::kvm::{Hypervisor, KvmError, Vm};
use crate::memory::{self, DeviceMemory, GuestMemory, Hotplug, Image, MemoryError};
use crate::resources::DeviceFiles;
use crate::spec::{
    BalloonSpec, BucketSpec, DeviceSpec, DriveSpec, HotplugSpec, LimiterSpec, MachineSpec, NetworkSpec,
    PmemSpec, VolumeSpec, WireSpec,
};
use crate::state::{LoadError, Section};
use crate::vcpu::{self, Buses, Exits, Vcpu, VcpuHandle};
use husk_seccomp::Role;
use kvm_ioctls::VcpuFd;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;
use vm_memory::GuestAddress;
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
    #[error("{device}: no virtio-mmio slot is left")]
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
    requested: Option<(Requested, Arc<MmioTransport>)>,
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
        files: DeviceFiles,
        Voices { ask, tell }: Voices,
    ) -> Result<Self, MachineError> {
        let Shell { hypervisor, mut vm, vcpus } = shell;
        let Space { memory, images, hotplug, seen } = address_space(&mut vm, &spec, &files.images)?;
        let (event_loop, workers) = EventLoop::new().map_err(descriptor("the device thread"))?;
        let console = Arc::new(Console::new(files.console));
        let reset = event("i8042")?;
        let (ports, serial) = ports(&vm, &console, &reset)?;
        let (ports, devices) = (Arc::new(ports), Devices::new(serial));
        let loops = vec![Loop { role: Role::Device, thread: "husk-device".into(), event_loop }];
        let mut virtio = Virtio::on(&vm, &seen, hotplug.as_ref(), (workers, loops, devices));
        let mut vsock = None;
        let (mut drives, mut wires) = (files.drives.into_iter(), files.wires.into_iter());
        let (mut images, mut volumes) = (images.iter(), files.volumes.into_iter());
        let mut streams = Some((files.exec, files.vsock_listener, ask));
        for device in spec.device_specs() {
            let name = device.name();
            let mut workers = virtio.workers.clone();
            let device: Box<dyn VirtioDevice> = match device {
                DeviceSpec::Drive(drive) => {
                    let file = next_of(&mut drives, &name)?;
                    workers = virtio.drive_loop().map_err(descriptor(&name))?;
                    Box::new(disk(drive, file)?.with_limit(limit(drive.limiter(), &name)?))
                }
                DeviceSpec::Network(it) => Box::new(network_card(it, next_of(&mut wires, &name)?, &name)?),
                DeviceSpec::Vsock(it) => {
                    let host = streams.take().map_or_else(VsockHost::default, |it| socket_host(&spec, it));
                    let (device, answers) = Vsock::new(it.cid().into(), host).map_err(descriptor("vsock"))?;
                    vsock = Some(answers);
                    Box::new(device)
                }
                DeviceSpec::Entropy(it) => Box::new(Entropy::new(limit(it.limiter(), &name)?)),
                DeviceSpec::Console => Box::new(printer(&console).map_err(descriptor(&name))?),
                DeviceSpec::Balloon(it) => Box::new(balloon(it, &tell).map_err(descriptor(&name))?),
                DeviceSpec::Hotplug(it) => Box::new(virtio.memory_device(it, &name)?),
                DeviceSpec::Pmem(_) => Box::new(Pmem::new(next_of(&mut images, &name)?)),
                DeviceSpec::Volume(it) => Box::new(volume(it, volumes.next(), &name)?),
            };
            virtio.add(device, &name, workers)?;
        }
        let Virtio { mmio, slots, loops, devices, requested, .. } = virtio;
        let buses = Buses { ports, mmio: Arc::new(mmio) };
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

    /// Where its virtio-mmio devices are, in the guest's order.
    #[must_use]
    pub fn slots(&self) -> &[Slot] {
        &self.slots
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

    /// Asks the guest to have so many MiB of the memory that comes and goes; nothing happens where it has none.
    pub fn request_memory(&self, mib: u64) {
        if let Some((requested, transport)) = &self.requested {
            transport.change_config(|| requested.set(mib.saturating_mul(1 << 20)));
        }
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

/// The host's side of the socket device: exec channel, listener and the way to ask husk.
fn socket_host(
    spec: &MachineSpec,
    (exec, listener, ask): (Option<OwnedFd>, Option<OwnedFd>, Ask),
) -> VsockHost {
    // Only a vsock with a path on the host has other ports to ask husk for.
    let ask = listener.is_some().then_some(ask);
    VsockHost { exec: spec.exec().map(|exec| exec.port()).zip(exec), listener, ask }
}

fn disk(drive: &DriveSpec, file: File) -> Result<Block, MachineError> {
    let block = Block::of_part(file, drive.part(), drive.id(), drive.is_read_only(), drive.cache());
    let block = block.map_err(|source| MachineError::Drive { id: drive.id().into(), source })?;
    Ok(block.with_queues(drive.queues()))
}

/// What has come along for `device`.
fn next_of<T>(files: &mut impl Iterator<Item = T>, device: &str) -> Result<T, MachineError> {
    files.next().ok_or_else(|| MachineError::NoSlot { device: device.into() })
}

/// What the guest finds at its addresses beside devices' registers.
struct Space {
    /// What is there from the start.
    memory: GuestMemory,
    images: Vec<Image>,
    hotplug: Option<Hotplug>,
    /// All of it, as devices see it.
    seen: DeviceMemory,
}

fn address_space(vm: &mut Vm, spec: &MachineSpec, files: &[(File, u64)]) -> Result<Space, MachineError> {
    let ranges = arch::memory_ranges(spec.memory().bytes());
    let memory = memory::map(&ranges, spec.memory().backing())?;
    let images = map_images(spec, files)?;
    vm.add_memory(&memory)?;
    vm.add_images(&images)?;
    let mut seen = DeviceMemory::new(&memory, &images)?;
    let end = images.last().map_or(0, |image| image.start() + image.bytes());
    let start = GuestAddress(arch::hotplug_start(end.max(arch::images_start(spec.memory().bytes()))));
    let hotplug = spec.hotplug().map(|it| Hotplug::map(it.bytes(), start)).transpose()?;
    if let Some(hotplug) = &hotplug {
        vm.add_hotplug(hotplug)?;
        seen = seen.with_hotplug(hotplug)?;
    }
    Ok(Space { memory, images, hotplug, seen })
}

/// The images in the spec's order, one above the other, above the guest's memory. The files are not needed any more then.
fn map_images(spec: &MachineSpec, files: &[(File, u64)]) -> Result<Vec<Image>, MemoryError> {
    let mut start = arch::images_start(spec.memory().bytes());
    let map = |(image, (file, bytes)): (&PmemSpec, &(File, u64))| {
        let image = Image::map(file, image.id(), *bytes, GuestAddress(start))?;
        start = arch::after(image.start() + image.bytes());
        Ok(image)
    };
    spec.pmem().iter().zip(files).map(map).collect()
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

fn volume(it: &VolumeSpec, socket: Option<OwnedFd>, name: &str) -> Result<Fs, MachineError> {
    let socket = socket.ok_or_else(|| MachineError::NoSlot { device: name.into() })?;
    let fs = Fs::new(it.tag(), socket).map_err(descriptor(name))?;
    Ok(fs.with_limit(limit(it.limiter(), name)?))
}

fn balloon(it: &BalloonSpec, tell: &Tell) -> io::Result<Balloon> {
    let balloon = Balloon::new(it.amount_mib(), it.deflate_on_oom(), it.free_page_reporting());
    match it.statistics() {
        Some(interval) => balloon.with_statistics(interval, Arc::clone(tell)),
        None => Ok(balloon),
    }
}

fn printer(console: &Arc<Console>) -> io::Result<VirtioConsole> {
    VirtioConsole::new(Arc::clone(console), |memory| arch::screen::text(memory.ram()))
}

fn network_card(card: &NetworkSpec, wire: Vec<OwnedFd>, name: &str) -> Result<Net, MachineError> {
    let policy = Policy::new(card.allow().to_vec(), card.addresses().to_vec());
    let mut wire = wire.into_iter();
    let first = next_of(&mut wire, name)?;
    let net = match card.wire() {
        WireSpec::Tap(_) => Net::new(first, wire.collect(), card.mac(), card.mtu(), policy),
        WireSpec::Stream(_) => {
            Net::over_stream(first, card.mac(), card.mtu(), policy).map_err(descriptor(name))?
        }
    };
    Ok(net.with_limits(limit(card.receive_limiter(), name)?, limit(card.transmit_limiter(), name)?))
}

/// The rate limiter that `spec` asks for, full from now on.
fn limit(spec: Option<LimiterSpec>, device: &str) -> Result<Option<Limit>, MachineError> {
    let bucket = |it: BucketSpec| TokenBucket::new(it.size(), it.burst(), it.refill_ms());
    let limiter = spec.map(|it| RateLimiter::new(it.bandwidth().map(bucket), it.operations().map(bucket)));
    limiter.map(|limiter| Limit::new(limiter).map_err(descriptor(device))).transpose()
}

/// Puts virtio devices on the bus, one slot after the other.
struct Virtio<'a> {
    vm: &'a Vm,
    memory: &'a DeviceMemory,
    hotplug: Option<&'a Hotplug>,
    /// The loop that never waits for the host.
    workers: LoopHandle,
    loops: Vec<Loop>,
    mmio: Bus,
    slots: Vec<Slot>,
    /// Of the memory device, until it is on the bus.
    asked: Option<Requested>,
    requested: Option<(Requested, Arc<MmioTransport>)>,
    devices: Devices,
}

impl<'a> Virtio<'a> {
    fn on(
        vm: &'a Vm,
        memory: &'a DeviceMemory,
        hotplug: Option<&'a Hotplug>,
        (workers, loops, devices): (LoopHandle, Vec<Loop>, Devices),
    ) -> Self {
        let (mmio, slots) = (Bus::new(), Vec::new());
        Self { vm, memory, hotplug, workers, loops, mmio, slots, asked: None, requested: None, devices }
    }

    fn memory_device(&mut self, it: &HotplugSpec, name: &str) -> Result<Mem, MachineError> {
        let mem = Mem::new(next_of(&mut self.hotplug.into_iter(), name)?);
        mem.requested().set(it.requested());
        self.asked = Some(mem.requested());
        Ok(mem)
    }

    /// A loop for one drive alone: a disk that hangs stops nobody else.
    fn drive_loop(&mut self) -> io::Result<LoopHandle> {
        let (mut event_loop, drive) = EventLoop::new()?;
        if let Some(hotplug) = self.hotplug {
            event_loop = event_loop.with_reader(hotplug.reader());
        }
        // The first loop is the devices'.
        let thread = format!("husk-blk{}", self.loops.len() - 1);
        self.loops.push(Loop { role: Role::Block, thread, event_loop });
        self.workers.watching(drive)
    }

    fn add(
        &mut self,
        device: Box<dyn VirtioDevice>,
        name: &str,
        workers: LoopHandle,
    ) -> Result<(), MachineError> {
        let slot =
            arch::slot(self.slots.len()).ok_or_else(|| MachineError::NoSlot { device: name.into() })?;
        let line = event(name)?;
        self.vm.irqfd(&line, slot.irq)?;
        let transport = MmioTransport::new(device, self.memory.clone(), line, workers);
        let transport = transport.map_err(descriptor(name))?;
        for (queue, kick) in (0_u32..).zip(transport.queue_notifiers()) {
            self.vm.ioeventfd(kick, slot.address + NOTIFY_OFFSET, Some(queue))?;
        }
        self.devices.add(name, Arc::clone(&transport));
        insert(&mut self.mmio, (slot.address, arch::MMIO_BYTES), transport.clone(), name)?;
        self.slots.push(slot);
        if let Some(asked) = self.asked.take() {
            self.requested = Some((asked, transport));
        }
        Ok(())
    }
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
