//! The program that is executed in the cell, opened once and by descriptor from then on.
//!
//! Refuses what is no regular executable file, a symbolic link in its last place, and an ELF file that could not run in
//! an empty root: another machine's, or one that asks for a dynamic loader. Source: elf(5). What others than root could
//! change is executed from a sealed copy.

use crate::report::Fault;
use crate::sealed;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use rustix::io::{Errno, pread};
use std::path::{Path, PathBuf};

/// ELF header and all program headers that are looked at.
const HEAD: usize = 4096;
const MACHINE: u16 = if cfg!(target_arch = "x86_64") { 62 } else { 183 };
const PT_INTERP: u32 = 3;

/// A program that cannot be executed in a cell.
#[derive(Debug, thiserror::Error)]
#[error("--exec-file {}: {reason}", path.display())]
pub struct ExecutableError {
    path: PathBuf,
    reason: Reason,
}

#[derive(Debug, thiserror::Error)]
enum Reason {
    #[error("{0}")]
    Open(Errno),
    #[error("is a symbolic link; name the file itself")]
    Link,
    #[error("is not a regular file")]
    Kind,
    #[error("is not executable for every user; the cell's user must be able to execute it")]
    Mode,
    #[error("is not an ELF program for this machine")]
    Machine,
    #[error("is larger than {} MiB", crate::sealed::MAX_BYTES >> 20)]
    Large,
    #[error(
        "cannot be copied into memory: {0}; it is copied because others than root may write to it (sysctl \
         vm.memfd_noexec=2 forbids that: give the file to root)"
    )]
    Copy(Errno),
    #[error("is linked dynamically; the cell has no loader: build it for a musl target, statically")]
    Dynamic,
}

impl ExecutableError {
    /// Who is to blame.
    #[must_use]
    pub const fn fault(&self) -> Fault {
        Fault::Operator
    }
}

/// Opens `path` and looks at what it is.
pub(crate) fn open_program(path: &Path) -> Result<OwnedFd, ExecutableError> {
    check(path, program).map_err(|reason| ExecutableError { path: path.to_owned(), reason })
}

/// The same for a cell that has a loader.
pub(crate) fn open_foreign_program(path: &Path) -> Result<OwnedFd, ExecutableError> {
    let loadable = |head: &[u8]| match program(head) {
        Err(Reason::Dynamic) => Ok(()),
        other => other,
    };
    check(path, loadable).map_err(|reason| ExecutableError { path: path.to_owned(), reason })
}

fn check(path: &Path, program: impl Fn(&[u8]) -> Result<(), Reason>) -> Result<OwnedFd, Reason> {
    // O_NONBLOCK: a FIFO must not make the jailer wait for a writer.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = open(path, flags, Mode::empty()).map_err(|errno| match errno {
        Errno::LOOP => Reason::Link,
        other => Reason::Open(other),
    })?;
    let status = fstat(&file).map_err(Reason::Open)?;
    if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
        return Err(Reason::Kind);
    }
    // A copy is everybody's to execute; whose the original is to execute was settled when it was opened.
    let copied = sealed::is_needed(&status);
    if status.st_mode & if copied { 0o111 } else { 0o001 } == 0 {
        return Err(Reason::Mode);
    }
    let mut head = [0; HEAD];
    let length = fill(&file, &mut head).map_err(Reason::Open)?;
    program(&head[..length])?;
    if !copied {
        return Ok(file);
    }
    let bytes = u64::try_from(status.st_size).ok().filter(|bytes| *bytes <= sealed::MAX_BYTES);
    sealed::copy(&file, bytes.ok_or(Reason::Large)?).map_err(Reason::Copy)
}

