//! Namespaces that are made once, so that a cell costs the same however many cells and mounts the host has.
//!
//! In one directory (`/run/husk/ns` for root, one of the user's own without) there are
//! - the **pool**: a mount namespace with this directory as its root, in which the others are bound to files. Root's is held
//!   by a bind on the host, `pool`, on a private mount; another user's by a process, `holder` ([`hold`]);
//! - the **stub**: a mount namespace of one empty read-only mount. A cell that is cloned out of it copies that and not the host's
//!   table of mounts;
//! - up to [`SIZE`] empty **network namespaces**, `net/<inode>`, each with a token, `free/<inode>`, until a cell has it.
//!
//! Refuses a directory that others could change, a symbolic link on the way, and one that holds something else. What the host does
//! not permit is no error: a cell is built without a pool then, of the same walls, only slower.
//!
//! Invariants:
//! 1. A network namespace is one cell's: it is whose removal of the token succeeds, and it was opened before, so that whoever
//!    sweeps it away meanwhile takes nothing from under him. It is never used again: what a cell had is swept at the next [`fill`].
//! 2. A name is not given twice while anybody may hold what it stood for: it is the namespace's inode number.
//! 3. `pool`, or the word of a `holder` that holds its lock, comes last: what was cut off before that is begun anew, by whoever has the
//!    parent's lock. Removing the pool takes the namespaces with it, all at once.
//! 4. The process that becomes a cell never stays in the pool: it goes on to the stub, or it fails.

mod build;
mod command;
mod fill;
mod hold;

pub(crate) use command::command;

use crate::caller::Caller;
use crate::host;
use crate::report::Fault;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{
    AtFlags, CWD, Dir, FlockOperation, Mode, OFlags, ResolveFlags, flock, fstat, fstatfs, mkdirat, openat,
    openat2, unlinkat,
};
use rustix::io::Errno;
use rustix::process::geteuid;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Network namespaces that are kept ready.
pub(crate) const SIZE: usize = 16;
/// Names that are looked at in a directory.
const MOST_NAMES: usize = 4 * SIZE;
/// `NSFS_MAGIC` of linux/magic.h.
const NSFS: i64 = 0x6e73_6673;

/// What is in the directory.
const POOL: &str = "pool";
const STUB: &str = "stub";
const HOLDER: &str = "holder";
const NET: &str = "net";
const FREE: &str = "free";

/// A pool that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// Somebody else's, or nobody's.
    #[error("namespaces {}: {why}", path.display())]
    Refused {
        /// Which directory.
        path: PathBuf,
        /// What it must be.
        why: String,
    },
    /// The system's word.
    #[error("namespaces {}, {step}: {errno}", path.display())]
    Step {
        /// Which directory.
        path: PathBuf,
        /// What was being done.
        step: &'static str,
        /// Why not.
        errno: Errno,
    },
}

impl PoolError {
    /// Who is to blame.
    #[must_use]
    pub const fn fault(&self) -> Fault {
        match self {
            Self::Refused { .. } => Fault::Operator,
            Self::Step { .. } => Fault::Host,
        }
    }
}

/// What the process has entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entered {
    /// A network namespace of its own, which belongs to no user namespace of the cell's.
    pub(crate) network: bool,
}

