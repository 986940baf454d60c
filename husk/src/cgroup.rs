//! The cgroups of a sandbox, seen from outside: where they are by rule, which limits they get, how they are emptied
//! and removed.
//!
//! Owns the rule `<mount>/<parent>/<id>` under v2 and under each v1 controller. Refuses nothing: the jailer says what
//! cannot be made. Invariant: only directories of exactly these names are ever touched.

use crate::limits::{Limit, LimitName, LimitValue, Limits, Target, Version, legacy_name};
use crate::rootless::{self, Delegated};
use crate::state::{State, StateError};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The cgroup below which sandboxes' are made with the usual state directory.
pub(crate) const DEFAULT_PARENT: &str = "husk";
/// Where the kernel says what is mounted.
const MOUNTS: &str = "/proc/self/mountinfo";
/// Controllers of version 1 that limits need.
const CONTROLLERS: [&str; 6] = ["cpu", "memory", "pids", "cpuset", "blkio", "hugetlb"];
/// Bytes that runtime and kernel need beside guest memory, at least: 48 MiB, and what the vsock device may hold for
/// streams whose readers take their time, 64 MiB and 8 KiB for each of 8192 connections.
const OVERHEAD: u64 = (48 + 128) << 20;
/// Bytes that the server of a volume may need: its buffers, and what the kernel keeps for each file that the guest knows of.
const VOLUME: u64 = 64 << 20;
/// Bytes that a network's passt may need: its buffers, and what its connections hold in the kernel.
const NETWORK: u64 = 128 << 20;
/// Threads that the runtime may have beside one a vCPU and one a drive.
const THREADS: u64 = 16;

/// Where controllers are mounted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Hierarchies {
    /// Path, below a mount, of the cgroup below which sandboxes' are made.
    parent: String,
    /// The v2 mount.
    unified: Option<PathBuf>,
    /// Mounts of v1 controllers, with the controllers.
    legacy: Vec<(PathBuf, Vec<String>)>,
}

impl Hierarchies {
    /// As /proc/self/mountinfo has them, for the sandboxes of `state`. Root's lie below the mounts; those of anybody else in the
    /// cgroup of version 2 that husk is in itself, for no other one can be his.
    pub(crate) fn of(state: &State) -> Result<Self, StateError> {
        // Without it sandboxes would have limits that no cgroup keeps, and leave cgroups that nobody finds.
        let table = std::fs::read_to_string(MOUNTS)
            .map_err(|source| StateError::Io { path: MOUNTS.into(), source })?;
        let all = Self::parse(&table, state.cgroup_parent());
        Ok(if rootless::is_root() { all } else { all.below(Delegated::here) })
    }

    /// Version 2 alone, below what `here` finds there.
    fn below(self, here: impl FnOnce(Option<&Path>) -> Option<Delegated>) -> Self {
        let here = here(self.unified.as_deref());
        let parent = match here.as_ref().map(|here| here.path.as_str()) {
            None | Some("") => self.parent,
            Some(path) => format!("{path}/{}", self.parent),
        };
        Self { parent, legacy: Vec::new(), ..self }
    }

    /// The same, for a sandbox that was made below another cgroup.
    pub(crate) fn with_parent(&self, parent: &str) -> Self {
        Self { parent: parent.to_owned(), ..self.clone() }
    }

    /// The mount of version 2.
    pub(crate) fn unified(&self) -> Option<&Path> {
        self.unified.as_deref()
    }

