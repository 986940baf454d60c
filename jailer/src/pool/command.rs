//! `husk-jailer pool fill|refill|remove DIR`: what is done about a pool when no cell is built.

use super::{Place, PoolError, build, fill};
use crate::caller::Caller;
use crate::sys::{self, Cloned};
use rustix::fs::FlockOperation;
use rustix::process::setsid;
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

/// Carries out the words behind `pool`.
pub(crate) fn command(words: &[OsString]) -> ExitCode {
    let caller = Caller::current();
    let result = match words {
        [verb, path] if verb == "fill" => fill::fill(Path::new(path), caller),
        [verb, path] if verb == "refill" => refill(Path::new(path), caller),
        [verb, path] if verb == "remove" => remove(Path::new(path), caller),
        _ => {
            eprintln!("husk-jailer: pool fill DIR, pool refill DIR or pool remove DIR is expected");
            return ExitCode::FAILURE;
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("husk-jailer: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The same in a process of its own, for which nobody waits.
fn refill(path: &Path, caller: Caller) -> Result<(), PoolError> {
    let failed = |errno| PoolError::Step { path: path.to_owned(), step: "refill", errno };
    match sys::clone3(0, u64::from(libc::SIGCHLD.unsigned_abs()), None).map_err(failed)? {
        Cloned::Parent(..) => Ok(()),
        Cloned::Child => {
            // Of its caller's terminal it would get signals.
            let _ = setsid();
            fill::fill(path, caller)
        }
    }
}

fn remove(path: &Path, caller: Caller) -> Result<(), PoolError> {
    if !path.symlink_metadata().is_ok_and(|found| found.is_dir()) {
        return Ok(());
    }
    let place = Place::open(path)?;
    place.lock(FlockOperation::LockExclusive)?;
    build::remove(&place, caller)
}
