//! Files that live in memory only: the initial RAM file system and the embedded root.
//!
//! Owns nothing but the descriptors it returns. Refuses nothing. Invariant: a file is sealed against every change
//! before it leaves here, so that the cell cannot alter what another reader sees.

use crate::cpio::Archive;
use husk_protocol::spec::RawPart;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Bytes that begin a page, in memory and so in the program's file.
#[repr(C, align(4096))]
struct Aligned<T: ?Sized>(T);

/// An erofs image of busybox with all its applets.
static DEFAULT_ROOT: &Aligned<[u8]> =
    &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/default-root.erofs")));

/// A file in memory cannot be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MemoryFileError {
    /// No memory, or no descriptor.
    #[error("{what} cannot be put into memory: {source}")]
    Write {
        /// What it was to hold.
        what: &'static str,
        /// The system's word.
        source: io::Error,
    },
    /// guest-init cannot be read.
    #[error("guest-init {}: {source}", path.display())]
    Init {
        /// Where it is.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
}

/// The embedded root, and which part of the file it is: of this program's file, which is in the host's page cache once for
/// all sandboxes, or where that cannot be told all of a copy in memory.
pub(crate) fn default_root() -> Result<(File, Option<RawPart>), MemoryFileError> {
    if let Some((file, part)) = own_part(&DEFAULT_ROOT.0) {
        return Ok((file, Some(part)));
    }
    Ok((copy_of_root()?, None))
}

fn copy_of_root() -> Result<File, MemoryFileError> {
    let fail = |source| MemoryFileError::Write { what: "the default root", source };
    let mut file = create("husk-root").map_err(fail)?;
    file.write_all(&DEFAULT_ROOT.0).map_err(fail)?;
    seal(&file).map_err(fail)?;
    Ok(file)
}

/// This program's file, and where in it the bytes are that it has mapped as `bytes`.
fn own_part(bytes: &'static [u8]) -> Option<(File, RawPart)> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let offset = maps.lines().find_map(|line| offset_of(line, bytes.as_ptr().addr(), bytes.len()))?;
    let file = File::open("/proc/self/exe").ok()?;
    // The mapping may be of another file (a library's), and a file may have been overwritten.
    let mut seen = [0; 4096];
    let ends = [0, bytes.len().checked_sub(seen.len())?];
    let same = ends.into_iter().all(|at| {
        let read = file.read_exact_at(&mut seen, offset + at as u64);
        read.is_ok() && bytes.get(at..at + seen.len()) == Some(&seen[..])
    });
    same.then_some((file, RawPart { offset, bytes: bytes.len() as u64 }))
}

/// Where in its file the `length` bytes at `address` are, if this line of /proc/self/maps (proc(5)) has all of them, from a
/// whole sector on.
fn offset_of(line: &str, address: usize, length: usize) -> Option<u64> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let number = |text: &str| u64::from_str_radix(text, 16).ok();
    let (start, end) = (number(start)?, number(end)?);
    let offset = number(words.nth(1)?)?;
    let (address, length) = (u64::try_from(address).ok()?, u64::try_from(length).ok()?);
    let inside = start <= address && address.checked_add(length)? <= end;
    let at = offset.checked_add(address.checked_sub(start)?)?;
    (inside && at.is_multiple_of(512)).then_some(at)
}

/// An initial RAM file system with guest-init from `init` as `/init`, and its size in bytes.
pub(crate) fn initramfs(init: &Path) -> Result<(File, u64), MemoryFileError> {
    let unreadable = |source| MemoryFileError::Init { path: init.to_owned(), source };
    let program = File::open(init).map_err(unreadable)?;
    let size = program.metadata().map_err(unreadable)?.len();
    let fail = |source| MemoryFileError::Write { what: "the initial RAM file system", source };
    let write = || {
        let mut archive = Archive::new(create("husk-initramfs")?);
        for directory in ["dev", "proc", "sys", "run", "root"] {
            archive.directory(directory, 0o755)?;
        }
        // The kernel opens it for init's first three descriptors.
        archive.character_device("dev/console", 0o600, (5, 1))?;
        archive.character_device("dev/null", 0o666, (1, 3))?;
        archive.file("init", 0o755, size, &program)?;
        let mut file = archive.finish()?;
        let length = file.stream_position()?;
        seal(&file)?;
        Ok((file, length))
    };
    write().map_err(fail)
}

fn create(name: &str) -> io::Result<File> {
    Ok(memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?.into())
}

fn seal(file: &File) -> io::Result<()> {
    Ok(fcntl_add_seals(file, SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn the_default_root_is_a_part_of_this_programs_file() {
        let (file, part) = default_root().unwrap();
        let part = part.unwrap();
        assert!(part.offset.is_multiple_of(4096) && part.bytes == DEFAULT_ROOT.0.len() as u64, "{part:?}");
        let mut image = vec![0; DEFAULT_ROOT.0.len()];
        file.read_exact_at(&mut image, part.offset).unwrap();
        assert!(image == DEFAULT_ROOT.0 && image[1024..1028] == 0xe0f5_e1e2_u32.to_le_bytes());
        assert!((&file).write_all(b"x").is_err());
    }

    #[test]
    fn a_copy_of_the_root_is_sealed() {
        let file = copy_of_root().unwrap();
        assert_eq!(file.metadata().unwrap().len(), DEFAULT_ROOT.0.len() as u64);
        assert!((&file).write_all(b"x").is_err());
        assert!(file.set_len(0).is_err());
    }

    #[test]
    fn what_is_mapped_is_found_in_its_file() {
        let line = "00400000-00452000 r--p 00001000 08:02 173521      /usr/bin/dbus-daemon";
        assert_eq!(offset_of(line, 0x40_0000, 0x1000), Some(0x1000));
        assert_eq!(offset_of(line, 0x45_1000, 0x1000), Some(0x5_2000));
        assert_eq!(offset_of(line, 0x45_1000, 0x1001), None, "ends in another mapping");
        assert_eq!(offset_of(line, 0x3f_f000, 0x1000), None);
        assert_eq!(offset_of(line, 0x40_0001, 0x1000), None, "no sector begins there");
        assert_eq!(offset_of(line, usize::MAX, 2), None);
        for nonsense in ["", "x-y r--p 0 0 0", "00400000-00452000 r--p"] {
            assert_eq!(offset_of(nonsense, 0x40_0000, 1), None, "{nonsense:?}");
        }
        // What no file has is in none.
        let own: &'static [u8] = Box::leak(vec![1_u8; 8192].into_boxed_slice());
        assert!(own_part(own).is_none());
    }

    #[test]
    fn the_initramfs_holds_init() {
        let path = std::env::temp_dir().join(format!("husk-memfile-{}", std::process::id()));
        std::fs::write(&path, b"the program").unwrap();
        let (mut file, size) = initramfs(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        file.rewind().unwrap();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len() as u64, size);
        assert!(bytes.windows(11).any(|window| window == b"the program"));
        assert!(initramfs(&path).unwrap_err().to_string().contains("husk-memfile-"));
    }
}
