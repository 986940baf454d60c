//! Where sandboxes of somebody who is not root have their place: a state directory of his own, and a cgroup that was
//! delegated to him.
//!
//! Owns the rule which cgroup that is: husk's own, of version 2, if it is the caller's to divide. Refuses one that is not, and
//! one that belongs to systemd though its files are the caller's: systemd takes limits away there as it likes. Invariant:
//! processes are moved only within the delegated cgroup, so that every limit that held for them holds on.
//!
//! A cgroup passes limits on only while no process is in it itself (cgroups(7), "no internal processes"). So whoever is in the
//! delegated one, husk and the shell that it was called from, goes to [`CALLERS`] below it, once.

use rustix::fs::{Access, AtFlags, CWD, accessat, getxattr};
use rustix::io::Errno;
use rustix::process::geteuid;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The cgroup below the delegated one for the processes that were in it.
const CALLERS: &str = "husk-callers";
/// Controllers that no sandbox should be without.
const NEEDED: [&str; 2] = ["memory", "pids"];
/// Rounds in which processes are moved, for some may be born meanwhile.
const ROUNDS: usize = 16;

/// Sandboxes of this caller can have no cgroups with limits.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DelegationError {
    /// No version 2.
    #[error(
        "cgroup v2 is not mounted, or this process is outside of it; without root limits take it ({OR_BEST_EFFORT})"
    )]
    NoUnified,
    /// Not this caller's.
    #[error(
        "cgroup {} is not delegated to user {uid}; start husk in one that is, as in: systemd-run --user --scope -p \
         Delegate=yes husk run … ({OR_BEST_EFFORT})",
        path.display()
    )]
    NotDelegated {
        /// Which.
        path: PathBuf,
        /// Caller.
        uid: u32,
    },
    /// Delegated without what is needed.
    #[error(
        "cgroup {} is delegated without the controllers {missing}; for systemd: Delegate=memory pids in a drop-in of \
         user@.service ({OR_BEST_EFFORT})",
        path.display()
    )]
    Controllers {
        /// Which.
        path: PathBuf,
        /// Their names.
        missing: String,
    },
    /// It cannot be divided.
    #[error("cgroup {}: the processes in it cannot be moved to {CALLERS} below: {source} ({OR_BEST_EFFORT})", path.display())]
    Move {
        /// Which.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
}

const OR_BEST_EFFORT: &str = "or --isolation best-effort: without limits";

/// Whether sandboxes are root's, with users of their own.
pub(crate) fn is_root() -> bool {
    geteuid().is_root()
}

/// Where the state is kept: in the runtime directory of a login session, else in one of the user's own.
pub(crate) fn state_directory() -> PathBuf {
    let uid = geteuid().as_raw();
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    match runtime.filter(|path| std::fs::metadata(path).is_ok_and(|it| it.is_dir() && it.uid() == uid)) {
        Some(runtime) => runtime.join("husk"),
        None => PathBuf::from(format!("/tmp/husk-{uid}")),
    }
}

/// Makes sure that this process's cgroup can hold those of sandboxes; `unified` is version 2's mount.
pub(crate) fn divide(unified: Option<&Path>) -> Result<(), DelegationError> {
    let delegated = Delegated::here(unified).ok_or(DelegationError::NoUnified)?;
    delegated.check()?;
    delegated.vacate()
}

/// A cgroup of version 2 that is the caller's to divide.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Delegated {
    /// Names below the mount, joined by `/`; empty: the mount itself.
    pub(crate) path: String,
    directory: PathBuf,
}

impl Delegated {
    /// Where this process is, whosever that is; `unified` is the mount.
    pub(crate) fn here(unified: Option<&Path>) -> Option<Self> {
        Self::of(unified?, &std::fs::read_to_string("/proc/self/cgroup").ok()?)
    }

    /// From /proc/self/cgroup's text.
    pub(crate) fn of(unified: &Path, cgroups: &str) -> Option<Self> {
        let path = cgroups.lines().find_map(|line| line.strip_prefix("0::/"))?;
        // As seen from a cgroup namespace that it is outside of.
        if path.split('/').any(|part| part == "..") {
            return None;
        }
        let path = path.strip_suffix(CALLERS).map_or(path, |above| above.trim_end_matches('/'));
        Some(Self { path: path.to_owned(), directory: unified.join(path) })
    }

