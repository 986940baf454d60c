//! The open files that a spec names, by their role.
//!
//! Owns the descriptors that came with the spec until the machine takes them. Refuses an index that is not there or is used
//! twice, a path (the cell has none), and files that cannot be what their role needs. Invariant: a descriptor has one role;
//! one without a role is closed before the guest runs.

use crate::spec::{DriveSpec, MachineSpec, WireSpec};
use husk_protocol::spec::FileRef;
use rustix::fs::{FileType, OFlags, SeekFrom, fcntl_getfl, fstat, seek};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, sockopt};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// The place of /dev/kvm among the descriptors.
pub const KVM_INDEX: u32 = 0;
/// A disk's smallest unit in bytes.
const SECTOR: u64 = 512;

/// Most bytes of an image in memory, 256 GiB: as many as there may be devices fit any guest's address space.
const MAX_IMAGE: u64 = 256 << 30;

/// /dev/net/tun: the misc devices' major, and its own minor (linux/miscdevice.h).
const TUN_DEVICE: u64 = 10 << 8 | 200;

/// A file cannot have its role.
#[derive(Debug, thiserror::Error)]
pub enum ResourceError {
    /// The cell is empty.
    #[error("{role}: {path:?} is a path; the cell has no files, only {{\"fd\": N}} is allowed")]
    Path {
        /// Key of the spec.
        role: String,
        /// The path, cut to 256 characters.
        path: String,
    },
    /// No such descriptor came along.
    #[error("{role}: there is no descriptor {index}; {count} came with the spec")]
    Missing {
        /// Key of the spec.
        role: String,
        /// The index.
        index: u32,
        /// How many there are.
        count: usize,
    },
    /// It has a role already.
    #[error("{role}: descriptor {index} is in use already; each may be named once")]
    Reused {
        /// Key of the spec.
        role: String,
        /// The index.
        index: u32,
    },
    /// It is a directory, a FIFO, a device …
    #[error("{role}: the file is {found}; {allowed} is needed")]
    WrongType {
        /// Key of the spec.
        role: String,
        /// What it is.
        found: &'static str,
        /// What it must be.
        allowed: &'static str,
    },
    /// It is too small, or not whole sectors.
    #[error("{role}: the file has {bytes} bytes; {allowed} is needed")]
    Size {
        /// Key of the spec.
        role: String,
        /// Its size.
        bytes: u64,
        /// What is allowed.
        allowed: &'static str,
    },
    /// It was opened for less.
    #[error("{role}: the file is not open for {0}", if *.write { "writing" } else { "reading" })]
    Access {
        /// Key of the spec.
        role: String,
        /// Whether writing is what is missing.
        write: bool,
    },
    /// It was opened for more than its role allows.
    #[error("{role}: the file is open for writing; it is never written, and only reading is allowed")]
    Writable {
        /// Key of the spec.
        role: String,
    },
    /// It cannot be looked at.
    #[error("{role}: {source}")]
    Stat {
        /// Key of the spec.
        role: String,
        /// What `fstat(2)`, `fcntl(2)` or `lseek(2)` said.
        source: io::Error,
    },
}

/// Everything that a machine is made of.
#[derive(Debug)]
pub struct Resources {
    /// /dev/kvm.
    pub kvm: OwnedFd,
    /// What is loaded.
    pub boot: BootFiles,
    /// What the devices take.
    pub devices: DeviceFiles,
}

/// What is loaded.
#[derive(Debug)]
pub struct BootFiles {
    /// The kernel: a regular, non-empty file.
    pub kernel: File,
    /// The initrd: a regular, non-empty file.
    pub initrd: Option<File>,
}

/// What the devices take.
#[derive(Debug)]
pub struct DeviceFiles {
    /// A file a drive, in the spec's order: regular or a block device, whole sectors, open as the drive needs.
    pub drives: Vec<File>,
    /// The tap of each network card, its queues open for reading and writing, without waiting, or its connected unix stream
    /// socket; in the spec's order, at least one each.
    pub wires: Vec<Vec<OwnedFd>>,
    /// The file of each image in memory and its bytes, in the spec's order: regular, not empty, open for reading alone.
    pub images: Vec<(File, u64)>,
    /// The connected unix stream socket of each volume's server, in the spec's order.
    pub volumes: Vec<OwnedFd>,
    /// The listening unix stream socket of the vsock device.
    pub vsock_listener: Option<OwnedFd>,
    /// The connected unix stream socket of the exec channel.
    pub exec: Option<OwnedFd>,
    /// Where console output goes.
    pub console: Option<OwnedFd>,
}

