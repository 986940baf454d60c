//! Looks at the files that a machine is made of before a machine is made: opens each once, and says what is wrong
//! with it by name.
//!
//! Owns nothing but what it returns. Refuses everything that is not a plain file (or a block device, for drives), is
//! empty, or is shorter than its own headers claim. Invariant: what is checked is the descriptor that goes to the cell,
//! never a path that could be swapped afterwards.

mod initrd;

use husk_protocol::control::Fault;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    /// It cannot be opened or read.
    #[error("{what} {}: {source}", path.display())]
    Open {
        /// Its role, as in "kernel".
        what: &'static str,
        /// Where it is.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// It is a directory, a FIFO, a socket, a character device.
    #[error("{what} {} is a {found}; {allowed} is needed", path.display())]
    Kind {
        /// Its role.
        what: &'static str,
        /// Where it is.
        path: PathBuf,
        /// What it is.
        found: &'static str,
        /// What would do.
        allowed: &'static str,
    },
    /// It has no bytes.
    #[error("{what} {} is empty", path.display())]
    Empty {
        /// Its role.
        what: &'static str,
        /// Where it is.
        path: PathBuf,
    },
    /// It ends before its headers say.
    #[error("{what} {} is truncated: it has {has} bytes, its headers say {needs}", path.display())]
    Truncated {
        /// Its role.
        what: &'static str,
        /// Where it is.
        path: PathBuf,
        /// Its size in bytes.
        has: u64,
        /// What it should have.
        needs: u64,
    },
    /// It is something else.
    #[error("{what} {} is not {allowed}", path.display())]
    Format {
        /// Its role.
        what: &'static str,
        /// Where it is.
        path: PathBuf,
        /// What would do.
        allowed: &'static str,
    },
    /// A disk is made of sectors.
    #[error("{what} {} has {size} bytes; a disk has a multiple of 512", path.display())]
    Ragged {
        /// Its role.
        what: &'static str,
        /// Where it is.
        path: PathBuf,
        /// Its bytes.
        size: u64,
    },
    /// Another sandbox writes to it, or reads what this one would write to.
    #[error("{what} {} is in use by another sandbox; only read-only drives can be shared", path.display())]
    Busy {
        /// Its role.
        what: &'static str,
        /// Where it is.
        path: PathBuf,
    },
}

impl ImageError {
    /// Who is at fault.
    #[must_use]
    pub(crate) fn fault(&self) -> Fault {
        match self {
            Self::Open { source, .. }
                if !matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) =>
            {
                Fault::Host
            }
            _ => Fault::Operator,
        }
    }
}

/// An open file, its size and its name.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) file: File,
    /// Bytes.
    pub(crate) size: u64,
    what: &'static str,
    path: PathBuf,
}

/// What may be opened as an [`Image`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Plain files, to read.
    File,
    /// Plain files and block devices, to read.
    Disk,
    /// Plain files and block devices, to read and write.
    WritableDisk,
}

