//! Files that live in memory only: the initial RAM file system and the embedded root.
//!
//! Owns nothing but the descriptors it returns. Refuses nothing. Invariant: a file is sealed against every change
//! before it leaves here, so that the cell cannot alter what another reader sees.

use crate::cpio::Archive;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use std::fs::File;
use std::io::{self, Seek, Write};
use std::path::{Path, PathBuf};

/// An erofs image of busybox with all its applets.
static DEFAULT_ROOT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/default-root.erofs"));

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

/// The embedded root and its size in bytes.
pub(crate) fn default_root() -> Result<(File, u64), MemoryFileError> {
    let fail = |source| MemoryFileError::Write { what: "the default root", source };
    let mut file = create("husk-root").map_err(fail)?;
    file.write_all(DEFAULT_ROOT).map_err(fail)?;
    seal(&file).map_err(fail)?;
    Ok((file, DEFAULT_ROOT.len() as u64))
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
    fn the_default_root_is_a_sealed_erofs_image() {
        let (file, size) = default_root().unwrap();
        assert_eq!(file.metadata().unwrap().len(), size);
        assert_eq!(DEFAULT_ROOT[1024..1028], 0xe0f5_e1e2_u32.to_le_bytes());
        assert!((&file).write_all(b"x").is_err());
        assert!(file.set_len(0).is_err());
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
