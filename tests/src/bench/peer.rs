//! Firecracker as the benchmark's peer: one cold run, jailed and filtered, from the jailer's start to the first byte of
//! a command's output.
//!
//! Owns the cell's directory and the processes; both are gone when a run returns. Refuses to measure a run whose output
//! is not the expected one. Invariant: every stamp is `CLOCK_MONOTONIC` of the same host, taken by the host's kernel
//! (executions, first guest entry), by this process (spawn, ready, first byte) or converted from the guest's counter
//! (init); none is the peer's own word.
//!
//! The peer gets its best case: its files are hard links on a tmpfs, its log is off, its guest's PID 1 does the least
//! that a command needs, and the command writes straight into the vsock connection.

mod api;
mod cell;
mod column;
mod talk;
pub mod wire;

use std::fs;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::guest_clock::{ClockError, GuestClock, Reading};
use super::stages::now_ns;
use super::trace::{KvmEntryTrace, Observed, TraceError};
use cell::Cell;
pub(in crate::bench) use column::{busybox, init, read};
pub use column::{runs, runs_of};
use talk::Talk;

/// How long any step of a run may take.
const LIMIT: Duration = Duration::from_secs(60);
/// The command line that Firecracker's users boot with, less the console. `pci=off` and the devices are its own additions.
pub const COMMAND_LINE: &str =
    "quiet 8250.nr_uarts=0 i8042.noaux i8042.nomux i8042.dumbkbd i8042.nopnp reboot=k panic=1 nomodule";

/// Why a run counts for nothing.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// A file or directory of the cell.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A step failed; with the end of the peer's log.
    #[error("the peer's {step}: {source}; it said: {log}")]
    Step {
        /// Which step.
        step: &'static str,
        /// Why.
        source: io::Error,
        /// The last of what it printed.
        log: String,
    },
    /// The command printed something else.
    #[error("the command printed {0:?}, not what it was told to")]
    Output(String),
    /// No stamps of the kernel.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// No stamp of the guest.
    #[error(transparent)]
    Clock(#[from] ClockError),
}

/// The files that a run needs.
#[derive(Debug, Clone)]
pub struct Files {
    /// The peer's monitor, static.
    pub firecracker: PathBuf,
    /// Its jailer, static, of the same version.
    pub jailer: PathBuf,
    /// An ELF kernel.
    pub kernel: PathBuf,
    /// An initramfs whose `/init` is `peer-init` ([`initrd`]).
    pub initrd: PathBuf,
    /// An erofs image with `/bin/busybox` that becomes the command's root; without it that is the initramfs.
    pub rootfs: Option<PathBuf>,
    /// A disk image for the command to read.
    pub data: Option<PathBuf>,
    /// A tap that the monitor's user owns.
    pub tap: Option<String>,
}

/// How the peer learns what to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// From a JSON file, without an API thread: its quickest.
    ConfigFile,
    /// By requests to its API socket: its usual.
    Api,
}

/// How much of a cell its jailer builds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confinement {
    /// What it always does: mount namespace, root, devices, uid, limits, filters.
    Plain,
    /// Also a pid namespace and a cgroup (v2) with memory and pids limits.
    Full,
}

/// How the peer's guest sees its devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// virtio-mmio, its default.
    Mmio,
    /// virtio-pci, for a kernel that has a PCI bus.
    Pci,
}

/// A shape of run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// How it is told.
    pub start: Start,
    /// How it is jailed.
    pub confinement: Confinement,
    /// How its devices are reached.
    pub transport: Transport,
    /// Virtual CPUs.
    pub vcpus: u8,
    /// Guest memory in MiB.
    pub memory: u32,
}

impl Default for Shape {
    fn default() -> Self {
        let (start, confinement) = (Start::ConfigFile, Confinement::Plain);
        Self { start, confinement, transport: Transport::Mmio, vcpus: 1, memory: 128 }
    }
}

/// When each stage was reached, in ns of `CLOCK_MONOTONIC` (in the deterministic lab: instructions).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stages {
    /// Before the cell's directory was laid out.
    pub prepare: u64,
    /// Just before the jailer was spawned.
    pub spawn: u64,
    /// The kernel executed the jailer; with a trace only.
    pub jailer: Option<u64>,
    /// The kernel executed the monitor: the jail stands; with a trace only.
    pub monitor: Option<u64>,
    /// Its API answered; over the API only.
    pub api: Option<u64>,
    /// It said that the machine runs; over the API only.
    pub started: Option<u64>,
    /// The first guest instruction; with a trace only.
    pub kernel_entry: Option<u64>,
    /// The first instruction of the guest's PID 1.
    pub init: u64,
    /// PID 1's hello arrived here.
    pub ready: u64,
    /// The first byte of the command's output arrived here.
    pub first_byte: u64,
}

/// The peer, its files staged where a cell can link them.
pub struct Peer {
    base: PathBuf,
    files: Files,
}

