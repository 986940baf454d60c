//! System calls as attempts make them: by number, past every wrapper.

use std::ffi::CStr;
use std::io::{Error, Result};

/// The directory that a process is in, where a call takes a descriptor of one.
pub(super) const CWD: usize = int(libc::AT_FDCWD);

/// An `int` in a register.
pub(super) const fn int(value: i32) -> usize {
    value.cast_unsigned() as usize
}

/// The address of a value that the kernel reads, or writes to.
pub(super) fn at<T: ?Sized>(value: &mut T) -> usize {
    (&raw mut *value).expose_provenance()
}

/// The address of a string.
pub(super) fn text(value: &CStr) -> usize {
    value.as_ptr().expose_provenance()
}

/// The system call `number`. Its pointers are to values of the caller's that outlive the call, or to none.
pub(super) fn call(number: i64, arguments: &[usize]) -> Result<usize> {
    let word = |index: usize| arguments.get(index).copied().unwrap_or(0);
    #[expect(unsafe_code, reason = "attempts are raw system calls")]
    // SAFETY: each caller passes numbers, addresses of values that live until after the call (`at` and `text` borrow them in
    // the same statement or a `let` above it), or addresses where nothing is. What a successful attempt does to this process is
    // the attempt's business: it says what came of it and ends.
    let result = unsafe { libc::syscall(number, word(0), word(1), word(2), word(3), word(4), word(5)) };
    // A negative one is an error, and its number is in errno.
    usize::try_from(result).map_err(|_| Error::last_os_error())
}

/// The same, where the value does not matter.
pub(super) fn done(number: i64, arguments: &[usize]) -> Result<()> {
    call(number, arguments).map(drop)
}

/// Success, if the error is one of those that come after the check of permissions.
pub(super) fn past(errors: &[i32], result: Result<usize>) -> Result<()> {
    match result {
        Err(error) if error.raw_os_error().is_some_and(|number| errors.contains(&number)) => Ok(()),
        other => other.map(drop),
    }
}

/// The name of a host's file as the kernel takes it.
pub(super) fn path(name: &str) -> Result<std::ffi::CString> {
    std::ffi::CString::new(name).map_err(Error::from)
}

/// A call that makes a process which has nothing to do: it ends at once, and its parent waits for it.
pub(super) fn born(result: Result<usize>) -> Result<()> {
    match result? {
        0 => {
            // In the child, which shares nothing with its parent and must not answer in its place.
            drop(call(libc::SYS_exit_group, &[0]));
            Ok(())
        }
        child => {
            drop(call(libc::SYS_wait4, &[child, 0, int(libc::__WALL), 0]));
            Ok(())
        }
    }
}
