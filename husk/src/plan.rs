//! From what is asked for to what the cell and the guest are told. Pure: what the machine has was looked at before.
//!
//! Owns the rules by which options stand over a configuration file, and the bounds of both. Refuses, by the name under
//! which it was given, every value that cannot be. Invariant: a [`Plan`] names only descriptors that its caller has put
//! into the list, in the order of the list.

mod limits;
mod memory;
mod names;
mod network;
mod pci;
mod pmem;

pub(crate) use memory::{BLOCK_MIB, check_memory, most_memory_mib, wanted_memory_mib};
pub(crate) use names::FileNames;
pub(crate) use network::network;
pub(crate) use pmem::{kept as images, mounts, root as root_image};

use crate::options::{Options, VolumeOption};
use husk_protocol::exec::{Exec, User, WindowSize};
use husk_protocol::network::Mac;
use husk_protocol::spec::{
    BootProtocol, CacheType, ConsoleDevice, FileRef, HugePages, IoEngine, MAX_REFILL_MS, MAX_VOLUMES,
    RawConsole, RawDrive, RawPart, RawRateLimiter, RawSpec, RawTokenBucket, RawVolume,
};
use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;

/// Most vCPUs.
pub(crate) const MOST_VCPUS: u64 = 32;
/// Least guest memory in MiB; no kernel boots in less.
pub(crate) const LEAST_MEMORY_MIB: u64 = 16;
/// Most guest memory in MiB: 512 GiB, which is what the runtime takes.
pub(crate) const MOST_MEMORY_MIB: u64 = 512 << 10;
/// Most virtio devices.
const MOST_DEVICES: usize = 19;
/// Bytes of a drive's id that the guest sees as the disk's serial.
const LONGEST_DRIVE_ID: usize = 20;
/// Longest kernel command line of a configuration; with the devices' declarations it must fit Linux's 2048 bytes.
const LONGEST_BOOT_ARGS: usize = 1024;
/// The root's drive id.
const ROOT: &str = "husk-root";

/// What is asked for cannot be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PlanError {
    /// A number out of bounds.
    #[error("{name} {value} is out of range; {allowed} is allowed")]
    Range {
        /// Option or key.
        name: &'static str,
        /// As given.
        value: String,
        /// What would do.
        allowed: String,
    },
    /// Not as many CPUs as vCPUs.
    #[error("--pin names {cpus} CPUs for {vcpus} vCPUs; as many CPUs as --vcpus are needed")]
    Pin {
        /// Named.
        cpus: usize,
        /// Asked for.
        vcpus: u64,
    },
    /// Not `K=V`.
    #[error("--env {0:?} is not K=V")]
    Env(String),
    /// Not absolute.
    #[error("{name} {value:?} is not an absolute directory without NUL bytes")]
    Directory {
        /// Option.
        name: &'static str,
        /// As given.
        value: String,
    },
    /// Not a place to mount a drive or volume.
    #[error(
        "{name} cannot be mounted at {value:?}; any directory but /, /dev, /proc and /sys, without .., is allowed"
    )]
    MountPoint {
        /// Option.
        name: &'static str,
        /// As given.
        value: String,
    },
    /// An image in memory.
    #[error(transparent)]
    Pmem(#[from] pmem::PmemError),
    /// Nothing to run.
    #[error("no command is given; write it after --, as in: husk run -- echo hi")]
    NoCommand,
    /// A NUL byte.
    #[error("the command's argument {0:?} has a NUL byte")]
    Nul(String),
    /// A drive's id.
    #[error(
        "drive_id {0:?} is not allowed or not unique; letters, digits, - and _, 1 to {LONGEST_DRIVE_ID}, each once"
    )]
    DriveId(String),
    /// A card of the configuration without a tap.
    #[error("config: network-interfaces[{0}].host_dev_name is missing; the name of a tap is needed")]
    NoTap(usize),
    /// A network option that does not fit the others.
    #[error("{0}")]
    Network(String),
    /// Too many drives.
    #[error(
        "{0} devices are asked for (drives, root, network, vsock, entropy, balloon, memory-hotplug, pmem, volumes and
         console); at most \
         {MOST_DEVICES} are possible"
    )]
    Devices(usize),
    /// Kernel and initrd do not fit.
    #[error(
        "memory of {memory} MiB is too small: kernel, initrd and the guest's books of pmem images (1/64 of them) need at \
         least {needs} MiB"
    )]
    Memory {
        /// MiB.
        memory: u64,
        /// MiB.
        needs: u64,
    },
    /// Memory that grows, of pages that are not given back.
    #[error(
        "--memory-max {0}M cannot be had with huge pages, which are not given back; leave out it or --hugepages"
    )]
    MemoryMax(u64),
    /// A key that husk sets itself.
    #[error("config: {key} cannot be given here; {instead}")]
    Key {
        /// Which.
        key: &'static str,
        /// What to do.
        instead: &'static str,
    },
    /// A kernel command line that cannot be one.
    #[error(
        "config: boot-source.boot_args {0:?} is not allowed; at most {LONGEST_BOOT_ARGS} printable ASCII characters"
    )]
    BootArgs(String),
    /// Devices on a bus that the kernel is told not to look for.
    #[error(
        "config: boot-source.boot_args say pci=off, and --pci (machine-config.pci) puts the devices on a PCI bus; leave out one"
    )]
    PciOff,
    /// A bucket of a rate limiter that takes too long to fill.
    #[error(
        "config: {key} {value} is out of range; 0 to {MAX_REFILL_MS} ms, a day, is allowed (0: no limit)"
    )]
    Refill {
        /// Which.
        key: String,
        /// As given.
        value: u64,
    },
    /// A user that cannot be one.
    #[error("--user {0:?} is not NAME, UID, NAME:GROUP or UID:GID")]
    User(String),
}

