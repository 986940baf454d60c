//! What a byte and an operation of each device cost: the same jobs in husk's guest and in the peer's.
//!
//! Owns the disk, the tap and the roots that both use. Refuses a job whose far end failed. Invariant: both get the same
//! kernel, the same disk image in memory, the same tap, and the same static program as the job; a guest is booted for each
//! job, and its boot is not counted.

use super::host::HugePagesAlways;
use super::peer::{Confinement, Files, Peer, Shape, Transport, busybox, init, initrd, read};
use crate::load::{Job, Took, Way, far_end};
use crate::scratch::Scratch;
use crate::tap::Tap;
use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The host's address on the tap, and the guest's.
const HOST: &str = "192.0.2.1";
const GUEST: &str = "192.0.2.2";
/// The host's TCP and vsock port.
const PORT: u32 = 5000;
/// MiB of the disk.
const DISK_MIB: usize = 64;
/// The peer's user and group in its cell.
const PEER_UID: u32 = 65534;

/// A row of the table.
pub struct Load {
    /// What it is.
    pub name: &'static str,
    /// What the guest does.
    pub job: Job,
    /// Whether its price is one of operations rather than of bytes.
    pub by_operation: bool,
}

/// How much a job carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Amount {
    /// MiB of a stream.
    pub stream_mib: u64,
    /// Reads of 4 KiB.
    pub random_reads: u64,
    /// Reads of 1 MiB.
    pub sequential_reads: u64,
}

impl Amount {
    /// Where instructions are counted: so much that a guest's first touch of its own memory, which the host then has to
    /// clear, does not show.
    pub const COUNTED: Self = Self { stream_mib: 128, random_reads: 8000, sequential_reads: 256 };
    /// Where time is measured, with a boot before each run: about a second of the lab's.
    pub const TIMED: Self = Self { stream_mib: 32, random_reads: 1000, sequential_reads: 64 };
}

/// The rows.
#[must_use]
pub fn loads(disk: &str, amount: Amount) -> Vec<Load> {
    let disk = disk.to_owned();
    let Amount { stream_mib: mib, random_reads, sequential_reads } = amount;
    let tcp = |way| Job::Tcp { address: format!("{HOST}:{PORT}"), way, mib };
    let vsock = |way| Job::Vsock { port: PORT, way, mib };
    let row = |name, job, by_operation| Load { name, job, by_operation };
    vec![
        row("block, 4 KiB random reads", Job::Random { disk: disk.clone(), reads: random_reads }, true),
        row("block, 1 MiB sequential reads", Job::Sequential { disk, reads: sequential_reads }, false),
        row("net, TCP guest → host", tcp(Way::Out), false),
        row("net, TCP host → guest", tcp(Way::In), false),
        row("vsock, guest → host", vsock(Way::Out), false),
        row("vsock, host → guest", vsock(Way::In), false),
    ]
}

/// What both need.
pub struct Ground {
    scratch: Scratch,
    tap: Tap,
    disk: PathBuf,
    load: PathBuf,
    _huge_pages: HugePagesAlways,
}

impl Ground {
    /// Makes disk and tap; `load` is the guest's program.
    ///
    /// # Errors
    /// One line: no room, not root, or no program.
    pub fn prepare(load: PathBuf) -> Result<Self, String> {
        let scratch = Scratch::new();
        let disk = scratch.path().join("data.img");
        let fail = |error| format!("{}: {error}", disk.display());
        let mut file = fs::File::create(&disk).map_err(fail)?;
        let block: Vec<u8> =
            (0..1_u32 << 20).map(|byte| byte.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
        (0..DISK_MIB).try_for_each(|_| file.write_all(&block)).map_err(fail)?;
        let tap = Tap::new("husk-bench", &[&format!("{HOST}/24")]).owned_by(PEER_UID);
        let huge_pages =
            HugePagesAlways::set().map_err(|error| format!("transparent huge pages: {error}"))?;
        Ok(Self { scratch, tap, disk, load, _huge_pages: huge_pages })
    }

    /// Serves the far end of a stream while `run` runs, and has both succeed.
    fn served(
        job: &Job,
        run: impl FnOnce(&mut dyn FnMut(UnixListener)) -> Result<String, String>,
    ) -> Result<Took, String> {
        let mut server = None;
        if let Job::Tcp { way, mib, .. } = job {
            let listener = TcpListener::bind((HOST, u16::try_from(PORT).unwrap_or(0)));
            let listener = listener.map_err(|error| format!("{HOST}:{PORT}: {error}"))?;
            server = Some(far_end::on_tcp(listener, *way, *mib));
        }
        let printed = run(&mut |listener| {
            if let Job::Vsock { way, mib, .. } = job {
                server = Some(far_end::on_unix(listener, *way, *mib));
            }
        })?;
        let took = printed.parse()?;
        if let Some(server) = server {
            let ended = server.join().map_err(|_| "the far end panicked".to_owned())?;
            ended.map_err(|error| format!("the far end: {error}"))?;
        }
        Ok(took)
    }
}

/// husk with what a job needs.
pub struct HuskGuest<'a> {
    husk: String,
    ground: &'a Ground,
    config: PathBuf,
    root: PathBuf,
    transport: Transport,
}

impl<'a> HuskGuest<'a> {
    /// The disk in husk's guest: after its root.
    pub const DISK: &'static str = "/dev/vdb";

