//! The jail's directory: `<base>/<program>/<id>/root`, made without following a symbolic link anywhere.
//!
//! Owns the walk from descriptor to descriptor, so that a name swapped under its feet changes nothing. Refuses a jail
//! that exists, as whatever kind of file, and a base that others can write to. Its `root` stays empty for ever: it says
//! that the name is taken, and what is the cell's root is mounted in the cell's mount namespace only.

use crate::report::Fault;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat2, unlinkat};
use rustix::io::Errno;
use rustix::process::geteuid;
use std::path::{Component, Path, PathBuf};

/// A directory that was made; dropped, it stays.
#[derive(Debug)]
pub(crate) struct Jail {
    /// The empty directory in it.
    pub(crate) root: OwnedFd,
    own: OwnedFd,
    program: OwnedFd,
    id: String,
}

/// A jail that cannot be.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// Taken.
    #[error("jail {}: exists already; another sandbox has this id, or its remains were not removed", .0.display())]
    Exists(PathBuf),
    /// A symbolic link on the way.
    #[error("jail directory {}: a symbolic link is on the way; name the directory itself", .0.display())]
    Link(PathBuf),
    /// Others can put things there.
    #[error("jail directory {}: must belong to root and be writable by nobody else", .0.display())]
    Shared(PathBuf),
    /// Something would be hidden.
    #[error("jail directory {}: must be empty, for the device nodes are mounted on it", .0.display())]
    Filled(PathBuf),
    /// Anything else.
    #[error("jail directory {}: {errno}", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        errno: Errno,
    },
}

impl JailError {
    /// Who is to blame.
    #[must_use]
    pub const fn fault(&self) -> Fault {
        match self {
            Self::Directory { .. } => Fault::Host,
            _ => Fault::Operator,
        }
    }
}

/// Makes the jail of `id` for `program` below `base`.
pub(crate) fn make(base: &Path, program: &str, id: &str) -> Result<Jail, JailError> {
    let at_base = walk(base)?;
    guarded(&at_base, base)?;
    let shared = base.join(program);
    let program = enter(&at_base, program, &shared)?;
    guarded(&program, &shared)?;
    let path = shared.join(id);
    let private = Mode::from_raw_mode(0o700);
    mkdirat(&program, id, private).map_err(|errno| match errno {
        Errno::EXIST => JailError::Exists(path.clone()),
        errno => JailError::Directory { path: path.clone(), errno },
    })?;
    finish(program, id, path)
}

/// From the sandbox's own directory on; what fails takes it back.
fn finish(program: OwnedFd, id: &str, path: PathBuf) -> Result<Jail, JailError> {
    let result = open_below(&program, id).and_then(|own| {
        mkdirat(&own, "root", Mode::from_raw_mode(0o700))?;
        let root = open_below(&own, "root")?;
        Ok((own, root))
    });
    match result {
        Ok((own, root)) => Ok(Jail { root, own, program, id: id.to_owned() }),
        Err(errno) => {
            let _ = unlinkat(&program, id, AtFlags::REMOVEDIR);
            Err(JailError::Directory { path, errno })
        }
    }
}

impl Jail {
    /// Takes back what was made; for a sandbox that never was.
    pub(crate) fn remove(&self) {
        let _ = unlinkat(&self.own, "root", AtFlags::REMOVEDIR);
        let _ = unlinkat(&self.program, &self.id, AtFlags::REMOVEDIR);
    }
}

/// The base directory, made where it is missing.
pub(crate) fn walk(base: &Path) -> Result<OwnedFd, JailError> {
    let missing = match open_strictly(CWD, base, ResolveFlags::empty()) {
        Err(Errno::NOENT) => true,
        Err(errno) => return Err(refused(errno, base)),
        Ok(directory) => return Ok(directory),
    };
    debug_assert!(missing);
    let mut path = PathBuf::from("/");
    let mut at = open_strictly(CWD, &path, ResolveFlags::empty()).map_err(|errno| refused(errno, base))?;
    for part in base.components() {
        if let Component::Normal(name) = part {
            path.push(name);
            at = enter(&at, name, &path)?;
        }
    }
    Ok(at)
}

/// Enters `name` in `at`, making it where it is missing.
pub(crate) fn enter(at: impl AsFd, name: impl AsRef<Path>, path: &Path) -> Result<OwnedFd, JailError> {
    let name = name.as_ref();
    match open_below(&at, name) {
        Err(Errno::NOENT) => {}
        other => return other.map_err(|errno| refused(errno, path)),
    }
    match mkdirat(&at, name, Mode::from_raw_mode(0o755)) {
        // Another jailer was faster: what matters is what is there now.
        Ok(()) | Err(Errno::EXIST) => open_below(&at, name).map_err(|errno| refused(errno, path)),
        Err(errno) => Err(refused(errno, path)),
    }
}

pub(crate) fn open_below(at: impl AsFd, name: impl AsRef<Path>) -> Result<OwnedFd, Errno> {
    open_strictly(at, name.as_ref(), ResolveFlags::BENEATH)
}

pub(crate) fn open_strictly(at: impl AsFd, path: &Path, more: ResolveFlags) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat2(at, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | more)
}

pub(crate) fn refused(errno: Errno, path: &Path) -> JailError {
    match errno {
        Errno::LOOP => JailError::Link(path.to_owned()),
        errno => JailError::Directory { path: path.to_owned(), errno },
    }
}

pub(crate) fn guarded(directory: &OwnedFd, path: &Path) -> Result<(), JailError> {
    let status = fstat(directory).map_err(|errno| refused(errno, path))?;
    if status.st_uid != geteuid().as_raw() || status.st_mode & 0o022 != 0 {
        return Err(JailError::Shared(path.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests;