/// Files that go to the cell, by their place in the list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Places {
    pub(crate) kernel: u32,
    /// Whether it is Husk's own, not one that was named.
    pub(crate) own_kernel: bool,
    pub(crate) initrd: u32,
    /// None if the root is on an image in memory.
    pub(crate) root: Option<u32>,
    /// Drives of the configuration, then those of the options.
    pub(crate) drives: Vec<u32>,
    /// Which part of its file the root is.
    pub(crate) root_part: Option<RawPart>,
    /// Taps of the configuration, then the options' tap or stream, each with its MTU in bytes and an address of its own.
    pub(crate) wires: Vec<(Vec<u32>, u64, Mac)>,
    /// Images in memory, in the order of [`images`] and then of the options.
    pub(crate) pmem: Vec<u32>,
    /// The sockets to the volumes' servers.
    pub(crate) volumes: Vec<u32>,
    pub(crate) exec: u32,
    pub(crate) listener: Option<u32>,
    pub(crate) console: Option<u32>,
}

/// Checks options and configuration and makes them one: the machine without its files.
pub(crate) fn machine(options: &Options, base: &RawSpec) -> Result<RawSpec, PlanError> {
    check_command(options)?;
    check_base(base)?;
    limits::check(base)?;
    let mut spec = base.clone();
    spec.machine_config = memory::machine_config(options, &base.machine_config)?;
    pci::check(&spec)?;
    if !options.pin.is_empty() || options.prefault || options.hugepages {
        let mut placement = spec.placement.unwrap_or_default();
        placement.prefault |= options.prefault || options.hugepages;
        if !options.pin.is_empty() {
            placement.pin.clone_from(&options.pin);
        }
        spec.placement = Some(placement);
    }
    if options.entropy {
        spec.entropy.get_or_insert_default();
    }
    let vcpus = spec.machine_config.vcpu_count;
    let cpus = spec.placement.as_ref().map_or(0, |placement| placement.pin.len());
    if cpus != 0 && u64::try_from(cpus).unwrap_or(u64::MAX) != vcpus {
        return Err(PlanError::Pin { cpus, vcpus });
    }
    let prefault = spec.placement.as_ref().is_some_and(|placement| placement.prefault);
    if spec.machine_config.huge_pages != HugePages::None && !prefault {
        spec.placement.get_or_insert_default().prefault = true;
    }
    if let Some(option) = &options.network {
        network::check(option)?;
        spec.network_interfaces.push(network::card(option));
    }
    network::check_queues(&spec.network_interfaces, vcpus)?;
    memory::check_balloon(&spec)?;
    let machine = spec.machine_config.clone();
    memory::hotplug(options, &machine, &mut spec)?;
    check_volumes(options)?;
    check_drives(options, &spec)?;
    Ok(spec)
}

