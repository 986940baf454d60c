//! fork and execve. Owns the pointer vectors that execve takes; refuses nothing. Invariant: the child of [`fork`]
//! allocates nothing and ends in [`execve`] or `exit_now`.

use super::check;
use rustix::io::Errno;
use rustix::process::Pid;
use std::ffi::{CStr, CString};
use std::ptr;

/// Strings as execve wants them: pointers with a null at the end.
#[derive(Debug)]
pub(crate) struct StringVector {
    strings: Vec<CString>,
    pointers: Vec<*const libc::c_char>,
}

impl StringVector {
    /// Lays out `strings`.
    pub(crate) fn new(strings: Vec<CString>) -> Self {
        let pointers = strings.iter().map(|it| it.as_ptr()).chain([ptr::null()]).collect();
        Self { strings, pointers }
    }

    /// The strings themselves.
    pub(crate) fn strings(&self) -> &[CString] {
        &self.strings
    }
}

/// Copies this process; `None` in the copy.
///
/// # Errors
/// `EAGAIN`, `ENOMEM`: too many processes, no memory.
#[expect(unsafe_code, reason = "fork has no safe wrapper")]
pub(crate) fn fork() -> Result<Option<Pid>, Errno> {
    // SAFETY: this process has one thread (nothing in the crate starts another), so no lock can be held by somebody
    // who does not exist in the child.
    let pid = check(i64::from(unsafe { libc::fork() }))?;
    Ok(i32::try_from(pid).ok().and_then(Pid::from_raw))
}

/// Becomes another program; returns only to say why not.
#[expect(unsafe_code, reason = "execve has no safe wrapper")]
pub(crate) fn execve(program: &CStr, argv: &StringVector, env: &StringVector) -> Errno {
    // SAFETY: both vectors are null-terminated arrays of terminated strings that they own, unchanged since `new`.
    let result = unsafe { libc::execve(program.as_ptr(), argv.pointers.as_ptr(), env.pointers.as_ptr()) };
    check(i64::from(result)).err().unwrap_or(Errno::IO)
}
