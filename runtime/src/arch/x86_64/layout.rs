//! Guest-physical addresses.
//!
//! Owns the map; refuses nothing. Invariant: what is written before boot lies below [`HIMEM`] in memory that the kernel does
//! not take (the boot protocol's low memory), and never in a kernel segment.

use vm_memory::GuestAddress;

/// PVH start info, then its module and memory-map tables; one page with the GDT and the command line, so that a boot
/// touches few pages.
pub(crate) const START_INFO: u64 = 0x6000;
/// The PVH module list: one entry.
pub(crate) const MODULES: u64 = START_INFO + 0x40;
/// The PVH memory map.
pub(crate) const MEMORY_MAP: u64 = START_INFO + 0x80;
/// The global descriptor table of the 64-bit entry.
pub(crate) const GDT: u64 = START_INFO + 0x400;
/// The kernel command line.
pub(crate) const CMDLINE: u64 = START_INFO + 0x800;
/// Bytes of a command line with its terminating zero: `COMMAND_LINE_SIZE` of Linux on x86.
pub const CMDLINE_BYTES: usize = 2048;
/// `boot_params`, the "zero page".
pub(crate) const ZERO_PAGE: u64 = 0x7000;
/// Page tables of the 64-bit entry: level 4, level 3, level 2.
pub(crate) const PML4: u64 = 0x9000;
/// Level 3.
pub(crate) const PDPT: u64 = 0xa000;
/// Level 2: 512 pages of 2 MiB.
pub(crate) const PD: u64 = 0xb000;
/// Bytes that the page tables map one to one.
pub(crate) const IDENTITY_MAPPED: u64 = 1 << 30;

/// End of low memory and place of the MP tables: the last KiB below 640 KiB, where Linux looks for them.
pub(crate) const MP_TABLE: u64 = 0x9fc00;
/// Bytes for the MP tables.
#[cfg(test)]
pub(crate) const MP_TABLE_BYTES: usize = 0x400;
/// Start of high memory; kernels and initrds go here and above.
pub const HIMEM: u64 = 0x10_0000;

/// RAM ends here and goes on at [`GAP_END`].
pub const GAP_START: u64 = 3 << 30;
/// End of the hole for memory-mapped devices.
pub const GAP_END: u64 = 4 << 30;
/// Linux keeps its books of memory in sections of this size, and adds memory that shares none with other memory most easily.
const SECTION: u64 = 128 << 20;
/// The largest unit in which Linux adds memory on x86, for guests of 64 GiB and more; for others it is [`SECTION`].
const LARGEST_UNIT: u64 = 2 << 30;
/// The virtio-mmio windows, one after the other.
pub(super) const MMIO_START: u64 = 0xd000_0000;
/// Bytes of a virtio-mmio window.
pub const MMIO_BYTES: u64 = 0x1000;
/// Interrupts of virtio-mmio devices: what a PC leaves free, up to the I/O APIC's last pin. The last are given first: those from
/// 16 on are the I/O APIC's alone, so that KVM need not raise a pin of the old controllers too.
pub(super) const FIRST_IRQ: u32 = 5;
/// The I/O APIC's last pin.
pub(super) const LAST_IRQ: u32 = 23;
/// Most virtio devices, whatever they are found by.
pub const MAX_SLOTS: usize = (LAST_IRQ - FIRST_IRQ + 1) as usize;

/// Ports of devices on the PCI bus, above all that a PC has of old, and how many each has.
const PCI_PORTS_START: u16 = 0x1000;
const PCI_PORTS: u16 = 0x100;

/// Local APICs.
pub(crate) const LAPIC: u32 = 0xfee0_0000;
/// The I/O APIC.
pub(crate) const IOAPIC: u32 = 0xfec0_0000;

/// First port of the serial port, and its interrupt.
pub const SERIAL_PORT: u64 = 0x3f8;
/// Interrupt of the serial port.
pub const SERIAL_IRQ: u32 = 4;
/// Ports 0x60 to 0x64 of the keyboard controller, which resets the machine.
pub const I8042_PORT: u64 = 0x60;

