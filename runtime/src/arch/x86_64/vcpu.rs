//! The state that a vCPU starts with: CPUID, MSRs and, for the first, the registers of the kernel's entry.
//!
//! Owns nothing that lives on. KVM's own reset state serves where it is right (x87 control word 0x37f and MXCSR 0x1f80; the
//! first vCPU's local APIC passes external interrupts through LINT0; the others wait for INIT): it is not set again.
//! Invariant: the 64-bit registers refer to the tables that [`super::boot`] writes.

use super::boot::Entry;
use super::cpuid;
use super::gdt::{CODE_32, CODE_64, DATA, TSS, segment};
use super::layout::{GDT, PML4, START_INFO, ZERO_PAGE};
use crate::kvm::{Hypervisor, KvmError, call};
use crate::sys::monotonic_ns;
use husk_protocol::control::FromCell;
use kvm_bindings::{CpuId, Msrs, kvm_msr_entry, kvm_regs, kvm_sregs};
use kvm_ioctls::VcpuFd;

mod msr {
    pub(super) const IA32_TSC: u32 = 0x10;
    pub(super) const IA32_MISC_ENABLE: u32 = 0x1a0;
    pub(super) const MTRR_DEF_TYPE: u32 = 0x2ff;
}

/// `IA32_MISC_ENABLE`: fast string operations (Intel SDM volume 4); without it Linux takes the slow copies.
const FAST_STRINGS: u64 = 1;
/// `IA32_MTRR_DEF_TYPE`: enabled, memory is write-back where no range says otherwise.
const WRITE_BACK: u64 = 1 << 11 | 6;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Bit 1 of the flags register is always set.
const RFLAGS: u64 = 2;

/// Selectors of the boot protocols: `__BOOT_CS` is 0x10, `__BOOT_DS` is 0x18 (Linux: Documentation/arch/x86/boot.rst).
const CODE: u16 = 2;
const DATA_SELECTOR: u16 = 3;
const TASK: u16 = 4;

/// What is the same for all vCPUs of a machine.
#[derive(Debug)]
pub struct VcpuSetup {
    supported: CpuId,
    tsc_deadline: bool,
    vcpus: u8,
}

impl VcpuSetup {
    /// Asks KVM once for what `vcpus` vCPUs are set up with.
    ///
    /// # Errors
    /// What KVM says.
    pub fn new(hypervisor: &Hypervisor, vcpus: u8) -> Result<Self, KvmError> {
        let supported = hypervisor.supported_cpuid()?;
        Ok(Self { supported, tsc_deadline: hypervisor.has_tsc_deadline(), vcpus })
    }

    /// Gives vCPU `index` its CPUID and MSRs.
    ///
    /// # Errors
    /// What KVM says.
    pub fn apply(&self, vcpu: &VcpuFd, index: u8) -> Result<(), KvmError> {
        let table = cpuid::adapt(&self.supported, index, self.vcpus, self.tsc_deadline);
        vcpu.set_cpuid2(&table).map_err(call("KVM_SET_CPUID2"))?;
        // KVM stops at the first that it does not know and keeps its default: the guest is slower, not wrong.
        let entries = msrs(&[(msr::MTRR_DEF_TYPE, WRITE_BACK), (msr::IA32_MISC_ENABLE, FAST_STRINGS)])?;
        vcpu.set_msrs(&entries).map_err(call("KVM_SET_MSRS"))?;
        Ok(())
    }
}

fn msrs(values: &[(u32, u64)]) -> Result<Msrs, KvmError> {
    let entries = values.iter().map(|&(index, data)| kvm_msr_entry { index, data, ..Default::default() });
    Msrs::from_entries(&entries.collect::<Vec<_>>()).map_err(|_| KvmError::Call {
        call: "KVM_SET_MSRS".into(),
        source: kvm_ioctls::Error::new(libc::E2BIG),
    })
}

/// Sets the first vCPU to the kernel's entry.
///
/// # Errors
/// What KVM says.
pub fn set_entry(vcpu: &VcpuFd, entry: Entry) -> Result<(), KvmError> {
    let mut sregs = vcpu.get_sregs().map_err(call("KVM_GET_SREGS"))?;
    let regs = match entry {
        Entry::Linux64 { address } => {
            long_mode(&mut sregs);
            kvm_regs { rflags: RFLAGS, rip: address, rsi: ZERO_PAGE, ..Default::default() }
        }
        Entry::Pvh { address } => {
            protected_mode(&mut sregs);
            kvm_regs { rflags: RFLAGS, rip: address.into(), rbx: START_INFO, ..Default::default() }
        }
    };
    vcpu.set_sregs(&sregs).map_err(call("KVM_SET_SREGS"))?;
    vcpu.set_regs(&regs).map_err(call("KVM_SET_REGS"))
}

/// Linux' 64-bit boot protocol: paging on, the first GiB mapped one to one, flat segments.
fn long_mode(sregs: &mut kvm_sregs) {
    sregs.gdt.base = GDT;
    sregs.gdt.limit = 5 * 8 - 1;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    segments(sregs, CODE_64);
    sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
    sregs.cr3 = PML4;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LME | EFER_LMA;
}

/// The PVH boot protocol (Xen: docs/misc/pvh.pandoc): protected mode without paging, flat segments.
fn protected_mode(sregs: &mut kvm_sregs) {
    segments(sregs, CODE_32);
    sregs.cr0 = CR0_PE | CR0_ET;
    sregs.cr4 = 0;
    sregs.efer = 0;
}

fn segments(sregs: &mut kvm_sregs, code: super::gdt::Flags) {
    sregs.cs = segment(code, CODE, u32::MAX);
    let data = segment(DATA, DATA_SELECTOR, u32::MAX);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = segment(TSS, TASK, 0x67);
}

/// The guest's clock next to the host's; before the vCPU runs.
///
/// # Errors
/// What KVM says.
pub fn guest_clock(vcpu: &VcpuFd) -> Result<FromCell, KvmError> {
    let khz = vcpu.get_tsc_khz().map_err(call("KVM_GET_TSC_KHZ"))?;
    let mut counter = msrs(&[(msr::IA32_TSC, 0)])?;
    let before = monotonic_ns();
    vcpu.get_msrs(&mut counter).map_err(call("KVM_GET_MSRS"))?;
    let after = monotonic_ns();
    let ticks = counter.as_slice().first().map_or(0, |entry| entry.data);
    Ok(FromCell::GuestClock { ticks, hz: u64::from(khz) * 1000, at_ns: u64::midpoint(before, after) })
}
