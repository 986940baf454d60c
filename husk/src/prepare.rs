//! Looks at the machine and opens everything that the sandbox needs, before anything is started.
//!
//! Owns the open files until they have gone to the cell. Refuses what cannot be, in the order: what was asked for, the
//! machine, the files. Invariant: the N-th file of [`Prepared::files`] is what the spec calls `{"fd": N}`, and the first
//! is /dev/kvm.

mod error;
mod images;

pub(crate) use error::PrepareError;

use crate::assets::Assets;
use crate::config;
use crate::doctor;
use crate::host::{self, HostError};
use crate::limits::Asked;
use crate::options::Options;
use crate::passt;
use crate::plan::{self, FileNames, Places};
use crate::signals::Signals;
use crate::tap;
use crate::volume::Volume;
use crate::vsock::Listener;
use husk_protocol::exec::{Mounts, Network};
use husk_protocol::network::Mac;
use husk_protocol::spec::{FileRef, HugePages, RawSpec};
use images::{open_drives, open_images, open_initrd, open_kernel, open_root};
use rustix::fs::OFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

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
