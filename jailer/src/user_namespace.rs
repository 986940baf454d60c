//! The user namespace of a cell: one user and one group, which are the same inside and outside.
//!
//! All that a process can do inside by capabilities it can do to its own namespaces only, and there is nobody else to
//! become. The map is the process's own to write: user_namespaces(7) allows that for a single line that names the creator,
//! and for a group's only after setgroups(2) was denied for good.

use crate::caller::Caller;
use crate::host;
use rustix::fd::AsFd;
use rustix::fs::{OFlags, fstat};
use rustix::io::{Errno, retry_on_intr, write};

/// Maps `outside`, the effective user and group of whoever made the namespace, to `inside`. Called once, inside.
pub(crate) fn map(inside: Caller, outside: Caller) -> Result<(), Errno> {
    put("/proc/self/setgroups", "deny")?;
    put("/proc/self/gid_map", &format!("{} {} 1", inside.gid, outside.gid))?;
    put("/proc/self/uid_map", &format!("{} {} 1", inside.uid, outside.uid))
}

/// The inode number of the first user namespace, in which the machine started: `USER_NS_INIT_INO` of linux/nsfs.h.
const INITIAL: u64 = 0xefff_fffd;

/// Whether this process is in the first user namespace. One that cannot be looked at is not.
pub(crate) fn is_initial() -> bool {
    let namespace = host::open("/proc/self/ns/user", OFlags::RDONLY);
    namespace.and_then(fstat).is_ok_and(|status| status.st_ino == INITIAL)
}

fn put(path: &str, text: &str) -> Result<(), Errno> {
    let file = host::open(path, OFlags::WRONLY)?;
    // The kernel takes a map in one write, or not at all.
    retry_on_intr(|| write(file.as_fd(), text.as_bytes())).map(drop)
}

/// Whether `errno` of a clone may mean that this caller is to have no (more) user namespaces, and not that something else
/// is wrong.
pub(crate) fn is_refusal(errno: Errno) -> bool {
    // Without AppArmor it is the cgroup that denies access: to whoever is outside of the delegated one.
    errno == Errno::ACCESS && is(APPARMOR, "1")
        || matches!(errno, Errno::PERM | Errno::NOSPC | Errno::USERS | Errno::INVAL | Errno::NOSYS)
}

const APPARMOR: &str = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns";

fn is(path: &str, value: &str) -> bool {
    host::read(path).is_some_and(|text| text.trim() == value)
}

/// Why the host may have refused one, and what to do about it; from `errno` and the switches that there are for it.
pub(crate) fn advice(errno: Errno) -> &'static str {
    match errno {
        Errno::NOSPC => {
            "a limit of namespaces is reached or 0: sysctl user.max_user_namespaces and its siblings"
        }
        Errno::USERS => "user namespaces are nested too deep",
        Errno::INVAL | Errno::NOSYS => "the kernel lacks a namespace, or this is the first process of one",
        _ if is("/proc/sys/kernel/unprivileged_userns_clone", "0") => {
            "user namespaces are root's here: sysctl kernel.unprivileged_userns_clone=1"
        }
        _ if is(APPARMOR, "1") => {
            "AppArmor denies user namespaces to programs without a profile: give husk-jailer one with `userns,`, or \
             sysctl kernel.apparmor_restrict_unprivileged_userns=0"
        }
        _ => "user namespaces are not permitted here: a container's filter, a chroot, or a security module",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_says_what_to_do() {
        assert!(advice(Errno::NOSPC).contains("user.max_user_namespaces"));
        assert!(advice(Errno::INVAL).contains("lacks a namespace"));
        assert!(advice(Errno::PERM).contains("user namespaces"));
        assert!(is_refusal(Errno::PERM) && !is_refusal(Errno::AGAIN) && !is_refusal(Errno::NOMEM));
    }
}
