//! The parts of a machine, each with its own rules.
//!
//! Invariant: fields are private and set by one constructor each, which is where the rules are.

use super::{DEFAULT_CID, LimiterSpec, MAX_MEMORY_MIB, MIN_MEMORY_MIB, SpecError};
use crate::arch::{Found, cmdline};
use crate::memory::Backing;
use husk_protocol::spec::{
    BootProtocol, FileRef, HugePages, RawBalloon, RawBootSource, RawEntropy, RawExec, RawPlacement, RawVsock,
};
use std::num::NonZeroU16;

/// Highest CPU number that a pin may name: what an affinity mask of the kernel's default size holds.
const MAX_CPU: u32 = 1023;
/// vsock context ids: 0 to 2 are reserved, and the device's field for the guest has 32 significant bits (virtio 1.2, 5.10.4).
const CIDS: std::ops::RangeInclusive<u64> = 3..=0xffff_fffe;

/// Guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemorySpec {
    bytes: u64,
    backing: Backing,
}

impl MemorySpec {
    pub(super) fn new(mib: u64, pages: HugePages) -> Result<Self, SpecError> {
        let backing = match pages {
            HugePages::None => Backing::Anonymous,
            HugePages::TwoMiB => Backing::HugeTlb2M,
        };
        let even = backing == Backing::Anonymous || mib.is_multiple_of(2);
        if !(MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&mib) || !even {
            let even =
                if backing == Backing::HugeTlb2M { ", a multiple of 2 with huge_pages 2M" } else { "" };
            return Err(SpecError::OutOfRange {
                key: "machine-config.mem_size_mib".into(),
                value: mib,
                allowed: format!("{MIN_MEMORY_MIB} to {MAX_MEMORY_MIB} MiB{even}"),
            });
        }
        Ok(Self { bytes: mib << 20, backing })
    }

    /// Size in bytes, a multiple of the backing's page.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What it is made of.
    #[must_use]
    pub fn backing(&self) -> Backing {
        self.backing
    }
}

/// What is booted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootSpec {
    kernel: FileRef,
    initrd: Option<FileRef>,
    args: Option<String>,
    protocol: BootProtocol,
}

impl BootSpec {
    /// Whether a kernel with these arguments finds devices on a PCI bus, if they are there.
    pub(super) fn check_pci(&self, pci: bool) -> Result<(), SpecError> {
        let args = self.args.as_deref().filter(|args| pci && cmdline::turns_pci_off(args));
        let allowed = "no pci=off where machine-config.pci is true: the kernel would find no device";
        args.map_or(Ok(()), |args| Err(SpecError::malformed("boot-source.boot_args", args, allowed)))
    }

    pub(super) fn new(raw: RawBootSource) -> Result<Self, SpecError> {
        if let Some(args) = &raw.boot_args {
            cmdline::check(args)?;
            // The devices come on top; that is checked when they are known.
            cmdline::build(args, Found::Pci)?;
        }
        Ok(Self {
            kernel: raw.kernel_image_path,
            initrd: raw.initrd_path,
            args: raw.boot_args,
            protocol: raw.boot_protocol,
        })
    }

    /// The kernel's file.
    #[must_use]
    pub fn kernel(&self) -> &FileRef {
        &self.kernel
    }

    /// The initrd's file.
    #[must_use]
    pub fn initrd(&self) -> Option<&FileRef> {
        self.initrd.as_ref()
    }

    /// The command line without device declarations, one line; `None`: the default.
    #[must_use]
    pub fn args(&self) -> Option<&str> {
        self.args.as_deref()
    }

    /// The entry to take.
    #[must_use]
    pub fn protocol(&self) -> BootProtocol {
        self.protocol
    }
}

/// The vsock device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VsockSpec {
    cid: u32,
    listener: Option<FileRef>,
}

impl VsockSpec {
    pub(super) fn new(raw: Option<RawVsock>, needed: bool) -> Result<Option<Self>, SpecError> {
        match raw {
            None if needed => Ok(Some(Self { cid: DEFAULT_CID, listener: None })),
            None => Ok(None),
            Some(raw) => {
                let cid = u32::try_from(raw.guest_cid).ok().filter(|_| CIDS.contains(&raw.guest_cid));
                let cid = cid.ok_or_else(|| SpecError::OutOfRange {
                    key: "vsock.guest_cid".into(),
                    value: raw.guest_cid,
                    allowed: format!("{} to {}", CIDS.start(), CIDS.end()),
                })?;
                Ok(Some(Self { cid, listener: raw.uds_path }))
            }
        }
    }

    /// The guest's context id, 3 or more.
    #[must_use]
    pub fn cid(&self) -> u32 {
        self.cid
    }

    /// The listening socket for connections from the host.
    #[must_use]
    pub fn listener(&self) -> Option<&FileRef> {
        self.listener.as_ref()
    }
}

/// The entropy device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntropySpec {
    limiter: Option<LimiterSpec>,
}

