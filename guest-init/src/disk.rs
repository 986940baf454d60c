//! Disks and what is on them. Owns the way from a drive's id to its device and the look at its superblock; refuses a
//! disk that is not there and one that holds nothing known. Invariant: reads small things, whatever the disk
//! claims: files of sysfs, and [`SUPERBLOCK_BYTES`] at [`SUPERBLOCK_AT`].

use crate::pmem;
use rustix::fs::{CWD, Dir, Mode, OFlags};
use rustix::io::Errno;

/// Longest serial of a virtio disk (virtio 1.2, 5.2.6.1: VIRTIO_BLK_ID_BYTES); an id is cut there.
const SERIAL_BYTES: usize = 20;
/// Where both known file systems keep their superblock.
const SUPERBLOCK_AT: u64 = 1024;
/// Enough of it to see the magic number.
const SUPERBLOCK_BYTES: usize = 64;
/// erofs: magic at the start of the superblock (kernel: fs/erofs/erofs_fs.h).
const EROFS_MAGIC: [u8; 4] = 0xe0f5_e1e2_u32.to_le_bytes();
/// ext2, ext3, ext4: magic at offset 0x38 (kernel: Documentation/filesystems/ext4/super.rst).
const EXT_MAGIC: [u8; 2] = 0xef53_u16.to_le_bytes();
const EXT_MAGIC_AT: usize = 0x38;

/// A disk cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// No disk has this serial.
    #[error(
        "disk {serial:?}: there is none with this serial (there are: {found}); does the machine have the drive?"
    )]
    Missing {
        /// What was looked for.
        serial: String,
        /// What was found.
        found: String,
    },
    /// The kernel has no such image.
    #[error(
        "image {label:?}: the kernel shows no such image; does the machine have it, the guest kernel VIRTIO_PMEM and BLK_DEV_PMEM, \
         and the guest memory for its books of it (1/64 of the image)?"
    )]
    NoImage {
        /// Which.
        label: String,
    },
    /// A volume where a disk is needed.
    #[error("volume {tag:?} is a directory of the host, and cannot be the root")]
    NoDisk {
        /// Which.
        tag: String,
    },
    /// An image stays writable.
    #[error("image {label:?} (/dev/{name}): cannot be made read-only: {errno}")]
    Writable {
        /// Which.
        label: String,
        /// The kernel's name.
        name: String,
        /// Why.
        errno: Errno,
    },
    /// It cannot be read.
    #[error("disk {serial:?} (/dev/{name}): cannot read its superblock: {errno}")]
    Read {
        /// The drive's id.
        serial: String,
        /// The kernel's name.
        name: String,
        /// Why.
        errno: Errno,
    },
    /// Its content is not known.
    #[error(
        "disk {serial:?} (/dev/{name}): no erofs and no ext4 on it; make one (mkfs.erofs, mkfs.ext4), or name the \
         file system"
    )]
    UnknownFs {
        /// The drive's id.
        serial: String,
        /// The kernel's name.
        name: String,
    },
}

/// A disk that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Disk {
    /// The drive's id, or what an image is called.
    pub(crate) serial: String,
    /// The kernel's name: `vda`.
    pub(crate) name: String,
    /// It is memory, and files on it are used in place.
    pub(crate) dax: bool,
}

/// Finds what the host names.
///
/// # Errors
/// It is not there, or not as it should be.
pub(crate) fn find(disk: &husk_protocol::exec::Disk) -> Result<Disk, DiskError> {
    match disk {
        husk_protocol::exec::Disk::Drive(serial) => drive(serial),
        husk_protocol::exec::Disk::Pmem(number) => pmem::find(*number),
        husk_protocol::exec::Disk::Volume(tag) => Err(DiskError::NoDisk { tag: tag.clone() }),
    }
}

/// Finds the disk with this serial among the virtio disks.
fn drive(serial: &str) -> Result<Disk, DiskError> {
    let wanted = cut(serial.as_bytes());
    let mut found = Vec::new();
    for name in names("/sys/block", "vd") {
        let theirs = read_serial(&name);
        if theirs == wanted {
            return Ok(Disk { serial: serial.to_owned(), name, dax: false });
        }
        found.push(format!("{:?}", crate::command::printable(&theirs)));
    }
    let found = if found.is_empty() { "no disks at all".to_owned() } else { found.join(", ") };
    Err(DiskError::Missing { serial: serial.to_owned(), found })
}

