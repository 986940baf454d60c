//! The peer's cell: the directory that its jailer turns into a root, the files in it, and the process.
//!
//! Owns both; dropping it ends the process and removes the directory and the cgroup. Refuses a base path that leaves no
//! room for a socket's name. Invariant: an id is used once.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::json;

use super::{COMMAND_LINE, Confinement, Files, LIMIT, PeerError, Shape, Start, Transport};

/// Names in the cell.
pub(super) const KERNEL: &str = "vmlinux";
pub(super) const INITRD: &str = "initrd";
pub(super) const ROOTFS: &str = "rootfs.erofs";
pub(super) const DATA: &str = "data.img";
const CONFIG: &str = "vm.json";
const VSOCK: &str = "v.sock";

/// Nobody's user and group.
const UID: &str = "65534";
/// `sun_path` of a unix socket, less the NUL.
const SOCKET_PATH: usize = 107;

/// A cell, before and while the peer runs in it.
pub(super) struct Cell {
    id: String,
    base: PathBuf,
    root: PathBuf,
    log: PathBuf,
    shape: Shape,
    process: Option<Child>,
}

/// Firecracker's configuration for the shape, paths as seen in the cell.
pub(super) fn config(files: &Files, shape: Shape) -> serde_json::Value {
    let drive = |id, name| json!({"drive_id": id, "path_on_host": name, "is_root_device": false, "is_read_only": true});
    let root = files.rootfs.as_ref().map(|_| drive("root", ROOTFS));
    let data = files.data.as_ref().map(|_| drive("data", DATA));
    let card = files.tap.as_ref().map(|tap| json!({"iface_id": "eth0", "host_dev_name": tap}));
    json!({
        "boot-source": {"kernel_image_path": KERNEL, "initrd_path": INITRD, "boot_args": COMMAND_LINE},
        "machine-config": {"vcpu_count": shape.vcpus, "mem_size_mib": shape.memory},
        "drives": root.into_iter().chain(data).collect::<Vec<_>>(),
        "network-interfaces": card.into_iter().collect::<Vec<_>>(),
        "vsock": {"guest_cid": 3, "uds_path": VSOCK},
    })
}

impl Cell {
    /// Lays the directory out: hard links to the files, and the configuration.
    pub(super) fn prepare(base: &Path, files: &Files, shape: Shape) -> Result<Self, PeerError> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let id = format!("p{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let root = base.join("firecracker").join(&id).join("root");
        let log = base.join(format!("{id}.log"));
        let cell = Self { id, base: base.to_owned(), root, log, shape, process: None };
        let run = cell.run_dir();
        fs::create_dir_all(&run).map_err(|source| PeerError::File { path: run, source })?;
        let links = [
            (Some(&files.kernel), KERNEL),
            (Some(&files.initrd), INITRD),
            (files.rootfs.as_ref(), ROOTFS),
            (files.data.as_ref(), DATA),
        ];
        for (from, name) in links {
            let Some(from) = from else { continue };
            fs::hard_link(from, cell.root.join(name))
                .map_err(|source| PeerError::File { path: from.clone(), source })?;
        }
        if shape.start == Start::ConfigFile {
            let path = cell.root.join(CONFIG);
            fs::write(&path, config(files, shape).to_string())
                .map_err(|source| PeerError::File { path, source })?;
        }
        Ok(cell)
    }

    /// The directory of the API socket.
    pub(super) fn run_dir(&self) -> PathBuf {
        self.root.join("run")
    }

    /// Listens where the monitor connects to when the guest asks for this port.
    pub(super) fn listen(&self, port: u32) -> Result<UnixListener, PeerError> {
        let path = self.root.join(format!("{VSOCK}_{port}"));
        let failed = |source| PeerError::File { path: path.clone(), source };
        if path.as_os_str().len() > SOCKET_PATH {
            return Err(failed(io::Error::other(
                "longer than a socket's name: stage the peer in a shorter path",
            )));
        }
        let listener = UnixListener::bind(&path).map_err(failed)?;
        // The jailed monitor is another user, and connecting takes the right to write.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).map_err(failed)?;
        Ok(listener)
    }

