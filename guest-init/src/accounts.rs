//! Users and groups of the guest: /etc/passwd and /etc/group. Owns the reading of both; refuses a name that is not in
//! them. Invariant: of a file at most [`MOST_BYTES`] are read, and only of a regular one.
//!
//! The forms are docker's: `NAME`, `UID`, `NAME:GROUP`, `UID:GID`, mixed as wanted. A number needs no entry; its group
//! is then 0. Without a group named, the user is also in every group that lists the name; with one, in that one only.

use rustix::fs::{FileType, Mode, OFlags};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Longest account file that is read, in bytes.
const MOST_BYTES: u64 = 1 << 20;
/// Most supplementary groups that the kernel takes (`NGROUPS_MAX`).
const MOST_GROUPS: usize = 65_536;

/// Who a command runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Supplementary groups.
    pub(crate) groups: Vec<u32>,
    /// Home directory.
    pub(crate) home: Vec<u8>,
}

/// Nobody is called so.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AccountError {
    /// No such name in /etc/passwd.
    #[error("user {0:?}: not in the guest's /etc/passwd, and not a number")]
    User(String),
    /// No such name in /etc/group.
    #[error("group {0:?}: not in the guest's /etc/group, and not a number")]
    Group(String),
}

/// The guest's account files, as text.
#[derive(Debug, Default)]
pub(crate) struct AccountFiles {
    passwd: Vec<u8>,
    group: Vec<u8>,
}

struct PasswdEntry<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
    home: &'a [u8],
}

impl Account {
    /// uid 0, gid 0. Its home is not looked up: a sandbox whose root lives elsewhere sets HOME.
    pub(crate) fn root() -> Self {
        Self { uid: 0, gid: 0, groups: Vec::new(), home: b"/root".to_vec() }
    }
}

impl AccountFiles {
    /// Reads both; a missing file has no entries.
    pub(crate) fn read() -> Self {
        Self { passwd: read_bounded("/etc/passwd"), group: read_bounded("/etc/group") }
    }

    /// Who `spec` is.
    ///
    /// # Errors
    /// A name without an entry.
    pub(crate) fn find(&self, spec: &str) -> Result<Account, AccountError> {
        let (user, group) = match spec.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (spec, None),
        };
        let named = self.passwd().find(|entry| entry.name == user.as_bytes());
        let number = user.parse::<u32>().ok().filter(|&uid| uid != u32::MAX);
        let entry = named.or_else(|| self.passwd().find(|entry| Some(entry.uid) == number));
        let uid = match (&entry, number) {
            (Some(entry), _) => entry.uid,
            (None, Some(uid)) => uid,
            (None, None) => return Err(AccountError::User(user.to_owned())),
        };
        let (gid, groups) = match (group, &entry) {
            (Some(group), _) => (self.gid(group)?, Vec::new()),
            (None, Some(entry)) => (entry.gid, self.memberships(entry.name)),
            (None, None) => (0, Vec::new()),
        };
        let home = entry.map(|entry| entry.home.to_vec()).filter(|home| !home.is_empty());
        Ok(Account { uid, gid, groups, home: home.unwrap_or_else(|| b"/".to_vec()) })
    }

    fn passwd(&self) -> impl Iterator<Item = PasswdEntry<'_>> {
        lines(&self.passwd).filter_map(|line| {
            let mut fields = line.split(|&byte| byte == b':');
            let name = fields.next().filter(|name| !name.is_empty())?;
            let uid = number(fields.nth(1)?)?;
            let gid = number(fields.next()?)?;
            Some(PasswdEntry { name, uid, gid, home: fields.nth(1).unwrap_or_default() })
        })
    }

    /// Names, numbers and members of the groups.
    fn groups(&self) -> impl Iterator<Item = (&[u8], u32, &[u8])> {
        lines(&self.group).filter_map(|line| {
            let mut fields = line.split(|&byte| byte == b':');
            let name = fields.next().filter(|name| !name.is_empty())?;
            Some((name, number(fields.nth(1)?)?, fields.next().unwrap_or_default()))
        })
    }

    fn gid(&self, group: &str) -> Result<u32, AccountError> {
        let named = self.groups().find(|(name, ..)| *name == group.as_bytes()).map(|(_, gid, _)| gid);
        let number = || group.parse().ok().filter(|&gid| gid != u32::MAX);
        named.or_else(number).ok_or_else(|| AccountError::Group(group.to_owned()))
    }

    fn memberships(&self, user: &[u8]) -> Vec<u32> {
        let mine =
            self.groups().filter(|(_, _, members)| members.split(|&byte| byte == b',').any(|it| it == user));
        mine.map(|(_, gid, _)| gid).take(MOST_GROUPS).collect()
    }
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|&byte| byte == b'\n')
}