fn check_command(options: &Options) -> Result<(), PlanError> {
    if options.command.is_empty() {
        return Err(PlanError::NoCommand);
    }
    if let Some(argument) = options.command.iter().find(|argument| argument.as_bytes().contains(&0)) {
        return Err(PlanError::Nul(argument.to_string_lossy().into_owned()));
    }
    for variable in &options.env {
        let bytes = variable.as_bytes();
        let name = bytes.iter().position(|&byte| byte == b'=').unwrap_or(0);
        if name == 0 || bytes.contains(&0) {
            return Err(PlanError::Env(crate::text::line(&variable.to_string_lossy())));
        }
    }
    if let Some(directory) = &options.workdir {
        check_directory("--workdir", directory)?;
    }
    if let Some(user) = &options.user {
        let right =
            !user.is_empty() && user.len() <= 256 && !user.contains('\0') && user.matches(':').count() <= 1;
        if !right || user.starts_with(':') || user.ends_with(':') {
            return Err(PlanError::User(crate::text::line(user)));
        }
    }
    Ok(())
}

fn check_directory(name: &'static str, directory: &str) -> Result<(), PlanError> {
    let right = directory.starts_with('/') && !directory.contains('\0') && directory.len() < 4096;
    if right { Ok(()) } else { Err(PlanError::Directory { name, value: crate::text::line(directory) }) }
}

fn check_base(base: &RawSpec) -> Result<(), PlanError> {
    let key = |given: bool, key, instead| if given { Err(PlanError::Key { key, instead }) } else { Ok(()) };
    key(base.exec.is_some(), "exec", "husk makes the exec channel itself")?;
    key(base.console.is_some(), "console", "use --console")?;
    key(!base.volumes.is_empty(), "volumes", "use --volume")?;
    let root = base.drives.iter().find(|drive| drive.is_root_device);
    key(root.is_some_and(|root| root.part.is_some()), "part of a root device", "a root is all of its file")?;
    if let Some(words) = &base.boot_source.boot_args {
        let right =
            words.len() <= LONGEST_BOOT_ARGS && words.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        if !right {
            return Err(PlanError::BootArgs(crate::text::line(words)));
        }
    }
    let files = [Some(&base.boot_source.kernel_image_path), base.boot_source.initrd_path.as_ref()];
    let drives = base.drives.iter().map(|drive| &drive.path_on_host);
    let socket = base.vsock.as_ref().and_then(|vsock| vsock.uds_path.as_ref());
    let cards = base.network_interfaces.iter();
    if let Some(index) = cards.clone().position(|card| card.tap.is_none() && card.host_dev_name.is_none()) {
        return Err(PlanError::NoTap(index));
    }
    key(cards.clone().any(|card| card.stream.is_some()), "stream", "use --net user")?;
    key(cards.clone().any(|card| !card.tap_queues.is_empty()), "tap_queues", "say how many in queues")?;
    let taps = cards.filter_map(|card| card.tap.as_ref());
    key(taps.clone().any(|tap| matches!(tap, FileRef::Path(_))), "tap", "name the tap in host_dev_name")?;
    let images = base.pmem.iter().map(|image| &image.path_on_host);
    let mut all = files.into_iter().flatten().chain(drives).chain(socket).chain(taps).chain(images);
    key(all.any(|file| matches!(file, FileRef::Fd(_))), "{\"fd\": N}", "give the file's path")
}

