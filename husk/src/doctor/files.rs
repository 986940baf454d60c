//! Files of the kernel, read below a root, with a bound.
//!
//! Owns the bounds. Refuses nothing: a file that is missing or cannot be read is a [`Reading`] that says so. Invariant: no
//! read takes more than its bound, whatever lies there, and none waits.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Bytes that are read of a file with a setting.
const SETTING: u64 = 4 << 10;
/// Entries that are looked at of a directory.
const ENTRIES: usize = 256;

/// Where /proc, /sys and /dev are.
#[derive(Debug, Clone)]
pub(super) struct Root(PathBuf);

/// What a file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reading {
    /// This, without white space around it; what is not UTF-8 is replaced.
    Text(String),
    /// It is not there.
    Missing,
    /// It cannot be read.
    Unreadable(io::ErrorKind),
}

impl Reading {
    /// What it says, if it says something.
    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Missing | Self::Unreadable(_) => None,
        }
    }

    /// As a number.
    pub(super) fn number(&self) -> Option<i64> {
        self.text()?.parse().ok()
    }

    /// For people.
    pub(super) fn shown(&self) -> String {
        match self {
            Self::Text(text) if text.is_empty() => "empty".into(),
            Self::Text(text) => text.clone(),
            Self::Missing => "unknown: this kernel has no such file".into(),
            Self::Unreadable(kind) => format!("unknown: {kind}"),
        }
    }
}

impl Root {
    /// `/`.
    pub(super) fn of_this_machine() -> Self {
        Self("/".into())
    }

    /// Another one.
    #[cfg(test)]
    pub(super) fn at(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// The place of `path`, which may begin with a slash.
    pub(super) fn join(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.0.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// A setting.
    pub(super) fn read(&self, path: impl AsRef<Path>) -> Reading {
        self.read_up_to(path, SETTING)
    }

    /// The first `bytes` bytes of a file.
    pub(super) fn read_up_to(&self, path: impl AsRef<Path>, bytes: u64) -> Reading {
        match self.bytes(path.as_ref(), bytes) {
            Ok(bytes) => Reading::Text(String::from_utf8_lossy(&bytes).trim().to_owned()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Reading::Missing,
            Err(error) => Reading::Unreadable(error.kind()),
        }
    }

    fn bytes(&self, path: &Path, most: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.open(path, false)?.take(most).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Opens without waiting, and without becoming a terminal's owner.
    pub(super) fn open(&self, path: impl AsRef<Path>, write: bool) -> io::Result<File> {
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        OpenOptions::new().read(true).write(write).custom_flags(flags).open(self.join(path))
    }

    /// Whether something is there.
    pub(super) fn has(&self, path: impl AsRef<Path>) -> bool {
        self.join(path).symlink_metadata().is_ok()
    }

    /// Names in a directory, in order; none if it cannot be read.
    pub(super) fn list(&self, path: impl AsRef<Path>) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.join(path)) else { return Vec::new() };
        let mut names: Vec<String> = entries
            .take(ENTRIES)
            .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
            .collect();
        names.sort_unstable();
        names
    }
}
