//! What is known on disk about sandboxes that live: `/run/husk`, or a directory of the user's own.
//!
//! Owns the layout (`sandboxes/<id>/{lock,state.json,socket}`, `/run/husk/slots/<uid>`), ids and the uid of each sandbox. Refuses an id
//! that is taken, and a directory that others could change. Invariant: a sandbox lives exactly as long as someone holds its
//! lock; everything under a free lock may be removed by anyone. A uid is one sandbox's on this machine, whatever the state
//! directory, until nothing of it is left.

mod error;
mod record;

pub(crate) use error::StateError;
pub(crate) use record::{DriveRecord, Record};

use crate::cgroup::DEFAULT_PARENT;
use crate::rootless;
use crate::uids;
use rustix::fs::{FlockOperation, RenameFlags, flock, renameat_with};
use rustix::io::Errno;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Environment variable that names another state directory.
pub(crate) const STATE_VARIABLE: &str = "HUSK_STATE";
/// Where the state is kept.
const STATE: &str = "/run/husk";
/// Longest id: it becomes the guest's host name.
pub(crate) const LONGEST_ID: usize = 64;

/// The state directory.
#[derive(Debug, Clone)]
pub(crate) struct State {
    base: PathBuf,
    slots: PathBuf,
}

/// A sandbox's place in the state directory, for as long as this lives.
#[derive(Debug)]
pub(crate) struct Registration {
    pub(crate) id: String,
    /// User and group id that it runs under; without root the caller's.
    pub(crate) uid: u32,
    directory: PathBuf,
    slot: Option<PathBuf>,
    _lock: File,
}

/// Whether `id` may name a sandbox.
pub(crate) fn check_id(id: &str) -> Result<(), StateError> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    let right = !id.is_empty() && id.len() <= LONGEST_ID && id.bytes().all(allowed) && !id.starts_with('-');
    if right { Ok(()) } else { Err(StateError::Id(crate::text::line(id))) }
}