/// The RAM of a guest with `bytes` of memory: (address, bytes), ascending.
#[must_use]
pub fn memory_ranges(bytes: u64) -> Vec<(GuestAddress, usize)> {
    let low = bytes.min(GAP_START);
    let pieces = [(0, low), (GAP_END, bytes - low)];
    pieces
        .into_iter()
        .filter(|&(_, length)| length > 0)
        .map(|(start, length)| (GuestAddress(start), usize::try_from(length).unwrap_or(usize::MAX)))
        .collect()
}

/// Where the first image of a guest with `bytes` of memory lies: above its RAM and the gap.
#[must_use]
pub fn images_start(bytes: u64) -> u64 {
    after((GAP_END + bytes).saturating_sub(GAP_START).max(GAP_END))
}

/// Where an image may lie whose predecessor ends at `end`.
#[must_use]
pub fn after(end: u64) -> u64 {
    end.next_multiple_of(SECTION)
}

/// Where memory lies that is plugged in while the guest runs, if everything else ends at `end`.
#[must_use]
pub fn hotplug_start(end: u64) -> u64 {
    end.max(GAP_END).next_multiple_of(LARGEST_UNIT)
}

/// Slot number `index` for a virtio-mmio device; `None` past the last one.
#[must_use]
pub fn slot(index: usize) -> Option<super::super::Slot> {
    let offset = u32::try_from(index).ok().filter(|_| index < MAX_SLOTS)?;
    let address = MMIO_START + MMIO_BYTES * u64::from(offset);
    Some(super::super::Slot { address, irq: LAST_IRQ - offset })
}

/// Ports and memory of number `index` of the devices on the PCI bus, as a PC's firmware would have given them out: its first port
/// and the address of its page; `None` past the last one.
#[must_use]
pub fn pci_windows(index: usize) -> Option<(u16, u32)> {
    let index = u16::try_from(index).ok().filter(|_| index < MAX_SLOTS)?;
    let page = u32::try_from(MMIO_START + MMIO_BYTES * u64::from(index)).ok()?;
    Some((PCI_PORTS_START + PCI_PORTS * index, page))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pci_devices_have_windows_of_their_own() {
        assert_eq!(pci_windows(0), Some((0x1000, 0xd000_0000)));
        assert_eq!(pci_windows(18), Some((0x2200, 0xd001_2000)));
        assert_eq!(pci_windows(19), None);
    }

    #[test]
    fn memory_stops_at_the_gap_and_goes_on_after_it() {
        assert_eq!(memory_ranges(128 << 20), [(GuestAddress(0), 128 << 20)]);
        assert_eq!(memory_ranges(GAP_START), [(GuestAddress(0), 3 << 30)]);
        assert_eq!(memory_ranges(4 << 30), [(GuestAddress(0), 3 << 30), (GuestAddress(GAP_END), 1 << 30)]);
    }

    #[test]
    fn images_lie_above_memory_and_gap() {
        assert_eq!(images_start(128 << 20), GAP_END);
        assert_eq!(images_start(GAP_START), GAP_END);
        assert_eq!(images_start(GAP_START + 1), GAP_END + SECTION);
        assert_eq!(images_start(512 << 30), (513 << 30));
        assert_eq!((after(GAP_END + 1), after(GAP_END)), (GAP_END + SECTION, GAP_END));
    }

    #[test]
    fn memory_that_comes_later_lies_above_everything() {
        assert_eq!(hotplug_start(0), GAP_END);
        assert_eq!(hotplug_start(GAP_END + 1), GAP_END + LARGEST_UNIT);
    }

    #[test]
    fn there_are_nineteen_slots() {
        let first = slot(0).unwrap();
        assert_eq!((first.address, first.irq), (0xd000_0000, 23));
        let last = slot(18).unwrap();
        assert_eq!((last.address, last.irq), (0xd001_2000, 5));
        assert_eq!(slot(19), None);
    }
}
