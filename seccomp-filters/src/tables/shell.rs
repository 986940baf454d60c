//! What only the first phase does, before anything that came from outside is read: take the start message, look at the
//! descriptors that came with it, and make the virtual machine, its interrupt controllers and its vCPUs.
//!
//! Refuses by absence what no phase of the runtime does: opening any path, sockets, executing, new processes,
//! namespaces, executable memory, ptrace, bpf, keys, and signal handlers, which are installed before.

use crate::rule::Rule;
use crate::tables::form::{arm, is, is_long, kvm, when, within, x86};
use crate::values::*;

/// See the module.
pub(crate) const RULES: &[Rule] = &[
    kvm(&[is(1, KVM_GET_API_VERSION)], "is this KVM"),
    kvm(&[is(1, KVM_GET_VCPU_MMAP_SIZE)], "how much of a vCPU is shared with it"),
    kvm(&[is(1, KVM_CREATE_VM)], "the machine"),
    kvm(&[is(1, KVM_CREATE_VCPU)], "the vCPUs of the machine"),
    x86(&[is(1, KVM_GET_SUPPORTED_CPUID)], "the CPU that the guest sees starts from this one"),
    x86(&[is(1, KVM_SET_CPUID2)], "the CPU that the guest sees"),
    x86(&[is(1, KVM_SET_TSS_ADDR)], "three pages that Intel hosts need for real mode"),
    x86(&[is(1, KVM_CREATE_IRQCHIP)], "interrupt controllers in the kernel"),
    x86(&[is(1, KVM_SET_MSRS)], "registers that the boot protocol expects"),
    arm(&[is(1, KVM_CREATE_DEVICE)], "the interrupt controller"),
    arm(&[is(1, KVM_SET_DEVICE_ATTR)], "its addresses and lines"),
    arm(&[is(1, KVM_ARM_PREFERRED_TARGET)], "which vCPU this host makes"),
    arm(&[is(1, KVM_ARM_VCPU_INIT)], "makes a vCPU of that kind"),
    when(
        "mmap",
        &[within(1, SHARED_PAGES), within(2, PROT_READ_WRITE), is_long(3, MAP_SHARED)],
        "the vCPUs' shared pages; too small for a file of any worth",
    ),
    when(
        "getsockopt",
        &[is(1, SOL_SOCKET), is(2, SO_DOMAIN)],
        "whether a socket that came along is of its role's kind",
    ),
    when("getsockopt", &[is(1, SOL_SOCKET), is(2, SO_TYPE)], "the same: a stream"),
    when("getsockopt", &[is(1, SOL_SOCKET), is(2, SO_ACCEPTCONN)], "the same: listening or connected"),
];
