//! The system calls that rustix does not make: clone3, execveat, close_range, mount_setattr, signal dispositions.
//!
//! Knows no word of the jail. The process has one thread, which is what makes a raw clone sound; see [`clone3`].

#![expect(unsafe_code, reason = "the jailer talks to the kernel here")]

use rustix::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;
use std::ffi::{CStr, CString};

/// linux/sched.h; the C library's constant overflows its type.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Where a clone went.
pub(crate) enum Cloned {
    /// This is the new process.
    Child,
    /// This is the old one; the new one's id, and a descriptor that stands for it.
    Parent(i32, OwnedFd),
}

/// `clone3(2)` as a fork, without sharing memory.
///
/// `flags` must not hold `CLONE_VM`, `CLONE_FILES` or `CLONE_PIDFD` (which is added here).
///
/// # Errors
/// The kernel's.
pub(crate) fn clone3(flags: u64, exit_signal: u64, cgroup: Option<BorrowedFd<'_>>) -> Result<Cloned, Errno> {
    let mut pidfd: RawFd = -1;
    let into_cgroup = if cgroup.is_some() { CLONE_INTO_CGROUP } else { 0 };
    let args = libc::clone_args {
        flags: flags | into_cgroup | libc::CLONE_PIDFD as u64,
        pidfd: (&raw mut pidfd) as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: cgroup.map_or(0, |fd| u64::from(fd.as_raw_fd().unsigned_abs())),
    };
    // SAFETY: memory is not shared, so the child runs on its own copy of this stack; the jailer never makes a second
    // thread, so no lock is held by a thread that the child lacks; `args` and `pidfd` live through the call.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) };
    match i32::try_from(result) {
        Ok(0) => Ok(Cloned::Child),
        Ok(pid) if pid > 0 => {
            // SAFETY: the kernel stored a new descriptor there, which nobody else knows.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Cloned::Parent(pid, pidfd))
        }
        _ => Err(last_error()),
    }
}

/// Executes the program behind `file` with an empty environment; returns only if it cannot.
pub(crate) fn execute(file: BorrowedFd<'_>, argv: &[CString]) -> Errno {
    let mut arguments: Vec<*const libc::c_char> = argv.iter().map(|word| word.as_ptr()).collect();
    arguments.push(std::ptr::null());
    let environment = [std::ptr::null::<libc::c_char>()];
    let empty: &CStr = c"";
    // SAFETY: both lists end with a null pointer and outlive the call, as do the strings they point to.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file.as_raw_fd(),
            empty.as_ptr(),
            arguments.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    last_error()
}

/// Closes every descriptor from `first` on.
pub(crate) fn close_from(first: RawFd) -> Result<(), Errno> {
    // SAFETY: descriptors only; those that are still owned by a value are kept below `first` by the caller.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) };
    if result == 0 { Ok(()) } else { Err(last_error()) }
}

/// `struct mount_attr` of linux/mount.h.
#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// Gives the mount that `mount` stands for `attributes`, beside those that it has.
pub(crate) fn set_mount_attributes(mount: BorrowedFd<'_>, attributes: MountAttrFlags) -> Result<(), Errno> {
    mount_setattr(mount, attributes, 0, 0)
}

/// The same, and nothing that happens to the mount that it was copied from is seen in it, nor the other way.
pub(crate) fn cut_off_mount(mount: BorrowedFd<'_>, attributes: MountAttrFlags) -> Result<(), Errno> {
    mount_setattr(mount, attributes, libc::MS_PRIVATE, 0)
}

/// The same with all mounts below it; what happens to those that they were copied from is seen in them, and not the other way.
pub(crate) fn follow_tree(mount: BorrowedFd<'_>, attributes: MountAttrFlags) -> Result<(), Errno> {
    mount_setattr(mount, attributes, libc::MS_SLAVE, libc::AT_RECURSIVE)
}

fn mount_setattr(
    mount: BorrowedFd<'_>,
    attributes: MountAttrFlags,
    propagation: u64,
    flags: i32,
) -> Result<(), Errno> {
    let wanted = MountAttributes { set: attributes.bits().into(), clear: 0, propagation, user_namespace: 0 };
    let empty: &CStr = c"";
    // SAFETY: the path and `wanted`, of the size that is told, outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            empty.as_ptr(),
            libc::AT_EMPTY_PATH | flags,
            &raw const wanted,
            size_of::<MountAttributes>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(last_error()) }
}

/// Whether this process leads its session. The session may be one of a namespace outside, and has no number then.
pub(crate) fn leads_session() -> bool {
    // SAFETY: a plain number, and nothing changes.
    let session = unsafe { libc::getsid(0) };
    u32::try_from(session) == Ok(std::process::id())
}

/// New mount, IPC and UTS namespaces for this process.
pub(crate) fn new_namespaces() -> Result<(), Errno> {
    // SAFETY: plain numbers; the process has one thread, and what of its views changes is what it asks for.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS) };
    if result == 0 { Ok(()) } else { Err(last_error()) }
}

