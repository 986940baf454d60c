//! The machine as it is asked for, found sensible.
//!
//! Owns every rule that needs nothing but the request itself; `resources` checks what needs the files. Refuses by key, value
//! and what is allowed. Invariant: a [`MachineSpec`] exists only through `TryFrom<RawSpec>`, so what its accessors return is
//! within the bounds that they state.

mod drive;
mod error;
mod hotplug;
mod limits;
mod name;
mod network;
mod parts;
mod pmem;
mod volume;

pub use drive::DriveSpec;
pub use error::SpecError;
pub use hotplug::HotplugSpec;
pub use limits::{BucketSpec, LimiterSpec};
pub use network::{NetworkSpec, WireSpec};
pub use parts::{BalloonSpec, BootSpec, EntropySpec, ExecSpec, MemorySpec, PlacementSpec, VsockSpec};
pub use pmem::PmemSpec;
pub use volume::VolumeSpec;

use husk_protocol::spec::{ConsoleDevice, FileRef, RawConsole, RawDrive, RawSpec};
use std::collections::HashSet;

/// Most vCPUs: what the MP tables' place holds.
pub const MAX_VCPUS: u8 = 32;
/// Least memory in MiB.
pub const MIN_MEMORY_MIB: u64 = 16;
/// Most memory in MiB (512 GiB).
pub const MAX_MEMORY_MIB: u64 = 512 << 10;
/// Longest `drive_id`, `iface_id` and id of an image in memory, in bytes.
pub const MAX_DRIVE_ID: usize = 64;
/// Bytes of a `drive_id` that the guest reads as the disk's serial number (virtio 1.2, 5.2.6.1); distinct in a machine.
pub const SERIAL_BYTES: usize = 20;
/// The guest's context id if the spec has no vsock but an exec channel needs one.
pub const DEFAULT_CID: u32 = 3;

