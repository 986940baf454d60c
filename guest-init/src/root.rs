//! The guest's file system: a read-only image under a writable layer in memory, then the drives. Owns the assembly and
//! the switch from the initramfs; refuses targets that would hide the system. Invariant: a command only ever sees the
//! finished root, and nothing of the initramfs is left in memory but this program's own pages.

use crate::disk::{self, Disk, DiskError};
use crate::mounts::{MountsError, mount_in_root};
use husk_protocol::exec::{self, DriveMount, Mounts, RootMount};
use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, fstat, major, minor, openat, statat, unlinkat};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_move, unmount};

/// The kernel's name of virtio-fs.
const VIRTIOFS: &str = "virtiofs";
const IMAGE: &str = "/image";
const LAYER: &str = "/layer";
const ROOT: &str = "/root";
const LAYER_OPTIONS: &std::ffi::CStr = c"lowerdir=/image,upperdir=/layer/upper,workdir=/layer/work";
/// Where no drive may go: the system's own places, and the root itself.
const TAKEN: [&str; 4] = ["", "/dev", "/proc", "/sys"];
/// Depth to which the initramfs is cleared.
const MOST_DEPTH: u32 = 8;

/// The root cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// A disk is not there, or not what it should be.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A disk cannot be mounted.
    #[error(
        "disk {serial:?} ({device}): cannot mount it as {fs_type} at {target}: {}; {advice}",
        reason(errno)
    )]
    Mount {
        /// The drive's id.
        serial: String,
        /// Its device node.
        device: String,
        /// The file system.
        fs_type: String,
        /// Where.
        target: String,
        /// Why.
        errno: Errno,
        /// What to do.
        advice: &'static str,
    },
    /// A drive is to go where nothing may.
    #[error(
        "drive {serial:?}: cannot be mounted at {target:?}; name an absolute directory that is not /, /dev, /proc, /sys"
    )]
    Target {
        /// The drive's id.
        serial: String,
        /// Where it was to go.
        target: String,
    },
    /// A step that concerns no disk.
    #[error("cannot {step}: {errno}")]
    Step {
        /// What was to be done.
        step: &'static str,
        /// Why not.
        errno: Errno,
    },
    /// The kernel's own file systems.
    #[error(transparent)]
    Kernel(#[from] MountsError),
}

/// What a mount point's device is told by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Device {
    /// A disk: its node, which is free once the disk is mounted nowhere.
    Node(String),
    /// A volume: major and minor number, as in mountinfo.
    Number(String),
}

/// A drive or volume that must be unmounted before the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WritableDrive {
    /// The drive's id.
    pub(crate) serial: String,
    /// Its device.
    pub(crate) device: Device,
    /// Where it is mounted.
    pub(crate) target: String,
}

/// Mounts everything and moves into it.
///
/// # Errors
/// The first step that fails.
pub(crate) fn assemble(mounts: &Mounts) -> Result<Vec<WritableDrive>, RootError> {
    mounts.drives.iter().try_for_each(check_target)?;
    mount_root(&mounts.root)?;
    switch_root()?;
    mount_in_root()?;
    let mut writable = Vec::new();
    for drive in &mounts.drives {
        let mounted = match &drive.disk {
            exec::Disk::Volume(tag) => mount_volume(drive, tag)?,
            exec::Disk::Drive(_) | exec::Disk::Pmem(_) => mount_drive(drive)?,
        };
        if !drive.read_only {
            writable.push(mounted);
        }
    }
    Ok(writable)
}

fn check_target(drive: &DriveMount) -> Result<(), RootError> {
    let plain = drive.target.trim_end_matches('/');
    let bad = !drive.target.starts_with('/') || TAKEN.contains(&plain) || drive.target.contains('\0');
    let dots = plain.split('/').any(|part| part == "..");
    if bad || dots {
        let serial = match &drive.disk {
            exec::Disk::Drive(serial) => serial.clone(),
            exec::Disk::Pmem(number) => format!("pmem {number}"),
            exec::Disk::Volume(tag) => tag.clone(),
        };
        return Err(RootError::Target { serial, target: drive.target.clone() });
    }
    Ok(())
}

