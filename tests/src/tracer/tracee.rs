//! The system calls of tracing: of who is traced, once, and of who traces.
//!
//! Owns every unsafe block of the tracer but the one between fork and exec. Invariant: whatever is asked of a thread that was killed
//! meanwhile fails, and nothing else comes of it.

use std::io::Error;

/// In the child: to be traced by its parent, and stopped where the filter says.
pub(super) fn submit(program: &[libc::sock_filter]) -> std::io::Result<()> {
    request(libc::PTRACE_TRACEME, 0, 0)?;
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).unwrap_or_default(),
        filter: program.as_ptr().cast_mut(),
    };
    #[expect(unsafe_code, reason = "seccomp has no safe wrapper for a filter of one's own")]
    // SAFETY: the program lives through the call, which reads it.
    let done = unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            (&raw const program).cast::<libc::c_void>(),
        )
    };
    if done == 0 { Ok(()) } else { Err(Error::last_os_error()) }
}

/// Waits for a change of `pid`, or of any tracee if it is -1, and returns whose and which.
pub(super) fn wait(pid: libc::pid_t) -> (libc::pid_t, i32) {
    wait_for(pid, libc::__WALL)
}

pub(super) fn wait_for(pid: libc::pid_t, options: i32) -> (libc::pid_t, i32) {
    let mut status = 0;
    loop {
        #[expect(unsafe_code, reason = "waits for threads and for grandchildren")]
        // SAFETY: `status` lives through the call.
        let waited = unsafe { libc::waitpid(pid, &raw mut status, options) };
        if waited >= 0 || Error::last_os_error().raw_os_error() != Some(libc::EINTR) {
            return (waited, status);
        }
    }
}

/// Those of a stopped thread.
pub(super) fn registers(pid: libc::pid_t) -> Option<libc::user_regs_struct> {
    let mut found = std::mem::MaybeUninit::<libc::user_regs_struct>::zeroed();
    request(libc::PTRACE_GETREGS, pid, found.as_mut_ptr().expose_provenance()).ok()?;
    #[expect(unsafe_code, reason = "the kernel has written it")]
    // SAFETY: all of it is numbers, and was zeroed before.
    Some(unsafe { found.assume_init() })
}

/// Lets a stopped thread go on, with a signal unless 0. One that was killed meanwhile does not need it.
pub(super) fn go_on(pid: libc::pid_t, signal: i32) {
    drop(request(libc::PTRACE_CONT, pid, usize::try_from(signal).unwrap_or_default()));
}

pub(super) fn kill(pid: libc::pid_t) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// A request with one argument, which is a number or the address of what lives through the call and is as large as the
/// request has it.
pub(super) fn request(request: crate::ptrace::Request, pid: libc::pid_t, data: usize) -> Result<(), Error> {
    crate::ptrace::call(request, pid, 0, data).map(drop)
}
