//! Who runs the jailer, and what he wants done about walls that the host does not let him build.
//!
//! Root builds every wall and gives each sandbox a user of its own. Anybody else builds the same ones inside a user
//! namespace, and the sandbox's user is himself: a second one would take a setuid program, which Husk has not.

use rustix::process::{getegid, geteuid};

/// User and group of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
}

impl Caller {
    /// The user of this process.
    #[must_use]
    pub fn current() -> Self {
        Self { uid: geteuid().as_raw(), gid: getegid().as_raw() }
    }

    /// Whether he may do everything.
    #[must_use]
    pub const fn is_root(self) -> bool {
        self.uid == 0
    }
}

/// What is done about a wall that cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// There is no cell.
    Strict,
    /// It is reported, and left out. What the process gives up by itself (capabilities, descriptors, limits) is given up
    /// all the same.
    BestEffort,
}