    pub(crate) fn parse(mountinfo: &str, parent: String) -> Self {
        let mut found = Self { parent, ..Self::default() };
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let Some(mount) = left.split(' ').nth(4) else { continue };
            let mut right = right.split(' ');
            let (kind, options) = (right.next(), right.nth(1).unwrap_or_default());
            if kind == Some("cgroup2") && found.unified.is_none() {
                found.unified = Some(PathBuf::from(mount));
            } else if kind == Some("cgroup") {
                let controllers: Vec<_> =
                    options.split(',').filter(|name| CONTROLLERS.contains(name)).map(str::to_owned).collect();
                if !controllers.is_empty() {
                    found.legacy.push((PathBuf::from(mount), controllers));
                }
            }
        }
        found
    }

    /// The mount of the version 1 hierarchy that has `controller`, under its name there.
    fn legacy_mount(&self, controller: &str) -> Option<&Path> {
        let has = |names: &[String]| names.iter().any(|name| name == controller);
        self.legacy.iter().find(|(_, names)| has(names)).map(|(mount, _)| mount.as_path())
    }

    /// What has `controller`, as version 2 calls it: 1 where a v1 hierarchy has it.
    pub(crate) fn version_of(&self, controller: &'static str) -> Version {
        if self.legacy_mount(legacy_name(controller)).is_some() { Version::One } else { Version::Two }
    }

    /// Directory of the sandbox `id` for `target`, if there is such a hierarchy.
    pub(crate) fn group(&self, target: Target, id: &str) -> Option<PathBuf> {
        let mount = match target.version {
            Version::One => self.legacy_mount(target.controller),
            Version::Two => self.unified(),
        };
        mount.map(|mount| mount.join(&self.parent).join(id))
    }

    /// Lets sandboxes' cgroups of version 2 have `controller`, from the mount down.
    pub(crate) fn hand_down(&self, controller: &str) -> io::Result<()> {
        let mut level = self.unified.clone().unwrap_or_default();
        let below = self.parent.split('/').filter(|name| !name.is_empty()).map(Some);
        for name in std::iter::once(None).chain(below) {
            level.extend(name);
            let file = level.join("cgroup.subtree_control");
            if !std::fs::read_to_string(&file)?.split_whitespace().any(|one| one == controller) {
                std::fs::write(&file, format!("+{controller}"))?;
            }
        }
        Ok(())
    }

    /// What every sandbox is limited to, if nothing else is said: for a guest of `memory_mib`, of huge pages or not, `vcpus`, so
    /// many threads of `drives`, `volumes` and `networks`; each of the last two has a process of its own.
    pub(crate) fn defaults(
        memory_mib: u64,
        huge: bool,
        vcpus: u64,
        [drives, volumes, networks]: [u64; 3],
    ) -> Limits {
        let guest = memory_mib << 20;
        // Page tables of the guest's memory, on the host and for KVM, are 1/256 of it in the worst case.
        let bytes = guest + guest / 128 + OVERHEAD + volumes * VOLUME + networks * NETWORK;
        let processes = vcpus + drives + volumes + networks + THREADS;
        let number = |name, number| Limit { name, value: LimitValue::Number(Some(number)) };
        let mut limits = vec![
            number(LimitName::MemoryMax, bytes),
            // What a guest has is its own business: pages of it on a disk of the host's would be everybody's.
            number(LimitName::SwapMax, 0),
            number(LimitName::PidsMax, processes),
        ];
        limits.extend(huge.then(|| number(LimitName::HugetlbMax, guest)));
        Limits::once(limits).unwrap_or_default()
    }

    /// Whether a limit of [`Self::defaults`] is left out where the host does not offer it: memory and processes never are.
    pub(crate) fn may_do_without(name: LimitName) -> bool {
        matches!(name, LimitName::SwapMax | LimitName::HugetlbMax)
    }

    /// Every directory that the sandbox `id` may have.
    fn directories(&self, id: &str) -> impl Iterator<Item = PathBuf> {
        let mounts = self.unified.iter().chain(self.legacy.iter().map(|(mount, _)| mount));
        mounts.map(move |mount| mount.join(&self.parent).join(id)).collect::<Vec<_>>().into_iter()
    }

    /// Directories below which sandboxes' cgroups lie.
    pub(crate) fn parents(&self) -> Vec<PathBuf> {
        let mounts = self.unified.iter().chain(self.legacy.iter().map(|(mount, _)| mount));
        mounts.map(|mount| mount.join(&self.parent)).collect()
    }

    /// Name of the cgroup below which sandboxes' lie.
    pub(crate) fn parent(&self) -> &str {
        &self.parent
    }

    /// Removes the parent that only an unusual state directory has, once nothing is in it.
    pub(crate) fn remove_parent(&self) {
        if self.parent != DEFAULT_PARENT {
            for parent in self.parents() {
                let _ = std::fs::remove_dir(parent);
            }
        }
    }

    /// Most memory that the sandbox ever had, in bytes, while its cgroup exists.
    pub(crate) fn peak_memory(&self, id: &str) -> Option<u64> {
        self.directories(id).find_map(|directory| {
            ["memory.peak", "memory.max_usage_in_bytes"]
                .iter()
                .find_map(|file| std::fs::read_to_string(directory.join(file)).ok()?.trim().parse().ok())
        })
    }

    /// Whether the kernel killed something in the sandbox's cgroup for want of memory.
    pub(crate) fn out_of_memory(&self, id: &str) -> bool {
        self.directories(id).any(|directory| {
            ["memory.events", "memory.oom_control"].iter().any(|file| {
                let text = std::fs::read_to_string(directory.join(file)).unwrap_or_default();
                text.lines()
                    .filter_map(|line| line.strip_prefix("oom_kill "))
                    .any(|count| count.trim() != "0")
            })
        })
    }

    /// The limit of its memory in bytes, while its cgroup exists.
    pub(crate) fn memory_limit(&self, id: &str) -> Option<u64> {
        self.directories(id).find_map(|directory| {
            ["memory.max", "memory.limit_in_bytes"]
                .iter()
                .find_map(|file| std::fs::read_to_string(directory.join(file)).ok()?.trim().parse().ok())
        })
    }

    /// Processes in the sandbox's cgroups.
    pub(crate) fn processes(&self, id: &str) -> Vec<Pid> {
        let mut pids: Vec<i32> = self
            .directories(id)
            .filter_map(|directory| std::fs::read_to_string(directory.join("cgroup.procs")).ok())
            .flat_map(|text| text.lines().filter_map(|line| line.parse().ok()).collect::<Vec<i32>>())
            .filter(|&pid| pid > 0)
            .collect();
        pids.sort_unstable();
        pids.dedup();
        pids.into_iter().filter_map(Pid::from_raw).collect()
    }

    /// Kills whatever is in the sandbox's cgroups and removes them; returns what was removed. Waits for at most a
    /// second for processes that take their time to die.
    pub(crate) fn remove(&self, id: &str) -> io::Result<Vec<PathBuf>> {
        let mut removed = Vec::new();
        let deadline = Instant::now() + Duration::from_secs(1);
        for directory in self.directories(id) {
            loop {
                match std::fs::remove_dir(&directory) {
                    Ok(()) => {
                        removed.push(directory);
                        break;
                    }
                    Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                    Err(error)
                        if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline =>
                    {
                        self.kill(id, &directory);
                        std::thread::sleep(Duration::from_millis(2));
                    }
                    Err(error) => {
                        return Err(io::Error::new(
                            error.kind(),
                            format!("{}: {error}", directory.display()),
                        ));
                    }
                }
            }
        }
        Ok(removed)
    }

    fn kill(&self, id: &str, directory: &Path) {
        if std::fs::write(directory.join("cgroup.kill"), "1").is_ok() {
            return;
        }
        for pid in self.processes(id) {
            let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
            // Only while it is still in the cgroup is the number surely this process's.
            if self.processes(id).contains(&pid) {
                let _ = pidfd_send_signal(&pidfd, Signal::KILL);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V2: &str = "29 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
    const HYBRID: &str = "\
        30 23 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
        33 23 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
        34 23 0:31 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
        35 23 0:32 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer\n";

    #[test]
    fn v2_alone_is_seen() {
        let found = Hierarchies::parse(V2, DEFAULT_PARENT.into());
        assert_eq!(found.version_of("memory"), Version::Two);
        assert_eq!(found.parents(), [PathBuf::from("/sys/fs/cgroup/husk")]);
        let texts = |huge, extra| Hierarchies::defaults(128, huge, 2, extra).texts();
        let memory = (128 << 20) + (1 << 20) + OVERHEAD;
        let expected = [format!("memory.max={memory}"), "memory.swap.max=0".into(), "pids.max=21".into()];
        assert_eq!(texts(false, [3, 0, 0]), expected);
        let memory = memory + (256 << 20);
        let expected = [
            format!("memory.max={memory}"),
            "memory.swap.max=0".into(),
            "pids.max=24".into(),
            format!("hugetlb.2MB.max={}", 128 << 20),
        ];
        assert_eq!(texts(true, [3, 2, 1]), expected);
    }

    #[test]
    fn without_root_there_is_what_was_delegated() {
        let below = |path: &'static str| {
            let found = Hierarchies::parse(HYBRID, "husk-1".into());
            found.below(|mount| Delegated::of(mount?, path)).parents()
        };
        assert_eq!(below("0::/a/b.scope"), [PathBuf::from("/sys/fs/cgroup/unified/a/b.scope/husk-1")]);
        assert_eq!(below("0::/"), [PathBuf::from("/sys/fs/cgroup/unified/husk-1")]);
        assert_eq!(
            below("1:cpu:/x"),
            [PathBuf::from("/sys/fs/cgroup/unified/husk-1")],
            "refused when it is made"
        );
    }

    #[test]
    fn hybrid_limits_memory_where_memory_is() {
        let found = Hierarchies::parse(HYBRID, DEFAULT_PARENT.into());
        assert_eq!(found.version_of("memory"), Version::One);
        assert_eq!(found.version_of("io"), Version::Two);
        let target = Target { version: Version::One, controller: "cpu" };
        assert_eq!(found.group(target, "x"), Some("/sys/fs/cgroup/cpu,cpuacct/husk/x".into()));
        let directories: Vec<_> = found.directories("x").map(|path| path.display().to_string()).collect();
        assert_eq!(
            directories,
            [
                "/sys/fs/cgroup/unified/husk/x",
                "/sys/fs/cgroup/memory/husk/x",
                "/sys/fs/cgroup/cpu,cpuacct/husk/x"
            ]
        );
    }

    #[test]
    fn nothing_mounted_is_nothing_to_remove() {
        let found = Hierarchies::parse("nonsense\n", String::new());
        assert_eq!(found, Hierarchies::default());
        assert_eq!(found.remove("x").unwrap(), Vec::<PathBuf>::new());
    }
}
