//! What is asked for: the plain data between a command line (or a builder) and a plan.
//!
//! Owns no resource. Refuses nothing itself: `plan` does. Invariant: every field is what the caller said, or `None`
//! where he said nothing, so that a configuration file can stand below it.

use crate::isolation::Isolation;
use crate::limits::Limit;
use crate::units;
use husk_protocol::network::{AllowRule, GuestAddress};
use husk_protocol::spec::IoEngine;
use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Default of [`Options::boot_timeout`].
pub const BOOT_TIMEOUT: Duration = Duration::from_secs(10);

/// A sandbox and the command to run in it.
#[derive(Debug, Clone)]
pub struct Options {
    /// The sandbox's name: letters, digits and hyphens, at most 64; `None`: a random one.
    pub id: Option<String>,
    /// Root file system: an erofs or ext4 image, or a directory; `None`: the embedded busybox.
    pub rootfs: Option<PathBuf>,
    /// Guest kernel; `None`: `vmlinux` beside Husk's other files.
    pub kernel: Option<PathBuf>,
    /// Initial RAM file system in place of Husk's own; its `/init` must be husk-init.
    pub initrd: Option<PathBuf>,
    /// Number of vCPUs; `None`: 1.
    pub vcpus: Option<u64>,
    /// Guest memory in MiB; `None`: 128.
    pub memory_mib: Option<u64>,
    /// What guest memory grows to once the guest is ready, in MiB; `None`: it does not grow.
    pub memory_max_mib: Option<u64>,
    /// Guest memory from 2 MiB pages.
    pub hugepages: bool,
    /// Populate guest memory before the first instruction.
    pub prefault: bool,
    /// Host CPU of each vCPU; empty: not pinned.
    pub pin: Vec<u32>,
    /// Environment of the command, `K=V`.
    pub env: Vec<OsString>,
    /// Working directory in the guest, absolute; `None`: `/`.
    pub workdir: Option<String>,
    /// `NAME`, `UID`, `NAME:GROUP` or `UID:GID`; `None`: root.
    pub user: Option<String>,
    /// Time from the sandbox's start to its end.
    pub timeout: Option<Duration>,
    /// Time from the sandbox's start until it is ready.
    pub boot_timeout: Duration,
    /// The command reads husk's standard input; otherwise /dev/null.
    pub stdin: bool,
    /// The command gets a terminal.
    pub terminal: bool,
    /// The guest's console is shown.
    pub console: bool,
    /// Drives that are mounted in the guest.
    pub drives: Vec<DriveOption>,
    /// Images that the guest sees as memory, read-only, and mounts.
    pub pmem: Vec<PmemOption>,
    /// Directories of the host that are mounted in the guest.
    pub volumes: Vec<VolumeOption>,
    /// A machine in Firecracker's JSON, below everything else that is said here.
    pub config: Option<PathBuf>,
    /// The network; `None`: none but loopback, unless the configuration has cards.
    pub network: Option<NetworkOption>,
    /// Path of the unix socket for connections between host programs and guest ports.
    pub vsock: Option<PathBuf>,
    /// The guest gets random bytes from the host.
    pub entropy: bool,
    /// Devices are on a PCI bus, not over MMIO.
    pub pci: bool,
    /// Refuse a host on which code of strangers is not safely kept apart.
    pub strict: bool,
    /// What is done about a wall of the cell that this host does not permit.
    pub isolation: Isolation,
    /// What the sandbox's cgroup holds it to, over the configuration's limits and Husk's own.
    pub limits: Vec<Limit>,
    /// Program and arguments.
    pub command: Vec<OsString>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            id: None,
            rootfs: None,
            kernel: None,
            initrd: None,
            vcpus: None,
            memory_mib: None,
            memory_max_mib: None,
            hugepages: false,
            prefault: false,
            pin: Vec::new(),
            env: Vec::new(),
            workdir: None,
            user: None,
            timeout: None,
            boot_timeout: BOOT_TIMEOUT,
            stdin: false,
            terminal: false,
            console: false,
            drives: Vec::new(),
            pmem: Vec::new(),
            volumes: Vec::new(),
            config: None,
            network: None,
            vsock: None,
            entropy: false,
            pci: false,
            strict: false,
            isolation: Isolation::Strict,
            limits: Vec::new(),
            command: Vec::new(),
        }
    }
}

