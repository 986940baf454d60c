//! x86-64: a PC without PIT and ACPI, and without PCI unless it is asked for.
//!
//! Owns everything that a kernel of this architecture expects to find: the memory map, CPUID, the first vCPU's registers,
//! MP tables, boot parameters, and the command line. Invariant: the tables are written by [`boot::write`] and nowhere else.

pub mod boot;
pub mod cmdline;
mod cpuid;
mod gdt;
mod layout;
mod mptable;
pub mod screen;
mod vcpu;

/// `EM_X86_64`: the machine that an ELF kernel is for.
pub const ELF_MACHINE: u16 = 62;

pub use boot::{Entry, Loaded};
pub use layout::{
    CMDLINE_BYTES, GAP_END, GAP_START, HIMEM, I8042_PORT, MAX_SLOTS, MMIO_BYTES, SERIAL_IRQ, SERIAL_PORT,
    after, hotplug_start, images_start, memory_ranges, pci_windows, slot,
};
pub use vcpu::{VcpuSetup, guest_clock, set_entry};
