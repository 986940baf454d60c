//! What differs between processor architectures, under the same names.
//!
//! Each architecture exports: `memory_ranges`, `images_start`, `after`, `hotplug_start`, `slot`, `pci_windows`, `mmio_window`, `FIRST_IRQ`, `LAST_IRQ`, `cmdline`,
//! `VcpuSetup`, `Entry`, `boot`, `screen`. Refuses to compile where none is. Invariant: nothing outside this module, `kvm`, `sys`
//! and the filters tests
//! the architecture.

#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
pub use x86_64::*;

#[cfg(not(target_arch = "x86_64"))]
compile_error!("husk-runtime runs on x86_64; aarch64 is to come (runtime/src/arch/aarch64)");

/// Where a virtio-mmio device is: what its declaration in the kernel command line says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// Guest address of its registers.
    pub address: u64,
    /// Its interrupt.
    pub irq: u32,
}

/// How the guest finds its virtio devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found<'a> {
    /// Over MMIO, each named on the command line. There is no PCI bus.
    Mmio(&'a [Slot]),
    /// On the PCI bus.
    Pci,
}

impl<'a> Found<'a> {
    /// Those that are named on the command line.
    #[must_use]
    pub fn slots(self) -> &'a [Slot] {
        match self {
            Self::Mmio(slots) => slots,
            Self::Pci => &[],
        }
    }
}
