//! A user who is not root, with Husk's programs where he can execute them and a cgroup that was delegated to him.
//!
//! The test is root, to make all that, and then becomes him for good before a program of Husk's is executed: no group, no
//! capability, and with `no_new_privs` no setuid program that would give one back.

use crate::husk::{Husk, libexec};
use crate::processes;
use crate::scratch::Scratch;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// His user and group id.
pub const UID: u32 = 54_500;
/// What husk is made of.
const PROGRAMS: [&str; 6] = ["husk", "husk-jailer", "husk-runtime", "husk-fs", "husk-init", "vmlinux"];
/// Where cgroups of version 2 are.
const CGROUPS: &str = "/sys/fs/cgroup";

/// See the module.
pub struct Ordinary {
    scratch: Scratch,
    delegated: PathBuf,
}

impl Ordinary {
    /// Sets him up; `None` where cgroups of version 2 cannot be delegated with memory and pids.
    ///
    /// # Panics
    /// Something else is missing.
    #[must_use]
    pub fn new() -> Option<Self> {
        let offered = std::fs::read_to_string(format!("{CGROUPS}/cgroup.controllers")).unwrap_or_default();
        if !["memory", "pids"].iter().all(|name| offered.split_whitespace().any(|one| one == *name)) {
            return None;
        }
        let scratch = Scratch::new();
        let done = |what: &Path, result: std::io::Result<()>| {
            result.unwrap_or_else(|error| panic!("{}: {error}", what.display()));
        };
        done(scratch.path(), std::fs::set_permissions(scratch.path(), PermissionsExt::from_mode(0o755)));
        for name in PROGRAMS {
            let path = scratch.path().join(name);
            done(&path, std::fs::copy(libexec().join(name), &path).map(drop));
            // His own, as if he had built them: what is executed must not be his to change all the same.
            done(&path, chown(&path, Some(UID), Some(UID)));
        }
        for name in ["runtime", "home"] {
            let path = scratch.path().join(name);
            done(&path, std::fs::create_dir(&path));
            done(&path, std::fs::set_permissions(&path, PermissionsExt::from_mode(0o700)));
            done(&path, chown(&path, Some(UID), Some(UID)));
        }
        let delegated = Path::new(CGROUPS).join(format!("husk-test-{}", std::process::id()));
        done(&delegated, std::fs::create_dir(&delegated));
        for name in ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
            done(&delegated, chown(delegated.join(name), Some(UID), Some(UID)));
        }
        Some(Self { scratch, delegated })
    }

    /// A directory of his, or a file.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// Gives him what is at `path`.
    ///
    /// # Panics
    /// It is not there.
    pub fn own(&self, path: &Path) {
        chown(path, Some(UID), Some(UID)).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    /// `program ARGS…` as he starts it, in the delegated cgroup or outside of it.
    #[must_use]
    pub fn command(&self, program: &str, delegated: bool) -> Command {
        let mut command = Command::new(self.path(program));
        command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", self.path("home"));
        command.env("XDG_RUNTIME_DIR", self.path("runtime"));
        if let Some(limit) = std::env::var_os("HUSK_BOOT_TIMEOUT") {
            command.env("HUSK_BOOT_TIMEOUT", limit);
        }
        let procs = self.delegated.join("cgroup.procs");
        // The process of a husk before may have been moved down, which makes the delegated one a place for no process.
        let below = self.delegated.join("husk-callers/cgroup.procs");
        #[expect(unsafe_code, reason = "between fork and exec")]
        // SAFETY: the child writes a file and makes system calls on itself; the test has no other thread that holds a lock
        // for longer than an instant.
        unsafe {
            command.pre_exec(move || {
                if delegated && std::fs::write(&procs, "0").is_err() {
                    std::fs::write(&below, "0")?;
                }
                become_him()
            })
        };
        command
    }

    /// `husk ARGS…` as he starts it.
    pub fn husk<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Husk {
        let mut command = self.command("husk", true);
        command.args(args);
        Husk::from_command(command)
    }

    /// The same, in a cgroup that is not his.
    pub fn husk_undelegated<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Husk {
        let mut command = self.command("husk", false);
        command.args(args);
        Husk::from_command(command)
    }

    /// Cgroups below the delegated one, as names relative to it.
    #[must_use]
    pub fn cgroups(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        below(&self.delegated, &mut |path| {
            found.extend(path.strip_prefix(&self.delegated).map(|path| path.display().to_string()));
        });
        found
    }

    /// Watches every process in his cgroups until [`Watch::end`].
    #[must_use]
    pub fn watch(&self) -> Watch {
        let stop = Arc::new(AtomicBool::new(false));
        let (delegated, told) = (self.delegated.clone(), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut seen = BTreeSet::new();
            while !told.load(Ordering::Acquire) {
                look(&delegated, &mut seen);
                std::thread::sleep(Duration::from_millis(2));
            }
            seen
        });
        Watch { stop, thread }
    }
}

impl Drop for Ordinary {
    fn drop(&mut self) {
        // What is kept for his sandboxes to come ends with him: the process that holds it is in his cgroup.
        drop(self.command("husk", true).args(["gc", "--all"]).output());
        let mut all = vec![self.delegated.clone()];
        below(&self.delegated, &mut |path| all.push(path.to_owned()));
        for path in all.iter().rev() {
            drop(std::fs::remove_dir(path));
        }
    }
}

fn below(path: &Path, each: &mut dyn FnMut(&Path)) {
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            each(&entry.path());
            below(&entry.path(), each);
        }
    }
}

/// Notes name, ids and `no_new_privs` of each process there, but not of this test's own, about to become a husk.
fn look(delegated: &Path, seen: &mut BTreeSet<Seen>) {
    let mut pids = Vec::new();
    let mut read = |path: &Path| {
        let text = std::fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
        pids.extend(text.lines().map(|pid| format!("/proc/{pid}")));
    };
    read(delegated);
    below(delegated, &mut read);
    let own = std::env::current_exe().ok();
    for path in pids {
        if std::fs::read_link(format!("{path}/exe")).ok() == own {
            continue;
        }
        let [name, uids, gids, strict] =
            ["Name", "Uid", "Gid", "NoNewPrivs"].map(|field| processes::status(&path, field));
        // Empty: it has ended meanwhile.
        if [&name, &uids, &gids, &strict].iter().all(|text| !text.is_empty()) {
            seen.insert(Seen { name, uids, gids, strict });
        }
    }
}

/// What was seen of a process.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seen {
    /// Its name.
    pub name: String,
    /// Real, effective, saved and file system user, as the machine's root sees them.
    pub uids: String,
    /// The same of groups.
    pub gids: String,
    /// 1 if no execution gives it privileges.
    pub strict: String,
}

/// A look at processes that goes on.
pub struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<BTreeSet<Seen>>,
}

impl Watch {
    /// All that was seen.
    ///
    /// # Panics
    /// The thread did.
    #[must_use]
    pub fn end(self) -> BTreeSet<Seen> {
        self.stop.store(true, Ordering::Release);
        self.thread.join().unwrap_or_else(|_| panic!("the watch ended early"))
    }
}

/// In the child, for good.
fn become_him() -> std::io::Result<()> {
    let (uid, gid) = (rustix::thread::Uid::from_raw(UID), rustix::thread::Gid::from_raw(UID));
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    Ok(rustix::thread::set_no_new_privs(true)?)
}
