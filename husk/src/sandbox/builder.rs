//! What is asked for, by a program that uses the library.
//!
//! Owns the names of the methods. Refuses nothing: a value that cannot be is refused, under its option's name, when the sandbox is run.
//! Invariant: a method sets what it names and nothing else.

use super::Sandbox;
use crate::isolation::Isolation;
use crate::limits::Limit;
use crate::options::{DriveOption, NetworkOption, Options, VolumeOption};
use crate::signals::Signals;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

impl<'a> Sandbox<'a> {
    /// A sandbox with the default of everything, and no command yet.
    #[must_use]
    pub fn builder() -> Self {
        Self::from(Options::default())
    }

    /// Program and arguments.
    #[must_use]
    pub fn command<S: Into<OsString>>(mut self, command: impl IntoIterator<Item = S>) -> Self {
        self.options.command = command.into_iter().map(Into::into).collect();
        self
    }

    /// An erofs or ext4 image, or a directory.
    #[must_use]
    pub fn rootfs(mut self, path: impl Into<PathBuf>) -> Self {
        self.options.rootfs = Some(path.into());
        self
    }

    /// Guest memory in MiB.
    #[must_use]
    pub fn memory_mib(mut self, mib: u64) -> Self {
        self.options.memory_mib = Some(mib);
        self
    }

    /// Number of vCPUs.
    #[must_use]
    pub fn vcpus(mut self, count: u64) -> Self {
        self.options.vcpus = Some(count);
        self
    }

    /// Time from the sandbox's start to its end.
    #[must_use]
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.options.timeout = Some(limit);
        self
    }

    /// A drive that the guest mounts.
    #[must_use]
    pub fn drive(mut self, drive: DriveOption) -> Self {
        self.options.drives.push(drive);
        self
    }

    /// A directory of the host that the guest mounts.
    #[must_use]
    pub fn volume(mut self, volume: VolumeOption) -> Self {
        self.options.volumes.push(volume);
        self
    }

    /// The network card; without it the guest has none.
    #[must_use]
    pub fn network(mut self, network: NetworkOption) -> Self {
        self.options.network = Some(network);
        self
    }

    /// A limit of the sandbox's cgroup, over the configuration's and Husk's own.
    #[must_use]
    pub fn limit(mut self, limit: Limit) -> Self {
        self.options.limits.push(limit);
        self
    }

    /// What is done about a wall of the cell that this host does not permit.
    #[must_use]
    pub fn isolation(mut self, isolation: Isolation) -> Self {
        self.options.isolation = isolation;
        self
    }

    /// Signals that end the sandbox, or are passed on. Without them the caller's own handling stands.
    #[must_use]
    pub fn signals(mut self, signals: &'a Signals) -> Self {
        self.signals = Some(signals);
        self
    }

    /// Says on standard error what takes longer than a second.
    #[must_use]
    pub fn talkative(mut self, talkative: bool) -> Self {
        self.talkative = talkative;
        self
    }

    /// When the request came, `CLOCK_MONOTONIC` nanoseconds; the report's times count from it.
    #[must_use]
    pub fn requested_at(mut self, start_ns: u64) -> Self {
        self.start_ns = start_ns;
        self
    }
}