/// A network card and what the guest does with it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkOption {
    /// Name of the tap on the host; `None`: user mode, a passt of the sandbox's own makes the host's connections.
    pub tap: Option<String>,
    /// Pairs of queues of the card, as many as the tap is to have; `None`: one.
    pub queues: Option<u64>,
    /// Where the guest may send to; empty: nowhere.
    pub allow: Vec<AllowRule>,
    /// The guest's addresses, from which alone it may send; empty: it gets none, and may send from any. In user mode at
    /// most one a family, by default 10.0.2.15.
    pub addresses: Vec<GuestAddress>,
    /// Where the guest sends what is not for its own networks; at most one a family. In user mode one for each address.
    pub gateways: Vec<IpAddr>,
    /// Name servers, for /etc/resolv.conf; they need a rule as well. In user mode by default one that forwards to the
    /// host's; a rule for all IPv4 addresses lets it be asked.
    pub dns: Vec<IpAddr>,
}

/// A drive and where the guest mounts it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriveOption {
    /// Raw image of an erofs or ext4 file system on the host.
    pub file: PathBuf,
    /// Absolute directory in the guest.
    pub target: String,
    /// Whether the guest may write to it.
    pub writable: bool,
    /// How its file is read and written.
    pub engine: IoEngine,
}

impl std::str::FromStr for DriveOption {
    type Err = String;

    /// `FILE:GUESTDIR` or `FILE:GUESTDIR:OPTION,OPTION`, of `ro` (which is the default), `rw`, `sync` (the default) and
    /// `async`; the file's name may contain colons.
    fn from_str(text: &str) -> Result<Self, String> {
        const FORM: &str = "a drive is FILE:GUESTDIR, with an absolute GUESTDIR that is not /, and may end in :rw, :async or \
                            :rw,async";
        let (mut writable, mut engine) = (false, IoEngine::Sync);
        let last = text.rsplit_once(':').filter(|(_, last)| !last.starts_with('/'));
        let (rest, words) = last.unwrap_or((text, "ro"));
        for word in words.split(',') {
            match word {
                "rw" | "ro" => writable = word == "rw",
                "sync" => engine = IoEngine::Sync,
                "async" => engine = IoEngine::Async,
                _ => return Err(FORM.into()),
            }
        }
        let (file, target) = host_and_guest(rest).ok_or(FORM)?;
        Ok(Self { file, target, writable, engine })
    }
}

/// An image in the guest's memory and where the guest mounts it, read-only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PmemOption {
    /// Raw image of an erofs or ext4 file system on the host, with blocks of 4096 bytes and not compressed.
    pub file: PathBuf,
    /// Absolute directory in the guest.
    pub target: String,
}

impl std::str::FromStr for PmemOption {
    type Err = String;

    /// `FILE:GUESTDIR`; the file's name may contain colons.
    fn from_str(text: &str) -> Result<Self, String> {
        let (file, target) = text.rsplit_once(':').unwrap_or_default();
        if target == "rw" {
            return Err("a pmem image is never written; --drive FILE:GUESTDIR:rw is a disk that is".into());
        }
        if file.is_empty() || !target.starts_with('/') || target == "/" {
            return Err("a pmem image is FILE:GUESTDIR, with an absolute GUESTDIR that is not /".into());
        }
        Ok(Self { file: PathBuf::from(file), target: target.to_owned() })
    }
}

/// A directory of the host and where the guest mounts it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeOption {
    /// Directory on the host; what is mounted below it is not part of it.
    pub directory: PathBuf,
    /// Absolute directory in the guest.
    pub target: String,
    /// Whether the guest may change it.
    pub writable: bool,
    /// Most bytes a second that go to and fro.
    pub bandwidth: Option<u64>,
    /// Most messages a second that the guest sends.
    pub ops: Option<u64>,
}

impl std::str::FromStr for VolumeOption {
    type Err = String;

    /// `HOSTDIR:GUESTDIR`, then `:ro` or `:rw`, `:bandwidth=10M` and `:ops=500`, each or none; the host's name may contain
    /// colons.
    fn from_str(text: &str) -> Result<Self, String> {
        let (mut rest, mut bandwidth, mut ops) = (text, None, None);
        while let Some((before, (key, value))) =
            rest.rsplit_once(':').and_then(|(before, last)| Some((before, last.split_once('=')?)))
        {
            let (slot, number) = match key {
                "bandwidth" => (&mut bandwidth, units::bytes(value).map_err(|error| error.to_string())?),
                "ops" => (&mut ops, units::count(value).map_err(|error| error.to_string())?),
                _ => break,
            };
            if slot.replace(number).is_some() {
                return Err(format!("{key} is given twice for one volume"));
            }
            rest = before;
        }
        let (directory, target, writable) = mounted(rest).ok_or(
            "a volume is HOSTDIR:GUESTDIR, with an absolute GUESTDIR that is not /, then :rw, :bandwidth=10M and :ops=500, \
             each or none",
        )?;
        Ok(Self { directory, target, writable, bandwidth, ops })
    }
}