    /// Packs a root with the load's program.
    ///
    /// # Errors
    /// One line.
    pub fn new(husk: &str, ground: &'a Ground, transport: Transport) -> Result<Self, String> {
        let stage = ground.scratch.path().join(format!("husk-root-{transport:?}"));
        let fail = |error| format!("{}: {error}", stage.display());
        fs::create_dir_all(stage.join("bin")).map_err(fail)?;
        for directory in ["dev", "proc", "sys", "tmp", "run", "etc"] {
            fs::create_dir_all(stage.join(directory)).map_err(fail)?;
        }
        fs::copy(&ground.load, stage.join("bin/husk-load")).map_err(fail)?;
        let root = ground.scratch.path().join(format!("husk-root-{transport:?}.erofs"));
        let packed = Command::new("mkfs.erofs").arg("--quiet").arg(&root).arg(&stage).output();
        let packed = packed.map_err(|error| format!("mkfs.erofs: {error}"))?;
        if !packed.status.success() {
            return Err(format!("mkfs.erofs: {}", String::from_utf8_lossy(&packed.stderr)));
        }
        let config = ground.scratch.path().join("husk.json");
        let drive = serde_json::json!({
            "drive_id": "data", "path_on_host": ground.disk, "is_root_device": false, "is_read_only": true});
        fs::write(&config, serde_json::json!({"drives": [drive]}).to_string()).map_err(fail)?;
        Ok(Self { husk: husk.to_owned(), ground, config, root, transport })
    }

    /// Does a job in a new guest.
    ///
    /// # Errors
    /// One line.
    pub fn run(&self, job: &Job) -> Result<Took, String> {
        let socket = self.ground.scratch.path().join("v.sock");
        let mut command = Command::new(&self.husk);
        command.args(["run", "--rootfs"]).arg(&self.root).arg("--config").arg(&self.config);
        if self.transport == Transport::Pci {
            command.arg("--pci");
        }
        match job {
            Job::Tcp { .. } => {
                command.args(["--net", &self.ground.tap.option(), "--allow", &format!("{HOST}/32:{PORT}")]);
                command.args(["--guest-ip", &format!("{GUEST}/24")]);
            }
            Job::Vsock { .. } => {
                command.arg("--vsock").arg(&socket);
            }
            Job::Random { .. } | Job::Sequential { .. } => {}
        }
        command.arg("--").arg("/bin/husk-load").args(job.words()).stdin(Stdio::null());
        Ground::served(job, |far_end| {
            let port = socket.with_file_name(format!("v.sock_{PORT}"));
            far_end(UnixListener::bind(&port).map_err(|error| format!("{}: {error}", port.display()))?);
            let output = command.output().map_err(|error| format!("{}: {error}", self.husk));
            drop(fs::remove_file(&port));
            let output = output?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            if output.status.success() {
                Ok(text)
            } else {
                Err(format!("husk: {}: {text}{said}", output.status))
            }
        })
    }
}

/// The peer with what a job needs.
pub struct PeerGuest {
    peer: Peer,
    shape: Shape,
}

impl PeerGuest {
    /// The disk in the peer's guest, whose root is its initramfs.
    pub const DISK: &'static str = "/dev/vda";

    /// Stages the peer: Firecracker, its jailer and a kernel that finds devices by `transport`.
    ///
    /// # Errors
    /// One line.
    pub fn new(programs: [&Path; 3], transport: Transport, ground: &Ground) -> Result<Self, String> {
        let [firecracker, jailer, kernel] = programs.map(Path::to_path_buf);
        // Short: a socket's name has to fit behind it.
        let base = ground.scratch.path().join(if transport == Transport::Pci { "p" } else { "m" });
        fs::create_dir_all(&base).map_err(|error| format!("{}: {error}", base.display()))?;
        let image = base.join("initrd.cpio");
        let programs: [(&str, &[u8]); 2] =
            [("busybox", &read(&busybox()?)?), ("husk-load", &read(&ground.load)?)];
        fs::write(&image, initrd(&init()?, &programs))
            .map_err(|error| format!("{}: {error}", image.display()))?;
        let (data, tap) = (Some(ground.disk.clone()), Some(ground.tap.name().to_owned()));
        let files = Files { firecracker, jailer, kernel, initrd: image, rootfs: None, data, tap };
        let peer = Peer::stage(&files, &base).map_err(|error| error.to_string())?;
        // What husk's cell has too, and what its jailer's documents tell to do: a pid namespace and a cgroup with limits.
        Ok(Self { peer, shape: Shape { transport, confinement: Confinement::Full, ..Shape::default() } })
    }

    /// Does a job in a new guest.
    ///
    /// # Errors
    /// One line.
    pub fn run(&self, job: &Job) -> Result<Took, String> {
        let words = job.words().join(" ");
        let script = match job {
            Job::Tcp { .. } => format!(
                "busybox ip addr add {GUEST}/24 dev eth0 && busybox ip link set eth0 up && exec husk-load {words}"
            ),
            _ => format!("exec husk-load {words}"),
        };
        let command = ["/bin/busybox", "sh", "-c", &script];
        Ground::served(job, |far_end| {
            self.peer.output_of(self.shape, &command, PORT, far_end).map_err(|error| error.to_string())
        })
    }
}
