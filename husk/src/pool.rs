//! The namespaces that are made once for all cells of this user, and are the jailer's: where they are, and when more are wanted.
//!
//! Owns the decision when the jailer is asked to fill them up: where nobody waits for it, [`PATIENCE`] after the guest is ready, or
//! at the sandbox's end if that comes first. Refuses nothing, and touches nothing itself: it counts names. Invariant: without a pool,
//! which the jailer makes for the first cell where the host permits it, nothing is started.

use crate::rootless;
use crate::state::State;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Network namespaces that the jailer keeps ready.
pub(crate) const SIZE: usize = 16;
/// With fewer it is asked for more: not for each sandbox, for it is a process each time.
const FEW: usize = SIZE / 2;
/// By then most commands are under way, or over.
const PATIENCE: Duration = Duration::from_secs(1);

/// Where they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pool {
    directory: PathBuf,
}

impl Pool {
    /// One for the machine as root, one a state directory without.
    pub(crate) fn of(state: &State) -> Self {
        let above = match state.slots().parent() {
            Some(machines) if rootless::is_root() => machines,
            _ => state.base(),
        };
        // The jailer follows no symbolic link; which directory the user means is for husk to say.
        let above = above.canonicalize().unwrap_or_else(|_| above.to_owned());
        Self { directory: above.join("ns") }
    }

    /// The directory.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// How many network namespaces are ready; `None`: there is no pool.
    pub(crate) fn ready(&self) -> Option<usize> {
        std::fs::read_dir(self.directory.join("free")).ok().map(|names| names.take(SIZE).count())
    }

    /// Has the jailer remove everything; whether there was something, or what went wrong.
    pub(crate) fn remove(&self, jailer: &Path) -> Result<bool, String> {
        if self.directory.symlink_metadata().is_err() {
            return Ok(false);
        }
        let output = self.command(jailer, "remove").stderr(Stdio::piped()).output();
        let output = output.map_err(|error| format!("{}: {error}", jailer.display()))?;
        if output.status.success() {
            return Ok(true);
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let said = crate::text::last_line(said.as_bytes()).unwrap_or_default();
        Err(said.trim_start_matches("husk-jailer: ").to_owned())
    }

    fn command(&self, jailer: &Path, verb: &str) -> Command {
        let mut command = Command::new(jailer);
        command.args(["pool", verb]).arg(&self.directory).env_clear().current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }
}

/// The filling up that a sandbox sees to.
#[derive(Debug, Default)]
pub(crate) struct Refill {
    pool: Option<(Pool, PathBuf)>,
    due: Option<Instant>,
}

impl Refill {
    /// Of `pool`, by `jailer`.
    pub(crate) fn new(pool: Pool, jailer: PathBuf) -> Self {
        Self { pool: Some((pool, jailer)), due: None }
    }

    /// When [`Refill::turn`] has something to do.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.due.filter(|_| self.pool.is_some())
    }

    /// To be called now and then; `ready`: the guest is.
    pub(crate) fn turn(&mut self, ready: bool) {
        if !ready || self.pool.is_none() {
            return;
        }
        let now = Instant::now();
        if *self.due.get_or_insert(now + PATIENCE) <= now {
            self.finish();
        }
    }

    /// The sandbox has ended: what was not done by now is.
    pub(crate) fn finish(&mut self) {
        let Some((pool, jailer)) = self.pool.take() else { return };
        if pool.ready().is_some_and(|ready| ready < FEW) {
            // It goes on without anybody: this ends at once. If it cannot be, cells make their own.
            let _ = pool.command(&jailer, "refill").status();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn more_are_asked_for_when_there_are_few_and_once() {
        let base = std::env::temp_dir().join(format!("husk-refill-{}", std::process::id()));
        let pool = Pool { directory: base.join("ns") };
        std::fs::create_dir_all(&base).unwrap();
        let jailer = base.join("jailer");
        std::fs::write(&jailer, "#!/bin/sh\necho \"$@\" >> \"${3%/ns}/asked\"\n").unwrap();
        std::fs::set_permissions(&jailer, PermissionsExt::from_mode(0o755)).unwrap();
        let asked = || std::fs::read_to_string(base.join("asked")).unwrap_or_default().lines().count();
        assert_eq!(pool.ready(), None);
        Refill::new(pool.clone(), jailer.clone()).finish();
        assert_eq!(asked(), 0, "there is no pool");
        std::fs::create_dir_all(base.join("ns/free")).unwrap();
        for name in 0..FEW {
            std::fs::write(base.join("ns/free").join(name.to_string()), "").unwrap();
        }
        Refill::new(pool.clone(), jailer.clone()).finish();
        assert_eq!((asked(), pool.ready()), (0, Some(FEW)));
        std::fs::remove_file(base.join("ns/free/0")).unwrap();
        let mut refill = Refill::new(pool.clone(), jailer.clone());
        refill.turn(false);
        assert_eq!(refill.deadline(), None);
        refill.turn(true);
        assert!(refill.deadline().is_some() && asked() == 0, "nobody's boot waits for it");
        refill.due = Some(Instant::now());
        refill.turn(true);
        refill.turn(true);
        refill.finish();
        assert_eq!((asked(), refill.deadline()), (1, None));
        assert_eq!(
            std::fs::read_to_string(base.join("asked")).unwrap(),
            format!("pool refill {}\n", pool.directory().display())
        );
        std::fs::remove_dir_all(base).unwrap();
    }
}
