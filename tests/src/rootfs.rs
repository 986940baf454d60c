//! Guest roots and disks that tests make for themselves.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A root directory with a static busybox and the guest tool, to be given to `--rootfs`.
///
/// # Panics
/// busybox or the guest tool is not on this machine.
pub fn busybox_and_tool(dir: &Path) -> PathBuf {
    let root = dir.join("root");
    for name in ["bin", "etc", "dev", "proc", "sys", "tmp", "run"] {
        std::fs::create_dir_all(root.join(name)).unwrap_or_else(|e| panic!("{}/{name}: {e}", root.display()));
    }
    std::fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap_or_else(|e| panic!("/bin/busybox: {e}"));
    for applet in ["sh", "cat", "echo", "sleep", "ls", "id", "mount", "stat", "nproc"] {
        let link = root.join("bin").join(applet);
        std::os::unix::fs::symlink("busybox", &link).unwrap_or_else(|e| panic!("{}: {e}", link.display()));
    }
    std::fs::copy(tool(), root.join("bin/guest-tool"))
        .unwrap_or_else(|e| panic!("{}: {e}", tool().display()));
    root
}

/// The guest tool, built beside the test binaries.
///
/// # Panics
/// It was not built.
#[must_use]
pub fn tool() -> PathBuf {
    sibling("husk-guest-tool")
}

/// A binary of this crate: beside the running one, or a directory above it, or in `$HUSK_TESTS_BIN`.
///
/// # Panics
/// It was not built.
#[must_use]
pub fn sibling(name: &str) -> PathBuf {
    let me = std::env::current_exe().unwrap_or_default();
    let beside = me.parent().map(Path::to_path_buf).unwrap_or_default();
    let above = beside.parent().map(Path::to_path_buf).unwrap_or_default();
    let told = std::env::var_os("HUSK_TESTS_BIN").map(PathBuf::from).unwrap_or_default();
    [told, beside, above]
        .into_iter()
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
        .unwrap_or_else(|| panic!("{name} is not built"))
}

/// An empty ext4 image of so many MiB.
///
/// # Panics
/// mkfs.ext4 fails.
pub fn ext4(path: &str, mib: u64) {
    let file = std::fs::File::create(path).unwrap_or_else(|e| panic!("{path}: {e}"));
    file.set_len(mib << 20).unwrap_or_else(|e| panic!("{path}: {e}"));
    let output = Command::new("/sbin/mkfs.ext4").args(["-q", "-F", path]).output();
    let output = output.unwrap_or_else(|e| panic!("mkfs.ext4: {e}"));
    assert!(output.status.success(), "mkfs.ext4 {path}: {}", String::from_utf8_lossy(&output.stderr));
}

/// An ext4 image of so many MiB, with blocks as large as pages, that holds what is in `content`.
///
/// # Panics
/// mkfs.ext4 fails.
pub fn ext4_of(content: &Path, path: &str, mib: u64) {
    let size = format!("{mib}m");
    let mut command = Command::new("/sbin/mkfs.ext4");
    command.args(["-q", "-b", "4096", "-d"]).arg(content).args([path, &size]);
    made("mkfs.ext4", path, command.output());
}

/// An erofs image that holds what is in `content`.
///
/// # Panics
/// mkfs.erofs fails.
pub fn erofs_of(content: &Path, path: &str) {
    made("mkfs.erofs", path, Command::new("mkfs.erofs").args(["--quiet", path]).arg(content).output());
}

fn made(program: &str, path: &str, output: std::io::Result<std::process::Output>) {
    let output = output.unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(output.status.success(), "{program} {path}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Asserts that the image's file system is clean, without mending it.
///
/// # Panics
/// e2fsck finds something.
#[track_caller]
pub fn assert_clean(path: &str) {
    let output = Command::new("/sbin/e2fsck").args(["-f", "-n", path]).output();
    let output = output.unwrap_or_else(|e| panic!("e2fsck: {e}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "e2fsck {path}: {text}");
    assert!(!text.contains("recovering journal"), "{path} was not unmounted cleanly: {text}");
}