impl Peer {
    /// Copies the files into `base`, a short path on a file system that allows devices and execution (a tmpfs).
    ///
    /// # Errors
    /// A file is missing, or there is no room.
    pub fn stage(files: &Files, base: &Path) -> Result<Self, PeerError> {
        let images = base.join("images");
        fs::create_dir_all(&images).map_err(|source| PeerError::File { path: images.clone(), source })?;
        let copy = |from: &Path, name: &str| {
            let to = images.join(name);
            let copied = fs::copy(from, &to);
            copied.map(|_| to).map_err(|source| PeerError::File { path: from.to_owned(), source })
        };
        let files = Files {
            firecracker: copy(&files.firecracker, "firecracker")?,
            jailer: copy(&files.jailer, "jailer")?,
            kernel: copy(&files.kernel, cell::KERNEL)?,
            initrd: copy(&files.initrd, cell::INITRD)?,
            rootfs: files.rootfs.as_deref().map(|from| copy(from, cell::ROOTFS)).transpose()?,
            data: files.data.as_deref().map(|from| copy(from, cell::DATA)).transpose()?,
            tap: files.tap.clone(),
        };
        Ok(Self { base: base.to_owned(), files })
    }

    /// One run of `busybox echo`. Without a trace the stages that only the kernel sees are missing, and nothing is traced.
    ///
    /// # Errors
    /// Anything that makes the run not comparable; nothing is left behind then either.
    pub fn run(&self, shape: Shape, trace: Option<&KvmEntryTrace>) -> Result<Stages, PeerError> {
        if let Some(trace) = trace {
            trace.arm()?;
        }
        let before = Reading::take();
        let prepare = now_ns();
        let mut cell = Cell::prepare(&self.base, &self.files, shape)?;
        let listener = cell.listen(wire::PORT)?;
        let birth = (shape.start == Start::Api)
            .then(|| api::Birth::expect_in(&cell.run_dir()))
            .transpose()
            .map_err(|source| cell.failed("API socket", source))?;
        let spawn = now_ns();
        cell.spawn(&self.files)?;
        let told = match &birth {
            Some(birth) => Some(self.tell(&cell, birth, shape)?),
            None => None,
        };
        let talk = Talk::with(&mut cell, &listener)?;
        let clock = GuestClock::of(cell.monitor()?)?;
        drop(talk.stream);
        cell.wait()?;
        let after = Reading::take();
        let seen = trace.map(KvmEntryTrace::observed).transpose()?.unwrap_or_default();
        Ok(Stages {
            prepare,
            spawn,
            jailer: exec(&seen, "jailer"),
            monitor: exec(&seen, "firecracker"),
            api: told.map(|told| told.0),
            started: told.map(|told| told.1),
            kernel_entry: seen.entry.map(|entry| entry.at),
            init: clock.monotonic(talk.hello.init, before, after)?,
            ready: talk.ready,
            first_byte: talk.first_byte,
        })
    }

    /// Runs a command and returns what it printed. `far_end` gets the host's end of `port` before the
    /// guest can ask for it.
    ///
    /// # Errors
    /// The peer's, or the output is no text.
    pub fn output_of(
        &self,
        shape: Shape,
        command: &[&str],
        port: u32,
        far_end: impl FnOnce(UnixListener),
    ) -> Result<String, PeerError> {
        let mut cell = Cell::prepare(&self.base, &self.files, shape)?;
        let listener = cell.listen(wire::PORT)?;
        far_end(cell.listen(port)?);
        cell.spawn(&self.files)?;
        let output = talk::output_of(&mut cell, &listener, command)?;
        cell.wait()?;
        Ok(output)
    }

    /// Configures and starts the machine over the API; when it answered and when it said that the machine runs.
    fn tell(&self, cell: &Cell, birth: &api::Birth, shape: Shape) -> Result<(u64, u64), PeerError> {
        let failed = |source| cell.failed("API", source);
        let mut stream = birth.connect(&cell.run_dir(), LIMIT).map_err(failed)?;
        let ready = now_ns();
        let config = cell::config(&self.files, shape);
        for key in ["machine-config", "boot-source", "vsock"] {
            api::put(&mut stream, &format!("/{key}"), &config[key]).map_err(failed)?;
        }
        for drive in config["drives"].as_array().into_iter().flatten() {
            let id = drive["drive_id"].as_str().unwrap_or_default();
            api::put(&mut stream, &format!("/drives/{id}"), drive).map_err(failed)?;
        }
        let start = serde_json::json!({"action_type": "InstanceStart"});
        api::put(&mut stream, "/actions", &start).map_err(failed)?;
        Ok((ready, now_ns()))
    }
}

fn exec(seen: &Observed, name: &str) -> Option<u64> {
    seen.exec_of(name).map(|exec| exec.at)
}

/// The initramfs for [`Files::initrd`]: `peer-init` (static) as `/init`, and static programs for `/bin`.
#[must_use]
pub fn initrd(init: &[u8], programs: &[(&str, &[u8])]) -> Vec<u8> {
    let archive = ["dev", "proc", "sys", "tmp", "bin", "root"]
        .into_iter()
        .fold(super::cpio::Cpio::default(), super::cpio::Cpio::directory)
        .device("dev/console", 5, 1)
        .device("dev/null", 1, 3)
        .program("init", init);
    let bin = |archive: super::cpio::Cpio, (name, bytes): &(&str, &[u8])| {
        archive.program(&format!("bin/{name}"), bytes)
    };
    programs.iter().fold(archive, bin).finish()
}
