//! Which block device a file's bytes go to, for `io.max`.
//!
//! Refuses files that no single block device holds. Invariant: what is returned is a whole device, for the kernel limits no
//! partition by itself.

use super::{IoDevice, Limit, LimitError, LimitValue, Limits};
use husk_protocol::control::Fault;
use rustix::fs::{FileType, Stat};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// A block device's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// Of its driver.
    pub major: u32,
    /// Among its driver's.
    pub minor: u32,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// No device to limit.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeviceError {
    /// The file is on none.
    #[error(
        "io.max {0}: it is on no single block device (tmpfs, overlay, btrfs and network file systems have none); a drive that is a \
         block device or on ext4 or xfs can be limited, any drive by its rate_limiter"
    )]
    None(String),
    /// No such drive.
    #[error("io.max {id:?} is not one of the sandbox's drives; it has {has}")]
    Drive {
        /// As asked for.
        id: String,
        /// Those that there are.
        has: String,
    },
    /// It cannot be looked at.
    #[error("io.max {}: {source}", path.display())]
    Look {
        /// Which.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// Two names of one device.
    #[error(transparent)]
    Limit(#[from] LimitError),
}

impl DeviceError {
    /// Who is at fault.
    #[must_use]
    pub(crate) fn fault(&self) -> Fault {
        Fault::Operator
    }
}

/// The drives of a sandbox and the devices that they are on, where they are on one.
pub(crate) type Places = Vec<(String, Option<Device>)>;

/// The device that the file is, or is on.
pub(crate) fn device_of(file: &Stat) -> Option<Device> {
    let number =
        if FileType::from_raw_mode(file.st_mode).is_block_device() { file.st_rdev } else { file.st_dev };
    let device = Device { major: rustix::fs::major(number), minor: rustix::fs::minor(number) };
    // Major 0 is the kernel's for file systems without a device.
    (device.major != 0).then(|| whole(device, Path::new("/sys/dev/block")))
}

/// The same of a file by its name.
pub(crate) fn device_of_path(path: &Path) -> Result<Device, DeviceError> {
    let look = |errno: rustix::io::Errno| DeviceError::Look { path: path.to_owned(), source: errno.into() };
    let file = rustix::fs::stat(path).map_err(look)?;
    device_of(&file).ok_or_else(|| DeviceError::None(crate::text::line(&path.to_string_lossy())))
}

/// The disk that a partition is a part of; any other device is itself.
fn whole(device: Device, devices: &Path) -> Device {
    let path = devices.join(device.to_string());
    let disk = || {
        let path = std::fs::canonicalize(&path).ok().filter(|path| path.join("partition").exists())?;
        let number = std::fs::read_to_string(path.parent()?.join("dev")).ok()?;
        let (major, minor) = number.trim().split_once(':')?;
        Some(Device { major: major.parse().ok()?, minor: minor.parse().ok()? })
    };
    disk().unwrap_or(device)
}

/// The limits with every drive and path replaced by the device that it is on.
pub(crate) fn resolve(limits: &Limits, drives: &Places) -> Result<Limits, DeviceError> {
    let resolved: Result<Vec<_>, DeviceError> =
        limits.iter().map(|limit| resolve_one(limit, drives)).collect();
    Ok(Limits::once(resolved?)?)
}

fn resolve_one(limit: &Limit, drives: &Places) -> Result<Limit, DeviceError> {
    let LimitValue::Io { of, rates } = &limit.value else { return Ok(limit.clone()) };
    let device = match of {
        IoDevice::Device(device) => *device,
        IoDevice::Path(path) => device_of_path(path)?,
        IoDevice::Drive(id) => {
            let Some((_, device)) = drives.iter().find(|(known, _)| known == id) else {
                let ids: Vec<&str> = drives.iter().map(|(id, _)| id.as_str()).collect();
                let has = if ids.is_empty() { "none".to_owned() } else { ids.join(", ") };
                return Err(DeviceError::Drive { id: crate::text::line(id), has });
            };
            device.ok_or_else(|| DeviceError::None(format!("drive {id}")))?
        }
    };
    Ok(Limit { name: limit.name, value: LimitValue::Io { of: IoDevice::Device(device), rates: *rates } })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(words: &[&str]) -> Limits {
        Limits::once(words.iter().map(|word| word.parse().unwrap())).unwrap()
    }

    #[test]
    fn drives_become_their_devices_and_those_without_one_are_named() {
        let device = Device { major: 7, minor: 3 };
        let drives = vec![("data".to_owned(), Some(device)), ("ram".to_owned(), None)];
        let found =
            resolve(&limits(&["io.max=data:rbps=1M", "io.max=8:0:wiops=5", "pids.max=9"]), &drives).unwrap();
        let text: Vec<_> = found.iter().map(ToString::to_string).collect();
        assert_eq!(text, ["io.max=7:3:rbps=1048576", "io.max=8:0:wiops=5", "pids.max=9"]);
        let refused = |word: &str| resolve(&limits(&[word]), &drives).unwrap_err().to_string();
        assert!(refused("io.max=ram:rbps=1M").contains("drive ram: it is on no single block device (tmpfs"));
        assert!(
            refused("io.max=nope:rbps=1M")
                .contains("\"nope\" is not one of the sandbox's drives; it has data, ram")
        );
        assert!(
            refused("io.max=/proc/self/status:rbps=1M").contains("/proc/self/status: it is on no single")
        );
        assert!(refused("io.max=/no/such/file:rbps=1M").contains("/no/such/file: No such file"));
        let twice = resolve(&limits(&["io.max=data:rbps=1M", "io.max=7:3:wbps=1M"]), &drives);
        assert!(twice.unwrap_err().to_string().contains("is given twice"));
    }

    #[test]
    fn a_partition_is_limited_by_its_disk() {
        let base = std::env::temp_dir().join(format!("husk-device-{}", std::process::id()));
        let partition = base.join("sda/sda1");
        std::fs::create_dir_all(&partition).unwrap();
        std::fs::write(partition.join("partition"), "1\n").unwrap();
        std::fs::write(base.join("sda/dev"), "8:0\n").unwrap();
        std::os::unix::fs::symlink(&partition, base.join("8:1")).unwrap();
        std::os::unix::fs::symlink(base.join("sda"), base.join("8:0")).unwrap();
        let (disk, part) = (Device { major: 8, minor: 0 }, Device { major: 8, minor: 1 });
        assert_eq!((whole(part, &base), whole(disk, &base)), (disk, disk));
        let unknown = Device { major: 9, minor: 9 };
        assert_eq!(whole(unknown, &base), unknown);
        std::fs::remove_dir_all(base).unwrap();
    }
}