impl Resources {
    /// Gives each descriptor its role in `spec`; those without one are closed.
    ///
    /// # Errors
    /// See [`ResourceError`]; all descriptors are closed then.
    pub fn assign(spec: &MachineSpec, descriptors: Vec<OwnedFd>) -> Result<Self, ResourceError> {
        let mut pool = Pool { slots: descriptors.into_iter().map(Some).collect() };
        let kvm = pool.take("/dev/kvm", &FileRef::Fd(KVM_INDEX))?;
        let boot = spec.boot();
        let kernel = pool.image("boot-source.kernel_image_path", boot.kernel())?;
        let initrd = boot.initrd().map(|file| pool.image("boot-source.initrd_path", file)).transpose()?;
        let mut drives = Vec::with_capacity(spec.drives().len());
        for drive in spec.drives() {
            let role = format!("drives[{}].path_on_host (drive {:?})", drives.len(), drive.id());
            drives.push(pool.disk(&role, drive)?);
        }
        let mut wires = Vec::with_capacity(spec.networks().len());
        for card in spec.networks() {
            let role = |key| format!("network-interfaces[{}].{key} ({:?})", wires.len(), card.id());
            wires.push(match card.wire() {
                WireSpec::Tap(queues) => {
                    queues.iter().map(|tap| pool.tap(&role("tap"), tap)).collect::<Result<_, _>>()?
                }
                WireSpec::Stream(stream) => vec![pool.socket(&role("stream"), stream, false)?],
            });
        }
        let mut images = Vec::with_capacity(spec.pmem().len());
        for image in spec.pmem() {
            let role = format!("pmem[{}].path_on_host ({:?})", images.len(), image.id());
            images.push(pool.mapped(&role, image.file())?);
        }
        let mut volumes = Vec::with_capacity(spec.volumes().len());
        for volume in spec.volumes() {
            let role = format!("volumes[{}].socket ({:?})", volumes.len(), volume.tag());
            volumes.push(pool.socket(&role, volume.socket(), false)?);
        }
        let listener = spec.vsock().and_then(|vsock| vsock.listener());
        let vsock_listener = listener.map(|file| pool.socket("vsock.uds_path", file, true)).transpose()?;
        let exec = spec.exec().map(|exec| pool.socket("exec.channel", exec.channel(), false)).transpose()?;
        let console = spec.console().map(|file| pool.take("console.output", file)).transpose()?;
        let boot = BootFiles { kernel, initrd };
        let devices = DeviceFiles { drives, wires, images, volumes, vsock_listener, exec, console };
        Ok(Self { kvm, boot, devices })
    }
}

/// Descriptors that have no role yet.
struct Pool {
    slots: Vec<Option<OwnedFd>>,
}

impl Pool {
    fn take(&mut self, role: &str, file: &FileRef) -> Result<OwnedFd, ResourceError> {
        let role = role.to_owned();
        let index = match file {
            FileRef::Path(path) => {
                return Err(ResourceError::Path { role, path: path.chars().take(256).collect() });
            }
            FileRef::Fd(index) => *index,
        };
        let count = self.slots.len();
        match usize::try_from(index).ok().and_then(|at| self.slots.get_mut(at)) {
            None => Err(ResourceError::Missing { role, index, count }),
            Some(slot) => slot.take().ok_or(ResourceError::Reused { role, index }),
        }
    }

    /// A kernel or initrd.
    fn image(&mut self, role: &str, file: &FileRef) -> Result<File, ResourceError> {
        let file = File::from(self.take(role, file)?);
        if regular_size(role, &file)? == 0 {
            return Err(ResourceError::Size { role: role.into(), bytes: 0, allowed: "at least 1" });
        }
        may(role, &file, false)?;
        Ok(file)
    }

    /// A file that is a disk, or of which a part is one.
    fn disk(&mut self, role: &str, drive: &DriveSpec) -> Result<File, ResourceError> {
        let file = File::from(self.take(role, drive.file())?);
        let bytes = disk_size(role, &file)?;
        let wrong = |bytes, allowed| Err(ResourceError::Size { role: role.into(), bytes, allowed });
        match drive.part() {
            None if bytes == 0 || !bytes.is_multiple_of(SECTOR) => {
                return wrong(bytes, "a multiple of 512, and not 0,");
            }
            Some(part) if part.end > bytes => return wrong(bytes, "at least the end of its part"),
            _ => {}
        }
        may(role, &file, false)?;
        if !drive.is_read_only() {
            may(role, &file, true)?;
        }
        Ok(file)
    }