impl Image {
    /// Opens `path` once; whatever the name leads to then is what the sandbox gets.
    pub(crate) fn open(what: &'static str, path: &Path, access: Access) -> Result<Self, ImageError> {
        let fail = |source| ImageError::Open { what, path: path.to_owned(), source };
        // NONBLOCK: a FIFO must be refused, not waited for. Taken off again from what is accepted.
        let opened = OpenOptions::new()
            .read(true)
            .write(access == Access::WritableDisk)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path);
        let mut file = match opened {
            // Directories and sockets cannot be opened so; say what they are.
            Err(error) => match std::fs::metadata(path) {
                Ok(metadata) => match odd_kind(metadata.file_type()) {
                    Some(found) => return Err(kind(what, path, found, access)),
                    None => return Err(fail(error)),
                },
                Err(_) => return Err(fail(error)),
            },
            Ok(file) => file,
        };
        let file_type = file.metadata().map_err(fail)?.file_type();
        if let Some(found) = odd_kind(file_type) {
            return Err(kind(what, path, found, access));
        }
        if file_type.is_block_device() && access == Access::File {
            return Err(kind(what, path, "block device", access));
        }
        let flags = rustix::fs::fcntl_getfl(&file).map_err(|errno| fail(errno.into()))?;
        let blocking = flags - rustix::fs::OFlags::NONBLOCK;
        rustix::fs::fcntl_setfl(&file, blocking).map_err(|errno| fail(errno.into()))?;
        let size = file.seek(SeekFrom::End(0)).map_err(fail)?;
        file.seek(SeekFrom::Start(0)).map_err(fail)?;
        if size == 0 {
            return Err(ImageError::Empty { what, path: path.to_owned() });
        }
        if access != Access::File && !size.is_multiple_of(512) {
            return Err(ImageError::Ragged { what, path: path.to_owned(), size });
        }
        Ok(Self { file, size, what, path: path.to_owned() })
    }

    /// Bytes `at..at + N`; zeros where the file has ended.
    fn bytes<const N: usize>(&self, at: u64) -> Result<[u8; N], ImageError> {
        let mut bytes = [0; N];
        let mut done = 0;
        while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match self.file.read_at(rest, at + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(ImageError::Open { what: self.what, path: self.path.clone(), source });
                }
            }
        }
        Ok(bytes)
    }

    fn whole(&self, needs: u64) -> Result<(), ImageError> {
        if needs <= self.size {
            return Ok(());
        }
        Err(ImageError::Truncated { what: self.what, path: self.path.clone(), has: self.size, needs })
    }

    fn format(&self, allowed: &'static str) -> ImageError {
        ImageError::Format { what: self.what, path: self.path.clone(), allowed }
    }

    /// Checks a guest kernel; returns the guest-physical end of what it loads, in bytes.
    pub(crate) fn check_kernel(&self) -> Result<u64, ImageError> {
        if self.bytes::<4>(0)? == *b"\x7fELF" {
            return self.check_elf();
        }
        if self.bytes::<4>(0x202)? == *b"HdrS" {
            return self.check_bzimage();
        }
        Err(self.format("a kernel: neither an ELF vmlinux nor a bzImage"))
    }

    fn check_elf(&self) -> Result<u64, ImageError> {
        const MACHINE: u16 = if cfg!(target_arch = "x86_64") { 62 } else { 183 };
        const LOAD: u32 = 1;
        // Where a PC's memory above the first hole begins; programs lie at other addresses.
        const LEAST_ADDRESS: u64 = if cfg!(target_arch = "x86_64") { 1 << 20 } else { 0 };
        self.whole(64)?;
        let header = self.bytes::<64>(0)?;
        let right = header[4] == 2 && header[5] == 1 && u16_at(&header, 18) == MACHINE;
        let (start, size, count) =
            (u64_at(&header, 32), u64::from(u16_at(&header, 54)), u64::from(u16_at(&header, 56)));
        if !right || size != 56 || count == 0 || count > 128 {
            return Err(self.format("a 64-bit ELF kernel for this architecture"));
        }
        self.whole(start.saturating_add(size * count))?;
        let mut end = 0;
        for index in 0..count {
            let segment = self.bytes::<56>(start + index * size)?;
            if u32_at(&segment, 0) == LOAD {
                if u64_at(&segment, 40) > 0 && u64_at(&segment, 24) < LEAST_ADDRESS {
                    return Err(self.format("a kernel: a program, by the addresses that it wants"));
                }
                self.whole(u64_at(&segment, 8).saturating_add(u64_at(&segment, 32)))?;
                end = end.max(u64_at(&segment, 24).saturating_add(u64_at(&segment, 40)));
            }
        }
        Ok(end)
    }

    /// Source: the kernel's Documentation/arch/x86/boot.rst.
    fn check_bzimage(&self) -> Result<u64, ImageError> {
        let header = self.bytes::<0x80>(0x1f0)?;
        let sectors = match header[1] {
            0 => 4,
            count => u64::from(count),
        };
        self.whole((sectors + 1) * 512 + u64::from(u32_at(&header, 4)) * 16)?;
        let (address, memory) = (u64_at(&header, 0x68), u64::from(u32_at(&header, 0x70)));
        Ok(address.saturating_add(memory))
    }

    /// Checks a root or drive: erofs or ext4, whole.
    ///
    /// Only the two formats' own magic numbers are looked at, to refuse everything else; how the file is read never
    /// depends on its content.
    pub(crate) fn check_file_system(&self) -> Result<&'static str, ImageError> {
        const ALLOWED: &str =
            "a raw erofs or ext4 image (convert qcow2 and others with qemu-img convert -O raw)";
        let block = self.bytes::<0x400>(0x400)?;
        if u32_at(&block, 0) == 0xe0f5_e1e2 {
            let shift = u32::from(block[12]);
            self.whole(u64::from(u32_at(&block, 36)).checked_shl(shift).unwrap_or(u64::MAX))?;
            return Ok("erofs");
        }
        if u16_at(&block, 0x38) == 0xef53 {
            let shift = u32_at(&block, 0x18).saturating_add(10);
            // The high half counts only with the 64BIT feature.
            let high = if u32_at(&block, 0x60) & 0x80 != 0 { u64::from(u32_at(&block, 0x150)) } else { 0 };
            let blocks = u64::from(u32_at(&block, 4)) | high << 32;
            self.whole(if shift > 16 { u64::MAX } else { blocks.saturating_mul(1 << shift) })?;
            return Ok("ext4");
        }
        Err(self.format(ALLOWED))
    }

    /// Keeps two sandboxes from writing to one drive, or one reading what another writes. The lock goes with the
    /// descriptor and ends with its last copy.
    pub(crate) fn lock(&self, writable: bool) -> Result<(), ImageError> {
        use rustix::fs::{FlockOperation, flock};
        let operation = if writable {
            FlockOperation::NonBlockingLockExclusive
        } else {
            FlockOperation::NonBlockingLockShared
        };
        match flock(&self.file, operation) {
            Err(rustix::io::Errno::WOULDBLOCK) => {
                Err(ImageError::Busy { what: self.what, path: self.path.clone() })
            }
            // Some file systems have no locks; that must not forbid their use.
            _ => Ok(()),
        }
    }
}

fn odd_kind(file_type: std::fs::FileType) -> Option<&'static str> {
    if file_type.is_dir() {
        Some("directory")
    } else if file_type.is_fifo() {
        Some("FIFO")
    } else if file_type.is_socket() {
        Some("socket")
    } else if file_type.is_char_device() {
        Some("character device")
    } else {
        None
    }
}

fn kind(what: &'static str, path: &Path, found: &'static str, access: Access) -> ImageError {
    let allowed = if access == Access::File { "a plain file" } else { "a plain file or block device" };
    ImageError::Kind { what, path: path.to_owned(), found, allowed }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).and_then(|b| b.try_into().ok()).map_or(0, u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
mod tests;
