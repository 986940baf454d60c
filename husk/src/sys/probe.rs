//! Questions to the kernel that no file answers: which landlock, which KVM, what the scheduler and KSM do.
//!
//! Owns no state. Refuses nothing: errors are the kernel's. Invariant: no call here changes anything.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// The version of landlock's interface that the kernel has; `ENOSYS`: not built in, `EOPNOTSUPP`: off since boot.
///
/// # Errors
/// As above.
#[expect(unsafe_code, reason = "rustix and libc have no function for it")]
pub(crate) fn landlock_abi() -> io::Result<i64> {
    const VERSION: libc::c_uint = 1;
    // SAFETY: the documented way to ask: no attributes, of size 0, and the flag; the kernel makes no ruleset then.
    let version = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<libc::c_void>(), 0_usize, VERSION)
    };
    if version < 0 { Err(io::Error::last_os_error()) } else { Ok(version) }
}

/// `KVM_GET_API_VERSION` of an open /dev/kvm: 12 since 2007.
///
/// # Errors
/// `ENOTTY`: this is not KVM.
#[expect(unsafe_code, reason = "an ioctl without a safe wrapper")]
#[allow(clippy::cast_possible_wrap, reason = "a request is an int in one C library, a long in another")]
pub(crate) fn kvm_api_version(kvm: BorrowedFd<'_>) -> io::Result<i32> {
    const KVM_GET_API_VERSION: u32 = 0xae00;
    // SAFETY: the request takes no argument and writes nothing.
    let version = unsafe { libc::ioctl(kvm.as_raw_fd(), KVM_GET_API_VERSION as _, 0) };
    if version < 0 { Err(io::Error::last_os_error()) } else { Ok(version) }
}

/// Whether the scheduler could keep strangers off the siblings of a core (`PR_SCHED_CORE` answers, and there are siblings).
#[expect(unsafe_code, reason = "rustix has no function for it")]
pub(crate) fn has_core_scheduling() -> bool {
    const PR_SCHED_CORE: libc::c_int = 62;
    const GET: libc::c_ulong = 0;
    const SCOPE_THREAD: libc::c_ulong = 0;
    let mut cookie = 0_u64;
    // SAFETY: the kernel writes 8 bytes through the pointer, which is to a live local of that size; pid 0 is ourselves.
    unsafe { libc::prctl(PR_SCHED_CORE, GET, 0 as libc::c_ulong, SCOPE_THREAD, &raw mut cookie) == 0 }
}

/// Whether KSM may merge all memory of this process and of those that it starts (`PR_GET_MEMORY_MERGE`).
#[expect(unsafe_code, reason = "rustix has no function for it")]
pub(crate) fn merges_memory() -> bool {
    const PR_GET_MEMORY_MERGE: libc::c_int = 68;
    const UNUSED: libc::c_ulong = 0;
    // SAFETY: plain numbers; the kernel answers with 0 or 1, or that it has no such question.
    unsafe { libc::prctl(PR_GET_MEMORY_MERGE, UNUSED, UNUSED, UNUSED, UNUSED) == 1 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn the_kernel_answers_or_says_why_not() {
        match landlock_abi() {
            Ok(version) => assert!((1..100).contains(&version), "{version}"),
            Err(error) => assert!(
                matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EOPNOTSUPP | libc::EPERM)),
                "{error}"
            ),
        }
        let no_kvm = std::fs::File::open("/proc/self/status").unwrap();
        assert_eq!(kvm_api_version(no_kvm.as_fd()).unwrap_err().raw_os_error(), Some(libc::ENOTTY));
        assert!(!merges_memory());
        let _either = has_core_scheduling();
    }
}
