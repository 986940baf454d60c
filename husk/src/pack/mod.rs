//! A directory as a root: packed into an erofs image by mkfs.erofs, once per content.
//!
//! Owns the cache of images (`$XDG_CACHE_HOME/husk/images`). Refuses a tree that changes while it is packed.
//! Invariant: a file in the cache under a final name is complete, and was made from exactly the tree that its name is
//! the key of; everything unfinished carries the name of a lock that its maker holds.

mod tree;

use crate::image::{Access, Image, ImageError};
use crate::signals::{Meaning, Signals};
use husk_protocol::control::Fault;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};
use tree::Tree;

/// Images kept; beyond them the one that was not used for the longest time goes.
const MOST_IMAGES: usize = 16;
/// `husk gc` removes images that were not used for this long.
const KEPT_UNUSED: Duration = Duration::from_secs(30 * 24 * 3600);
/// Packing says that it works after this long.
const QUIET: Duration = Duration::from_secs(1);
/// Any constant: two packings of one tree must not differ.
const UUID: &str = "6875736b-726f-6f74-8000-000000000002";

/// Why a directory cannot be packed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PackError {
    /// The tree cannot be read.
    #[error("rootfs {}: {source}", path.display())]
    Walk {
        /// The directory.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// Nobody knows where caches go.
    #[error("rootfs {}: there is no place for the packed image; set XDG_CACHE_HOME or HOME", .0.display())]
    NoCache(PathBuf),
    /// The cache cannot be written.
    #[error("cache {}: {source}", path.display())]
    Cache {
        /// The file or directory.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// No mkfs.erofs.
    #[error("rootfs {}: mkfs.erofs cannot be run ({source}); install Debian's package erofs-utils", path.display())]
    NoTool {
        /// The directory.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// mkfs.erofs failed.
    #[error("rootfs {}: mkfs.erofs failed while it wrote to {}: {message}", path.display(), cache.display())]
    Tool {
        /// The directory.
        path: PathBuf,
        /// The cache.
        cache: PathBuf,
        /// Its last line.
        message: String,
    },
    /// The tree was changed meanwhile.
    #[error("rootfs {} changed while it was packed; try again when nobody writes to it", .0.display())]
    Changed(PathBuf),
    /// A signal came.
    #[error("interrupted while rootfs was packed")]
    Interrupted(i32),
    /// The image that came out cannot be used.
    #[error(transparent)]
    Image(#[from] ImageError),
}

impl PackError {
    /// Who is at fault.
    #[must_use]
    pub(crate) fn fault(&self) -> Fault {
        match self {
            Self::Walk { .. } | Self::NoCache(_) | Self::Changed(_) | Self::Interrupted(_) => Fault::Operator,
            Self::Cache { .. } | Self::NoTool { .. } | Self::Tool { .. } => Fault::Host,
            Self::Image(error) => error.fault(),
        }
    }
}

/// Where packed images are kept, and how packing talks.
#[derive(Debug)]
pub(crate) struct Packer<'a> {
    /// Directory of the images; `None`: unknown.
    pub(crate) cache: Option<PathBuf>,
    /// Ends packing early.
    pub(crate) signals: Option<&'a Signals>,
    /// Says on standard error that packing goes on.
    pub(crate) talkative: bool,
}

/// `${XDG_CACHE_HOME:-$HOME/.cache}/husk/images`.
pub(crate) fn usual_cache() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")))?;
    Some(base.join("husk/images"))
}

impl Packer<'_> {
    /// The image of the tree at `directory`, from the cache or made now.
    pub(crate) fn image_of(&self, directory: &Path) -> Result<Image, PackError> {
        let cache = self.cache.clone().ok_or_else(|| PackError::NoCache(directory.to_owned()))?;
        let tree = self.settled(directory)?;
        let image = cache.join(format!("{}.erofs", tree.key));
        // One that cannot be used is looked at again under the lock.
        if let Ok(Some(found)) = reuse(&image) {
            return Ok(found);
        }
        let fail = |path: &Path| {
            let path = path.to_owned();
            move |source| PackError::Cache { path, source }
        };
        std::fs::create_dir_all(&cache).map_err(fail(&cache))?;
        let lock_path = cache.join(format!("{}.lock", tree.key));
        let lock = self.lock(&lock_path)?;
        // Someone else may have made it while this waited for the lock.
        let result = match reuse(&image) {
            Ok(Some(found)) => Ok(found),
            Ok(None) => self.make(directory, &tree, &image),
            Err(_) => {
                // What is there is damaged; it can be made again.
                let _ = std::fs::remove_file(&image);
                self.make(directory, &tree, &image)
            }
        };
        let _ = std::fs::remove_file(&lock_path);
        drop(lock);
        trim(&cache, MOST_IMAGES, None);
        result
    }

    /// Walks until the last change is old enough to tell the next one from it.
    fn settled(&self, directory: &Path) -> Result<Tree, PackError> {
        let deadline = Instant::now() + Duration::from_secs(2);
        loop {
            let began = SystemTime::now();
            let tree = Tree::walk(directory)
                .map_err(|source| PackError::Walk { path: directory.to_owned(), source })?;
            if tree.settled(began) {
                return Ok(tree);
            }
            if Instant::now() > deadline {
                return Err(PackError::Changed(directory.to_owned()));
            }
            self.pause(Duration::from_millis(25))?;
        }
    }

    /// Takes the lock of one key. The file is unlinked by whoever holds it, so a lock counts only while its name does.
    fn lock(&self, path: &Path) -> Result<File, PackError> {
        let fail = |source| PackError::Cache { path: path.to_owned(), source };
        loop {
            let file = File::options().create(true).truncate(false).write(true).open(path).map_err(fail)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {
                    let held = file.metadata().map_err(fail)?;
                    if std::fs::metadata(path).is_ok_and(|named| named.ino() == held.ino()) {
                        return Ok(file);
                    }
                }
                Err(Errno::WOULDBLOCK) => self.pause(Duration::from_millis(50))?,
                Err(errno) => return Err(fail(errno.into())),
            }
        }
    }

    fn make(&self, directory: &Path, tree: &Tree, image: &Path) -> Result<Image, PackError> {
        let unfinished = image.with_extension("unfinished");
        // What a killed packing left would be written into, not anew.
        let _ = std::fs::remove_file(&unfinished);
        let result = self.write(directory, tree, &unfinished).and_then(|()| {
            // The image is of the tree's state while mkfs read it; only if that did not move is the key right.
            let after = Tree::walk(directory)
                .map_err(|source| PackError::Walk { path: directory.to_owned(), source })?;
            if after.key != tree.key {
                return Err(PackError::Changed(directory.to_owned()));
            }
            // On the disk before it has its name: after a loss of power a name in the cache stands for a whole image.
            File::open(&unfinished)
                .and_then(|file| file.sync_all())
                .and_then(|()| std::fs::rename(&unfinished, image))
                .map_err(|source| PackError::Cache { path: image.to_owned(), source })?;
            Ok(Image::open("packed rootfs", image, Access::File)?)
        });
        if result.is_err() {
            let _ = std::fs::remove_file(&unfinished);
        }
        result
    }

    fn write(&self, directory: &Path, tree: &Tree, unfinished: &Path) -> Result<(), PackError> {
        let no_tool = |source| PackError::NoTool { path: directory.to_owned(), source };
        // In memory, not a pipe: nobody has to read it while mkfs works.
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let mut log: File =
            rustix::fs::memfd_create("mkfs-log", flags).map_err(|errno| no_tool(errno.into()))?.into();
        let errors = log.try_clone().map_err(no_tool)?;
        let mut child = Command::new("mkfs.erofs")
            .args(["--quiet", "-U", UUID])
            .arg(unfinished)
            .arg(directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors)
            .spawn()
            .map_err(no_tool)?;
        let status = match self.watch(&child, directory, tree) {
            Ok(()) => child.wait().map_err(no_tool)?,
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(error);
            }
        };
        if status.success() {
            return Ok(());
        }
        let mut text = Vec::new();
        let _ = log.seek(SeekFrom::Start(0)).and_then(|_| log.take(64 * 1024).read_to_end(&mut text));
        let message = crate::text::last_line(&text).unwrap_or_else(|| status.to_string());
        let cache = unfinished.parent().unwrap_or(unfinished).to_owned();
        Err(PackError::Tool { path: directory.to_owned(), cache, message })
    }

    /// Waits for mkfs.erofs; says what it waits for when that takes long.
    fn watch(&self, child: &Child, directory: &Path, tree: &Tree) -> Result<(), PackError> {
        let began = Instant::now();
        let mut said = !self.talkative;
        let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
        let Some(pid) = pid else { return Ok(()) };
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())
            .map_err(|errno| PackError::NoTool { path: directory.to_owned(), source: errno.into() })?;
        loop {
            let mut fds = vec![PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)];
            if let Some(signals) = self.signals {
                fds.push(PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN));
            }
            let _ = poll(&mut fds, Some(&timespec(Duration::from_millis(200))));
            if fds.first().is_some_and(|fd| !fd.revents().is_empty()) {
                break;
            }
            self.check_signals()?;
            if !said && began.elapsed() >= QUIET {
                said = true;
                let (entries, mib) = (tree.entries, tree.bytes >> 20);
                eprintln!("husk: packing {} ({entries} entries, {mib} MiB) ...", directory.display());
            }
        }
        if said && self.talkative {
            eprintln!("husk: packed in {:.1} s", began.elapsed().as_secs_f64());
        }
        Ok(())
    }

    fn pause(&self, time: Duration) -> Result<(), PackError> {
        if let Some(signals) = self.signals {
            let mut fds = [PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN)];
            let _ = poll(&mut fds, Some(&timespec(time)));
        } else {
            std::thread::sleep(time);
        }
        self.check_signals()
    }

    fn check_signals(&self) -> Result<(), PackError> {
        match self.signals.and_then(Signals::next) {
            Some(Meaning::End(signal)) => Err(PackError::Interrupted(signal)),
            Some(Meaning::AtOnce) => Err(PackError::Interrupted(libc::SIGKILL)),
            Some(Meaning::Pass(_) | Meaning::Resized) | None => Ok(()),
        }
    }
}

