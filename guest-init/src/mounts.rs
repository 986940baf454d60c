//! The kernel's file systems: /dev, /proc, /sys and what belongs to them. Owns the list of them and the order; refuses
//! nothing. Invariant: each entry's parent is mounted before it.

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};
use std::ffi::CStr;

/// A file system that no disk holds.
#[derive(Debug)]
struct KernelFs {
    fs_type: &'static CStr,
    target: &'static CStr,
    flags: MountFlags,
    data: &'static CStr,
}

/// One of them cannot be mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountsError {
    /// The kernel refused.
    #[error("cannot mount {fs_type} at {target}: {errno}; the guest kernel needs it (see guest-kernel/)")]
    Mount {
        /// The file system.
        fs_type: &'static str,
        /// Where.
        target: &'static str,
        /// Why.
        errno: Errno,
    },
    /// Standard descriptors cannot be had.
    #[error("cannot open /dev/null for PID 1: {0}")]
    Null(Errno),
}

const STRICT: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);
const DATA: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);
const DEVICES: MountFlags = MountFlags::NOSUID.union(MountFlags::NOEXEC);

const DEV: KernelFs =
    KernelFs { fs_type: c"devtmpfs", target: c"/dev", flags: MountFlags::NOSUID, data: c"mode=755" };
const SYS: KernelFs = KernelFs { fs_type: c"sysfs", target: c"/sys", flags: STRICT, data: c"" };

/// What comes on top once the root is there.
const IN_ROOT: [KernelFs; 6] = [
    KernelFs { fs_type: c"proc", target: c"/proc", flags: STRICT, data: c"" },
    KernelFs {
        fs_type: c"devpts",
        target: c"/dev/pts",
        flags: DEVICES,
        data: c"mode=620,gid=5,ptmxmode=666",
    },
    KernelFs { fs_type: c"tmpfs", target: c"/dev/shm", flags: DATA, data: c"mode=1777" },
    KernelFs { fs_type: c"tmpfs", target: c"/run", flags: DATA, data: c"mode=755" },
    KernelFs { fs_type: c"tmpfs", target: c"/tmp", flags: DATA, data: c"mode=1777" },
    KernelFs { fs_type: c"cgroup2", target: c"/sys/fs/cgroup", flags: STRICT, data: c"nsdelegate" },
];

/// What programs expect in /dev beside the devices.
const LINKS: [(&CStr, &CStr); 4] = [
    (c"/proc/self/fd", c"/dev/fd"),
    (c"/proc/self/fd/0", c"/dev/stdin"),
    (c"/proc/self/fd/1", c"/dev/stdout"),
    (c"/proc/self/fd/2", c"/dev/stderr"),
];

/// Mounts /dev, and gives PID 1 its descriptors 0 to 2: /dev/null, whatever the kernel gave it.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn mount_dev() -> Result<(), MountsError> {
    DEV.mount()?;
    let null = |_| rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty()).map_err(MountsError::Null);
    let [zero, one, two] = [null(0)?, null(1)?, null(2)?];
    let failed = MountsError::Null;
    rustix::stdio::dup2_stdin(&zero).map_err(failed)?;
    rustix::stdio::dup2_stdout(&one).map_err(failed)?;
    rustix::stdio::dup2_stderr(&two).map_err(failed)?;
    for fd in [zero, one, two] {
        // Those that are 0 to 2 themselves stay.
        if rustix::fd::AsRawFd::as_raw_fd(&fd) <= 2 {
            std::mem::forget(fd);
        }
    }
    Ok(())
}

/// Mounts /sys, in which disks are looked for.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn mount_sys() -> Result<(), MountsError> {
    SYS.mount()
}

/// Mounts everything else, after the root was switched and /dev and /sys moved into it.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn mount_in_root() -> Result<(), MountsError> {
    IN_ROOT.iter().try_for_each(KernelFs::mount)?;
    for (to, name) in LINKS {
        // devtmpfs makes none of them; one that is there is right already.
        let _ = rustix::fs::symlink(to, name);
    }
    Ok(())
}

impl KernelFs {
    fn mount(&self) -> Result<(), MountsError> {
        let text = |it: &'static CStr| it.to_str().unwrap_or("?");
        // sysfs makes its own mount points and takes no others; that one is missing shows in the mount.
        let _ = rustix::fs::mkdir(self.target, Mode::from_raw_mode(0o755));
        mount(self.fs_type, self.target, self.fs_type, self.flags, self.data).map_err(|errno| {
            MountsError::Mount { fs_type: text(self.fs_type), target: text(self.target), errno }
        })
    }
}
