//! What the guest's CPUID says: KVM's answer with identity and topology put in.
//!
//! Owns the few bits that differ per vCPU or that KVM leaves to its user (Linux: Documentation/virt/kvm/x86/cpuid.rst
//! and errata.rst). Invariant: no feature is added that KVM did not offer, but for those that KVM documents
//! as its user's to add (TSC deadline, hypervisor present).

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// The table for vCPU `index` of `vcpus`, made from what KVM supports: one package, one thread a core.
pub(super) fn adapt(supported: &CpuId, index: u8, vcpus: u8, tsc_deadline: bool) -> CpuId {
    let mut table = supported.clone();
    for entry in table.as_mut_slice() {
        match entry.function {
            0x1 => features(entry, index, vcpus, tsc_deadline),
            0x4 | 0x8000_001d => cache_sharing(entry, vcpus),
            // Always running APIC timer: it does not stop in deep sleep, because a vCPU has none.
            0x6 => entry.eax = 1 << 2,
            // No performance counters: they are neither saved nor shared fairly.
            0xa => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
            0xb | 0x1f => topology(entry, index, vcpus),
            0x8000_0001 => entry.ecx &= !(AMD_PERFORMANCE_COUNTERS | SVM),
            // What SVM can do.
            0x8000_000a => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
            0x8000_0008 => {
                // Core count minus one, and the bits of an APIC id that number cores.
                entry.ecx = (u32::from(vcpus) - 1) | id_bits(vcpus) << 12;
            }
            0x8000_001e => {
                // Extended APIC id; one thread a core, this core; one node.
                entry.eax = index.into();
                entry.ebx = index.into();
                entry.ecx = 0;
            }
            _ => {}
        }
    }
    table
}

/// `PerfCtrExtCore`, `PerfCtrExtNB`, `PerfTsc`, `PerfCtrExtLLC` in 0x80000001 ECX.
const AMD_PERFORMANCE_COUNTERS: u32 = 1 << 23 | 1 << 24 | 1 << 27 | 1 << 28;

/// AMD's virtualization, in 0x80000001 ECX. A guest that is not told of it cannot turn it on: KVM refuses EFER.SVME, and
/// with it stays shut the part of KVM that plays a processor's virtualization to a guest.
const SVM: u32 = 1 << 2;
/// Intel's, in leaf 1 ECX; KVM refuses CR4.VMXE.
const VMX: u32 = 1 << 5;

/// Leaf 1: APIC id, logical processors; TSC deadline and hypervisor bits; no virtualization.
fn features(entry: &mut kvm_cpuid_entry2, index: u8, vcpus: u8, tsc_deadline: bool) {
    const TSC_DEADLINE: u32 = 1 << 24;
    const HYPERVISOR: u32 = 1 << 31;
    const HTT: u32 = 1 << 28;
    const PDCM: u32 = 1 << 15;
    entry.ebx = u32::from(index) << 24 | u32::from(vcpus) << 16 | entry.ebx & 0xffff;
    entry.ecx =
        entry.ecx & !(TSC_DEADLINE | PDCM | VMX) | HYPERVISOR | if tsc_deadline { TSC_DEADLINE } else { 0 };
    entry.edx = if vcpus > 1 { entry.edx | HTT } else { entry.edx & !HTT };
}

/// Leaves 4 and 0x8000001D: which vCPUs share a cache. Levels 1 and 2 are a core's own, level 3 is the package's.
fn cache_sharing(entry: &mut kvm_cpuid_entry2, vcpus: u8) {
    let level = entry.eax >> 5 & 7;
    let sharing = if level >= 3 { (1 << id_bits(vcpus)) - 1 } else { 0 };
    entry.eax = entry.eax & !(0xfff << 14) | sharing << 14;
    if entry.function == 0x4 {
        entry.eax = entry.eax & !(0x3f << 26) | ((1 << id_bits(vcpus)) - 1) << 26;
    }
}

/// Leaves 0xB and 0x1F: level 0 are threads (one), level 1 are cores.
fn topology(entry: &mut kvm_cpuid_entry2, index: u8, vcpus: u8) {
    const THREADS: u32 = 1;
    const CORES: u32 = 2;
    entry.flags |= KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
    entry.edx = index.into();
    (entry.eax, entry.ebx, entry.ecx) = match entry.index {
        0 => (0, 1, THREADS << 8),
        1 => (id_bits(vcpus), vcpus.into(), CORES << 8 | 1),
        level => (0, 0, level),
    };
}

/// Bits that number `vcpus` APIC ids.
fn id_bits(vcpus: u8) -> u32 {
    vcpus.next_power_of_two().trailing_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> CpuId {
        let leaf = |function, index| kvm_cpuid_entry2 {
            function,
            index,
            eax: 0xffff_ffff,
            ebx: 0xffff_ffff,
            ecx: 0xffff_ffff,
            edx: 0xffff_ffff,
            ..Default::default()
        };
        let leaves = [
            (1, 0),
            (4, 0),
            (6, 0),
            (0xa, 0),
            (0xb, 0),
            (0xb, 1),
            (0xb, 2),
            (0x8000_0001, 0),
            (0x8000_0008, 0),
            (0x8000_000a, 0),
            (7, 0),
        ];
        CpuId::from_entries(&leaves.map(|(function, index)| leaf(function, index))).unwrap()
    }

    fn leaf(table: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        *table.as_slice().iter().find(|e| e.function == function && e.index == index).unwrap()
    }

    #[test]
    fn each_vcpu_has_its_own_id() {
        for index in 0..3 {
            let table = adapt(&table(), index, 3, true);
            assert_eq!(leaf(&table, 1, 0).ebx >> 24, u32::from(index));
            assert_eq!(leaf(&table, 1, 0).ebx >> 16 & 0xff, 3);
            assert_eq!(leaf(&table, 0xb, 0).edx, u32::from(index));
            assert_eq!(leaf(&table, 0xb, 1).eax, 2);
            assert_eq!(leaf(&table, 0xb, 1).ebx, 3);
            assert_eq!(leaf(&table, 0xb, 2).ebx, 0);
            assert_eq!(leaf(&table, 0x8000_0008, 0).ecx, 2 | 2 << 12);
        }
    }

    #[test]
    fn no_virtualization_is_offered() {
        let table = adapt(&table(), 0, 1, true);
        assert_eq!(leaf(&table, 1, 0).ecx & VMX, 0);
        assert_eq!(leaf(&table, 0x8000_0001, 0).ecx & SVM, 0);
        let abilities = leaf(&table, 0x8000_000a, 0);
        assert_eq!((abilities.eax, abilities.ebx, abilities.edx), (0, 0, 0));
    }

    #[test]
    fn the_deadline_timer_is_there_only_if_kvm_has_it() {
        let ecx = |offered| leaf(&adapt(&table(), 0, 1, offered), 1, 0).ecx;
        assert_eq!(ecx(true) >> 24 & 1, 1);
        assert_eq!(ecx(false) >> 24 & 1, 0);
        assert_eq!(ecx(false) >> 31, 1);
    }

    #[test]
    fn a_single_vcpu_has_no_siblings() {
        let table = adapt(&table(), 0, 1, true);
        assert_eq!(leaf(&table, 1, 0).edx >> 28 & 1, 0);
        assert_eq!(leaf(&table, 4, 0).eax >> 26, 0);
        assert_eq!(leaf(&table, 0xa, 0).eax, 0);
        assert_eq!(leaf(&table, 6, 0).eax, 4);
        assert_eq!(leaf(&table, 7, 0).ebx, u32::MAX, "other leaves are KVM's");
    }
}
