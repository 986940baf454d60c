//! Finds Husk's other files: jailer, runtime, volume server, guest-init and kernel.
//!
//! Owns the order of the search. Refuses to go on with a file missing, and names every place that was looked at.
//! Invariant: a directory counts as Husk's only by what lies in it; nothing is searched in PATH.

use std::path::{Path, PathBuf};

/// Environment variable that names the directory with Husk's other files.
pub(crate) const LIBEXEC_VARIABLE: &str = "HUSK_LIBEXEC";

/// A file of Husk's own is missing: the installation is incomplete.
#[derive(Debug, thiserror::Error)]
#[error("{name} is missing; looked in {}; build it (make build) or set {LIBEXEC_VARIABLE}", list(searched))]
pub(crate) struct AssetError {
    name: &'static str,
    searched: Vec<PathBuf>,
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// Where Husk's other files may lie.
#[derive(Debug, Clone)]
pub(crate) struct Assets {
    directories: Vec<PathBuf>,
}

impl Assets {
    /// The usual places: $HUSK_LIBEXEC alone if it is set; else beside the running program, and `../lib/husk` from
    /// there.
    pub(crate) fn usual() -> Self {
        let explicit =
            std::env::var_os(LIBEXEC_VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from);
        let program = std::env::current_exe().ok();
        let beside = program.as_deref().and_then(Path::parent).map(Path::to_owned);
        let installed = beside.as_deref().and_then(Path::parent).map(|prefix| prefix.join("lib/husk"));
        match explicit {
            Some(directory) => Self { directories: vec![directory] },
            None => Self { directories: [beside, installed].into_iter().flatten().collect() },
        }
    }

    /// One directory, and no other.
    #[cfg(test)]
    pub(crate) fn at(directory: &Path) -> Self {
        Self { directories: vec![directory.to_owned()] }
    }

    /// Husk's jailer.
    pub(crate) fn jailer(&self) -> Result<PathBuf, AssetError> {
        self.find("husk-jailer")
    }

    /// Husk's virtual machine monitor.
    pub(crate) fn runtime(&self) -> Result<PathBuf, AssetError> {
        self.find("husk-runtime")
    }

    /// The server of a volume.
    pub(crate) fn volume_server(&self) -> Result<PathBuf, AssetError> {
        self.find("husk-fs")
    }

    /// The guest's PID 1.
    pub(crate) fn init(&self) -> Result<PathBuf, AssetError> {
        self.find("husk-init")
    }

    /// The guest's kernel.
    pub(crate) fn kernel(&self) -> Result<PathBuf, AssetError> {
        self.find("vmlinux")
    }

    fn find(&self, name: &'static str) -> Result<PathBuf, AssetError> {
        let candidates = self.directories.iter().map(|directory| directory.join(name));
        candidates
            .into_iter()
            .find(|path| path.is_file())
            .ok_or_else(|| AssetError { name, searched: self.directories.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_place_that_has_it_wins_and_a_miss_names_all() {
        let base = std::env::temp_dir().join(format!("husk-assets-{}", std::process::id()));
        let (first, second) = (base.join("a"), base.join("b"));
        std::fs::create_dir_all(&first).unwrap();
        std::fs::create_dir_all(&second).unwrap();
        let assets = Assets { directories: vec![first.clone(), second.clone()] };
        let error = assets.init().unwrap_err().to_string();
        assert!(error.contains("husk-init") && error.contains("/a, ") && error.contains("/b;"), "{error}");
        std::fs::write(second.join("husk-init"), "x").unwrap();
        assert_eq!(assets.init().unwrap(), second.join("husk-init"));
        std::fs::write(first.join("husk-init"), "x").unwrap();
        assert_eq!(assets.init().unwrap(), first.join("husk-init"));
        std::fs::remove_dir_all(base).unwrap();
    }
}
