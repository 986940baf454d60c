//! What some options need and nobody's safety does.
//!
//! Refuses nothing. Invariant: no check here is worse than a note.

use super::files::Root;
use super::{Check, Verdict};
use crate::pool::{Pool, SIZE};
use crate::state::State;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Directories of PATH that are looked in.
const PLACES: usize = 64;

/// What there is.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    tun: bool,
    packer: Option<PathBuf>,
    passt: Option<PathBuf>,
    /// Where namespaces are made once, and how many of them are ready.
    pool: (PathBuf, Option<usize>),
}

impl Facts {
    pub(super) fn collect(root: &Root) -> Self {
        let pool = Pool::of(&State::usual());
        Self {
            tun: root.has("dev/net/tun"),
            packer: program("mkfs.erofs"),
            passt: program("passt"),
            pool: (pool.directory().to_owned(), pool.ready()),
        }
    }

    fn namespaces(&self) -> Check {
        const WHY: &str = "cells are made out of them; husk gc --all removes them";
        let (directory, ready) = (self.pool.0.display(), self.pool.1);
        let found = match ready {
            Some(ready) => {
                format!("{directory}: a mount namespace, {ready} of {SIZE} network namespaces ready")
            }
            None => format!("none in {directory}; the first sandbox makes them, where the host permits it"),
        };
        Check::new("namespaces", Verdict::Ok, found, WHY)
    }

    pub(super) fn judge(&self) -> Vec<Check> {
        const TUN: &str = "--net tap=NAME hands the guest a tap, which is made of it";
        const PACKER: &str = "--rootfs DIR packs the directory with it";
        const PASST: &str = "a network without a tap goes through it";
        let tun = if self.tun {
            Check::new("tun", Verdict::Ok, "/dev/net/tun", TUN)
        } else {
            Check::new("tun", Verdict::Note, "no /dev/net/tun", TUN).mend("modprobe tun")
        };
        vec![
            tun,
            self.namespaces(),
            found("mkfs.erofs", self.packer.as_deref(), PACKER, "apt install erofs-utils"),
            found("passt", self.passt.as_deref(), PASST, "apt install passt"),
        ]
    }
}

fn found(name: &'static str, path: Option<&Path>, why: &'static str, mend: &'static str) -> Check {
    match path {
        Some(path) => Check::new(name, Verdict::Ok, path.display().to_string(), why),
        None => Check::new(name, Verdict::Note, "not on PATH", why).mend(mend),
    }
}

/// Where PATH has the program.
fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let mut candidates = std::env::split_paths(&path).take(PLACES).map(|directory| directory.join(name));
    candidates.find(|candidate| {
        candidate.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    })
}
