//! The same probe in the cell that Firecracker's jailer builds, alone or behind Firecracker's filters: for comparison.
//!
//! Owns the directory that its jailer makes of an id, and a network namespace that is empty. Invariant: an id is used once.

use crate::alive::Alive;
use crate::cell::{Ending, USER, ending, handed, listen, reap};
use crate::rootfs::sibling;
use crate::scratch::Scratch;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Firecracker's threads, as its filters call them.
pub const THREADS: [&str; 3] = ["vmm", "api", "vcpu"];

/// How much of its jailer is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cell {
    /// As it is without options.
    Plain,
    /// With a process and a network namespace, as its document on production hosts says.
    Full,
}

/// Firecracker's jailer and filters.
pub struct Peer {
    jailer: PathBuf,
    filters: BTreeMap<String, File>,
    scratch: Scratch,
    network: Child,
}

impl Peer {
    /// `filters`: what its seccompiler made of its rules, and its build put into the program.
    ///
    /// # Errors
    /// They cannot be read, or are not those of its threads; there are no network namespaces.
    pub fn new(jailer: &Path, filters: Option<&Path>) -> Result<Self, String> {
        let scratch = Scratch::new();
        let filters = filters.map(|path| read(path, &scratch)).transpose()?.unwrap_or_default();
        // Nobody's parent is lost: a jailer that makes a process namespace leaves its clone to whoever asked for orphans.
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .map_err(|error| format!("adopting orphans: {error}"))?;
        let network = Command::new("unshare").args(["--net", "sleep", "10000"]).stdin(Stdio::null()).spawn();
        let network = network.map_err(|error| format!("unshare: {error}"))?;
        Ok(Self { jailer: jailer.to_owned(), filters, scratch, network })
    }

    /// Whether its filters are there.
    #[must_use]
    pub fn has_filters(&self) -> bool {
        !self.filters.is_empty()
    }

    /// Runs one attempt; `thread`: behind the filter of this thread.
    ///
    /// # Panics
    /// The cell cannot be built, or the probe ends without a word.
    #[must_use]
    #[track_caller]
    pub fn inside(&self, world: &Alive, attempt: &str, cell: Cell, thread: Option<&str>) -> Ending {
        let id = format!("probe-{}-{attempt}", std::process::id());
        let probe = sibling("husk-probe");
        let mut jailer = Command::new(&self.jailer);
        jailer.args(["--id", &id, "--uid", &USER.to_string(), "--gid", &USER.to_string(), "--exec-file"]);
        jailer.arg(&probe).arg("--chroot-base-dir").arg(self.scratch.path());
        if cell == Cell::Full {
            jailer.args(["--new-pid-ns", "--netns", &format!("/proc/{}/ns/net", self.network.id())]);
        }
        jailer.args(["--", "--control-fd", "0", "--attempt", attempt]).stdin(Stdio::null());
        let mut files = world.files();
        let filter = thread.map(|thread| &self.filters[thread]);
        files.filter = filter.map(AsFd::as_fd);
        // It closes every descriptor beside the standard ones.
        let ours = handed(&mut jailer, 0, world.targets(), &files);
        let child = jailer.spawn().unwrap_or_else(|error| panic!("Firecracker's jailer: {error}"));
        drop(jailer);
        let (_, line) = listen(&ours);
        let output = child.wait_with_output().unwrap_or_else(|error| panic!("Firecracker's jailer: {error}"));
        let directory = self.scratch.path().join("husk-probe").join(&id);
        let status = match cell {
            Cell::Plain => output.status,
            Cell::Full => reap(pid(&directory.join("root/husk-probe.pid"))),
        };
        drop(std::fs::remove_dir_all(directory));
        ending(&line, status)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.network.kill());
        drop(self.network.wait());
    }
}

/// What the jailer wrote of its clone.
#[track_caller]
fn pid(path: &Path) -> i32 {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.trim().parse().unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The filters as files of instructions, a thread each.
fn read(path: &Path, scratch: &Scratch) -> Result<BTreeMap<String, File>, String> {
    let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let bytes = std::fs::read(path).map_err(|error| failed(&error))?;
    let programs: BTreeMap<String, Vec<u64>> =
        bitcode::deserialize(&bytes).map_err(|error| failed(&error))?;
    let mut files = BTreeMap::new();
    for thread in THREADS {
        let program = programs.get(thread).ok_or_else(|| failed(&format_args!("no filter of {thread}")))?;
        let name = scratch.path().join(thread);
        let instructions: Vec<u8> = program.iter().flat_map(|word| word.to_le_bytes()).collect();
        let mut file = File::create(&name).map_err(|error| failed(&error))?;
        file.write_all(&instructions).map_err(|error| failed(&error))?;
        files.insert(thread.to_owned(), File::open(name).map_err(|error| failed(&error))?);
    }
    Ok(files)
}
