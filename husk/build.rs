//! Makes the default root: an erofs image of busybox with all its applets, embedded in the library.
//!
//! Owns nothing at run time. Refuses a busybox that needs shared libraries. The image depends on the busybox binary
//! and this file alone: fixed time stamps, owner and UUID.

use std::error::Error;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Any constant will do: the image is told apart by its bytes.
const UUID: &str = "6875736b-726f-6f74-8000-000000000001";

const FILES: [(&str, &str); 6] = [
    ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"),
    ("etc/group", "root:x:0:\nnogroup:x:65534:\n"),
    ("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
    ("etc/resolv.conf", "# Filled in when the sandbox is given a network.\n"),
    ("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"),
    ("etc/profile", "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"),
];

const DIRECTORIES: [(&str, u32); 21] = [
    ("bin", 0o755),
    ("sbin", 0o755),
    ("usr/bin", 0o755),
    ("usr/sbin", 0o755),
    ("usr/local/bin", 0o755),
    ("usr/local/sbin", 0o755),
    ("usr/lib", 0o755),
    ("lib", 0o755),
    ("etc", 0o755),
    ("dev", 0o755),
    ("proc", 0o555),
    ("sys", 0o555),
    ("run", 0o755),
    ("mnt", 0o755),
    ("opt", 0o755),
    ("srv", 0o755),
    ("home", 0o755),
    ("var/log", 0o755),
    ("root", 0o700),
    ("tmp", 0o1777),
    ("var/tmp", 0o1777),
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=HUSK_BUSYBOX");
    let busybox =
        std::env::var_os("HUSK_BUSYBOX").map_or_else(|| PathBuf::from("/bin/busybox"), PathBuf::from);
    println!("cargo::rerun-if-changed={}", busybox.display());
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let stage = out.join("default-root");
    if stage.exists() {
        fs::remove_dir_all(&stage)?;
    }
    fill(&stage, &busybox)?;
    pack(&stage, &out.join("default-root.erofs"))
}

fn fill(stage: &Path, busybox: &Path) -> Result<(), Box<dyn Error>> {
    for (directory, mode) in DIRECTORIES {
        let path = stage.join(directory);
        fs::create_dir_all(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
    }
    for (file, content) in FILES {
        fs::write(stage.join(file), content)?;
        fs::set_permissions(stage.join(file), fs::Permissions::from_mode(0o644))?;
    }
    let missing = |error| {
        format!(
            "{}: {error}; install Debian's package busybox-static, or set HUSK_BUSYBOX",
            busybox.display()
        )
    };
    let bytes = fs::read(busybox).map_err(missing)?;
    if !is_static(&bytes) {
        return Err(format!(
            "{} is not a static ELF program; install Debian's package busybox-static, or set HUSK_BUSYBOX",
            busybox.display()
        )
        .into());
    }
    let target = stage.join("bin/busybox");
    fs::write(&target, bytes)?;
    fs::set_permissions(&target, fs::Permissions::from_mode(0o755))?;
    for applet in applets(busybox)? {
        let link = stage.join(&applet);
        if link.symlink_metadata().is_ok() || link.parent().is_none_or(|parent| !parent.is_dir()) {
            continue;
        }
        symlink("/bin/busybox", link)?;
    }
    Ok(())
}

/// Paths of the applets' links, relative to the root.
fn applets(busybox: &Path) -> Result<Vec<String>, Box<dyn Error>> {
    // A busybox for another architecture cannot be asked here; the machine's own knows the usual set.
    let asked = Command::new(busybox).arg("--list-full").output();
    let output = match asked {
        Ok(output) if output.status.success() => output,
        _ => Command::new("/bin/busybox").arg("--list-full").output()?,
    };
    let text = String::from_utf8(output.stdout)?;
    let applets: Vec<String> =
        text.lines().filter(|line| !line.is_empty() && !line.contains("..")).map(str::to_owned).collect();
    if applets.is_empty() {
        return Err(format!("{} --list-full lists no applets", busybox.display()).into());
    }
    Ok(applets)
}

/// Whether this is a 64-bit ELF program without an interpreter (program header type 3).
fn is_static(elf: &[u8]) -> bool {
    let word = |at: usize, size: usize| -> Option<u64> {
        let bytes = elf.get(at..at.checked_add(size)?)?;
        Some(bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
    };
    let headers = || -> Option<bool> {
        let (start, size, count) = (word(0x20, 8)?, word(0x36, 2)?, word(0x38, 2)?);
        for index in 0..count {
            if word(usize::try_from(start + index * size).ok()?, 4)? == 3 {
                return Some(false);
            }
        }
        Some(true)
    };
    elf.starts_with(b"\x7fELF\x02") && headers() == Some(true)
}

fn pack(stage: &Path, image: &Path) -> Result<(), Box<dyn Error>> {
    let output = Command::new("mkfs.erofs")
        .args(["--quiet", "-T0", "--all-root", "-x-1", "-U", UUID])
        .arg(image)
        .arg(stage)
        .output()
        .map_err(|error| format!("mkfs.erofs: {error}; install Debian's package erofs-utils"))?;
    if !output.status.success() {
        return Err(format!("mkfs.erofs failed: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(())
}
