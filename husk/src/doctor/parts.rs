//! Husk's own files: there, and in no stranger's hands.
//!
//! Refuses nothing. Invariant: a file is trusted only if it and every directory on its path can be changed by root and the
//! caller alone.

use super::kernel::User;
use super::{Check, Verdict};
use crate::assets::{AssetError, Assets};
use crate::pack::usual_cache;
use crate::state::State;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A file or directory, and who else may change it.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub(super) name: &'static str,
    /// Where it is; or that it is nowhere.
    pub(super) place: Result<PathBuf, String>,
    /// What is wrong on its path: the place, and why.
    pub(super) doubt: Option<(PathBuf, String)>,
}

/// What there is.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    files: Vec<(Part, Verdict)>,
    directories: Vec<Part>,
}

impl Facts {
    pub(super) fn collect(assets: &Assets, state: &State, user: &User) -> Self {
        let part = |name, place: Result<PathBuf, String>| {
            let doubt = place.as_ref().ok().and_then(|path| doubt(path, *user));
            Part { name, place, doubt }
        };
        let found = |place: Result<PathBuf, AssetError>| place.map_err(|error| error.to_string());
        let own = std::env::current_exe().map_err(|error| format!("husk's own file: {error}"));
        let files = vec![
            (part("husk", own), Verdict::Note),
            (part("husk-jailer", found(assets.jailer())), Verdict::Unusable),
            (part("husk-runtime", found(assets.runtime())), Verdict::Unusable),
            (part("husk-init", found(assets.init())), Verdict::Unusable),
            (part("vmlinux", found(assets.kernel())), Verdict::Unusable),
            (part("husk-fs", found(assets.volume_server())), Verdict::Degraded),
        ];
        let directory = |name, path: Option<PathBuf>| {
            part(name, path.ok_or_else(|| "no place for it: neither XDG_CACHE_HOME nor HOME is set".into()))
        };
        let directories =
            vec![directory("state", Some(state.base().to_owned())), directory("image cache", usual_cache())];
        Self { files, directories }
    }

    pub(super) fn judge(&self) -> Vec<Check> {
        let files = self.files.iter().map(|(part, missing)| part.file(*missing));
        files.chain(self.directories.iter().map(Part::directory)).collect()
    }
}

impl Part {
    fn file(&self, missing: Verdict) -> Check {
        const WHY: &str =
            "a part of husk; who may change it, or a directory above it, decides what husk does, as root";
        match (&self.place, &self.doubt) {
            (Err(error), _) => Check::new(self.name, missing, error, WHY).mend("make build, or make install"),
            (Ok(path), None) => Check::new(self.name, Verdict::Ok, path.display().to_string(), WHY),
            (Ok(_), Some(doubt)) => self.doubtful(doubt, WHY),
        }
    }

    fn directory(&self) -> Check {
        const WHY: &str = "who may change it puts an image of his own under another's sandbox, or takes part in husk's books";
        match (&self.place, &self.doubt) {
            (Err(error), _) => Check::new(self.name, Verdict::Note, error, WHY),
            (Ok(path), None) if path.exists() => {
                Check::new(self.name, Verdict::Ok, path.display().to_string(), WHY)
            }
            (Ok(path), None) => {
                Check::new(self.name, Verdict::Ok, format!("{}, made when it is needed", path.display()), WHY)
            }
            (Ok(_), Some(doubt)) => self.doubtful(doubt, WHY),
        }
    }

    fn doubtful(&self, (place, what): &(PathBuf, String), why: &'static str) -> Check {
        let place = crate::text::line(&place.display().to_string());
        Check::new(self.name, Verdict::Unsafe, format!("{place} {what}"), why)
            .mend(format!("chown root:root {0} && chmod go-w {0}", quoted(&place)))
    }
}

/// As a shell takes it for one word: whoever names a directory must not write the command that mends it.
pub(super) fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// The first place on the way to `path` that somebody beside root and `user` may change. What does not exist cannot be
/// changed, and is judged by the directory in which it would be made.
pub(super) fn doubt(path: &Path, user: User) -> Option<(PathBuf, String)> {
    let absolute = std::path::absolute(path).ok()?;
    let real = absolute.ancestors().find_map(|ancestor| ancestor.canonicalize().ok())?;
    real.ancestors().find_map(|place| {
        let what = doubtful(place, user)?;
        Some((place.to_owned(), what))
    })
}

fn doubtful(place: &Path, user: User) -> Option<String> {
    const STICKY: u32 = 0o1000;
    let metadata = match place.symlink_metadata() {
        Ok(metadata) => metadata,
        Err(error) => return Some(format!("cannot be looked at: {}", error.kind())),
    };
    if metadata.uid() != 0 && metadata.uid() != user.uid {
        return Some(format!("belongs to user {}", metadata.uid()));
    }
    // In a sticky directory nobody renames or removes what is another's.
    if metadata.is_dir() && metadata.mode() & STICKY != 0 {
        return None;
    }
    if metadata.mode() & 0o002 != 0 {
        return Some("can be changed by everybody".into());
    }
    (metadata.mode() & 0o020 != 0 && metadata.gid() != 0)
        .then(|| format!("can be changed by group {}", metadata.gid()))
}
