//! A copy of a program that nobody can change: a sealed file in memory.
//!
//! Who runs in a cell must not be able to write to the program that the next cell executes, by whichever way he gets hold of
//! his own (CVE-2019-5736, CVE-2024-21626). A file that only root can write to is safe from him by itself, and its pages are
//! shared by all sandboxes; of any other file the cell executes a copy.

use rustix::fd::OwnedFd;
use rustix::fs::{MemfdFlags, Mode, SealFlags, Stat, fchmod, fcntl_add_seals, memfd_create, sendfile};
use rustix::io::Errno;

/// Most bytes of a program.
pub(crate) const MAX_BYTES: u64 = 256 << 20;

/// Whether somebody other than root could change the file.
pub(crate) fn is_needed(status: &Stat) -> bool {
    status.st_uid != 0 || status.st_gid != 0 && status.st_mode & 0o020 != 0 || status.st_mode & 0o002 != 0
}

/// A sealed copy of the first `bytes` bytes of `program`.
pub(crate) fn copy(program: &OwnedFd, bytes: u64) -> Result<OwnedFd, Errno> {
    let plain = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let copy = match memfd_create("husk", plain | MemfdFlags::EXEC) {
        // Before Linux 6.3 there was no flag, and every such file could be executed.
        Err(Errno::INVAL) => memfd_create("husk", plain)?,
        other => other?,
    };
    fill(&copy, program, bytes)?;
    fchmod(&copy, Mode::from_raw_mode(0o555))?;
    fcntl_add_seals(&copy, SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(copy)
}

/// Writes the first `bytes` bytes of `program` to `copy`.
pub(crate) fn fill(copy: &OwnedFd, program: &OwnedFd, bytes: u64) -> Result<(), Errno> {
    let (mut offset, mut left) = (0, usize::try_from(bytes).unwrap_or(usize::MAX));
    while left > 0 {
        match sendfile(copy, program, Some(&mut offset), left) {
            // It became shorter.
            Ok(0) => return Err(Errno::IO),
            Ok(count) => left -= count.min(left),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, OFlags, fcntl_get_seals, fstat, ftruncate, openat};
    use rustix::io::pread;

    #[test]
    fn item_26_a_copy_is_the_same_and_stays_so() {
        let path = std::env::current_exe().unwrap();
        let program = openat(CWD, path, OFlags::RDONLY, Mode::empty()).unwrap();
        let bytes = u64::try_from(fstat(&program).unwrap().st_size).unwrap();
        let copy = copy(&program, bytes).unwrap();
        let (mut one, mut other) = ([0; 4096], [1; 4096]);
        let last = bytes - 4096;
        pread(&program, &mut one, last).unwrap();
        pread(&copy, &mut other, last).unwrap();
        assert_eq!(one, other);
        assert!(fcntl_get_seals(&copy).unwrap().contains(SealFlags::WRITE | SealFlags::SEAL));
        assert_eq!(rustix::io::pwrite(&copy, b"x", 0), Err(Errno::PERM));
        assert_eq!(ftruncate(&copy, 0), Err(Errno::PERM));
    }

    #[test]
    fn item_26_only_roots_own_files_are_executed_as_they_are() {
        let mut status = fstat(openat(CWD, "/", OFlags::RDONLY, Mode::empty()).unwrap()).unwrap();
        let mut needed = |uid, gid, mode: u32| {
            (status.st_uid, status.st_gid, status.st_mode) = (uid, gid, 0o100_000 | mode);
            is_needed(&status)
        };
        assert!(!needed(0, 0, 0o755) && !needed(0, 0, 0o775) && !needed(0, 7, 0o755));
        assert!(needed(7, 0, 0o555) && needed(0, 7, 0o775) && needed(0, 0, 0o757));
    }
}
