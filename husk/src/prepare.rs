//! Looks at the machine and opens everything that the sandbox needs, before anything is started.
//!
//! Owns the open files until they have gone to the cell. Refuses what cannot be, in the order: what was asked for, the
//! machine, the files. Invariant: the N-th file of [`Prepared::files`] is what the spec calls `{"fd": N}`, and the first
//! is /dev/kvm.

use crate::assets::{AssetError, Assets};
use crate::config::{self, ConfigError};
use crate::doctor::{self, Refusal};
use crate::host::{self, HostError};
use crate::image::{Access, Image, ImageError};
use crate::limits::{Asked, OrderError};
use crate::memfile::{self, MemoryFileError};
use crate::options::Options;
use crate::pack::{PackError, Packer, usual_cache};
use crate::passt::{self, PasstError};
use crate::plan::{self, FileNames, Places, PlanError};
use crate::signals::Signals;
use crate::tap::{self, TapError};
use crate::volume::{Volume, VolumeError};
use crate::vsock::{Listener, VsockError};
use husk_protocol::control::Fault;
use husk_protocol::exec::{Mounts, Network};
use husk_protocol::network::Mac;
use husk_protocol::spec::{FileRef, HugePages, RawPart, RawSpec};
use rustix::fs::OFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The sandbox cannot be prepared.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PrepareError {
    /// What is asked for makes no sense.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The configuration file.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The machine.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The machine keeps strangers apart badly, and that matters.
    #[error(transparent)]
    Unsafe(#[from] Refusal),
    /// A file of Husk's own.
    #[error(transparent)]
    Asset(#[from] AssetError),
    /// A file of the operator's.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A directory as the root.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// A file in memory.
    #[error(transparent)]
    Memory(#[from] MemoryFileError),
    /// A tap.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The network's passt.
    #[error(transparent)]
    Passt(#[from] PasstError),
    /// A directory of the host.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The vsock socket.
    #[error(transparent)]
    Vsock(#[from] VsockError),
    /// A limit of the cgroup.
    #[error(transparent)]
    Limit(#[from] OrderError),
    /// No descriptors.
    #[error("no pipe, socket or random number can be had: {0}")]
    Descriptors(std::io::Error),
}

impl PrepareError {
    /// Who is at fault.
    #[must_use]
    pub(crate) fn fault(&self) -> Fault {
        match self {
            Self::Plan(_) | Self::Config(_) | Self::Vsock(_) | Self::Volume(_) => Fault::Operator,
            Self::Host(error) => error.fault(),
            Self::Tap(error) => error.fault(),
            Self::Limit(error) => error.fault(),
            Self::Image(error) => error.fault(),
            Self::Pack(error) => error.fault(),
            Self::Unsafe(_) | Self::Asset(_) | Self::Memory(_) | Self::Passt(_) | Self::Descriptors(_) => {
                Fault::Host
            }
        }
    }
}

impl From<rustix::io::Errno> for PrepareError {
    fn from(errno: rustix::io::Errno) -> Self {
        Self::Descriptors(errno.into())
    }
}

/// Everything opened and planned.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) spec: RawSpec,
    pub(crate) files: Vec<OwnedFd>,
    pub(crate) jailer: PathBuf,
    pub(crate) runtime: PathBuf,
    /// husk's end of the exec channel.
    pub(crate) channel: OwnedFd,
    /// Read end of the guest's console.
    pub(crate) console: Option<OwnedFd>,
    pub(crate) listener: Option<Listener>,
    /// The directories of the host, and husk's ends to give to their servers.
    pub(crate) volumes: Vec<Volume>,
    /// The program that serves them, if there are any.
    pub(crate) volume_server: Option<PathBuf>,
    /// What is the network in user mode.
    pub(crate) passt: Option<passt::Parts>,
    /// Path of the vsock socket.
    pub(crate) vsock: Option<PathBuf>,
    pub(crate) told: Told,
    pub(crate) names: FileNames,
    /// What the cgroup is to hold the sandbox to, beside the usual.
    pub(crate) limits: Asked,
}

/// What the guest is told of its devices.
#[derive(Debug)]
pub(crate) struct Told {
    /// What it mounts.
    pub(crate) mounts: Mounts,
    /// What it does with its network card.
    pub(crate) network: Option<Network>,
}

/// How preparing may go about it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Manner<'a> {
    /// Ends packing early.
    pub(crate) signals: Option<&'a Signals>,
    /// Says on standard error what takes long.
    pub(crate) talkative: bool,
}

/// The places of a card's files, its MTU in bytes and its Ethernet address.
type Wire = (Vec<u32>, u64, Mac);

/// Files that go to the cell.
#[derive(Debug, Default)]
struct Files(Vec<OwnedFd>);

impl Files {
    fn add(&mut self, file: impl Into<OwnedFd>) -> u32 {
        self.0.push(file.into());
        u32::try_from(self.0.len() - 1).unwrap_or(u32::MAX)
    }
}

/// Prepares what `options` ask for.
pub(crate) fn prepare(options: &Options, manner: Manner<'_>) -> Result<Prepared, PrepareError> {
    let user = options.network.as_ref().filter(|network| network.tap.is_none()).map(passt::with_defaults);
    match user {
        Some(network) => open_all(&Options { network: Some(network), ..options.clone() }, manner),
        None => open_all(options, manner),
    }
}

/// Opens what `options`, which leave nothing open, ask for.
fn open_all(options: &Options, manner: Manner<'_>) -> Result<Prepared, PrepareError> {
    let base = options.config.as_deref().map(config::read).transpose()?.unwrap_or_default();
    let spec = plan::machine(options, &base)?;
    let mut files = Files::default();
    files.add(open_kvm(options)?);
    check_host(&spec)?;
    let assets = Assets::usual();
    let (jailer, runtime) = (assets.jailer()?, assets.runtime()?);

    let (kernel, own_kernel) = open_kernel(options, &base, &assets)?;
    let (initrd, initrd_size) = open_initrd(options, &base, &assets)?;
    let (pmem, pmem_size) = open_images(options, &base, &mut files)?;
    let memory = spec.machine_config.mem_size_mib;
    plan::check_memory(memory, kernel.check_kernel()?, initrd_size, pmem_size)?;
    let (kernel, initrd) = (files.add(kernel.file), files.add(initrd));
    let on_image = plan::root_image(options, &base).is_some();
    let root = (!on_image).then(|| open_root(options, &base, manner)).transpose()?;
    let (root, root_part) = root.map(|(file, part)| (files.add(file), part)).unzip();
    let drives = open_drives(options, &base, &mut files)?;

    let volume_server = (!options.volumes.is_empty()).then(|| assets.volume_server()).transpose()?;
    let (volumes, sockets) = open_volumes(options, &mut files)?;

    let (wires, passt) = open_network(&spec, options, &mut files)?;
    // The options' card is the last.
    let network = options.network.as_ref().zip(wires.last());
    let network = network.map(|(option, &(_, mtu, mac))| plan::network(option, mac, mtu));
    let (channel, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    let exec = files.add(theirs);
    let vsock = options.vsock.clone().or_else(|| configured_socket(&base));
    let (listener, listening) = vsock.as_deref().map(|path| listen(path, &mut files)).transpose()?.unzip();
    let (console, output) = options.console.then(|| open_console(&mut files)).transpose()?.unzip();
    let places = Places {
        kernel,
        own_kernel,
        initrd,
        root,
        root_part: root_part.flatten(),
        drives,
        wires,
        pmem,
        volumes: sockets,
        exec,
        listener: listening,
        console: output,
    };
    let told = Told { mounts: plan::mounts(options, &spec), network };
    let spec = plan::with_files(spec, options, &places);
    let limits = Asked::of(options, &base, &spec, &files.0)?;
    Ok(Prepared {
        spec,
        files: files.0,
        jailer,
        runtime,
        channel,
        console,
        listener,
        volumes,
        volume_server,
        passt,
        vsock,
        told,
        names: FileNames::of(options, &base),
        limits,
    })
}

/// /dev/kvm, if this caller and this machine may run sandboxes.
fn open_kvm(options: &Options) -> Result<File, PrepareError> {
    let kvm = host::open_kvm()?;
    if options.strict {
        doctor::refuse_if_unsafe()?;
    }
    Ok(kvm)
}

/// vsock's socket on the host, and the place of the descriptor that the cell gets of it.
fn listen(path: &Path, files: &mut Files) -> Result<(Listener, u32), PrepareError> {
    let listener = Listener::new(path)?;
    let copy = listener.as_fd().try_clone_to_owned().map_err(PrepareError::Descriptors)?;
    Ok((listener, files.add(copy)))
}

/// The read end of the guest's console, and the place of the other.
fn open_console(files: &mut Files) -> Result<(OwnedFd, u32), PrepareError> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    // A console that nobody drains loses output; it must not stop a vCPU.
    rustix::fs::fcntl_setfl(&writer, OFlags::NONBLOCK)?;
    rustix::fs::fcntl_setfl(&reader, OFlags::NONBLOCK)?;
    Ok((reader, files.add(writer)))
}

/// Each directory with the server's end of its socket; the other ends' places.
fn open_volumes(options: &Options, files: &mut Files) -> Result<(Vec<Volume>, Vec<u32>), PrepareError> {
    let mut places = Vec::new();
    let mut volumes = Vec::new();
    for option in &options.volumes {
        let (volume, socket) = Volume::open(option)?;
        places.push(files.add(socket));
        volumes.push(volume);
    }
    Ok((volumes, places))
}

fn check_host(spec: &RawSpec) -> Result<(), HostError> {
    let memory = spec.machine_config.mem_size_mib;
    host::check_memory(plan::wanted_memory_mib(spec))?;
    if spec.machine_config.huge_pages == HugePages::TwoMiB {
        host::check_huge_pages(memory)?;
    }
    host::check_cpus(spec.placement.as_ref().map_or(&[], |placement| &placement.pin))
}

fn path_of(file: &FileRef) -> Option<&Path> {
    match file {
        FileRef::Path(path) if !path.is_empty() => Some(Path::new(path)),
        _ => None,
    }
}

fn configured_socket(base: &RawSpec) -> Option<PathBuf> {
    path_of(base.vsock.as_ref()?.uds_path.as_ref()?).map(Path::to_owned)
}

/// The kernel, and whether it is Husk's own.
fn open_kernel(options: &Options, base: &RawSpec, assets: &Assets) -> Result<(Image, bool), PrepareError> {
    let named = options.kernel.as_deref().or_else(|| path_of(&base.boot_source.kernel_image_path));
    Ok(match named {
        Some(path) => (Image::open("kernel", path, Access::File)?, false),
        None => (Image::open("kernel", &assets.kernel()?, Access::File)?, true),
    })
}

fn open_initrd(options: &Options, base: &RawSpec, assets: &Assets) -> Result<(File, u64), PrepareError> {
    let configured = base.boot_source.initrd_path.as_ref().and_then(path_of);
    if let Some(path) = options.initrd.as_deref().or(configured) {
        let image = Image::open("initrd", path, Access::File)?;
        image.check_initrd()?;
        return Ok((image.file, image.size));
    }
    Ok(memfile::initramfs(&assets.init()?)?)
}

/// The root's file, and which part of it the root is, if not all.
fn open_root(
    options: &Options,
    base: &RawSpec,
    manner: Manner<'_>,
) -> Result<(File, Option<RawPart>), PrepareError> {
    let configured = base.drives.iter().find(|drive| drive.is_root_device);
    let named =
        options.rootfs.as_deref().or_else(|| configured.and_then(|drive| path_of(&drive.path_on_host)));
    let Some(path) = named else { return Ok(memfile::default_root()?) };
    let image = if path.is_dir() {
        let packer = Packer { cache: usual_cache(), signals: manner.signals, talkative: manner.talkative };
        packer.image_of(path)?
    } else {
        Image::open("rootfs", path, Access::Disk)?
    };
    image.check_file_system()?;
    image.lock(false)?;
    Ok((image.file, None))
}

/// The cards' wires, and the passt of the one that has no tap.
fn open_network(
    spec: &RawSpec,
    options: &Options,
    files: &mut Files,
) -> Result<(Vec<Wire>, Option<passt::Parts>), PrepareError> {
    let (wires, socket) = open_wires(spec, files)?;
    let passt = match (socket, &options.network) {
        (Some(socket), Some(option)) => Some((passt::program()?, passt::arguments(option), socket)),
        _ => None,
    };
    Ok((wires, passt))
}

/// A wire for each card, with its MTU in bytes and an Ethernet address that nobody else is likely to have: a tap, or a socket
/// whose other end is returned. At most one card, the options', is without a tap.
fn open_wires(spec: &RawSpec, files: &mut Files) -> Result<(Vec<Wire>, Option<OwnedFd>), PrepareError> {
    let mut socket = None;
    let mut wires = Vec::with_capacity(spec.network_interfaces.len());
    for card in &spec.network_interfaces {
        let (open, mtu) = match &card.host_dev_name {
            Some(name) => tap::open(name, card.queues.unwrap_or(1)).map(|tap| (tap.files, tap.mtu))?,
            None => {
                let (ours, passts) = passt::socket()?;
                socket = Some(passts);
                (vec![ours], passt::MTU)
            }
        };
        let mut mac = Mac::default();
        crate::state::random(&mut mac).map_err(PrepareError::Descriptors)?;
        // A single card's (bit 0), by nobody's order but ours (bit 1).
        mac[0] = mac[0] & !1 | 2;
        wires.push((open.into_iter().map(|file| files.add(file)).collect(), mtu, mac));
    }
    Ok((wires, socket))
}

/// The configuration's drives, whatever is on them, then those that the guest is told to mount.
fn open_drives(options: &Options, base: &RawSpec, files: &mut Files) -> Result<Vec<u32>, PrepareError> {
    let mut places = Vec::new();
    for drive in base.drives.iter().filter(|drive| !drive.is_root_device) {
        let path = path_of(&drive.path_on_host).unwrap_or(Path::new(""));
        places.push(open_drive(path, !drive.is_read_only, files)?.0);
    }
    for drive in &options.drives {
        let (place, image) = open_drive(&drive.file, drive.writable, files)?;
        image.check_file_system()?;
        places.push(place);
    }
    Ok(places)
}

/// The images in memory, and their bytes together: the configuration's, of which the guest mounts the root alone, then
/// those that it is told to mount.
fn open_images(
    options: &Options,
    base: &RawSpec,
    files: &mut Files,
) -> Result<(Vec<u32>, u64), PrepareError> {
    let configured = plan::images(options, base)
        .map(|image| (path_of(&image.path_on_host).unwrap_or(Path::new("")), image.root_device));
    let asked = options.pmem.iter().map(|image| (image.file.as_path(), true));
    let (mut places, mut bytes) = (Vec::new(), 0_u64);
    for (path, mounted) in configured.chain(asked) {
        let image = Image::open("pmem", path, Access::File)?;
        if mounted {
            image.check_file_system()?;
        }
        // Who writes to the file would write to the guest's memory.
        image.lock(false)?;
        bytes = bytes.saturating_add(image.size);
        places.push(files.add(image.file));
    }
    Ok((places, bytes))
}

fn open_drive(path: &Path, writable: bool, files: &mut Files) -> Result<(u32, Image), PrepareError> {
    let access = if writable { Access::WritableDisk } else { Access::Disk };
    let image = Image::open("drive", path, access)?;
    image.lock(writable)?;
    let copy = image.file.try_clone().map_err(PrepareError::Descriptors)?;
    Ok((files.add(copy), image))
}