fn number(field: &[u8]) -> Option<u32> {
    std::str::from_utf8(field).ok()?.parse().ok().filter(|&number| number != u32::MAX)
}

fn read_bounded(path: impl AsRef<Path>) -> Vec<u8> {
    let mut text = Vec::new();
    // A FIFO in this place must not stop PID 1: hence NONBLOCK, and a look at what was opened.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let Ok(file) = rustix::fs::open(path.as_ref(), flags, Mode::empty()) else { return text };
    let regular = rustix::fs::fstat(&file).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_file());
    if !regular || File::from(file).take(MOST_BYTES).read_to_end(&mut text).is_err() {
        text.clear();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> AccountFiles {
        AccountFiles {
            passwd: b"root:x:0:0:root:/root:/bin/sh\nbroken\n:x:9:9::/:\nweb:x:33:34:w:/srv/web:/bin/sh\n\
                      1000:x:7:7::/odd:\nhomeless:x:40:40:::\n"
                .to_vec(),
            group: b"root:x:0:\nadm:x:4:web,syslog\nlog:x:5:notweb,web\nbad:x:y:web\nwebs:x:34:\n".to_vec(),
        }
    }

    #[test]
    fn a_name_brings_its_group_its_memberships_and_its_home() {
        let web = Account { uid: 33, gid: 34, groups: vec![4, 5], home: b"/srv/web".to_vec() };
        assert_eq!(files().find("web"), Ok(web.clone()));
        assert_eq!(files().find("33"), Ok(web));
    }

    #[test]
    fn a_group_that_is_named_is_the_only_one() {
        let expected = Account { uid: 33, gid: 4, groups: vec![], home: b"/srv/web".to_vec() };
        assert_eq!(files().find("web:adm"), Ok(expected.clone()));
        assert_eq!(files().find("33:4"), Ok(expected));
        assert_eq!(files().find("web:77").unwrap().gid, 77);
    }

    #[test]
    fn a_number_needs_no_entry_and_a_name_that_is_a_number_wins() {
        assert_eq!(
            files().find("65534"),
            Ok(Account { uid: 65534, gid: 0, groups: vec![], home: b"/".to_vec() })
        );
        assert_eq!(files().find("1000").unwrap().uid, 7);
        assert_eq!(files().find("homeless").unwrap().home, b"/");
        assert_eq!(AccountFiles::default().find("12:13").unwrap().gid, 13);
    }

    #[test]
    fn strangers_are_named() {
        assert_eq!(files().find("nobody"), Err(AccountError::User("nobody".into())));
        assert_eq!(files().find("web:wheel"), Err(AccountError::Group("wheel".into())));
        // -1 means "leave it as it is" to the kernel: it is nobody's number.
        assert_eq!(files().find("4294967295"), Err(AccountError::User("4294967295".into())));
        assert!(files().find("").is_err());
    }

    #[test]
    fn what_is_not_a_file_has_no_entries() {
        assert_eq!(read_bounded("/dev/zero"), b"");
        assert_eq!(read_bounded("/proc/self/nothing"), b"");
        assert!(!read_bounded("/proc/self/status").is_empty());
    }
}