/// Splits `HOST:GUESTDIR[:ro|:rw]` from its end.
fn mounted(text: &str) -> Option<(PathBuf, String, bool)> {
    let (rest, writable) = match text.strip_suffix(":rw") {
        Some(rest) => (rest, true),
        None => (text.strip_suffix(":ro").unwrap_or(text), false),
    };
    let (host, target) = host_and_guest(rest)?;
    Some((host, target, writable))
}

/// Splits `HOST:GUESTDIR` from its end.
fn host_and_guest(text: &str) -> Option<(PathBuf, String)> {
    let (host, target) = text.rsplit_once(':')?;
    let right = !host.is_empty() && target.starts_with('/') && target != "/";
    right.then(|| (PathBuf::from(host), target.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_a_file_and_a_directory_and_never_writable() {
        let image: PmemOption = "a:b.erofs:/data".parse().unwrap();
        assert_eq!(image, PmemOption { file: "a:b.erofs".into(), target: "/data".into() });
        for wrong in ["", "image", "image:data", ":/data", "image:/", "image:/data:ro"] {
            assert!(wrong.parse::<PmemOption>().unwrap_err().contains("FILE:GUESTDIR"), "{wrong}");
        }
        assert!("image:/data:rw".parse::<PmemOption>().unwrap_err().contains("never written"));
    }

    #[test]
    fn a_drive_is_split_from_its_end() {
        let drive: DriveOption = "a:b.ext4:/data:rw".parse().unwrap();
        let engine = IoEngine::Sync;
        let expected =
            DriveOption { file: "a:b.ext4".into(), target: "/data".into(), writable: true, engine };
        assert_eq!(drive, expected);
        let parsed = |text: &str| text.parse::<DriveOption>().map(|drive| (drive.writable, drive.engine));
        assert_eq!(parsed("disk:/data"), Ok((false, IoEngine::Sync)));
        assert_eq!(parsed("disk:/data:async"), Ok((false, IoEngine::Async)));
        assert_eq!(parsed("disk:/data:rw,async"), Ok((true, IoEngine::Async)));
        for wrong in
            ["disk:/data:", "disk:/data:rw,", "disk:/data:rw:async", "disk:/data:uring", "disk:/:async"]
        {
            assert!(parsed(wrong).unwrap_err().contains("a drive is"), "{wrong}");
        }
        let volume: VolumeOption = "./src:/data:rw".parse().unwrap();
        let expected = VolumeOption {
            directory: "./src".into(),
            target: "/data".into(),
            writable: true,
            bandwidth: None,
            ops: None,
        };
        assert_eq!(volume, expected);
        let limited: VolumeOption = "./src:/data:rw:ops=500:bandwidth=64K".parse().unwrap();
        assert_eq!(limited, VolumeOption { bandwidth: Some(64 << 10), ops: Some(500), ..expected });
        let odd: VolumeOption = "a:ops=1:/data:bandwidth=1G".parse().unwrap();
        assert_eq!((odd.directory.to_str(), odd.ops, odd.bandwidth), (Some("a:ops=1"), None, Some(1 << 30)));
        for (wrong, says) in [
            ("a:/b:ops=0", "not \"0\""),
            ("a:/b:ops=", "not \"\""),
            ("a:/b:ops=-1", "not \"-1\""),
            ("a:/b:bandwidth=10", "not \"10\""),
            ("a:/b:bandwidth=0M", "not \"0M\""),
            ("a:/b:bandwidth=17179869184G", "not \"17179869184G\""),
            ("a:/b:ops=1:ops=2", "given twice"),
            ("a:/b:speed=1", "a volume is"),
            ("a:/b:ops=1:rw", "a volume is"),
        ] {
            let error = wrong.parse::<VolumeOption>().unwrap_err();
            assert!(error.contains(says), "{wrong}: {error}");
        }
        assert!(!"/src:/data:ro".parse::<VolumeOption>().unwrap().writable);
        for wrong in ["", "disk", "disk:data", ":/data", "disk:/", "disk:/:rw"] {
            assert!(wrong.parse::<DriveOption>().unwrap_err().starts_with("a drive is"), "{wrong}");
            assert!(wrong.parse::<VolumeOption>().unwrap_err().starts_with("a volume is"), "{wrong}");
        }
    }
}
