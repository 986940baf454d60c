//! What the process gives up before the first message: the root that it was started in, and the privilege to change it.
//!
//! The jailer has built the cell: namespaces, no capabilities but those for serving, limits. Left for the process itself is
//! what its own start needs: a /proc, which is gone once the directory is the root, and calls that the filter denies.

use husk_seccomp::{InstallError, Role};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, chdir, chroot, set_dumpable_behavior};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

/// The directory cannot become the root.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// A system call.
    #[error("{0}: {1}")]
    Step(&'static str, Errno),
    /// The filter.
    #[error(transparent)]
    Filter(#[from] InstallError),
}

/// Makes `directory` the root for good, and allows the process only what serving it takes.
///
/// # Errors
/// See [`ConfineError`]; the process is not confined then.
pub fn enter(directory: &str, writable: bool) -> Result<(), ConfineError> {
    let named = |step| move |errno| ConfineError::Step(step, errno);
    // Executing a readable file has made the process dumpable again: nobody of the same user may look inside.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(named("be nobody else's to look at"))?;
    chdir(directory).map_err(named("enter the directory"))?;
    chroot(".").map_err(named("make the directory the root"))?;
    let left = capabilities(None).map_err(named("read capabilities"))?.permitted - CapabilitySet::SYS_CHROOT;
    let sets = CapabilitySets { effective: left, permitted: left, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).map_err(named("drop a capability"))?;
    husk_seccomp::install(if writable { Role::VolumeWritable } else { Role::Volume })?;
    Ok(())
}