fn check_drives(options: &Options, spec: &RawSpec) -> Result<(), PlanError> {
    let mut seen = BTreeSet::from([ROOT.to_owned()]);
    let mounted = (0..options.drives.len()).map(drive_id);
    for id in spec.drives.iter().map(|drive| drive.drive_id.clone()).chain(mounted) {
        let allowed = id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        let right = allowed && (1..=LONGEST_DRIVE_ID).contains(&id.len());
        if !right || !seen.insert(id.clone()) {
            return Err(PlanError::DriveId(crate::text::line(&id)));
        }
    }
    for drive in &options.drives {
        check_mount_point("--drive", &drive.target)?;
    }
    // The root replaces the configuration's root device, if it has one; the vsock device carries the exec channel.
    let data = spec.drives.iter().filter(|drive| !drive.is_root_device).count();
    let others =
        [spec.entropy.is_some(), spec.balloon.is_some(), spec.memory_hotplug.is_some(), options.console];
    let others = others.into_iter().filter(|&there| there).count() + pmem::check(options, spec)?;
    let root = usize::from(root_image(options, spec).is_none());
    let mounted = options.drives.len() + options.volumes.len();
    let devices = root + data + mounted + spec.network_interfaces.len() + 1 + others;
    if devices > MOST_DEVICES { Err(PlanError::Devices(devices)) } else { Ok(()) }
}

fn check_volumes(options: &Options) -> Result<(), PlanError> {
    let count = options.volumes.len();
    if count > MAX_VOLUMES {
        let (value, allowed) = (format!("{count} times"), format!("up to {MAX_VOLUMES} times"));
        return Err(PlanError::Range { name: "--volume", value, allowed });
    }
    options.volumes.iter().try_for_each(|volume| check_mount_point("--volume", &volume.target))
}

/// A place where the guest can mount something: not the root, nor what the guest mounts there itself.
fn check_mount_point(name: &'static str, target: &str) -> Result<(), PlanError> {
    const TAKEN: [&str; 4] = ["", "/dev", "/proc", "/sys"];
    check_directory(name, target)?;
    let plain: Vec<&str> = target.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    let path = plain.iter().fold(String::new(), |path, part| path + "/" + part);
    if TAKEN.contains(&path.as_str()) || plain.contains(&"..") {
        return Err(PlanError::MountPoint { name, value: crate::text::line(target) });
    }
    Ok(())
}

/// Id of the `index`-th drive of the options.
fn drive_id(index: usize) -> String {
    format!("husk-drive{index}")
}

/// Tag of the `index`-th volume.
fn volume_tag(index: usize) -> String {
    format!("husk-volume{index}")
}

/// The `index`-th volume, whose server is behind the file at `place`. Its limits are a second's.
fn raw_volume(index: usize, volume: &VolumeOption, place: u32) -> RawVolume {
    let bucket = |size: u64| RawTokenBucket { size, one_time_burst: None, refill_time: 1000 };
    let (bandwidth, ops) = (volume.bandwidth.map(bucket), volume.ops.map(bucket));
    let limited = bandwidth.is_some() || ops.is_some();
    let rate_limiter = limited.then_some(RawRateLimiter { bandwidth, ops });
    RawVolume { tag: volume_tag(index), socket: FileRef::Fd(place), rate_limiter }
}

/// Ids of the drives and tags of the volumes that the guest mounts for writing.
pub(crate) fn writable_drives(options: &Options) -> Vec<String> {
    let drives = options.drives.iter().enumerate();
    let drives = drives.filter(|(_, drive)| drive.writable).map(|(index, _)| drive_id(index));
    let volumes = options.volumes.iter().enumerate();
    drives.chain(volumes.filter(|(_, volume)| volume.writable).map(|(index, _)| volume_tag(index))).collect()
}

/// The root's drive, if the root is on one. The configuration's root, unless another one was named, has the limits and the
/// engine that it has there.
fn root_drive(spec: &RawSpec, options: &Options, places: &Places) -> Option<RawDrive> {
    let configured = spec.drives.iter().find(|drive| drive.is_root_device);
    let configured = configured.filter(|_| options.rootfs.is_none());
    Some(RawDrive {
        drive_id: ROOT.to_owned(),
        path_on_host: FileRef::Fd(places.root?),
        is_root_device: false,
        is_read_only: true,
        cache_type: CacheType::Unsafe,
        io_engine: configured.map_or_else(IoEngine::default, |drive| drive.io_engine),
        queues: 1,
        rate_limiter: configured.and_then(|drive| drive.rate_limiter),
        part: places.root_part,
    })
}