    /// An image in memory. That it cannot be written to is the file's doing: a shared mapping of it is never writable then.
    fn mapped(&mut self, role: &str, file: &FileRef) -> Result<(File, u64), ResourceError> {
        let file = File::from(self.take(role, file)?);
        let bytes = regular_size(role, &file)?;
        if !(1..=MAX_IMAGE).contains(&bytes) {
            let allowed = "at least 1, and at most 256 GiB,";
            return Err(ResourceError::Size { role: role.into(), bytes, allowed });
        }
        may(role, &file, false)?;
        match may(role, &file, true) {
            Ok(()) => Err(ResourceError::Writable { role: role.into() }),
            Err(_) => Ok((file, bytes)),
        }
    }

    /// Whether it is a tap is said by its device's number; that it is set up as one is husk's promise.
    fn tap(&mut self, role: &str, file: &FileRef) -> Result<OwnedFd, ResourceError> {
        let fd = self.take(role, file)?;
        let stat = fstat(&fd).map_err(failed(role))?;
        let found = FileType::from_raw_mode(stat.st_mode);
        let waits = !fcntl_getfl(&fd).map_err(failed(role))?.contains(OFlags::NONBLOCK);
        if found != FileType::CharacterDevice || stat.st_rdev != TUN_DEVICE || waits {
            return Err(wrong(role, found, "a tap from /dev/net/tun, open without waiting,"));
        }
        may(role, &fd, true)?;
        Ok(fd)
    }

    fn socket(&mut self, role: &str, file: &FileRef, listening: bool) -> Result<OwnedFd, ResourceError> {
        let fd = self.take(role, file)?;
        let unix = sockopt::socket_domain(&fd).is_ok_and(|domain| domain == AddressFamily::UNIX);
        let stream = sockopt::socket_type(&fd).is_ok_and(|kind| kind == SocketType::STREAM);
        let as_asked = sockopt::socket_acceptconn(&fd).is_ok_and(|accepts| accepts == listening);
        if unix && stream && as_asked {
            return Ok(fd);
        }
        let allowed =
            if listening { "a listening unix stream socket" } else { "a connected unix stream socket" };
        Err(wrong(role, stat(role, &fd)?.0, allowed))
    }
}

fn stat(role: &str, file: impl AsFd) -> Result<(FileType, u64), ResourceError> {
    let stat = fstat(file).map_err(failed(role))?;
    Ok((FileType::from_raw_mode(stat.st_mode), stat.st_size.unsigned_abs()))
}

fn failed(role: &str) -> impl FnOnce(Errno) -> ResourceError + '_ {
    |error| ResourceError::Stat { role: role.into(), source: error.into() }
}

fn wrong(role: &str, found: FileType, allowed: &'static str) -> ResourceError {
    let found = match found {
        FileType::RegularFile => "a regular file",
        FileType::Directory => "a directory",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket of another kind",
        FileType::BlockDevice => "a block device",
        FileType::CharacterDevice => "a character device",
        _ => "of an unknown type",
    };
    ResourceError::WrongType { role: role.into(), found, allowed }
}

fn regular_size(role: &str, file: &File) -> Result<u64, ResourceError> {
    match stat(role, file)? {
        (FileType::RegularFile, bytes) => Ok(bytes),
        (found, _) => Err(wrong(role, found, "a regular file")),
    }
}

/// Bytes of a regular file, or of a block device: as far as its position can go.
fn disk_size(role: &str, file: &File) -> Result<u64, ResourceError> {
    match stat(role, file)? {
        (FileType::RegularFile, bytes) => Ok(bytes),
        (FileType::BlockDevice, _) => seek(file, SeekFrom::End(0)).map_err(failed(role)),
        (found, _) => Err(wrong(role, found, "a regular file or a block device")),
    }
}

fn may(role: &str, file: impl AsFd, write: bool) -> Result<(), ResourceError> {
    let flags = fcntl_getfl(file).map_err(failed(role))?;
    let mode = flags & OFlags::ACCMODE;
    let needed = if write { OFlags::WRONLY } else { OFlags::RDONLY };
    if !flags.contains(OFlags::PATH) && (mode == OFlags::RDWR || mode == needed) {
        Ok(())
    } else {
        Err(ResourceError::Access { role: role.into(), write })
    }
}

#[cfg(test)]
mod tests;