fn fill(file: impl AsFd, head: &mut [u8; HEAD]) -> Result<usize, Errno> {
    let mut length = 0;
    while length < HEAD {
        match pread(&file, &mut head[length..], length as u64) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(length)
}

/// Looks at the first bytes of a program: ELF header and program headers.
fn program(head: &[u8]) -> Result<(), Reason> {
    let half =
        |at: usize| -> Option<u16> { Some(u16::from_le_bytes(head.get(at..at + 2)?.try_into().ok()?)) };
    let word =
        |at: usize| -> Option<u32> { Some(u32::from_le_bytes(head.get(at..at + 4)?.try_into().ok()?)) };
    // 64-bit, little-endian, version 1; an executable or a position-independent one.
    let is_elf = head.starts_with(b"\x7fELF\x02\x01\x01");
    if !is_elf || !matches!(half(16), Some(2 | 3)) || half(18) != Some(MACHINE) {
        return Err(Reason::Machine);
    }
    let long =
        |at: usize| -> Option<u64> { Some(u64::from_le_bytes(head.get(at..at + 8)?.try_into().ok()?)) };
    let table = long(32).and_then(|offset| usize::try_from(offset).ok()).ok_or(Reason::Machine)?;
    let (size, count) = (half(54).ok_or(Reason::Machine)?, half(56).ok_or(Reason::Machine)?);
    for index in 0..usize::from(count) {
        let at = table.checked_add(index * usize::from(size)).ok_or(Reason::Machine)?;
        if at > HEAD {
            return Err(Reason::Machine);
        }
        match word(at) {
            Some(PT_INTERP) => return Err(Reason::Dynamic),
            Some(_) => {}
            None => return Err(Reason::Machine),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elf(machine: u16, kinds: &[u32]) -> Vec<u8> {
        let mut bytes = vec![0; 64];
        bytes[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        bytes[16] = 3;
        bytes[18..20].copy_from_slice(&machine.to_le_bytes());
        bytes[32] = 64;
        bytes[54] = 56;
        bytes[56] = u8::try_from(kinds.len()).unwrap();
        for kind in kinds {
            bytes.extend_from_slice(&kind.to_le_bytes());
            bytes.extend_from_slice(&[0; 52]);
        }
        bytes
    }

    #[test]
    fn a_static_program_is_taken() {
        assert!(program(&elf(MACHINE, &[6, 1, 1, 2])).is_ok());
    }

    #[test]
    fn a_program_that_needs_a_loader_is_not() {
        assert!(matches!(program(&elf(MACHINE, &[6, PT_INTERP, 1])), Err(Reason::Dynamic)));
    }

    #[test]
    fn what_is_no_program_of_this_machine_is_not() {
        for bytes in [Vec::new(), b"#!/bin/sh\n".to_vec(), elf(3, &[1]), vec![0x7f; 63]] {
            assert!(matches!(program(&bytes), Err(Reason::Machine)));
        }
        let whole = elf(MACHINE, &[6, 1, 1]);
        for length in 0..whole.len() - 52 {
            assert!(program(&whole[..length]).is_err(), "{length}");
        }
        let mut far = elf(MACHINE, &[1]);
        far[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(program(&far).is_err());
    }

    #[test]
    fn where_there_is_a_loader_one_may_be_asked_for() {
        let shell = std::fs::canonicalize("/bin/sh").unwrap();
        assert!(open_program(&shell).unwrap_err().to_string().contains("linked dynamically"));
        open_foreign_program(&shell).unwrap();
        assert!(open_foreign_program(Path::new("/etc/passwd")).is_err());
    }

    #[test]
    fn item_25_files_of_other_kinds_are_named() {
        let scratch = crate::jail::tests::Scratch::new("executable");
        let (fifo, link) = (scratch.0.join("fifo"), scratch.0.join("link"));
        let mode = Mode::from_raw_mode(0o777);
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, mode, 0).unwrap();
        std::os::unix::fs::symlink(std::env::current_exe().unwrap(), &link).unwrap();
        assert!(open_program(&fifo).unwrap_err().to_string().contains("not a regular file"));
        assert!(open_program(&link).unwrap_err().to_string().contains("symbolic link"));
        let error = |path: &str| open_program(Path::new(path)).unwrap_err().to_string();
        assert!(error("/").contains("not a regular file"), "{}", error("/"));
        assert!(error("/dev/null").contains("not a regular file"));
        assert!(error("/proc/self/exe").contains("symbolic link"));
        assert!(error("/proc/nonesuch").contains("No such file"));
        assert!(error("/etc/passwd").contains("not executable"));
    }
}
