//! The machine as it is asked for: the JSON that Firecracker's users already write, with Husk's own keys beside it.
//!
//! Raw: the types say what keys exist, not that their values make sense; the runtime's `MachineSpec` does. Unknown and
//! duplicate keys are refused by name. A file is a path, or `{"fd": N}`: the N-th descriptor of the message that
//! brought the spec. Sources: Firecracker's `--config-file`; Husk's own keys are `placement`, `limits`, `exec`, `console`, `volumes`, a
//! drive's `queues`, `requested_size_mib` of `memory-hotplug`, and `mtu`, `allow`, `guest_ip` and `tap` of a network card.

mod balloon;
mod drive;
mod file;
mod hotplug;
mod limiter;
mod limits;
mod network;
mod pmem;
mod volume;

pub use balloon::RawBalloon;
pub use drive::{CacheType, IoEngine, RawDrive, RawPart};
pub use file::FileRef;
pub use hotplug::RawMemoryHotplug;
pub use limiter::{MAX_REFILL_MS, RawRateLimiter, RawTokenBucket};
pub use limits::{RawLimit, RawLimits};
pub use network::RawNetwork;
pub use pmem::RawPmem;
pub use volume::{MAX_VOLUMES, RawVolume};

use serde::{Deserialize, Serialize};

/// A whole machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct RawSpec {
    /// Kernel, initrd and command line; absent, as husk takes it: Husk's own.
    #[serde(default)]
    pub boot_source: RawBootSource,
    /// vCPUs and memory.
    #[serde(default)]
    pub machine_config: RawMachineConfig,
    /// Block devices, in the order in which the guest sees them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drives: Vec<RawDrive>,
    /// Network cards, in the order in which the guest sees them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub network_interfaces: Vec<RawNetwork>,
    /// The vsock device; absent: none, unless `exec` needs one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock: Option<RawVsock>,
    /// The entropy device; absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entropy: Option<RawEntropy>,
    /// The balloon device; absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balloon: Option<RawBalloon>,
    /// Memory that is plugged in while the guest runs; absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_hotplug: Option<RawMemoryHotplug>,
    /// Images that the guest sees as memory, in its order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pmem: Vec<RawPmem>,
    /// Husk: directories of the host, in the order in which the guest sees them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<RawVolume>,
    /// Husk: where vCPUs and memory are put.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<RawPlacement>,
    /// Husk: what the sandbox's cgroup holds it to; husk's business, which takes it out before the cell gets the rest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<RawLimits>,
    /// Husk: the descriptor that the guest's exec port is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exec: Option<RawExec>,
    /// Husk: what the guest prints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub console: Option<RawConsole>,
}

/// What is booted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawBootSource {
    /// ELF (64-bit protocol or PVH) or bzImage; absent, as husk takes it: Husk's own.
    #[serde(default)]
    pub kernel_image_path: FileRef,
    /// Initial RAM file system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd_path: Option<FileRef>,
    /// Kernel command line; absent: Husk's default. The device declarations are appended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_args: Option<String>,
    /// Husk: which entry of the kernel is taken.
    #[serde(default, skip_serializing_if = "BootProtocol::is_auto")]
    pub boot_protocol: BootProtocol,
}

/// The way into a kernel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BootProtocol {
    /// PVH if an ELF kernel carries the note, else the 64-bit protocol.
    #[default]
    Auto,
    /// Linux's 64-bit boot protocol.
    Linux64,
    /// The PVH entry; refused if the kernel lacks the note.
    Pvh,
}

impl BootProtocol {
    fn is_auto(&self) -> bool {
        *self == Self::Auto
    }
}

/// vCPUs and memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawMachineConfig {
    /// Number of vCPUs, 1 to 32.
    #[serde(default = "one")]
    pub vcpu_count: u64,
    /// Memory in MiB.
    #[serde(default = "default_mem_size_mib")]
    pub mem_size_mib: u64,
    /// Threads per core; `true` is refused until there is a topology to put them in.
    #[serde(default, skip_serializing_if = "is_false")]
    pub smt: bool,
    /// Dirty page tracking; `true` is refused until there are snapshots.
    #[serde(default, skip_serializing_if = "is_false")]
    pub track_dirty_pages: bool,
    /// Pages that guest memory is made of.
    #[serde(default, skip_serializing_if = "HugePages::is_none")]
    pub huge_pages: HugePages,
    /// Husk: devices are on a PCI bus; else over MMIO. Firecracker has an option for it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub pci: bool,
}

impl Default for RawMachineConfig {
    fn default() -> Self {
        Self {
            vcpu_count: one(),
            mem_size_mib: default_mem_size_mib(),
            smt: false,
            track_dirty_pages: false,
            huge_pages: HugePages::None,
            pci: false,
        }
    }
}

/// Pages that guest memory is made of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum HugePages {
    /// Anonymous memory, transparent huge pages advised.
    #[default]
    None,
    /// hugetlb pages of 2 MiB.
    #[serde(rename = "2M")]
    TwoMiB,
}

