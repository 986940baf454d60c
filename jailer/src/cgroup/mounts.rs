//! Where this host mounts its cgroup hierarchies.
//!
//! Looks at the usual places first, by the file system's magic number: the table of mounts can be thousands of lines
//! long and is read only when a place is empty. The invariant is the kernel's: a controller is in one hierarchy only.

use rustix::fs::statfs;
use std::cell::OnceCell;
use std::io::Read;
use std::path::{Path, PathBuf};

/// `CGROUP2_SUPER_MAGIC` and `CGROUP_SUPER_MAGIC` of linux/magic.h.
const MAGIC_V2: i64 = 0x6367_7270;
const MAGIC_V1: i64 = 0x0027_e0eb;
const USUAL: &str = "/sys/fs/cgroup";
/// Most of the mount table that is read, in bytes.
const MAX_TABLE: u64 = 4 << 20;

/// The hierarchies that may be used.
pub(super) struct Mounts {
    unified: Option<PathBuf>,
    /// v2 controllers; none: all that there are, because nothing else is mounted.
    controllers: Option<String>,
    legacy: bool,
    table: OnceCell<String>,
}

impl Mounts {
    /// Finds them; `version`: the only one wanted.
    pub(super) fn of_this_host(version: Option<u8>) -> Self {
        let mut mounts =
            Self { unified: None, controllers: None, legacy: version != Some(2), table: OnceCell::new() };
        if version == Some(1) {
            return mounts;
        }
        if is(USUAL, MAGIC_V2) {
            mounts.unified = Some(PathBuf::from(USUAL));
            mounts.legacy = false;
            return mounts;
        }
        let hybrid = PathBuf::from(USUAL).join("unified");
        let found = if is(&hybrid, MAGIC_V2) { Some(hybrid) } else { find(mounts.table(), "cgroup2", None) };
        mounts.controllers = found
            .as_ref()
            .map(|mount| std::fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default());
        mounts.unified = found;
        mounts
    }

    /// Mount of version 2.
    pub(super) fn unified(&self) -> Option<&Path> {
        self.unified.as_deref()
    }

    /// Whether version 2 is where `controller` is, as far as can be said without asking it.
    pub(super) fn unified_has(&self, controller: &str) -> bool {
        let listed = |text: &String| text.split_whitespace().any(|name| name == controller);
        self.unified.is_some() && self.controllers.as_ref().is_none_or(listed)
    }

    /// Mount of the version 1 hierarchy that has `controller`.
    pub(super) fn legacy(&self, controller: &str) -> Option<PathBuf> {
        if !self.legacy {
            return None;
        }
        let usual = PathBuf::from(USUAL).join(controller);
        if is(&usual, MAGIC_V1) { Some(usual) } else { find(self.table(), "cgroup", Some(controller)) }
    }

    fn table(&self) -> &str {
        self.table.get_or_init(|| {
            let mut text = String::new();
            if let Ok(file) = std::fs::File::open("/proc/self/mountinfo") {
                let _ = file.take(MAX_TABLE).read_to_string(&mut text);
            }
            text
        })
    }
}

fn is(path: impl AsRef<Path>, magic: i64) -> bool {
    statfs(path.as_ref()).is_ok_and(|status| status.f_type == magic)
}

/// The first mount of `kind` in a mountinfo table whose superblock has `option`.
fn find(table: &str, kind: &str, option: Option<&str>) -> Option<PathBuf> {
    table.lines().find_map(|line| {
        let (mount, superblock) = line.split_once(" - ")?;
        let mut fields = superblock.split(' ');
        let matches = fields.next()? == kind;
        let has = option
            .is_none_or(|option| fields.nth(1).is_some_and(|all| all.split(',').any(|one| one == option)));
        let point = mount.split(' ').nth(4)?;
        (matches && has).then(|| PathBuf::from(point))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
        25 1 0:22 / / rw shared:1 - ext4 /dev/vda rw,memory\n\
        30 23 0:27 / /elsewhere/two rw,nosuid - cgroup2 cgroup2 rw\n\
        33 23 0:30 / /elsewhere/cpu rw shared:4 - cgroup cgroup rw,cpu,cpuacct\n\
        nonsense\n";

    #[test]
    fn unusual_places_are_found_in_the_table() {
        assert_eq!(find(TABLE, "cgroup2", None), Some(PathBuf::from("/elsewhere/two")));
        assert_eq!(find(TABLE, "cgroup", Some("cpuacct")), Some(PathBuf::from("/elsewhere/cpu")));
        assert_eq!(find(TABLE, "cgroup", Some("memory")), None);
        assert_eq!(find("", "cgroup2", None), None);
    }

    #[test]
    fn a_hybrid_host_has_each_controller_once() {
        let table = OnceCell::new();
        table.set(TABLE.to_owned()).unwrap();
        let mounts = Mounts {
            unified: Some("/two".into()),
            controllers: Some("memory pids\n".into()),
            legacy: true,
            table,
        };
        assert!(mounts.unified_has("memory") && !mounts.unified_has("cpu"));
        assert!(mounts.legacy("no-such-controller").is_none());
    }
}