fn mount_root(root: &RootMount) -> Result<(), RootError> {
    let disk = disk::find(&root.disk)?;
    let fs_type = disk.fs_type(&root.fs_type)?;
    for directory in [IMAGE, LAYER, ROOT] {
        step("make a directory in the initramfs", make_directory(directory))?;
    }
    mount_disk(&disk, &fs_type, IMAGE, true)?;
    let layer = mount("tmpfs", LAYER, "tmpfs", MountFlags::empty(), c"mode=755");
    step("mount a tmpfs for the root's writable layer", layer)?;
    step("make the writable layer", make_directory("/layer/upper"))?;
    step("make the writable layer", make_directory("/layer/work"))?;
    let overlay = mount("overlay", ROOT, "overlay", MountFlags::empty(), LAYER_OPTIONS);
    step("mount an overlay over the root image (the guest kernel needs overlayfs and tmpfs xattr)", overlay)
}

fn mount_drive(drive: &DriveMount) -> Result<WritableDrive, RootError> {
    let disk = disk::find(&drive.disk)?;
    let fs_type = disk.fs_type(&drive.fs_type)?;
    make_target(drive, (&disk.serial, &disk.device()), &fs_type)?;
    mount_disk(&disk, &fs_type, &drive.target, drive.read_only)?;
    let device = Device::Node(disk.device());
    Ok(WritableDrive { device, serial: disk.serial, target: drive.target.clone() })
}

/// A volume is mounted by its tag; whoever owns its files, no device node among them is one of the guest's.
fn mount_volume(volume: &DriveMount, tag: &str) -> Result<WritableDrive, RootError> {
    make_target(volume, (tag, tag), VIRTIOFS)?;
    let read_only = if volume.read_only { MountFlags::RDONLY } else { MountFlags::empty() };
    let flags = MountFlags::NOSUID | MountFlags::NODEV | read_only;
    let failed = |errno| RootError::Mount {
        serial: tag.to_owned(),
        device: tag.to_owned(),
        fs_type: VIRTIOFS.to_owned(),
        target: volume.target.clone(),
        errno,
        advice: "the host's server of this directory does not answer",
    };
    mount(tag, volume.target.as_str(), VIRTIOFS, flags, c"").map_err(failed)?;
    let device = statat(CWD, volume.target.as_str(), AtFlags::empty()).map_err(failed)?.st_dev;
    Ok(WritableDrive {
        device: Device::Number(format!("{}:{}", major(device), minor(device))),
        serial: tag.to_owned(),
        target: volume.target.clone(),
    })
}

fn make_target(drive: &DriveMount, (serial, device): (&str, &str), fs_type: &str) -> Result<(), RootError> {
    std::fs::create_dir_all(&drive.target).map_err(|error| RootError::Mount {
        serial: serial.to_owned(),
        device: device.to_owned(),
        fs_type: fs_type.to_owned(),
        target: drive.target.clone(),
        errno: Errno::from_io_error(&error).unwrap_or(Errno::IO),
        advice: "the directory cannot be made",
    })
}

fn mount_disk(disk: &Disk, fs_type: &str, target: &str, read_only: bool) -> Result<(), RootError> {
    let flags = if read_only { MountFlags::RDONLY } else { MountFlags::empty() };
    let options = if disk.dax { c"dax" } else { c"" };
    mount(disk.device(), target, fs_type, flags, options).map_err(|errno| RootError::Mount {
        serial: disk.serial.clone(),
        device: disk.device(),
        fs_type: fs_type.to_owned(),
        target: target.to_owned(),
        errno,
        advice: advice(errno, disk.dax),
    })
}

/// The system's word for `errno`; musl has none for the one that damaged file systems give.
fn reason(errno: &Errno) -> String {
    if *errno == Errno::UCLEAN { "Structure needs cleaning (os error 117)".into() } else { errno.to_string() }
}