/// Puts the files into the machine: root first, then the configuration's drives, then those of the options.
pub(crate) fn with_files(mut spec: RawSpec, options: &Options, places: &Places) -> RawSpec {
    // Husk's own kernel takes either entry. By PVH it would look for Xen first: 256 CPUID instructions, each an exit.
    if places.own_kernel && spec.boot_source.boot_protocol == BootProtocol::Auto {
        spec.boot_source.boot_protocol = BootProtocol::Linux64;
    }
    spec.boot_source.kernel_image_path = FileRef::Fd(places.kernel);
    spec.boot_source.initrd_path = Some(FileRef::Fd(places.initrd));
    // The cgroup's, which is husk's business.
    spec.limits = None;
    let root = root_drive(&spec, options, places);
    let mounted = options.drives.iter().enumerate().map(|(index, drive)| RawDrive {
        drive_id: drive_id(index),
        path_on_host: FileRef::default(),
        is_root_device: false,
        is_read_only: !drive.writable,
        // What the guest synced is on the disk, as on a machine of its own.
        cache_type: if drive.writable { CacheType::Writeback } else { CacheType::Unsafe },
        io_engine: drive.engine,
        queues: 1,
        rate_limiter: None,
        part: None,
    });
    let data = std::mem::take(&mut spec.drives).into_iter().filter(|drive| !drive.is_root_device);
    let files = places.drives.iter().map(|&place| FileRef::Fd(place));
    let drives =
        data.chain(mounted).zip(files).map(|(drive, path_on_host)| RawDrive { path_on_host, ..drive });
    spec.drives = root.into_iter().chain(drives).collect();
    spec.pmem = pmem::with_files(options, &spec, &places.pmem);
    network::attach(&mut spec.network_interfaces, &places.wires);
    let volumes = options.volumes.iter().zip(&places.volumes).enumerate();
    spec.volumes = volumes.map(|(index, (volume, &place))| raw_volume(index, volume, place)).collect();
    if let Some(listener) = places.listener {
        let vsock = spec.vsock.get_or_insert(husk_protocol::spec::RawVsock {
            guest_cid: 3,
            uds_path: None,
            vsock_id: None,
        });
        vsock.uds_path = Some(FileRef::Fd(listener));
    }
    spec.exec = Some(husk_protocol::spec::RawExec {
        channel: FileRef::Fd(places.exec),
        port: husk_protocol::exec::PORT,
    });
    // Another kernel may have no driver for a virtio console; by PVH there is no screen for what comes before it.
    let virtio = places.own_kernel && spec.boot_source.boot_protocol == BootProtocol::Linux64;
    let device = if virtio { ConsoleDevice::Virtio } else { ConsoleDevice::Serial };
    spec.console = places.console.map(|place| RawConsole { output: FileRef::Fd(place), device });
    spec
}

/// What the guest executes; `terminal` is the size of ours if the command gets one, `term` its kind.
pub(crate) fn exec(options: &Options, terminal: Option<WindowSize>, term: Option<&str>) -> Exec {
    let bytes = |text: &std::ffi::OsString| text.as_bytes().to_vec();
    let mut env: Vec<Vec<u8>> = options.env.iter().map(bytes).collect();
    if let Some(term) = term.filter(|_| terminal.is_some())
        && !env.iter().any(|variable| variable.starts_with(b"TERM="))
    {
        env.push(format!("TERM={term}").into_bytes());
    }
    Exec {
        argv: options.command.iter().map(bytes).collect(),
        env,
        cwd: options.workdir.clone().unwrap_or_default().into_bytes(),
        user: options.user.clone().map_or(User::Root, User::Spec),
        terminal,
        stdin: options.stdin,
        last: true,
    }
}

#[cfg(test)]
mod tests;