impl EntropySpec {
    pub(super) fn new(raw: RawEntropy) -> Result<Self, SpecError> {
        Ok(Self { limiter: LimiterSpec::new(raw.rate_limiter, "entropy.rate_limiter")? })
    }

    /// How much the guest gets in a time; `None`: no limit.
    #[must_use]
    pub fn limiter(&self) -> Option<LimiterSpec> {
        self.limiter
    }
}

/// The balloon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BalloonSpec {
    amount_mib: u32,
    deflate_on_oom: bool,
    statistics: Option<NonZeroU16>,
    free_page_reporting: bool,
}

impl BalloonSpec {
    pub(super) fn new(raw: &RawBalloon, memory: MemorySpec) -> Result<Self, SpecError> {
        // What is left is what a guest has at least.
        let most = (memory.bytes() >> 20) - MIN_MEMORY_MIB;
        let fits = u32::try_from(raw.amount_mib).ok().filter(|_| raw.amount_mib <= most);
        let amount_mib = fits.ok_or_else(|| SpecError::OutOfRange {
            key: "balloon.amount_mib".into(),
            value: raw.amount_mib,
            allowed: format!("0 to {most} MiB, {MIN_MEMORY_MIB} less than machine-config.mem_size_mib"),
        })?;
        let interval = u16::try_from(raw.stats_polling_interval_s).map_err(|_| SpecError::OutOfRange {
            key: "balloon.stats_polling_interval_s".into(),
            value: raw.stats_polling_interval_s,
            allowed: format!("0 (never) to {} seconds", u16::MAX),
        })?;
        let statistics = NonZeroU16::new(interval);
        let (deflate_on_oom, free_page_reporting) = (raw.deflate_on_oom, raw.free_page_reporting);
        Ok(Self { amount_mib, deflate_on_oom, statistics, free_page_reporting })
    }

    /// What the guest is asked to do without, in MiB; it keeps [`MIN_MEMORY_MIB`] at least.
    #[must_use]
    pub fn amount_mib(&self) -> u32 {
        self.amount_mib
    }

    /// Whether the guest may take memory back when it runs out.
    #[must_use]
    pub fn deflate_on_oom(&self) -> bool {
        self.deflate_on_oom
    }

    /// Seconds between two statistics of the guest's; `None`: it is not asked.
    #[must_use]
    pub fn statistics(&self) -> Option<NonZeroU16> {
        self.statistics
    }

    /// Whether the guest is asked to say which pages are free.
    #[must_use]
    pub fn free_page_reporting(&self) -> bool {
        self.free_page_reporting
    }
}

/// Where vCPUs and memory go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacementSpec {
    pin: Vec<usize>,
    prefault: bool,
}

impl PlacementSpec {
    pub(super) fn new(raw: Option<RawPlacement>, pages: HugePages, vcpus: u8) -> Result<Self, SpecError> {
        let raw = raw.unwrap_or(RawPlacement { pin: Vec::new(), prefault: false });
        if !raw.pin.is_empty() && raw.pin.len() != usize::from(vcpus) {
            let (length, allowed) = (raw.pin.len(), vcpus.into());
            return Err(SpecError::Length { key: "placement.pin", length, allowed });
        }
        if let Some((index, &cpu)) = raw.pin.iter().enumerate().find(|&(_, &cpu)| cpu > MAX_CPU) {
            return Err(SpecError::OutOfRange {
                key: format!("placement.pin[{index}]"),
                value: cpu.into(),
                allowed: format!("0 to {MAX_CPU}"),
            });
        }
        let pin = raw.pin.into_iter().map(|cpu| cpu as usize).collect();
        Ok(Self { pin, prefault: raw.prefault || pages != HugePages::None })
    }

    /// The host CPU of vCPU `index`; `None`: not pinned.
    #[must_use]
    pub fn cpu(&self, index: u8) -> Option<usize> {
        self.pin.get(usize::from(index)).copied()
    }

    /// Whether memory is populated before the first instruction; huge pages imply it.
    #[must_use]
    pub fn prefault(&self) -> bool {
        self.prefault
    }
}

/// The exec channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecSpec {
    channel: FileRef,
    port: u32,
}

impl ExecSpec {
    pub(super) fn new(raw: RawExec) -> Result<Self, SpecError> {
        // The last is VMADDR_PORT_ANY.
        if raw.port == 0 || raw.port == u32::MAX {
            return Err(SpecError::OutOfRange {
                key: "exec.port".into(),
                value: raw.port.into(),
                allowed: format!("1 to {}", u32::MAX - 1),
            });
        }
        Ok(Self { channel: raw.channel, port: raw.port })
    }

    /// The connected stream socket.
    #[must_use]
    pub fn channel(&self) -> &FileRef {
        &self.channel
    }

    /// The vsock port on CID 2.
    #[must_use]
    pub fn port(&self) -> u32 {
        self.port
    }
}