/// Twelve random hexadecimal digits.
pub(crate) fn random_id() -> Result<String, StateError> {
    let mut bytes = [0_u8; 6];
    random(&mut bytes).map_err(StateError::Random)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Fills `bytes` from the kernel's generator.
pub(crate) fn random(bytes: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        match rustix::rand::getrandom(&mut bytes[done..], rustix::rand::GetRandomFlags::empty()) {
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> StateError {
    let path = path.to_owned();
    move |source| StateError::Io { path, source }
}

fn directory(path: &Path, mode: u32) -> Result<(), StateError> {
    DirBuilder::new().recursive(true).mode(mode).create(path).map_err(io_error(path))
}

impl State {
    /// $HUSK_STATE, or /run/husk; without root a directory of the user's own.
    pub(crate) fn usual() -> Self {
        let named = std::env::var_os(STATE_VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from);
        let usual = || if rootless::is_root() { PathBuf::from(STATE) } else { rootless::state_directory() };
        let base = named.unwrap_or_else(usual);
        Self { base: std::path::absolute(&base).unwrap_or(base), slots: Path::new(STATE).join("slots") }
    }

    /// A state directory at `base`.
    #[cfg(test)]
    pub(crate) fn at(base: &Path) -> Self {
        Self { base: base.to_owned(), slots: base.join("slots") }
    }

    /// Where it is.
    pub(crate) fn base(&self) -> &Path {
        &self.base
    }

    /// Name of the cgroup below which this state's sandboxes have theirs: another state's are never taken for dead ones
    /// of this.
    pub(crate) fn cgroup_parent(&self) -> String {
        let path: PathBuf = self.base.components().collect();
        if path == Path::new(STATE) {
            return DEFAULT_PARENT.to_owned();
        }
        // FNV-1a; it has to be the same in every build.
        let bytes = path.as_os_str().as_encoded_bytes();
        let hash = bytes
            .iter()
            .fold(0x811c_9dc5_u32, |hash, &byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        format!("{DEFAULT_PARENT}-{hash:08x}")
    }

    /// Directory of the sandboxes.
    pub(crate) fn sandboxes(&self) -> PathBuf {
        self.base.join("sandboxes")
    }

    /// Directory of the user ids in use, of all state directories; each entry is a symbolic link to the sandbox's directory.
    pub(crate) fn slots(&self) -> &Path {
        &self.slots
    }

    /// Registers a sandbox under `id` and gives it a user id of its own.
    pub(crate) fn register(&self, id: &str) -> Result<Registration, StateError> {
        check_id(id)?;
        self.make()?;
        let (directory, lock) = self.claim(id)?;
        match self.user(&directory) {
            Ok((uid, slot)) => Ok(Registration { id: id.to_owned(), uid, directory, slot, _lock: lock }),
            Err(error) => {
                let _ = discard(&directory);
                Err(error)
            }
        }
    }

    /// Makes the directories, if they are not there.
    fn make(&self) -> Result<(), StateError> {
        let uid = rustix::process::geteuid().as_raw();
        directory(&self.base, if rootless::is_root() { 0o755 } else { 0o700 })?;
        let found = std::fs::symlink_metadata(&self.base).map_err(io_error(&self.base))?;
        if !found.is_dir() || found.uid() != uid || found.mode() & 0o022 != 0 {
            return Err(StateError::Shared { path: self.base.clone(), uid });
        }
        directory(&self.sandboxes(), 0o700)
    }

    /// Whom the sandbox in `directory` runs as.
    fn user(&self, directory: &Path) -> Result<(u32, Option<PathBuf>), StateError> {
        if !rootless::is_root() {
            return Ok((rustix::process::geteuid().as_raw(), None));
        }
        self::directory(&self.slots, 0o700)?;
        let (uid, slot) = uids::take(&self.slots, uids::Range::usual()?, directory)?;
        Ok((uid, Some(slot)))
    }

    /// Makes the directory with its lock held already, so that nobody ever sees it with a free one.
    fn claim(&self, id: &str) -> Result<(PathBuf, File), StateError> {
        let draft = self.sandboxes().join(format!(".new-{id}-{}", std::process::id()));
        let fail = io_error(&draft);
        // Held until the draft is a sandbox: a draft that is there while nobody holds it has no maker any more.
        let _drafting = self.drafting(FlockOperation::LockShared).map_err(io_error(&self.sandboxes()))?;
        DirBuilder::new().mode(0o700).create(&draft).map_err(io_error(&draft))?;
        let make = || {
            let lock = File::create_new(draft.join("lock"))?;
            // Whoever probes it at this moment holds it shared, for no longer than the probe takes.
            while let Err(errno) = flock(&lock, FlockOperation::LockExclusive) {
                if errno != Errno::INTR {
                    return Err(errno.into());
                }
            }
            io::Result::Ok(lock)
        };
        let lock = make().map_err(|source| {
            let _ = std::fs::remove_dir_all(&draft);
            fail(source)
        })?;
        let directory = self.sandboxes().join(id);
        let here = rustix::fs::CWD;
        match renameat_with(here, &draft, here, &directory, RenameFlags::NOREPLACE) {
            Ok(()) => Ok((directory, lock)),
            Err(errno) => {
                let _ = std::fs::remove_dir_all(&draft);
                Err(match errno {
                    Errno::EXIST | Errno::NOTEMPTY => StateError::Taken(id.to_owned()),
                    other => io_error(&directory)(other.into()),
                })
            }
        }
    }

    /// Takes the lock of those who make drafts, shared, or of who removes what they left, alone.
    pub(crate) fn drafting(&self, how: FlockOperation) -> io::Result<File> {
        let directory = File::open(self.sandboxes())?;
        loop {
            match flock(&directory, how) {
                Err(Errno::INTR) => {}
                result => return result.map(|()| directory).map_err(io::Error::from),
            }
        }
    }

    /// All sandboxes that live, the oldest first.
    pub(crate) fn living(&self) -> Result<Vec<Record>, StateError> {
        let path = self.sandboxes();
        let entries = match std::fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(io_error(&path)(error)),
        };
        let mut records: Vec<Record> = entries
            .flatten()
            // What begins with a dot is not a sandbox yet.
            .filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."))
            .filter(|entry| is_locked(&entry.path()))
            .filter_map(|entry| record::read(&entry.path()))
            .collect();
        records.sort_by(|one, other| (one.started_ms, &one.id).cmp(&(other.started_ms, &other.id)));
        Ok(records)
    }

    /// What the sandbox `id` said of itself, alive or dead.
    pub(crate) fn record(&self, id: &str) -> Option<Record> {
        record::read(&self.sandboxes().join(id))
    }

    /// The one living sandbox whose id is, or begins with, `prefix`.
    pub(crate) fn find(&self, prefix: &str) -> Result<Record, StateError> {
        let unknown = || StateError::Unknown(crate::text::line(prefix));
        if prefix.is_empty() {
            return Err(unknown());
        }
        let mut matching: Vec<Record> =
            self.living()?.into_iter().filter(|record| record.id.starts_with(prefix)).collect();
        if let Some(exact) = matching.iter().position(|record| record.id == prefix) {
            return Ok(matching.swap_remove(exact));
        }
        match matching.pop() {
            None => Err(unknown()),
            Some(one) if matching.is_empty() => Ok(one),
            Some(one) => {
                matching.push(one);
                let ids: Vec<_> = matching.into_iter().map(|record| record.id).collect();
                Err(StateError::Ambiguous(prefix.to_owned(), ids.join(", ")))
            }
        }
    }

    /// Takes the lock of the dead sandbox `id`, so that it stays dead, and nobody else takes it up, while it is removed.
    /// One without a directory gets one. `None`: someone else has it.
    pub(crate) fn seize(&self, id: &str) -> Option<File> {
        check_id(id).ok()?;
        let path = self.sandboxes().join(id).join("lock");
        let lock = match File::options().create(true).truncate(false).write(true).open(&path) {
            Ok(lock) => lock,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.make().ok()?;
                return self.claim(id).ok().map(|(_, lock)| lock);
            }
            Err(_) => return None,
        };
        flock(&lock, FlockOperation::NonBlockingLockExclusive).ok()?;
        // The name may have gone to another sandbox since it was opened.
        let (held, named) = (lock.metadata().ok()?, std::fs::metadata(&path).ok()?);
        ((held.dev(), held.ino()) == (named.dev(), named.ino())).then_some(lock)
    }

    /// Whether the sandbox `id` lives.
    pub(crate) fn lives(&self, id: &str) -> bool {
        is_locked(&self.sandboxes().join(id))
    }
}

/// Whether someone holds the lock in `directory`.
pub(crate) fn is_locked(directory: &Path) -> bool {
    let Ok(lock) = File::open(directory.join("lock")) else { return false };
    matches!(flock(&lock, FlockOperation::NonBlockingLockShared), Err(Errno::WOULDBLOCK))
}

impl Registration {
    /// Its directory, which only its owner may enter.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Writes what `husk ps` shows.
    pub(crate) fn publish(&self, record: &Record) -> Result<(), StateError> {
        let (draft, path) = (self.directory.join("state.new"), self.directory.join("state.json"));
        let write = || {
            std::fs::write(&draft, serde_json::to_vec(record)?)?;
            std::fs::rename(&draft, &path)
        };
        write().map_err(io_error(&path))
    }

    /// Takes the sandbox off the books. To be called when nothing else of it is left.
    pub(crate) fn remove(self) -> Result<(), StateError> {
        if let Some(slot) = &self.slot {
            std::fs::remove_file(slot).map_err(io_error(slot))?;
        }
        discard(&self.directory).map_err(io_error(&self.directory))
    }
}

/// Removes a sandbox's directory, whose lock the caller holds: out of the way in one step, so that its id is free before
/// its lock is gone, then for good.
pub(crate) fn discard(directory: &Path) -> io::Result<()> {
    let id = directory.file_name().unwrap_or_default().to_string_lossy();
    let gone = directory.with_file_name(format!(".gone-{id}-{}", std::process::id()));
    std::fs::rename(directory, &gone)?;
    match std::fs::remove_dir_all(&gone) {
        // A collection was faster.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
pub(crate) mod tests;