fn timespec(time: Duration) -> Timespec {
    Timespec::try_from(time).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 })
}

/// Opens a finished image if there is one, and marks it as used now.
fn reuse(image: &Path) -> Result<Option<Image>, PackError> {
    if !image.exists() {
        return Ok(None);
    }
    let found = Image::open("packed rootfs", image, Access::File)?;
    found.check_file_system()?;
    let _ = found.file.set_modified(SystemTime::now());
    Ok(Some(found))
}

/// Removes images beyond `most`, and, if `unused_for` is given, those that were not used for so long. An image that is
/// in use stays readable by whoever has it open. Returns what was removed.
fn trim(cache: &Path, most: usize, unused_for: Option<Duration>) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(cache) else { return Vec::new() };
    let mut images: Vec<(SystemTime, PathBuf)> = entries
        .flatten()
        .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "erofs"))
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    images.sort_unstable_by(|one, other| other.cmp(one));
    let now = SystemTime::now();
    let old = |used: &SystemTime| {
        unused_for.is_some_and(|limit| now.duration_since(*used).is_ok_and(|unused| unused > limit))
    };
    let mut removed = Vec::new();
    for (index, (used, path)) in images.into_iter().enumerate() {
        if (index >= most || old(&used)) && std::fs::remove_file(&path).is_ok() {
            removed.push(path);
        }
    }
    removed
}

/// What `husk gc` does with the cache: old images go, and what packings left that were killed.
pub(crate) fn collect(cache: &Path) -> Vec<PathBuf> {
    let mut removed = trim(cache, MOST_IMAGES, Some(KEPT_UNUSED));
    let Ok(entries) = std::fs::read_dir(cache) else { return removed };
    for lock_path in entries.flatten().map(|entry| entry.path()) {
        if lock_path.extension().is_none_or(|extension| extension != "lock") {
            continue;
        }
        let Ok(lock) = File::open(&lock_path) else { continue };
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
            for path in [lock_path.with_extension("unfinished"), lock_path] {
                if std::fs::remove_file(&path).is_ok() {
                    removed.push(path);
                }
            }
        }
    }
    removed
}

#[cfg(test)]
mod tests;