/// A serial as a disk has it: at most [`SERIAL_BYTES`], up to the first NUL.
fn cut(serial: &[u8]) -> Vec<u8> {
    serial.iter().copied().take(SERIAL_BYTES).take_while(|&byte| byte != 0).collect()
}

/// Names in a directory of sysfs that begin with `prefix`, in the order in which the kernel counts: `vda` first, `vdz` before
/// `vdaa`.
pub(crate) fn names(directory: &str, prefix: &str) -> Vec<String> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(CWD, directory, flags, Mode::empty());
    let Ok(mut entries) = opened.and_then(Dir::new) else { return Vec::new() };
    let mut names = Vec::new();
    while let Some(Ok(entry)) = entries.next() {
        if let Some(name) = entry.file_name().to_str().ok().filter(|name| name.starts_with(prefix)) {
            names.push(name.to_owned());
        }
    }
    names.sort_by(|a, b| (a.len(), a).cmp(&(b.len(), b)));
    names
}

fn read_serial(name: &str) -> Vec<u8> {
    cut(&read_small::<SERIAL_BYTES>(&format!("/sys/block/{name}/serial")))
}

/// The first `N` bytes of a file of sysfs; nothing if it cannot be read.
pub(crate) fn read_small<const N: usize>(path: &str) -> Vec<u8> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let mut bytes = [0; N];
    let opened = rustix::fs::open(path, flags, Mode::empty());
    let count = opened.and_then(|file| rustix::io::read(file, &mut bytes)).unwrap_or(0);
    bytes[..count].to_vec()
}

impl Disk {
    /// Its device node.
    pub(crate) fn device(&self) -> String {
        format!("/dev/{}", self.name)
    }

    /// The file system on it: `asked`, or what its superblock says.
    ///
    /// # Errors
    /// It cannot be read, or holds nothing known.
    pub(crate) fn fs_type(&self, asked: &str) -> Result<String, DiskError> {
        if !asked.is_empty() {
            return Ok(asked.to_owned());
        }
        let mut superblock = [0; SUPERBLOCK_BYTES];
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        rustix::fs::open(self.device(), flags, Mode::empty())
            .and_then(|device| rustix::io::pread(device, &mut superblock, SUPERBLOCK_AT))
            .map_err(|errno| DiskError::Read {
                serial: self.serial.clone(),
                name: self.name.clone(),
                errno,
            })?;
        probe(&superblock)
            .map(str::to_owned)
            .ok_or_else(|| DiskError::UnknownFs { serial: self.serial.clone(), name: self.name.clone() })
    }
}

fn probe(superblock: &[u8; SUPERBLOCK_BYTES]) -> Option<&'static str> {
    if superblock.starts_with(&EROFS_MAGIC) {
        return Some("erofs");
    }
    superblock[EXT_MAGIC_AT..].starts_with(&EXT_MAGIC).then_some("ext4")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_file_systems_are_told_by_their_magic() {
        let mut superblock = [0; SUPERBLOCK_BYTES];
        assert_eq!(probe(&superblock), None);
        superblock[0x38..0x3a].copy_from_slice(&[0x53, 0xef]);
        assert_eq!(probe(&superblock), Some("ext4"));
        superblock[..4].copy_from_slice(&[0xe2, 0xe1, 0xf5, 0xe0]);
        assert_eq!(probe(&superblock), Some("erofs"));
    }

    #[test]
    fn a_serial_is_what_fits_a_disk() {
        assert_eq!(cut(b"data"), b"data");
        assert_eq!(cut(b"data\0\0\0"), b"data");
        assert_eq!(cut(b"abcdefghijklmnopqrstuvwxyz"), b"abcdefghijklmnopqrst");
    }

    #[test]
    fn names_come_in_the_kernels_order() {
        let directory = std::env::temp_dir().join(format!("husk-init-names-{}", std::process::id()));
        for name in ["virtio10", "virtio9", "virtio1", "other"] {
            std::fs::create_dir_all(directory.join(name)).unwrap();
        }
        assert_eq!(names(directory.to_str().unwrap(), "virtio"), ["virtio1", "virtio9", "virtio10"]);
        std::fs::remove_dir_all(&directory).unwrap();
        assert!(names(directory.to_str().unwrap(), "virtio").is_empty());
    }

    #[test]
    fn a_missing_disk_is_named_with_what_there_is() {
        let error = drive("no such serial").unwrap_err().to_string();
        assert!(
            error.starts_with(r#"disk "no such serial": there is none with this serial (there are: "#),
            "{error}"
        );
    }
}
