//! A kernel's file: its size, its first bytes, and bounded reads of the rest.
//!
//! Refuses to read more than asked for. Invariant: every number that comes out of the file goes through checked
//! arithmetic before it is used as an offset or a length.

use super::error::{BootError, Role};
use crate::memory::FillError;
use rustix::fs::fstat;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Bytes that are read at once to know what the file is: ELF and program headers, or the bzImage's setup header.
const HEAD: usize = 4096;

/// What a kernel's file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Elf,
    BzImage,
}

/// A kernel's file.
#[derive(Debug)]
pub(super) struct Image<'a> {
    file: &'a File,
    size: u64,
    head: Vec<u8>,
}

impl<'a> Image<'a> {
    pub(super) fn open(file: &'a File) -> Result<Self, BootError> {
        let size = size(file, Role::Kernel)?;
        let mut image = Self { file, size, head: Vec::new() };
        image.head = image.read(0, usize::try_from(size).map_or(HEAD, |size| size.min(HEAD)))?;
        Ok(image)
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn format(&self) -> Result<Format, BootError> {
        if self.size == 0 {
            return Err(BootError::Truncated { role: Role::Kernel, size: 0, needed: 1 });
        }
        if self.head.starts_with(b"\x7fELF") {
            return Ok(Format::Elf);
        }
        if self.head.get(0x202..0x206) == Some(b"HdrS") {
            return Ok(Format::BzImage);
        }
        let start: Vec<String> = self.head.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        Err(BootError::Format(format!("the file starts with {}", start.join(" "))))
    }

    /// `length` bytes at `offset`; the caller bounds `length`.
    pub(super) fn bytes(&self, offset: u64, length: usize) -> Result<Vec<u8>, BootError> {
        let end = offset.checked_add(length as u64);
        if end.is_none_or(|end| end > self.size) {
            let needed = end.unwrap_or(u64::MAX);
            return Err(BootError::Truncated { role: Role::Kernel, size: self.size, needed });
        }
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        match start.checked_add(length).and_then(|end| self.head.get(start..end)) {
            Some(bytes) => Ok(bytes.to_vec()),
            None => self.read(offset, length),
        }
    }

    fn read(&self, offset: u64, length: usize) -> Result<Vec<u8>, BootError> {
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, offset).map_err(|source| BootError::Read {
            role: Role::Kernel,
            source: FillError::Read { offset, source },
        })?;
        Ok(bytes)
    }
}

/// Bytes of a file.
pub(super) fn size(file: &File, role: Role) -> Result<u64, BootError> {
    let stat = fstat(file).map_err(|error| BootError::Read {
        role,
        source: FillError::Read { offset: 0, source: error.into() },
    })?;
    Ok(stat.st_size.unsigned_abs())
}

/// Little-endian numbers at a place in a header that has been read whole.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut array = [0; N];
        if let Some(bytes) = self.0.get(at..at + N) {
            array.copy_from_slice(bytes);
        }
        array
    }

    pub(super) fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.array(at))
    }

    pub(super) fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.array(at))
    }

    pub(super) fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.array(at))
    }
}
