//! The tables of Intel's MultiProcessor Specification 1.4, from which a kernel without ACPI learns of CPUs and interrupts.
//!
//! Owns their bytes. Names only the interrupts that a device has: for each, Linux writes an entry of the I/O APIC, and each such
//! write is an exit. Invariant: every table's checksum makes the sum of its bytes zero, and all tables together fit the
//! last KiB of low memory for up to 32 vCPUs.

use super::layout::{IOAPIC, LAPIC, MP_TABLE};

/// Version 1.4 of the specification.
const SPEC_REVISION: u8 = 4;
/// Version of the integrated APICs.
const APIC_VERSION: u8 = 0x14;
/// The ISA bus, the only one.
const BUS: u8 = 0;

/// Entry types (chapter 4.3).
mod entry {
    pub(super) const PROCESSOR: u8 = 0;
    pub(super) const BUS: u8 = 1;
    pub(super) const IOAPIC: u8 = 2;
    pub(super) const INTERRUPT: u8 = 3;
    pub(super) const LOCAL_INTERRUPT: u8 = 4;
}

/// Interrupt types (table 4-10).
mod kind {
    pub(super) const INT: u8 = 0;
    pub(super) const NMI: u8 = 1;
    pub(super) const EXT_INT: u8 = 3;
}

/// The floating pointer structure and the configuration table behind it, as they lie at [`MP_TABLE`]; `irqs` are those of the
/// devices, all below 24.
pub(super) fn build(vcpus: u8, irqs: &[u8]) -> Vec<u8> {
    let ioapic_id = vcpus;
    let mut entries = Vec::with_capacity(1024);
    for id in 0..vcpus {
        // Enabled; the first is the boot processor.
        let flags = if id == 0 { 3 } else { 1 };
        entries.extend([entry::PROCESSOR, id, APIC_VERSION, flags]);
        // Signature: family 6; features: on-chip APIC and FPU. Linux reads CPUID instead.
        entries.extend(0x600_u32.to_le_bytes());
        entries.extend(0x201_u32.to_le_bytes());
        entries.extend([0; 8]);
    }
    entries.extend([entry::BUS, BUS]);
    entries.extend(b"ISA   ");
    entries.extend([entry::IOAPIC, ioapic_id, APIC_VERSION, 1]);
    entries.extend(IOAPIC.to_le_bytes());
    for &irq in irqs {
        entries.extend([entry::INTERRUPT, kind::INT, 0, 0, BUS, irq, ioapic_id, irq]);
    }
    entries.extend([entry::LOCAL_INTERRUPT, kind::EXT_INT, 0, 0, BUS, 0, 0, 0]);
    entries.extend([entry::LOCAL_INTERRUPT, kind::NMI, 0, 0, BUS, 0, 0xff, 1]);

    let count = u16::from(vcpus) + 1 + 1 + u16::try_from(irqs.len()).unwrap_or(u16::MAX) + 2;
    let table = with_checksum(configuration(entries, count), 7);
    let mut all = floating_pointer();
    all.extend(table);
    all
}

/// Chapter 4.1.
fn floating_pointer() -> Vec<u8> {
    let mut bytes = b"_MP_".to_vec();
    let table = u32::try_from(MP_TABLE).unwrap_or(u32::MAX) + 16;
    bytes.extend(table.to_le_bytes());
    // Length in paragraphs, revision, checksum, five feature bytes: a configuration table is there.
    bytes.extend([1, SPEC_REVISION, 0, 0, 0, 0, 0, 0]);
    with_checksum(bytes, 10)
}

/// Chapter 4.2.
fn configuration(entries: Vec<u8>, count: u16) -> Vec<u8> {
    let length = u16::try_from(44 + entries.len()).unwrap_or(u16::MAX);
    let mut bytes = b"PCMP".to_vec();
    bytes.extend(length.to_le_bytes());
    bytes.extend([SPEC_REVISION, 0]);
    bytes.extend(b"HUSK    HUSK-MICROVM");
    // No OEM table.
    bytes.extend([0; 6]);
    bytes.extend(count.to_le_bytes());
    bytes.extend(LAPIC.to_le_bytes());
    // No extended table.
    bytes.extend([0; 4]);
    bytes.extend(entries);
    bytes
}

fn with_checksum(mut bytes: Vec<u8>, at: usize) -> Vec<u8> {
    let sum = bytes.iter().fold(0_u8, |sum, &byte| sum.wrapping_add(byte));
    bytes[at] = sum.wrapping_neg();
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::x86_64::layout::MP_TABLE_BYTES;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum: u8, &byte| sum.wrapping_add(byte))
    }

    #[test]
    fn the_tables_fit_and_sum_to_zero() {
        let all: Vec<u8> = (0..24).collect();
        for vcpus in [1, 2, 31, 32] {
            let bytes = build(vcpus, &all);
            assert!(bytes.len() <= MP_TABLE_BYTES, "{} bytes for {vcpus}", bytes.len());
            assert_eq!(sum(&bytes[..16]), 0);
            assert_eq!(sum(&bytes[16..]), 0);
        }
    }

    #[test]
    fn entries_are_as_many_and_as_long_as_the_header_says() {
        let bytes = build(2, &[4, 5, 6]);
        let table = &bytes[16..];
        let length = u16::from_le_bytes([table[4], table[5]]);
        assert_eq!(usize::from(length), table.len());
        let count = u16::from_le_bytes([table[34], table[35]]);
        let (mut at, mut seen) = (44, 0);
        while at < table.len() {
            at += if table[at] == entry::PROCESSOR { 20 } else { 8 };
            seen += 1;
        }
        assert_eq!((at, seen), (table.len(), count));
    }

    #[test]
    fn the_pointer_points_behind_itself() {
        let bytes = build(1, &[]);
        assert_eq!(&bytes[..4], b"_MP_");
        assert_eq!(bytes[4..8], 0x9fc10_u32.to_le_bytes());
        assert_eq!(&bytes[16..20], b"PCMP");
    }
}
