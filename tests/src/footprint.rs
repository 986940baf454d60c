//! Everything that a sandbox might leave behind, counted before and after.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// What is there: processes of user space, mounts, cgroups, network links and namespaces by name, Husk's files, free huge pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footprint {
    things: BTreeSet<String>,
}

/// Where Husk keeps its state.
pub const STATE: &str = "/run/husk";

/// What the first sandbox of a machine makes for all that follow, by rule and empty: no sandbox's trace.
const STANDING: [&str; 2] = ["file /run/husk/sandboxes", "file /run/husk/slots"];
/// The namespaces that it makes as well: this directory, mounted, with one bind in it, and at most so many network namespaces, of
/// which those that are ready have a name in `free`.
const POOL: &str = "/run/husk/ns";
const POOLED: usize = 16;
/// Without root a process holds them, one a user's state directory.
const HOLDER: &str = "husk-holder";

impl Footprint {
    /// Counts now.
    #[must_use]
    pub fn now() -> Self {
        let mut things = BTreeSet::new();
        processes(&mut things);
        for line in fs::read_to_string("/proc/self/mountinfo").unwrap_or_default().lines() {
            things.insert(format!("mount {line}"));
        }
        directories(Path::new("/sys/fs/cgroup"), "cgroup", &mut things);
        everything(Path::new(STATE), &mut things);
        for dir in ["/dev/shm", "/srv/jailer", "/run/netns"] {
            everything(Path::new(dir), &mut things);
        }
        // Taps are among them.
        for link in fs::read_dir("/sys/class/net").into_iter().flatten().flatten() {
            things.insert(format!("link {}", link.file_name().to_string_lossy()));
        }
        for size in ["hugepages-2048kB", "hugepages-1048576kB"] {
            let path = format!("/sys/kernel/mm/hugepages/{size}/free_hugepages");
            things.insert(format!("{size} free {}", fs::read_to_string(path).unwrap_or_default().trim()));
        }
        for standing in STANDING {
            things.remove(standing);
        }
        // The parent of sandboxes' cgroups, one in each hierarchy.
        things.retain(|thing| !(thing.starts_with("cgroup /sys/fs/cgroup/") && thing.ends_with("/husk")));
        let mut footprint = Self { things };
        footprint.stand_on_the_pool();
        footprint
    }

    /// Leaves the pool out of the count, as far as it is what it may be: one more of anything is counted.
    fn stand_on_the_pool(&mut self) {
        for point in [POOL.to_owned(), format!("{POOL}/pool")] {
            let is_here = |thing: &&String| {
                thing.strip_prefix("mount ").and_then(|line| line.split(' ').nth(4)) == Some(point.as_str())
            };
            if let Some(mount) = self.things.iter().find(is_here).cloned() {
                self.things.remove(&mount);
            }
        }
        for directory in ["net", "free"] {
            let place = format!("file {POOL}/{directory}/");
            let names: Vec<_> =
                self.things.iter().filter(|thing| thing.starts_with(&place)).cloned().collect();
            for name in names.iter().take(POOLED) {
                self.things.remove(name);
            }
        }
        for name in ["", "/pool", "/stub", "/net", "/free"] {
            self.things.remove(&format!("file {POOL}{name}"));
        }
        if let Some(holder) = self.things.iter().find(|thing| is_holder(thing)).cloned() {
            self.things.remove(&holder);
        }
    }

    /// Asserts that nothing was added to or taken from what was there; waits a moment for what ends by itself.
    ///
    /// # Panics
    /// Something was left, or something is missing.
    #[track_caller]
    pub fn assert_restored(&self) {
        let patience = Instant::now() + Duration::from_secs(5);
        loop {
            let now = Self::now();
            let left: Vec<_> = now.things.difference(&self.things).collect();
            let gone: Vec<_> =
                self.things.difference(&now.things).filter(|thing| !thing.starts_with("process")).collect();
            if left.is_empty() && gone.is_empty() {
                return;
            }
            assert!(Instant::now() < patience, "left behind: {left:#?}\nmissing: {gone:#?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn is_holder(thing: &str) -> bool {
    thing
        .strip_prefix("process ")
        .and_then(|process| process.split_once(' '))
        .is_some_and(|(_, name)| name == HOLDER)
}

/// Processes with a command line (kernel threads have none), and zombies.
fn processes(things: &mut BTreeSet<String>) {
    let Ok(entries) = fs::read_dir("/proc") else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().filter(|name| name.bytes().all(|b| b.is_ascii_digit())) else {
            continue;
        };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some((comm, rest)) = stat.rsplit_once(')') else { continue };
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let (state, parent) = (fields.first().copied().unwrap_or(""), fields.get(1).copied().unwrap_or(""));
        // kthreadd's children come and go.
        if parent == "2" || pid == "2" {
            continue;
        }
        let comm = comm.split_once('(').map_or("", |(_, comm)| comm);
        let zombie = if state == "Z" { " (zombie)" } else { "" };
        things.insert(format!("process {pid} {comm}{zombie}"));
    }
}

fn directories(dir: &Path, what: &str, things: &mut BTreeSet<String>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            things.insert(format!("{what} {}", entry.path().display()));
            directories(&entry.path(), what, things);
        }
    }
}

fn everything(dir: &Path, things: &mut BTreeSet<String>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        things.insert(format!("file {}", entry.path().display()));
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            everything(&entry.path(), things);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_process_is_seen_and_its_end_too() {
        let before = Footprint::now();
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let during = Footprint::now();
        assert_ne!(before, during);
        child.kill().unwrap();
        // Not reaped yet: a zombie is a leak as well.
        std::thread::sleep(Duration::from_millis(100));
        assert_ne!(before, Footprint::now());
        child.wait().unwrap();
        before.assert_restored();
    }
}
