//! Exit statuses, of husk and of the runtime, in one place because users script against them.
//!
//! `husk run` ends with the command's own status unless one of these says otherwise. The runtime's statuses are for
//! whoever starts `husk-runtime` itself.

/// `husk run`: the time limit (`--timeout`) ended the sandbox; as coreutils' `timeout`.
pub const TIMED_OUT: u8 = 124;
/// `husk run`: Husk itself failed, whoever is at fault; as `docker run`.
pub const HUSK_FAILED: u8 = 125;
/// `husk run`: the command was found but could not be executed; as a shell.
pub const NOT_EXECUTABLE: u8 = 126;
/// `husk run`: the command was not found; as a shell.
pub const NOT_FOUND: u8 = 127;
/// `husk run`: added to the signal's number when a signal ended the command; as a shell.
pub const SIGNAL_BASE: u8 = 128;

/// How `husk-runtime` itself ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum RuntimeExit {
    /// The guest reset or was stopped by request.
    Ended = 0,
    /// What was asked for cannot be: the message names key, value and what is allowed.
    Operator = 2,
    /// The host refused something: the message names the object and the system's error.
    Host = 3,
    /// The guest did what no guest may do and cannot go on.
    Guest = 4,
    /// A bug in the runtime.
    Bug = 5,
    /// A thread made a system call that its filter denies.
    Seccomp = 6,
}