    /// Starts the jailer.
    pub(super) fn spawn(&mut self, files: &Files) -> Result<(), PeerError> {
        let log = fs::File::create(&self.log)
            .map_err(|source| PeerError::File { path: self.log.clone(), source })?;
        let errors = log.try_clone().map_err(|source| PeerError::File { path: self.log.clone(), source })?;
        let mut command = Command::new(&files.jailer);
        command.args(["--id", &self.id, "--uid", UID, "--gid", UID, "--exec-file"]).arg(&files.firecracker);
        command.arg("--chroot-base-dir").arg(&self.base);
        if self.shape.confinement == Confinement::Full {
            let memory = u64::from(self.shape.memory + 64) << 20;
            command.args(["--new-pid-ns", "--cgroup-version", "2", "--cgroup", "pids.max=64", "--cgroup"]);
            command.arg(format!("memory.max={memory}"));
        }
        // Filters are on unless asked off. Only errors are logged: its usual level costs it a few lines of output.
        command.args(["--", "--level", "Error"]);
        if self.shape.transport == Transport::Pci {
            command.arg("--enable-pci");
        }
        if self.shape.start == Start::ConfigFile {
            command.args(["--no-api", "--config-file", CONFIG]);
        }
        command.stdin(Stdio::null()).stdout(log).stderr(errors);
        let child =
            command.spawn().map_err(|source| PeerError::File { path: files.jailer.clone(), source })?;
        self.process = Some(child);
        Ok(())
    }

    /// The monitor's process id.
    pub(super) fn monitor(&self) -> Result<u32, PeerError> {
        if self.shape.confinement == Confinement::Plain {
            let none = || self.failed("process", io::Error::other("it was not started"));
            return self.process.as_ref().map(Child::id).ok_or_else(none);
        }
        // A jailer that makes a pid namespace clones; it leaves the child's id beside the root's files.
        let path = self.root.join("firecracker.pid");
        let text =
            fs::read_to_string(&path).map_err(|source| PeerError::File { path: path.clone(), source })?;
        text.trim().parse().map_err(|error| PeerError::File { path, source: io::Error::other(error) })
    }

    /// An error if it ended, other than by a jailer that left its clone behind.
    pub(super) fn still_runs(&mut self) -> Result<(), PeerError> {
        let status = self.process.as_mut().map(Child::try_wait).transpose();
        match status.map(Option::flatten) {
            Ok(None) => Ok(()),
            Ok(Some(status)) if status.success() && self.shape.confinement == Confinement::Full => {
                let monitor = self.monitor()?;
                if Path::new("/proc").join(monitor.to_string()).exists() {
                    return Ok(());
                }
                Err(self.failed("process", io::Error::other("it ended early")))
            }
            Ok(Some(status)) => {
                Err(self.failed("process", io::Error::other(format!("it ended early, {status}"))))
            }
            Err(error) => Err(self.failed("process", error)),
        }
    }

    /// Waits for the machine's end, which the guest asks for itself.
    pub(super) fn wait(&mut self) -> Result<(), PeerError> {
        let monitor = self.monitor()?;
        if !ended(monitor, LIMIT.as_secs()) {
            return Err(self.failed("end", io::Error::new(io::ErrorKind::TimedOut, "the guest did not stop")));
        }
        if let Some(mut child) = self.process.take() {
            child.wait().map_err(|source| self.failed("process", source))?;
        }
        Ok(())
    }

    /// An error of a step, with the end of the log.
    pub(super) fn failed(&self, step: &'static str, source: io::Error) -> PeerError {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let start = log.char_indices().rev().nth(1000).map_or(0, |(at, _)| at);
        PeerError::Step { step, source, log: log[start..].trim().to_owned() }
    }
}

/// Waits until a process, child or not, has ended; false if it has not within the limit.
fn ended(pid: u32, seconds: u64) -> bool {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return true };
    let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else { return true };
    let limit = Timespec { tv_sec: i64::try_from(seconds).unwrap_or(i64::MAX), tv_nsec: 0 };
    matches!(poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&limit)), Ok(1..))
}

fn kill(pid: u32) {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return };
    if let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) {
        // A process that is gone already is what is wanted.
        let _ = pidfd_send_signal(&handle, Signal::KILL);
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        // After an orderly end the process is gone and nothing here has anything to do but remove files.
        if self.process.is_some() {
            if let Ok(monitor) = self.monitor() {
                kill(monitor);
                ended(monitor, 5);
            }
            if let Some(mut child) = self.process.take() {
                drop(child.kill());
                drop(child.wait());
            }
        }
        drop(fs::remove_file(&self.log));
        drop(self.root.parent().map(fs::remove_dir_all));
        drop(fs::remove_dir(Path::new("/sys/fs/cgroup/firecracker").join(&self.id)));
    }
}
