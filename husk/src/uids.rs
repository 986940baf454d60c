//! User ids for sandboxes, one each, from a range that is nobody else's.
//!
//! Owns `slots/<uid>`: a symbolic link to the directory of the sandbox that has the id. Making the link takes the id, in one
//! step, for all state directories of the machine. Refuses a range that holds root or that nobody could mean. Invariant: an id
//! is free again only when its sandbox's last process is gone; that is for those to see to who remove the link.

use crate::state::random;
use husk_protocol::control::Fault;
use std::io;
use std::path::{Path, PathBuf};

/// Environment variable that names another range.
pub(crate) const UIDS_VARIABLE: &str = "HUSK_UIDS";
/// The range unless told otherwise. Neither systemd nor the usual subordinate ranges hand out these numbers.
const USUAL: Range = Range { first: 1_900_000_000, count: 16_384 };
/// Most ids in a range.
const MOST: u32 = 1 << 20;

/// There is no id.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UidError {
    /// All are in use.
    #[error(
        "all {count} user ids for sandboxes, from {first} on, are in use; husk gc frees those of dead ones"
    )]
    None {
        /// Least.
        first: u32,
        /// Number.
        count: u32,
    },
    /// Not a range.
    #[error(
        "{UIDS_VARIABLE} {0:?} is no range of user ids; FIRST-LAST is, from 1 on, at most {MOST} of them"
    )]
    Range(String),
    /// The directory.
    #[error("user ids in use {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
}

impl UidError {
    /// Who is at fault.
    pub(crate) fn fault(&self) -> Fault {
        if matches!(self, Self::Range(_)) { Fault::Operator } else { Fault::Host }
    }
}

/// User ids in a row; the group has the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    first: u32,
    count: u32,
}

impl Range {
    /// $HUSK_UIDS, or the usual one.
    pub(crate) fn usual() -> Result<Self, UidError> {
        match std::env::var(UIDS_VARIABLE) {
            Ok(text) if !text.is_empty() => Self::parse(&text),
            _ => Ok(USUAL),
        }
    }

    fn parse(text: &str) -> Result<Self, UidError> {
        let number = |text: &str| text.parse::<u32>().ok();
        let ends = text.split_once('-').and_then(|(first, last)| Some((number(first)?, number(last)?)));
        // The last number stands for "no user".
        let right = ends
            .filter(|&(first, last)| first > 0 && first <= last && last < u32::MAX && last - first < MOST);
        right
            .map(|(first, last)| Self { first, count: last - first + 1 })
            .ok_or_else(|| UidError::Range(crate::text::line(text)))
    }
}

/// Takes an id out of `range` for the sandbox in `directory`; returns it with the link that holds it.
pub(crate) fn take(slots: &Path, range: Range, directory: &Path) -> Result<(u32, PathBuf), UidError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| UidError::Io { path, source }
    };
    let mut start = [0_u8; 4];
    random(&mut start).map_err(failed(slots))?;
    // From a random place, so that many at once do not try the same ones.
    let start = u32::from_le_bytes(start) % range.count;
    for offset in 0..range.count {
        let uid = range.first + (start + offset) % range.count;
        let path = slots.join(uid.to_string());
        match std::os::unix::fs::symlink(directory, &path) {
            Ok(()) => return Ok((uid, path)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed(&path)(error)),
        }
    }
    Err(UidError::None { first: range.first, count: range.count })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn ranges_are_checked() {
        assert_eq!(Range::parse("100000-165535").unwrap(), Range { first: 100_000, count: 65_536 });
        assert_eq!(Range::parse("7-7").unwrap(), Range { first: 7, count: 1 });
        for wrong in ["", "7", "0-9", "9-8", "-1-2", "1-2-3", "1-4294967295", "1-2000000", "a-b"] {
            assert!(Range::parse(wrong).unwrap_err().to_string().contains("FIRST-LAST"), "{wrong}");
        }
    }

    #[test]
    fn no_id_is_given_twice_and_all_are_given() {
        let slots = std::env::temp_dir().join(format!("husk-uids-{}", std::process::id()));
        std::fs::create_dir_all(&slots).unwrap();
        let range = Range { first: 500, count: 40 };
        let takers: Vec<_> = (0..4)
            .map(|taker| {
                let (slots, owner) = (slots.clone(), PathBuf::from(format!("/state/{taker}")));
                let take =
                    move || (0..10).map(|_| take(&slots, range, &owner).unwrap().0).collect::<Vec<_>>();
                std::thread::Builder::new().spawn(take).unwrap()
            })
            .collect();
        let taken: BTreeSet<u32> = takers.into_iter().flat_map(|taker| taker.join().unwrap()).collect();
        assert_eq!(taken, (500..540).collect());
        let error = take(&slots, range, Path::new("/state/x")).unwrap_err().to_string();
        assert!(error.contains("all 40 user ids"), "{error}");
        std::fs::remove_dir_all(slots).unwrap();
    }
}
