//! The peer as a column of the benchmark's table: the same stage names as husk's own.
//!
//! Owns the files that the peer's guest needs and the setting of the host that it is measured under. Refuses to run
//! without a release build of `husk-peer-init` beside this executable or without a static busybox. Invariant: one run
//! that does not count comes before those that do, and every one of those is traced alike.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Files, Peer, Shape, Stages, initrd};
use crate::bench::host::HugePagesAlways;
use crate::bench::stages::Stamps;
use crate::bench::trace::KvmEntryTrace;
use crate::scratch::Scratch;

/// PID 1 of the peer's guest, beside the benchmark's executable.
const INIT: &str = "husk-peer-init";
/// Its most, bytes: the peer's guest unpacks it at the peer's cost, and one built for debugging is ten times as large.
const INIT_BYTES: usize = 1 << 20;
const BUSYBOX: [&str; 3] = ["/usr/bin/busybox", "/bin/busybox", "/usr/local/bin/busybox"];

impl Stages {
    /// The stamps under husk's names, since the cell's preparation began. The peer's jail ends where its monitor is
    /// executed, so `jailed` and `runtime` are the same; what it builds and loads before the entry cannot be told apart.
    #[must_use]
    pub fn stamps(&self) -> Stamps {
        let named = [
            ("process", Some(self.prepare)),
            ("planned", Some(self.spawn)),
            ("jailer", self.jailer),
            ("jailed", self.monitor),
            ("runtime", self.monitor),
            ("kernel_entry", self.kernel_entry),
            ("init", Some(self.init)),
            ("ready", Some(self.ready)),
            ("first_output", Some(self.first_byte)),
        ];
        let since = |at: u64| at.saturating_sub(self.prepare);
        named.into_iter().filter_map(|(name, at)| Some((name.to_owned(), since(at?)))).collect()
    }
}

/// Several runs of the peer's quickest shape: configured from a file, its jailer's defaults.
///
/// # Errors
/// One line: a file is missing, this is not root, or a run failed.
pub fn runs(firecracker: &str, jailer: &str, kernel: &str, count: usize) -> Result<Vec<Stamps>, String> {
    runs_of([firecracker, jailer, kernel], Shape::default(), count)
}

/// Several runs of a shape; the programs are Firecracker, its jailer and the kernel.
///
/// # Errors
/// One line: a file is missing, this is not root, or a run failed.
pub fn runs_of(programs: [&str; 3], shape: Shape, count: usize) -> Result<Vec<Stamps>, String> {
    let scratch = Scratch::new();
    let [firecracker, jailer, kernel] = programs.map(PathBuf::from);
    let image = scratch.path().join("peer-initrd.cpio");
    fs::write(&image, initrd(&init()?, &[("busybox", &read(&busybox()?)?)]))
        .map_err(|error| format!("{}: {error}", image.display()))?;
    let files = Files { firecracker, jailer, kernel, initrd: image, rootfs: None, data: None, tap: None };
    let peer = Peer::stage(&files, scratch.path()).map_err(|error| error.to_string())?;
    let _huge_pages = HugePagesAlways::set().map_err(|error| format!("transparent huge pages: {error}"))?;
    let trace = KvmEntryTrace::new().map_err(|error| error.to_string())?;
    let once = || peer.run(shape, Some(&trace)).map_err(|error| error.to_string());
    once()?;
    (0..count).map(|_| once().map(|stages| stages.stamps())).collect()
}

/// PID 1 of the peer's guest.
pub(in crate::bench) fn init() -> Result<Vec<u8>, String> {
    let own = std::env::current_exe().map_err(|error| format!("the benchmark's own path: {error}"))?;
    let path = own.with_file_name(INIT);
    let program = read(&path).map_err(|error| format!("{error}; build it with the benchmark"))?;
    let (size, path) = (program.len(), path.display());
    if size > INIT_BYTES {
        return Err(format!("{path} has {size} bytes, {INIT_BYTES} are allowed: build it with --release"));
    }
    Ok(program)
}

/// A static busybox of this machine.
pub(in crate::bench) fn busybox() -> Result<PathBuf, String> {
    let found = BUSYBOX.iter().map(PathBuf::from).find(|path| path.is_file());
    found.ok_or_else(|| format!("no busybox at {BUSYBOX:?}: install busybox-static"))
}

pub(in crate::bench) fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_carry_the_names_of_husks_table() {
        let stages = Stages {
            prepare: 100,
            spawn: 110,
            jailer: Some(120),
            monitor: None,
            api: None,
            started: None,
            kernel_entry: Some(150),
            init: 160,
            ready: 170,
            first_byte: 180,
        };
        let stamps = stages.stamps();
        assert_eq!(stamps["process"], 0);
        assert_eq!((stamps["kernel_entry"], stamps["first_output"]), (50, 80));
        assert!(!stamps.contains_key("runtime"));
    }
}