fn advice(errno: Errno, dax: bool) -> &'static str {
    match errno {
        Errno::INVAL | Errno::OPNOTSUPP if dax => {
            "in memory it needs blocks of 4096 bytes (mkfs.ext4 -b 4096), and a guest kernel with FS_DAX"
        }
        Errno::NODEV => "the guest kernel does not know this file system; erofs and ext4 it does",
        Errno::INVAL | Errno::UCLEAN | Errno::BADMSG => {
            "it is damaged or of another kind; check it on the host (fsck)"
        }
        Errno::ACCESS | Errno::ROFS => {
            "it is read-only: attach it for writing, or mount it read-only; a journal to be replayed needs writing"
        }
        Errno::BUSY => "it is mounted already; name each drive once",
        _ => "check it on the host (fsck)",
    }
}

/// As switch_root(8): the new root is moved over the initramfs, which is emptied.
fn switch_root() -> Result<(), RootError> {
    for name in ["dev", "sys"] {
        let target = format!("{ROOT}/{name}");
        step("make /dev and /sys in the root", make_directory(&target))?;
        step("move /dev and /sys into the root", mount_move(format!("/{name}"), target))?;
    }
    // The overlay holds its layers itself.
    for hidden in [IMAGE, LAYER] {
        step("hide the root's layers", unmount(hidden, UnmountFlags::DETACH))?;
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let old = step("open the initramfs", openat(CWD, "/", flags, Mode::empty()))?;
    step("enter the root", rustix::process::chdir(ROOT))?;
    clear(old.as_fd(), MOST_DEPTH);
    step("move the root to /", mount_move(".", "/"))?;
    step("change into the root", rustix::process::chroot("."))?;
    step("change into the root", rustix::process::chdir("/"))
}

/// Removes what is in `directory` on its own file system. What cannot be removed costs memory, nothing else.
fn clear(directory: BorrowedFd<'_>, depth: u32) {
    let (Ok(own), Ok(entries)) = (fstat(directory), Dir::read_from(directory)) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Ok(stat) = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        if stat.st_dev != own.st_dev || name == c"." || name == c".." {
            continue;
        }
        if unlinkat(directory, name, AtFlags::empty()) != Err(Errno::ISDIR) || depth == 0 {
            continue;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if let Ok(inner) = openat(directory, name, flags, Mode::empty()) {
            clear(inner.as_fd(), depth - 1);
        }
        let _ = unlinkat(directory, name, AtFlags::REMOVEDIR);
    }
}

fn make_directory(path: &str) -> Result<(), Errno> {
    match rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)) {
        Err(Errno::EXIST) => Ok(()),
        other => other,
    }
}

fn step<T>(step: &'static str, result: Result<T, Errno>) -> Result<T, RootError> {
    result.map_err(|errno| RootError::Step { step, errno })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(target: &str) -> Result<(), RootError> {
        let drive = DriveMount {
            disk: exec::Disk::Drive("data".into()),
            fs_type: String::new(),
            target: target.into(),
            read_only: false,
        };
        check_target(&drive)
    }

    #[test]
    fn a_drive_goes_anywhere_but_over_the_system() {
        for good in ["/data", "/srv/a/b/", "/device", "/run/x"] {
            assert!(target(good).is_ok(), "{good}");
        }
        for bad in ["", "data", "/", "//", "/dev", "/dev/", "/proc", "/sys", "/a/../dev", "/a\0b"] {
            let error = target(bad).unwrap_err().to_string();
            assert!(error.starts_with(r#"drive "data": cannot be mounted at "#), "{error}");
        }
    }

    #[test]
    fn clearing_empties_a_tree_and_follows_no_link() {
        let base = std::env::temp_dir().join(format!("husk-init-clear-{}", std::process::id()));
        let tree = base.join("tree");
        std::fs::create_dir_all(tree.join("a/b/c")).unwrap();
        std::fs::write(tree.join("a/b/file"), "x").unwrap();
        std::fs::write(base.join("kept"), "x").unwrap();
        std::os::unix::fs::symlink(&base, tree.join("a/link")).unwrap();
        let directory = rustix::fs::open(&tree, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        clear(directory.as_fd(), MOST_DEPTH);
        assert_eq!(std::fs::read_dir(&tree).unwrap().count(), 0);
        assert!(base.join("kept").exists());
        std::fs::remove_dir_all(base).unwrap();
    }
}
