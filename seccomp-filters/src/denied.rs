//! What a process that a filter has stopped says of it.
//!
//! Owns the sentence, so that all who are stopped say the same. Invariant: writing it allocates nothing and takes no lock, as a
//! signal handler needs it.

use std::fmt;

/// A call that a filter did not let through, as the kernel tells the handler of SIGSYS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Denied<'a> {
    /// Name of the thread's role.
    pub role: &'a str,
    /// `si_syscall`.
    pub call: u32,
    /// `si_arch`, `AUDIT_ARCH_…` of linux/audit.h.
    pub arch: u32,
}

impl fmt::Display for Denied<'_> {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { role, call, arch } = self;
        write!(to, "a thread (role {role}) made system call {call} (")?;
        match crate::call_name(*call) {
            Some(name) => to.write_str(name)?,
            None => write!(to, "which has no name here; architecture 0x{arch:08x}")?,
        }
        to.write_str("), which its filter denies")
    }
}
