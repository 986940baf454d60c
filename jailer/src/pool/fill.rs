//! Fills the pool with network namespaces, and sweeps away those that cells have had. Nobody waits for it.

use super::build::{bind, own, touch};
use super::{FREE, NET, Place, PoolError, SIZE, join, locked, names};
use crate::caller::Caller;
use crate::host;
use crate::sys;
use rustix::fs::{AtFlags, CWD, FlockOperation, fstat, statat, unlinkat};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use std::ffi::CStr;
use std::path::Path;

/// Brings the pool to its full size. The process is in the pool afterwards, and has nothing more to do.
pub(super) fn fill(path: &Path, caller: Caller) -> Result<(), PoolError> {
    let place = Place::open(path)?;
    let Some(door) = place.door_or_build(caller)? else { return Ok(()) };
    place.lock(FlockOperation::LockShared)?;
    match locked(&place.dir, FlockOperation::NonBlockingLockExclusive) {
        // Another one is at it.
        Err(Errno::WOULDBLOCK) => return Ok(()),
        other => other.map_err(place.failed("lock"))?,
    }
    host::keep().map_err(place.failed("the host's root"))?;
    if !door.pass(&place)? {
        return Ok(());
    }
    sweep().and_then(|()| top_up()).map_err(place.failed("fill"))
}

/// What has no token any more is a cell's, which holds it itself.
fn sweep() -> Result<(), Errno> {
    for name in names(CWD, NET)? {
        let token = statat(CWD, join(FREE, &name), AtFlags::SYMLINK_NOFOLLOW);
        if matches!(token, Err(Errno::NOENT)) {
            discard(&name)?;
        }
    }
    Ok(())
}

fn discard(name: &CStr) -> Result<(), Errno> {
    let path = join(NET, name);
    match unmount(&path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        // Whoever made it did not come to bind it.
        Ok(()) | Err(Errno::INVAL) => unlinkat(CWD, &path, AtFlags::empty()),
        Err(errno) => Err(errno),
    }
}

fn top_up() -> Result<(), Errno> {
    for _ in names(CWD, NET)?.len()..SIZE {
        sys::unshare(libc::CLONE_NEWNET)?;
        let namespace = own(c"net")?;
        let name = fstat(&namespace)?.st_ino.to_string();
        let path = Path::new(NET).join(&name);
        touch(CWD, &path)?;
        bind(&namespace, CWD, &path)?;
        // From here on it is anybody's to take.
        touch(CWD, Path::new(FREE).join(&name))?;
    }
    Ok(())
}