/// Enters the stub, and with `network` a network namespace if one is ready. `None`: the host permits no pool, and nothing has
/// changed. Made on first use.
pub(crate) fn enter(path: &Path, caller: Caller, network: bool) -> Result<Option<Entered>, PoolError> {
    let place = Place::open(path)?;
    let Some(door) = place.door_or_build(caller)? else { return Ok(None) };
    host::keep().map_err(place.failed("the host's root"))?;
    if !door.pass(&place)? {
        host::forget();
        return Ok(None);
    }
    let network = network && take(&place)?;
    let stub = openat(CWD, STUB, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
    stub.and_then(|stub| move_into_link_name_space(stub.as_fd(), Some(LinkNameSpaceType::Mount)))
        .map_err(place.failed("the stub (was the pool removed meanwhile?)"))?;
    Ok(Some(Entered { network }))
}

/// In the pool: joins a network namespace that no cell has had; false if there is none.
fn take(place: &Place) -> Result<bool, PoolError> {
    let names = names(CWD, FREE).map_err(place.failed("free network namespaces"))?;
    // Not all from the same end, so that many at once do not want the same one.
    let start = usize::try_from(std::process::id()).unwrap_or(0) % names.len().max(1);
    for name in names.iter().cycle().skip(start).take(names.len()) {
        let Ok(namespace) =
            openat(CWD, join(NET, name), OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
        else {
            continue;
        };
        if unlinkat(CWD, join(FREE, name), AtFlags::empty()).is_err() {
            continue;
        }
        // A file where nothing is bound any more is none.
        if move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).is_ok() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The directory, and the one that it is in.
#[derive(Debug)]
pub(crate) struct Place {
    parent: OwnedFd,
    dir: OwnedFd,
    name: CString,
    path: PathBuf,
}

/// The way into the pool.
#[derive(Debug)]
pub(crate) struct Door {
    /// The holder's user namespace, by which its others are the caller's to enter.
    user: Option<OwnedFd>,
    mounts: OwnedFd,
}

impl Place {
    /// Opens it, making it where it is missing.
    pub(crate) fn open(path: &Path) -> Result<Self, PoolError> {
        let failed = |errno| refused(path, errno);
        let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(failed(Errno::INVAL));
        };
        let name = CString::new(name.as_bytes()).map_err(|_| failed(Errno::INVAL))?;
        let parent = open_strictly(CWD, above, ResolveFlags::empty()).map_err(failed)?;
        guarded(&parent, above)?;
        let open = || open_strictly(&parent, name.as_c_str(), ResolveFlags::BENEATH);
        let dir = match open() {
            Err(Errno::NOENT) => match mkdirat(&parent, name.as_c_str(), Mode::from_raw_mode(0o700)) {
                Ok(()) | Err(Errno::EXIST) => open(),
                Err(errno) => Err(errno),
            },
            other => other,
        };
        let dir = dir.map_err(failed)?;
        guarded(&dir, path)?;
        Ok(Self { parent, dir, name, path: path.to_owned() })
    }

    fn failed(&self, step: &'static str) -> impl Fn(Errno) -> PoolError {
        let path = self.path.clone();
        move |errno| PoolError::Step { path: path.clone(), step, errno }
    }

    /// Locks the parent: shared by who uses the pool, alone for who makes or removes it. Until the place is dropped.
    fn lock(&self, how: FlockOperation) -> Result<(), PoolError> {
        locked(&self.parent, how).map_err(self.failed("lock"))
    }

    /// The pool, made if it is not there; `None` if it cannot be.
    fn door_or_build(&self, caller: Caller) -> Result<Option<Door>, PoolError> {
        self.lock(FlockOperation::LockShared)?;
        if let Some(door) = self.door(caller)? {
            return Ok(Some(door));
        }
        // Not the same lock turned into another: that would be let go of in between all the same.
        self.lock(FlockOperation::LockExclusive)?;
        if let Some(door) = self.door(caller)? {
            return Ok(Some(door));
        }
        match build::build(self, caller) {
            Err(PoolError::Step { .. }) => Ok(None),
            Err(refused) => Err(refused),
            Ok(()) => self.door(caller),
        }
    }

    /// The pool, if it is there.
    pub(crate) fn door(&self, caller: Caller) -> Result<Option<Door>, PoolError> {
        if !caller.is_root() {
            return Ok(hold::find(self)?.map(|holder| holder.door));
        }
        // What is mounted on the directory since it was opened is what counts.
        let dir = open_strictly(&self.parent, self.name.as_c_str(), ResolveFlags::BENEATH)
            .map_err(self.failed("open"))?;
        let mounts =
            match openat(&dir, POOL, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
                Ok(mounts) => mounts,
                Err(_) => return Ok(None),
            };
        let bound = fstatfs(&mounts).map_err(self.failed("look"))?.f_type == NSFS;
        Ok(bound.then_some(Door { user: None, mounts }))
    }
}

impl Door {
    /// Enters the pool. False: it may not be entered, and nothing has changed.
    fn pass(&self, place: &Place) -> Result<bool, PoolError> {
        let enter = |namespace: &OwnedFd, kind| move_into_link_name_space(namespace.as_fd(), Some(kind));
        if let Some(user) = &self.user
            && enter(user, LinkNameSpaceType::User).is_err()
        {
            return Ok(false);
        }
        match enter(&self.mounts, LinkNameSpaceType::Mount) {
            Ok(()) => Ok(true),
            Err(Errno::PERM) if self.user.is_none() => Ok(false),
            Err(errno) => Err(place.failed("enter")(errno)),
        }
    }
}

fn locked(file: impl AsFd, how: FlockOperation) -> Result<(), Errno> {
    loop {
        match flock(&file, how) {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

/// `directory/name`, in names that need no escape.
fn join(directory: &str, name: &CStr) -> PathBuf {
    Path::new(directory).join(std::ffi::OsStr::from_bytes(name.to_bytes()))
}

/// The inode numbers that `directory` has files for.
fn names(at: impl AsFd, directory: &str) -> Result<Vec<CString>, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let entries = Dir::new(openat(at, directory, flags, Mode::empty())?)?;
    let is_number = |name: &CStr| !name.is_empty() && name.to_bytes().iter().all(u8::is_ascii_digit);
    let names = entries.filter_map(Result::ok).map(|entry| entry.file_name().to_owned());
    Ok(names.filter(|name| is_number(name)).take(MOST_NAMES).collect())
}

fn open_strictly(at: impl AsFd, path: impl rustix::path::Arg, more: ResolveFlags) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat2(at, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | more)
}

fn refused(path: &Path, errno: Errno) -> PoolError {
    let why = match errno {
        Errno::LOOP => "a symbolic link is on the way; name the directory itself".to_owned(),
        Errno::NOTDIR => "is no directory".to_owned(),
        errno => return PoolError::Step { path: path.to_owned(), step: "open", errno },
    };
    PoolError::Refused { path: path.to_owned(), why }
}

fn guarded(directory: &OwnedFd, path: &Path) -> Result<(), PoolError> {
    let status = fstat(directory).map_err(|errno| refused(path, errno))?;
    let uid = geteuid().as_raw();
    if status.st_uid == uid && status.st_mode & 0o022 == 0 {
        return Ok(());
    }
    let why = format!("must be a directory of user {uid}, writable by nobody else");
    Err(PoolError::Refused { path: path.to_owned(), why })
}

#[cfg(test)]
mod tests;
