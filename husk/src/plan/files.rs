//! The files of a machine, put into its plan.
//!
//! Owns the order of drives and volumes as the guest sees them, and what husk decides for each device of its own. Refuses nothing: the
//! plan was checked before. Invariant: each descriptor of [`Places`] is named once.

use super::{ROOT, drive_id, network, pmem, volume_tag};
use crate::options::{Options, VolumeOption};
use husk_protocol::network::Mac;
use husk_protocol::spec::{
    BootProtocol, CacheType, ConsoleDevice, FileRef, IoEngine, RawConsole, RawDrive, RawPart, RawRateLimiter,
    RawSpec, RawTokenBucket, RawVolume,
};

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

/// The `index`-th volume, whose server is behind the file at `place`. Its limits are a second's.
fn raw_volume(index: usize, volume: &VolumeOption, place: u32) -> RawVolume {
    let bucket = |size: u64| RawTokenBucket { size, one_time_burst: None, refill_time: 1000 };
    let (bandwidth, ops) = (volume.bandwidth.map(bucket), volume.ops.map(bucket));
    let limited = bandwidth.is_some() || ops.is_some();
    let rate_limiter = limited.then_some(RawRateLimiter { bandwidth, ops });
    RawVolume { tag: volume_tag(index), socket: FileRef::Fd(place), rate_limiter }
}
