//! The host's files, for a process that has left the host's mount namespace.
//!
//! Owns the one descriptor that still leads there, of the root that the process began with: taken by [`keep`], closed by
//! [`forget`], before the cell's program is executed. A process has one root, so this is the process's and no value's.
//! Invariant: without it, paths lead where they always do.

use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;
use std::io::Read;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

static ROOT: Mutex<Option<OwnedFd>> = Mutex::new(None);
/// Most bytes of a file that is read whole.
const MAX_BYTES: u64 = 4096;

fn root() -> MutexGuard<'static, Option<OwnedFd>> {
    ROOT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From here on paths are the root's that the process has now.
pub(crate) fn keep() -> Result<(), Errno> {
    let now = openat(CWD, "/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    *root() = Some(now);
    Ok(())
}

/// Paths are the process's own again.
pub(crate) fn forget() {
    *root() = None;
}

/// Opens an absolute path of the host's.
pub(crate) fn open(path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    match &*root() {
        Some(root) => openat(root, path.trim_start_matches('/'), flags | OFlags::CLOEXEC, Mode::empty()),
        None => openat(CWD, path, flags | OFlags::CLOEXEC, Mode::empty()),
    }
}

/// The text of a small file of the host's.
pub(crate) fn read(path: &str) -> Option<String> {
    let mut text = String::new();
    let file = std::fs::File::from(open(path, OFlags::RDONLY).ok()?);
    file.take(MAX_BYTES).read_to_string(&mut text).ok().map(|_| text)
}

/// Removes an empty directory of the host's, if it is there.
pub(crate) fn remove_directory(path: &Path) {
    let _ = match (&*root(), path.strip_prefix("/")) {
        (Some(root), Ok(below)) => unlinkat(root, below, AtFlags::REMOVEDIR),
        _ => unlinkat(CWD, path, AtFlags::REMOVEDIR),
    };
}
