//! Block devices that are files, and file systems on them that can be made to hang.
//!
//! Owns a loop device, a mount and its freezing: all three end with the value, whatever the test does.

use std::path::Path;
use std::process::Command;

fn run(program: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(args).output().map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    Err(format!("{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr)))
}

/// A block device made of a file.
pub struct LoopDevice(String);

impl LoopDevice {
    /// The device for `file`.
    ///
    /// # Panics
    /// There is none to be had.
    #[must_use]
    pub fn of(file: &str) -> Self {
        Self(run("/sbin/losetup", &["--find", "--show", file]).unwrap_or_else(|error| panic!("{error}")))
    }

    /// Its node.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.0
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        drop(run("/sbin/losetup", &["--detach", &self.0]));
    }
}

/// A file system that is mounted on the host from a loop device. Frozen, it lets every writer wait, without end and
/// without an error: what a disk looks like that hangs.
pub struct Freezable {
    dir: String,
    _device: LoopDevice,
}

impl Freezable {
    /// Mounts the file system in `image` at `dir`, which it makes.
    ///
    /// # Panics
    /// It cannot be mounted.
    #[must_use]
    pub fn mount(image: &str, dir: &Path) -> Self {
        std::fs::create_dir_all(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        let (device, dir) = (LoopDevice::of(image), dir.to_string_lossy().into_owned());
        run("mount", &[device.node(), &dir]).unwrap_or_else(|error| panic!("{error}"));
        Self { dir, _device: device }
    }

    /// The path of a name on it.
    #[must_use]
    pub fn name(&self, name: &str) -> String {
        format!("{}/{name}", self.dir)
    }

    /// Lets writers wait from now on.
    ///
    /// # Panics
    /// The file system cannot be frozen.
    pub fn freeze(&self) {
        run("/sbin/fsfreeze", &["--freeze", &self.dir]).unwrap_or_else(|error| panic!("{error}"));
    }

    /// Lets them go on.
    ///
    /// # Panics
    /// It is not frozen.
    pub fn thaw(&self) {
        run("/sbin/fsfreeze", &["--unfreeze", &self.dir]).unwrap_or_else(|error| panic!("{error}"));
    }
}

impl Drop for Freezable {
    fn drop(&mut self) {
        drop(run("/sbin/fsfreeze", &["--unfreeze", &self.dir]));
        drop(run("umount", &["--lazy", &self.dir]));
    }
}
