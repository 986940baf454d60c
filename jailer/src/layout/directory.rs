//! The directory that becomes a root, while it still lies among the host's files.
//!
//! Owns the names that are made in it and takes them back. The directory may be there already, with the operator's files in
//! it; of what it holds nothing is opened but directories, and nothing is written to but what was made here, under a name that
//! did not exist. Refuses a symbolic link in any place, and a directory that somebody else could have put there. Invariant: no
//! path is resolved twice: each name is looked up below a descriptor, and changed through the descriptor that came of it.

use crate::caller::Caller;
use crate::jail::{JailError, enter, guarded, open_below, refused, walk};
use crate::sealed;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{
    AtFlags, Dir, Gid, Mode, OFlags, ResolveFlags, Uid, fchmod, fchown, fstat, mkdirat, openat2, unlinkat,
};
use rustix::io::Errno;
use std::path::{Path, PathBuf};

/// Where the default socket of Firecracker's API is.
const RUN: &str = "run";
/// Where the device nodes will be mounted.
pub(super) const DEV: &str = "dev";

/// The directory, and what was made on the way to it and in it.
#[derive(Debug)]
pub(super) struct Directory {
    /// The root to be.
    pub(super) root: OwnedFd,
    path: PathBuf,
    made: Vec<(OwnedFd, String, AtFlags)>,
}

/// Makes `<base>/<program>/<id>/root` where it is missing, and what `user` needs in it.
pub(super) fn prepare(base: &Path, program: &str, id: &str, user: Caller) -> Result<Directory, JailError> {
    let at_base = walk(base)?;
    guarded(&at_base, base)?;
    let mut path = base.join(program);
    let shared = enter(&at_base, program, &path)?;
    guarded(&shared, &path)?;
    path.push(id);
    let mut made = Vec::new();
    let result = below(&shared, id, &mut path, &mut made).and_then(|root| {
        let mut directory = Directory { root, path: path.clone(), made: std::mem::take(&mut made) };
        match directory.furnish(user) {
            Ok(()) => Ok(directory),
            Err(error) => {
                directory.remove();
                Err(error)
            }
        }
    });
    if result.is_err() {
        take_back(&made);
    }
    result
}

/// The sandbox's own directory and the root in it.
fn below(
    shared: &OwnedFd,
    id: &str,
    path: &mut PathBuf,
    made: &mut Vec<(OwnedFd, String, AtFlags)>,
) -> Result<OwnedFd, JailError> {
    let own = make(shared, id, path, made)?;
    guarded(&own, path)?;
    path.push("root");
    make(&own, "root", path, made)
}

/// Opens the directory `name` in `at`; makes it where it is missing, and notes that.
fn make(
    at: &OwnedFd,
    name: &str,
    path: &Path,
    made: &mut Vec<(OwnedFd, String, AtFlags)>,
) -> Result<OwnedFd, JailError> {
    let failed = |errno| refused(errno, path);
    match mkdirat(at, name, Mode::from_raw_mode(0o755)) {
        Ok(()) => {
            made.push((
                at.try_clone().map_err(|_| failed(Errno::MFILE))?,
                name.to_owned(),
                AtFlags::REMOVEDIR,
            ));
        }
        Err(Errno::EXIST) => {}
        Err(errno) => return Err(failed(errno)),
    }
    open_below(at, name).map_err(failed)
}

fn take_back(made: &[(OwnedFd, String, AtFlags)]) {
    for (at, name, flags) in made.iter().rev() {
        let _ = unlinkat(at, name, *flags);
    }
}

impl Directory {
    /// Takes back what was made; what somebody has put into it keeps its place.
    pub(super) fn remove(&self) {
        take_back(&self.made);
    }

    /// Gives the root to `user`, and makes the directories in it.
    fn furnish(&mut self, user: Caller) -> Result<(), JailError> {
        give(&self.root, &self.path, user)?;
        let run = make(&self.root, RUN, &self.path.join(RUN), &mut self.made)?;
        give(&run, &self.path.join(RUN), user)?;
        let path = self.path.join(DEV);
        let dev = make(&self.root, DEV, &path, &mut self.made)?;
        if is_empty(&dev).map_err(|errno| refused(errno, &path))? {
            Ok(())
        } else {
            Err(JailError::Filled(path))
        }
    }

    /// Makes the file `name`, which must not exist as whatever, and opens it for writing.
    pub(super) fn create(&mut self, name: &str, mode: u32) -> Result<OwnedFd, JailError> {
        let path = self.path.join(name);
        let failed = |errno| match errno {
            Errno::EXIST => JailError::Exists(path.clone()),
            errno => refused(errno, &path),
        };
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(mode);
        let file = openat2(&self.root, name, flags, mode, strictly()).map_err(failed)?;
        let root = self.root.try_clone().map_err(|_| failed(Errno::MFILE))?;
        self.made.push((root, name.to_owned(), AtFlags::empty()));
        // Whatever the caller's umask is.
        fchmod(&file, mode).map_err(failed)?;
        Ok(file)
    }

    /// Copies `program` to the new file `name`, which nobody can write to; the copy, opened for execution.
    pub(super) fn copy(&mut self, name: &str, program: &OwnedFd) -> Result<OwnedFd, JailError> {
        let path = self.path.join(name);
        let failed = |errno| refused(errno, &path);
        let target = self.create(name, 0o555)?;
        let bytes = u64::try_from(fstat(program).map_err(failed)?.st_size).unwrap_or_default();
        if bytes > sealed::MAX_BYTES {
            return Err(failed(Errno::FBIG));
        }
        sealed::fill(&target, program, bytes).map_err(failed)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let copy = openat2(&self.root, name, flags, Mode::empty(), strictly()).map_err(failed)?;
        // The user owns the directory, and may have put something else there meanwhile.
        let (ours, theirs) = (fstat(&target).map_err(failed)?, fstat(&copy).map_err(failed)?);
        if (ours.st_dev, ours.st_ino) != (theirs.st_dev, theirs.st_ino) || theirs.st_nlink != 1 {
            return Err(JailError::Exists(path));
        }
        Ok(copy)
    }
}

fn strictly() -> ResolveFlags {
    ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS
}

/// Gives a directory to `user` and nobody else. It must be his already, or the caller's own and nobody else's to change: any
/// other one somebody could have moved here from another place.
fn give(directory: &OwnedFd, path: &Path, user: Caller) -> Result<(), JailError> {
    let failed = |errno| refused(errno, path);
    let open = reopened(directory).map_err(failed)?;
    let status = fstat(&open).map_err(failed)?;
    if status.st_uid != user.uid {
        guarded(&open, path)?;
    }
    fchmod(&open, Mode::from_raw_mode(0o700)).map_err(failed)?;
    fchown(&open, Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(user.gid))).map_err(failed)
}

/// The directory behind a descriptor that only stands for it, so that it can be read and changed.
fn reopened(directory: impl AsFd) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat2(directory, ".", flags, Mode::empty(), strictly())
}

fn is_empty(directory: &OwnedFd) -> Result<bool, Errno> {
    let mut entries = Dir::new(reopened(directory)?)?;
    let named = entries.find(|entry| {
        entry.as_ref().map_or(true, |entry| ![&b"."[..], b".."].contains(&entry.file_name().to_bytes()))
    });
    named.transpose().map(|entry| entry.is_none())
}

#[cfg(test)]
mod tests;