impl HugePages {
    fn is_none(&self) -> bool {
        *self == Self::None
    }
}

/// The vsock device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawVsock {
    /// The guest's context id, at least 3.
    pub guest_cid: u64,
    /// The unix socket on which the host's programs say `CONNECT <port>`: in a cell the listening descriptor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uds_path: Option<FileRef>,
    /// Accepted and ignored, as by Firecracker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock_id: Option<String>,
}

/// The entropy device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawEntropy {
    /// How much the guest gets in a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RawRateLimiter>,
}

/// Where vCPUs and memory are put.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawPlacement {
    /// Host CPU of each vCPU; empty: not pinned. As many as there are vCPUs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pin: Vec<u32>,
    /// Populate guest memory before the first instruction.
    #[serde(default, skip_serializing_if = "is_false")]
    pub prefault: bool,
}

/// The exec channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawExec {
    /// A connected stream socket; what the guest sends to `port` on CID 2 comes out of its other end.
    pub channel: FileRef,
    /// The vsock port, [`crate::exec::PORT`] unless there is a reason.
    pub port: u32,
}

/// What the guest prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawConsole {
    /// Where it is written to.
    pub output: FileRef,
    /// By which device.
    #[serde(default, skip_serializing_if = "ConsoleDevice::is_serial")]
    pub device: ConsoleDevice,
}

/// What the kernel's messages come through.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConsoleDevice {
    /// The serial port, which every kernel knows; at least one exit a character.
    #[default]
    Serial,
    /// A virtio console, which there is then.
    Virtio,
}

impl ConsoleDevice {
    fn is_serial(&self) -> bool {
        *self == Self::Serial
    }
}

const fn one() -> u64 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's skip_serializing_if takes a reference")]
const fn is_one(value: &u64) -> bool {
    *value == 1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's skip_serializing_if takes a reference")]
const fn is_zero(value: &u64) -> bool {
    *value == 0
}

const fn default_mem_size_mib() -> u64 {
    128
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's skip_serializing_if takes a reference")]
const fn is_false(value: &bool) -> bool {
    !*value
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRECRACKERS: &str = r#"{
        "boot-source": {"kernel_image_path": "vmlinux", "boot_args": "quiet", "initrd_path": null},
        "drives": [{"drive_id": "rootfs", "path_on_host": "root.ext4", "is_root_device": true,
                    "is_read_only": false, "cache_type": "Unsafe", "io_engine": "Async",
                    "rate_limiter": {"bandwidth": {"size": 1000, "one_time_burst": null, "refill_time": 100}}}],
        "machine-config": {"vcpu_count": 2, "mem_size_mib": 1024, "smt": false, "track_dirty_pages": false,
                           "huge_pages": "2M"},
        "network-interfaces": [{"iface_id": "net1", "guest_mac": "06:00:AC:10:00:02", "host_dev_name": "tap0",
                                "rx_rate_limiter": null, "tx_rate_limiter": {"ops": null}}],
        "vsock": {"guest_cid": 3, "uds_path": "/tmp/v.sock"},
        "entropy": {"rate_limiter": {"ops": {"size": 10, "one_time_burst": 5, "refill_time": 100}}},
        "balloon": {"amount_mib": 64, "deflate_on_oom": true, "stats_polling_interval_s": 0},
        "memory-hotplug": {"total_size_mib": 1024, "block_size_mib": 2, "slot_size_mib": 128}
    }"#;

    #[test]
    fn firecrackers_file_is_understood() {
        let spec: RawSpec = serde_json::from_str(FIRECRACKERS).unwrap();
        assert_eq!(spec.machine_config.vcpu_count, 2);
        assert_eq!(spec.machine_config.huge_pages, HugePages::TwoMiB);
        assert_eq!(spec.drives[0].path_on_host, FileRef::Path("root.ext4".into()));
    }

    #[test]
    fn what_is_booted_may_be_left_to_husk() {
        for text in ["{}", r#"{"boot-source": {"boot_args": "quiet"}}"#] {
            let spec: RawSpec = serde_json::from_str(text).unwrap();
            assert_eq!(spec.boot_source.kernel_image_path, FileRef::default(), "{text}");
        }
    }

    #[test]
    fn an_unknown_key_is_named() {
        let error =
            serde_json::from_str::<RawSpec>(r#"{"boot-source": {"kernel_image_path": "k", "kernel": 1}}"#)
                .unwrap_err()
                .to_string();
        assert!(error.contains("unknown field `kernel`"), "{error}");
    }

    #[test]
    fn a_duplicate_key_is_named() {
        let text = r#"{"boot-source": {"kernel_image_path": "a", "kernel_image_path": "b"}}"#;
        let error = serde_json::from_str::<RawSpec>(text).unwrap_err().to_string();
        assert!(error.contains("duplicate field `kernel_image_path`"), "{error}");
    }

    #[test]
    fn what_is_written_reads_back() {
        let spec: RawSpec = serde_json::from_str(FIRECRACKERS).unwrap();
        let text = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<RawSpec>(&text).unwrap(), spec);
    }
}
