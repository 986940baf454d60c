//! Tells whether a directory tree is still the one that was packed, from what `lstat` says of every entry.
//!
//! Owns the walk and the key. Refuses trees of more than [`MOST_ENTRIES`] entries. Invariant: whoever changes a file's
//! content, name, owner or mode changes the key, because the inode's change time cannot be set back. A change within
//! the clock's grain of the walk would be missed; [`Tree::settled`] tells when that cannot be.

use sha2::{Digest, Sha256};
use std::fs::Metadata;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Most entries of a tree.
pub(crate) const MOST_ENTRIES: u64 = 4_000_000;
/// Time stamps of files are this coarse at worst (a timer tick at 100 Hz).
const GRAIN: Duration = Duration::from_millis(20);
/// Changed when images are made in another way, so that old ones are not taken for new ones.
const FORMAT: &[u8] = b"husk image 1";

/// What a walk found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tree {
    /// Hexadecimal, 64 digits.
    pub(crate) key: String,
    /// Entries, the top directory included.
    pub(crate) entries: u64,
    /// Bytes in plain files.
    pub(crate) bytes: u64,
    /// Latest change, nanoseconds since 1970.
    newest_ns: i128,
}

impl Tree {
    /// Walks the tree at `top`.
    pub(crate) fn walk(top: &Path) -> io::Result<Self> {
        let mut walk = Walk { hash: Sha256::new(), entries: 0, bytes: 0, newest_ns: 0 };
        walk.hash.update(FORMAT);
        walk.entry(b"", &std::fs::symlink_metadata(top)?)?;
        let mut directories = vec![PathBuf::new()];
        while let Some(directory) = directories.pop() {
            let mut names = Vec::new();
            for entry in std::fs::read_dir(top.join(&directory))? {
                let entry = entry?;
                names.push((entry.file_name(), entry.metadata()?));
            }
            names.sort_unstable_by(|one, other| one.0.cmp(&other.0));
            for (name, metadata) in names {
                let path = directory.join(name);
                walk.entry(path.as_os_str().as_bytes(), &metadata)?;
                if metadata.is_dir() {
                    directories.push(path);
                }
            }
        }
        let key = walk.hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { key, entries: walk.entries, bytes: walk.bytes, newest_ns: walk.newest_ns })
    }

    /// Whether the latest change lies so far back from `walk_began` that another one would have another time stamp.
    pub(crate) fn settled(&self, walk_began: SystemTime) -> bool {
        let began = walk_began.duration_since(UNIX_EPOCH).unwrap_or_default();
        let began_ns = i128::try_from(began.as_nanos()).unwrap_or(i128::MAX);
        self.newest_ns.saturating_add(i128::try_from(GRAIN.as_nanos()).unwrap_or(0)) < began_ns
    }
}

struct Walk {
    hash: Sha256,
    entries: u64,
    bytes: u64,
    newest_ns: i128,
}

impl Walk {
    fn entry(&mut self, path: &[u8], metadata: &Metadata) -> io::Result<()> {
        self.entries += 1;
        if self.entries > MOST_ENTRIES {
            return Err(io::Error::other(format!("more than {MOST_ENTRIES} entries")));
        }
        if metadata.is_file() {
            self.bytes = self.bytes.saturating_add(metadata.len());
        }
        let changed = i128::from(metadata.ctime()) * 1_000_000_000 + i128::from(metadata.ctime_nsec());
        self.newest_ns = self.newest_ns.max(changed);
        self.hash.update((path.len() as u64).to_le_bytes());
        self.hash.update(path);
        for number in [
            u64::from(metadata.mode()),
            u64::from(metadata.uid()),
            u64::from(metadata.gid()),
            metadata.len(),
            metadata.rdev(),
            metadata.dev(),
            metadata.ino(),
            metadata.nlink(),
        ] {
            self.hash.update(number.to_le_bytes());
        }
        for number in [metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec()] {
            self.hash.update(number.to_le_bytes());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn every_change_changes_the_key() {
        let top = std::env::temp_dir().join(format!("husk-tree-{}", std::process::id()));
        std::fs::create_dir_all(top.join("a/b")).unwrap();
        std::fs::write(top.join("a/b/file"), "one").unwrap();
        let pause = || std::thread::sleep(GRAIN);
        let key = || Tree::walk(&top).unwrap().key;
        let mut keys = vec![key()];
        assert_eq!(keys[0], key());
        pause();
        std::fs::write(top.join("a/b/file"), "two").unwrap();
        keys.push(key());
        pause();
        // Same size, and the old modification time put back.
        let old = std::fs::metadata(top.join("a/b/file")).unwrap().modified().unwrap();
        std::fs::write(top.join("a/b/file"), "six").unwrap();
        std::fs::File::open(top.join("a/b/file")).unwrap().set_modified(old).unwrap();
        keys.push(key());
        std::fs::set_permissions(top.join("a"), std::fs::Permissions::from_mode(0o700)).unwrap();
        keys.push(key());
        std::os::unix::fs::symlink("x", top.join("link")).unwrap();
        keys.push(key());
        std::fs::rename(top.join("a/b"), top.join("a/c")).unwrap();
        keys.push(key());
        let tree = Tree::walk(&top).unwrap();
        assert_eq!((tree.entries, tree.bytes), (5, 3));
        std::fs::remove_dir_all(&top).unwrap();
        let distinct: std::collections::HashSet<_> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len());
    }

    #[test]
    fn a_fresh_change_is_not_settled() {
        let now = SystemTime::now();
        let ns = i128::try_from(now.duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap();
        let tree = Tree { key: String::new(), entries: 1, bytes: 0, newest_ns: ns };
        assert!(!tree.settled(now));
        assert!(tree.settled(now + 2 * GRAIN));
        assert!(!Tree { newest_ns: i128::MAX, ..tree }.settled(now));
    }
}
