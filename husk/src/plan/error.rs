//! Why what is asked for cannot be.
//!
//! Owns the words of each refusal. Invariant: a message names the option or key as it was given, its value and what is allowed.

use super::{LONGEST_BOOT_ARGS, LONGEST_DRIVE_ID, MOST_DEVICES, pmem};
use husk_protocol::spec::MAX_REFILL_MS;

/// What is asked for cannot be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PlanError {
    /// A number out of bounds.
    #[error("{name} {value} is out of range; {allowed} is allowed")]
    Range {
        /// Option or key.
        name: &'static str,
        /// As given.
        value: String,
        /// What would do.
        allowed: String,
    },
    /// Not as many CPUs as vCPUs.
    #[error("--pin names {cpus} CPUs for {vcpus} vCPUs; as many CPUs as --vcpus are needed")]
    Pin {
        /// Named.
        cpus: usize,
        /// Asked for.
        vcpus: u64,
    },
    /// Not `K=V`.
    #[error("--env {0:?} is not K=V")]
    Env(String),
    /// Not absolute.
    #[error("{name} {value:?} is not an absolute directory without NUL bytes")]
    Directory {
        /// Option.
        name: &'static str,
        /// As given.
        value: String,
    },
    /// Not a place to mount a drive or volume.
    #[error(
        "{name} cannot be mounted at {value:?}; any directory but /, /dev, /proc and /sys, without .., is allowed"
    )]
    MountPoint {
        /// Option.
        name: &'static str,
        /// As given.
        value: String,
    },
    /// An image in memory.
    #[error(transparent)]
    Pmem(#[from] pmem::PmemError),
    /// Nothing to run.
    #[error("no command is given; write it after --, as in: husk run -- echo hi")]
    NoCommand,
    /// A NUL byte.
    #[error("the command's argument {0:?} has a NUL byte")]
    Nul(String),
    /// A drive's id.
    #[error(
        "drive_id {0:?} is not allowed or not unique; letters, digits, - and _, 1 to {LONGEST_DRIVE_ID}, each once"
    )]
    DriveId(String),
    /// A card of the configuration without a tap.
    #[error("config: network-interfaces[{0}].host_dev_name is missing; the name of a tap is needed")]
    NoTap(usize),
    /// A network option that does not fit the others.
    #[error("{0}")]
    Network(String),
    /// Too many drives.
    #[error(
        "{0} devices are asked for (drives, root, network, vsock, entropy, balloon, memory-hotplug, pmem, volumes and
         console); at most \
         {MOST_DEVICES} are possible"
    )]
    Devices(usize),
    /// Kernel and initrd do not fit.
    #[error(
        "memory of {memory} MiB is too small: kernel, initrd and the guest's books of pmem images (1/64 of them) need at \
         least {needs} MiB"
    )]
    Memory {
        /// MiB.
        memory: u64,
        /// MiB.
        needs: u64,
    },
    /// Memory that grows, of pages that are not given back.
    #[error(
        "--memory-max {0}M cannot be had with huge pages, which are not given back; leave out it or --hugepages"
    )]
    MemoryMax(u64),
    /// A key that husk sets itself.
    #[error("config: {key} cannot be given here; {instead}")]
    Key {
        /// Which.
        key: &'static str,
        /// What to do.
        instead: &'static str,
    },
    /// A kernel command line that cannot be one.
    #[error(
        "config: boot-source.boot_args {0:?} is not allowed; at most {LONGEST_BOOT_ARGS} printable ASCII characters"
    )]
    BootArgs(String),
    /// Devices on a bus that the kernel is told not to look for.
    #[error(
        "config: boot-source.boot_args say pci=off, and --pci (machine-config.pci) puts the devices on a PCI bus; leave out one"
    )]
    PciOff,
    /// A bucket of a rate limiter that takes too long to fill.
    #[error(
        "config: {key} {value} is out of range; 0 to {MAX_REFILL_MS} ms, a day, is allowed (0: no limit)"
    )]
    Refill {
        /// Which.
        key: String,
        /// As given.
        value: u64,
    },
    /// A user that cannot be one.
    #[error("--user {0:?} is not NAME, UID, NAME:GROUP or UID:GID")]
    User(String),
}
