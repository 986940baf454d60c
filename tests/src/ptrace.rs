//! A thread held still by ptrace, to read back its seccomp filters.

use std::io::Error;

/// What the C library calls a request.
#[cfg(target_env = "musl")]
pub(crate) type Request = libc::c_int;
#[cfg(not(target_env = "musl"))]
pub(crate) type Request = libc::c_uint;

/// `PTRACE_SECCOMP_GET_FILTER` (linux/ptrace.h).
const GET_FILTER: Request = 0x420c;

/// One BPF instruction: code, jump if true, jump if false, operand.
pub type Instruction = (u16, u8, u8, u32);

/// A seized and stopped thread; let go when dropped.
pub struct Traced(libc::pid_t);

impl Traced {
    /// Seizes and stops a thread.
    ///
    /// # Panics
    /// It cannot be traced.
    #[must_use]
    #[track_caller]
    pub fn attach(thread: u32) -> Self {
        let thread = libc::pid_t::try_from(thread).unwrap_or_else(|_| panic!("thread {thread}"));
        call(libc::PTRACE_SEIZE, thread, 0, 0).unwrap_or_else(|error| panic!("seizing {thread}: {error}"));
        call(libc::PTRACE_INTERRUPT, thread, 0, 0)
            .unwrap_or_else(|error| panic!("stopping {thread}: {error}"));
        let mut status = 0;
        #[expect(unsafe_code, reason = "waits for a thread that is nobody's child")]
        // SAFETY: `status` lives through the call.
        let waited = unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL) };
        assert_eq!(waited, thread, "waiting for {thread}: {}", Error::last_os_error());
        Self(thread)
    }

    /// The filter at this place, the one installed first at 0 (so the kernel counts, whatever its manual says); `None` past
    /// the end.
    #[must_use]
    pub fn filter(&self, place: usize) -> Option<Vec<Instruction>> {
        let count = call(GET_FILTER, self.0, place, 0).ok()?;
        let mut program = vec![libc::sock_filter { code: 0, jt: 0, jf: 0, k: 0 }; count];
        call(GET_FILTER, self.0, place, program.as_mut_ptr() as usize).ok()?;
        Some(program.iter().map(|op| (op.code, op.jt, op.jf, op.k)).collect())
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        drop(call(libc::PTRACE_DETACH, self.0, 0, 0));
    }
}

pub(crate) fn call(
    request: Request,
    thread: libc::pid_t,
    address: usize,
    data: usize,
) -> Result<usize, Error> {
    #[expect(unsafe_code, reason = "ptrace has no safe wrapper")]
    // SAFETY: of the requests made here those that read or write through `data` are GET_FILTER, to which `filter` passes a buffer of
    // as many instructions as the kernel has just said, and the tracer's, which pass a place of the size that the request has.
    let result = unsafe { libc::ptrace(request, thread, address, data) };
    usize::try_from(result).map_err(|_| Error::last_os_error())
}