    /// Whether it is the caller's, with what sandboxes need.
    fn check(&self) -> Result<(), DelegationError> {
        let (path, uid) = (self.directory.clone(), geteuid().as_raw());
        let writable = ["", "cgroup.procs", "cgroup.subtree_control"]
            .iter()
            .all(|file| accessat(CWD, path.join(file), Access::WRITE_OK, AtFlags::EACCESS).is_ok());
        if !writable || !is_given_away(&path, &|path| has_mark(path)) {
            return Err(DelegationError::NotDelegated { path, uid });
        }
        let offered = self.read("cgroup.controllers");
        let missing: Vec<_> =
            NEEDED.into_iter().filter(|name| !offered.split(' ').any(|one| one == *name)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(DelegationError::Controllers { path, missing: missing.join(" and ") })
    }

    /// Makes it one that passes limits on.
    fn vacate(&self) -> Result<(), DelegationError> {
        let passed_on = self.read("cgroup.subtree_control");
        if NEEDED.iter().all(|name| passed_on.split(' ').any(|one| one == *name)) {
            return Ok(());
        }
        self.move_all().map_err(|source| DelegationError::Move { path: self.directory.clone(), source })
    }

    fn move_all(&self) -> io::Result<()> {
        let callers = self.directory.join(CALLERS);
        for _ in 0..ROUNDS {
            let there = self.read("cgroup.procs");
            if there.is_empty() {
                return Ok(());
            }
            match std::fs::create_dir(&callers) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            for process in there.lines() {
                match std::fs::write(callers.join("cgroup.procs"), process) {
                    // It has ended.
                    Err(error) if error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => {}
                    other => other?,
                }
            }
        }
        Err(io::ErrorKind::ResourceBusy.into())
    }

    fn read(&self, file: &str) -> String {
        std::fs::read_to_string(self.directory.join(file)).unwrap_or_default().trim().to_owned()
    }
}

/// Whether systemd, if the cgroup is one of its units or below one, has given it away. It marks what it delegates
/// (CGROUP_DELEGATION.md); where nothing up to the mount is marked, it is not (a recent) systemd that manages cgroups here, and
/// whose files they are is all that there is to know.
fn is_given_away(path: &Path, is_marked: &dyn Fn(&Path) -> bool) -> bool {
    let is_unit = |path: &Path| {
        let kind = path.extension().and_then(|kind| kind.to_str());
        matches!(kind, Some("service" | "scope" | "slice"))
    };
    let Some(marked) = path.ancestors().find(|above| is_marked(above)) else { return true };
    path.ancestors().take_while(|below| *below != marked).all(|below| !is_unit(below))
}

fn has_mark(path: &Path) -> bool {
    let mut value = [0; 4];
    let value: &mut [u8] = &mut value;
    matches!(getxattr(path, "user.delegate", value), Ok(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_cgroup_is_where_callers_were_moved_from() {
        let of = |text: &str| Delegated::of(Path::new("/cg"), text).map(|found| found.path);
        assert_eq!(of("1:cpu:/x\n0::/a/b.scope\n"), Some("a/b.scope".into()));
        assert_eq!(of("0::/a/b.scope/husk-callers\n"), Some("a/b.scope".into()));
        assert_eq!((of("0::/\n"), of("0::/husk-callers\n")), (Some(String::new()), Some(String::new())));
        assert_eq!((of("0::/../other\n"), of("1:cpu:/x\n")), (None, None));
    }

    #[test]
    fn what_systemd_keeps_for_itself_is_not_taken() {
        let given =
            |path: &str, marked: &str| is_given_away(Path::new(path), &|path| path == Path::new(marked));
        let manager = "/cg/user.slice/user@1000.service";
        assert!(given(
            &format!("{manager}/app.slice/run-1.scope"),
            &format!("{manager}/app.slice/run-1.scope")
        ));
        assert!(given(
            &format!("{manager}/app.slice/run-1.scope/x"),
            &format!("{manager}/app.slice/run-1.scope")
        ));
        assert!(!given(&format!("{manager}/app.slice/run-1.scope"), manager), "a scope without Delegate=");
        assert!(given("/cg/mine", "/elsewhere"), "no systemd");
    }

    #[test]
    fn a_cgroup_of_somebody_else_is_named() {
        let nobodys = Delegated { path: "x".into(), directory: "/proc/nonesuch".into() };
        let error = nobodys.check().unwrap_err().to_string();
        assert!(
            error.contains("/proc/nonesuch is not delegated") && error.contains("systemd-run"),
            "{error}"
        );
    }

    #[test]
    fn processes_are_moved_out_of_the_way() {
        let base = std::env::temp_dir().join(format!("husk-rootless-{}", std::process::id()));
        std::fs::create_dir_all(&base).unwrap();
        let own = Delegated { path: "x".into(), directory: base.clone() };
        std::fs::write(base.join("cgroup.subtree_control"), "cpu memory pids\n").unwrap();
        std::fs::write(base.join("cgroup.procs"), "7\n").unwrap();
        own.vacate().unwrap();
        assert!(!base.join(CALLERS).exists(), "limits are passed on already");
        std::fs::write(base.join("cgroup.subtree_control"), "cpu\n").unwrap();
        // A file that the kernel does not empty: processes without end.
        assert!(own.vacate().unwrap_err().to_string().contains("cannot be moved to husk-callers"));
        assert_eq!(std::fs::read_to_string(base.join(CALLERS).join("cgroup.procs")).unwrap(), "7");
        std::fs::write(base.join("cgroup.procs"), "").unwrap();
        own.vacate().unwrap();
        std::fs::remove_dir_all(base).unwrap();
    }
}