/// One virtio device.
#[derive(Debug, Clone, Copy)]
pub enum DeviceSpec<'a> {
    /// A disk.
    Drive(&'a DriveSpec),
    /// A network card.
    Network(&'a NetworkSpec),
    /// The socket device.
    Vsock(&'a VsockSpec),
    /// The entropy device.
    Entropy(&'a EntropySpec),
    /// The balloon.
    Balloon(&'a BalloonSpec),
    /// Memory that comes and goes.
    Hotplug(&'a HotplugSpec),
    /// An image in memory.
    Pmem(&'a PmemSpec),
    /// A directory of the host.
    Volume(&'a VolumeSpec),
    /// The virtio console.
    Console,
}

impl DeviceSpec<'_> {
    /// What errors call it.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Drive(drive) => format!("drive {:?}", drive.id()),
            Self::Network(card) => format!("network interface {:?}", card.id()),
            Self::Vsock(_) => "vsock".to_owned(),
            Self::Entropy(_) => "entropy".to_owned(),
            Self::Balloon(_) => "balloon".to_owned(),
            Self::Hotplug(_) => "memory-hotplug".to_owned(),
            Self::Pmem(image) => format!("pmem {:?}", image.id()),
            Self::Volume(volume) => format!("volume {:?}", volume.tag()),
            Self::Console => "console".to_owned(),
        }
    }
}

/// A validated machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineSpec {
    vcpus: u8,
    memory: MemorySpec,
    boot: BootSpec,
    drives: Vec<DriveSpec>,
    networks: Vec<NetworkSpec>,
    vsock: Option<VsockSpec>,
    entropy: Option<EntropySpec>,
    balloon: Option<BalloonSpec>,
    hotplug: Option<HotplugSpec>,
    pmem: Vec<PmemSpec>,
    volumes: Vec<VolumeSpec>,
    placement: PlacementSpec,
    exec: Option<ExecSpec>,
    console: Option<RawConsole>,
    pci: bool,
}

impl MachineSpec {
    /// Number of vCPUs, 1 to [`MAX_VCPUS`].
    #[must_use]
    pub fn vcpus(&self) -> u8 {
        self.vcpus
    }

    /// Guest memory.
    #[must_use]
    pub fn memory(&self) -> &MemorySpec {
        &self.memory
    }

    /// What is booted.
    #[must_use]
    pub fn boot(&self) -> &BootSpec {
        &self.boot
    }

    /// Block devices in the guest's order, with ids that differ in their first [`SERIAL_BYTES`].
    #[must_use]
    pub fn drives(&self) -> &[DriveSpec] {
        &self.drives
    }

    /// Network cards in the guest's order, with ids and addresses of their own.
    #[must_use]
    pub fn networks(&self) -> &[NetworkSpec] {
        &self.networks
    }

    /// Images in memory in the guest's order, with ids of their own.
    #[must_use]
    pub fn pmem(&self) -> &[PmemSpec] {
        &self.pmem
    }

    /// Memory that is plugged in while the guest runs.
    #[must_use]
    pub fn hotplug(&self) -> Option<&HotplugSpec> {
        self.hotplug.as_ref()
    }

    /// Directories of the host in the guest's order, with tags of their own.
    #[must_use]
    pub fn volumes(&self) -> &[VolumeSpec] {
        &self.volumes
    }

    /// The vsock device; there if asked for, or if [`MachineSpec::exec`] is.
    #[must_use]
    pub fn vsock(&self) -> Option<&VsockSpec> {
        self.vsock.as_ref()
    }

    /// Where vCPUs and memory go.
    #[must_use]
    pub fn placement(&self) -> &PlacementSpec {
        &self.placement
    }

    /// The exec channel.
    #[must_use]
    pub fn exec(&self) -> Option<&ExecSpec> {
        self.exec.as_ref()
    }

    /// Where what the guest prints goes beside the ring; the console is off without it.
    #[must_use]
    pub fn console(&self) -> Option<&FileRef> {
        self.console.as_ref().map(|console| &console.output)
    }

    /// What the kernel's messages come through; `None`: the console is off.
    #[must_use]
    pub fn console_device(&self) -> Option<ConsoleDevice> {
        self.console.as_ref().map(|console| console.device)
    }

    /// Whether the guest finds its virtio devices on a PCI bus, not over MMIO.
    #[must_use]
    pub fn pci(&self) -> bool {
        self.pci
    }

    /// Its virtio devices in the guest's order: drives, network cards, vsock, entropy, balloon, memory, images,
    /// volumes, console.
    pub fn device_specs(&self) -> impl Iterator<Item = DeviceSpec<'_>> {
        let drives = self.drives.iter().map(DeviceSpec::Drive);
        let networks = self.networks.iter().map(DeviceSpec::Network);
        let vsock = self.vsock.iter().map(DeviceSpec::Vsock);
        let entropy = self.entropy.iter().map(DeviceSpec::Entropy);
        let balloon = self.balloon.iter().map(DeviceSpec::Balloon);
        let images = self.pmem.iter().map(DeviceSpec::Pmem);
        let volumes = self.volumes.iter().map(DeviceSpec::Volume);
        let console = (self.console_device() == Some(ConsoleDevice::Virtio)).then_some(DeviceSpec::Console);
        let last = self.hotplug.iter().map(DeviceSpec::Hotplug).chain(images).chain(volumes).chain(console);
        drives.chain(networks).chain(vsock).chain(entropy).chain(balloon).chain(last)
    }
}

impl TryFrom<RawSpec> for MachineSpec {
    type Error = SpecError;

    fn try_from(raw: RawSpec) -> Result<Self, SpecError> {
        let vcpus = vcpus(raw.machine_config.vcpu_count)?;
        if raw.machine_config.smt {
            return Err(SpecError::not_yet("machine-config.smt", "vCPUs are cores of one thread"));
        }
        if raw.machine_config.track_dirty_pages {
            return Err(SpecError::not_yet("machine-config.track_dirty_pages", "there are no snapshots yet"));
        }
        if raw.limits.is_some() {
            return Err(SpecError::malformed(
                "limits",
                "{…}",
                "nothing; husk itself writes them to the cgroup",
            ));
        }
        let placement = PlacementSpec::new(raw.placement, raw.machine_config.huge_pages, vcpus)?;
        let exec = raw.exec.map(ExecSpec::new).transpose()?;
        let memory = MemorySpec::new(raw.machine_config.mem_size_mib, raw.machine_config.huge_pages)?;
        let drives = drives(raw.drives, vcpus)?;
        let spec = Self {
            vcpus,
            memory,
            boot: BootSpec::new(raw.boot_source)?,
            pmem: pmem::all(raw.pmem, drives.iter().any(DriveSpec::is_root))?,
            drives,
            networks: network::all(raw.network_interfaces, vcpus)?,
            vsock: VsockSpec::new(raw.vsock, exec.is_some())?,
            entropy: raw.entropy.map(EntropySpec::new).transpose()?,
            balloon: raw.balloon.map(|balloon| BalloonSpec::new(&balloon, memory)).transpose()?,
            hotplug: raw.memory_hotplug.map(|hotplug| HotplugSpec::new(&hotplug, memory)).transpose()?,
            volumes: volume::all(raw.volumes)?,
            placement,
            exec,
            console: raw.console,
            pci: raw.machine_config.pci,
        };
        spec.boot.check_pci(spec.pci)?;
        let allowed = crate::arch::MAX_SLOTS;
        let first = spec.device_specs().nth(allowed).map(|device| device.name());
        match first {
            Some(first) => {
                Err(SpecError::TooManyDevices { wanted: spec.device_specs().count(), allowed, first })
            }
            None => Ok(spec),
        }
    }
}

fn vcpus(count: u64) -> Result<u8, SpecError> {
    u8::try_from(count).ok().filter(|count| (1..=MAX_VCPUS).contains(count)).ok_or_else(|| {
        SpecError::OutOfRange {
            key: "machine-config.vcpu_count".into(),
            value: count,
            allowed: format!("1 to {MAX_VCPUS}"),
        }
    })
}

fn drives(raw: Vec<RawDrive>, vcpus: u8) -> Result<Vec<DriveSpec>, SpecError> {
    let mut ids = HashSet::with_capacity(raw.len());
    let mut root = None;
    let mut drives = Vec::with_capacity(raw.len());
    for (index, drive) in raw.into_iter().enumerate() {
        let drive = DriveSpec::new(drive, index, vcpus)?;
        let serial = drive.id().get(..SERIAL_BYTES).unwrap_or(drive.id());
        if !ids.insert(serial.to_owned()) {
            return Err(SpecError::Duplicate {
                key: format!("drives[{index}].drive_id"),
                value: drive.id().into(),
            });
        }
        if drive.is_root() && root.replace(index).is_some() {
            return Err(SpecError::Duplicate {
                key: format!("drives[{index}].is_root_device"),
                value: "true".into(),
            });
        }
        drives.push(drive);
    }
    Ok(drives)
}

#[cfg(test)]
mod tests;