/// A new cgroup namespace, whose root is the cgroup that the process is in.
pub(crate) fn new_cgroup_namespace() -> Result<(), Errno> {
    // SAFETY: a plain number; nothing of this process but its view of cgroups changes, and it has one thread.
    let result = unsafe { libc::unshare(libc::CLONE_NEWCGROUP) };
    if result == 0 { Ok(()) } else { Err(last_error()) }
}

/// New namespaces of the kinds in `flags` (`CLONE_NEW…`), of which this process is in from here on.
pub(crate) fn unshare(flags: i32) -> Result<(), Errno> {
    // SAFETY: a plain number of namespaces' flags; the process has one thread, and shares neither memory nor descriptors.
    let result = unsafe { libc::unshare(flags) };
    if result == 0 { Ok(()) } else { Err(last_error()) }
}

/// Ends the process as it is: nothing that it was about to do is done.
pub(crate) fn end_at_once() -> ! {
    // SAFETY: takes no pointer and does not return.
    unsafe { libc::_exit(1) }
}

/// Sleeps until a signal ends the process.
pub(crate) fn sleep_until_killed() {
    // SAFETY: takes no pointer; returns only after a signal that has a handler, of which there is none.
    unsafe { libc::pause() };
}

/// Gives the process a core scheduling cookie of its own, which its threads inherit: the kernel lets no task with another
/// cookie run on a sibling thread of its core at the same time (admin-guide/hw-vuln/core-scheduling.rst).
pub(crate) fn new_core_cookie() -> Result<(), Errno> {
    const THIS_THREAD: libc::c_ulong = 0;
    // SAFETY: plain numbers: of this thread, which is the only one, and nowhere to store a cookie.
    let result = unsafe {
        libc::prctl(libc::PR_SCHED_CORE, libc::PR_SCHED_CORE_CREATE, THIS_THREAD, THIS_THREAD, THIS_THREAD)
    };
    if result == 0 { Ok(()) } else { Err(last_error()) }
}

/// Makes `to`, one of the three standard descriptors, a copy of `from`.
pub(crate) fn copy(from: BorrowedFd<'_>, to: RawFd) -> Result<(), Errno> {
    // SAFETY: the standard descriptors are owned by no value; replacing them is what dup3 is for.
    let result = unsafe { libc::dup3(from.as_raw_fd(), to, 0) };
    if result < 0 { Err(last_error()) } else { Ok(()) }
}

/// Moves `from` to the number `to`, where whatever was there is closed; closed on exec if `cloexec`.
pub(crate) fn place(from: OwnedFd, to: RawFd, cloexec: bool) -> Result<OwnedFd, Errno> {
    let flags = if cloexec { libc::O_CLOEXEC } else { 0 };
    // SAFETY: no value of this process owns `to`: the caller has moved those out of the way.
    let result = unsafe { libc::dup3(from.as_raw_fd(), to, flags) };
    if result < 0 {
        return Err(last_error());
    }
    // SAFETY: `to` was made by the call above and is nobody's yet.
    Ok(unsafe { OwnedFd::from_raw_fd(to) })
}

/// Takes ownership of a descriptor number that the caller of this process handed over.
pub(crate) fn adopt(number: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: asking for a descriptor's flags changes nothing, open or not.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(last_error());
    }
    // SAFETY: it is open, and the command line says that it is ours; nothing else in this process knows the number.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// All signals to their defaults, none blocked.
pub(crate) fn reset_signals() -> Result<(), Errno> {
    for signal in 1..=64 {
        if signal == libc::SIGKILL || signal == libc::SIGSTOP {
            continue;
        }
        let default = KernelSigaction { handler: 0, flags: 0, restorer: 0, mask: 0 };
        // SAFETY: `default` is a `struct sigaction` as the kernel has it and outlives the call; no handler is set.
        let result = unsafe {
            libc::syscall(libc::SYS_rt_sigaction, signal, &raw const default, std::ptr::null::<u8>(), 8)
        };
        if result != 0 {
            return Err(last_error());
        }
    }
    let none = 0_u64;
    let set = libc::SIG_SETMASK;
    // SAFETY: the mask is eight bytes, as told, and outlives the call.
    let result =
        unsafe { libc::syscall(libc::SYS_rt_sigprocmask, set, &raw const none, std::ptr::null::<u8>(), 8) };
    if result == 0 { Ok(()) } else { Err(last_error()) }
}

/// `struct sigaction` of the kernel, not of a C library; the same on x86_64 and aarch64.
#[repr(C)]
struct KernelSigaction {
    handler: usize,
    flags: libc::c_ulong,
    restorer: usize,
    mask: u64,
}

fn last_error() -> Errno {
    let error = std::io::Error::last_os_error();
    Errno::from_raw_os_error(error.raw_os_error().unwrap_or(libc::EIO))
}
