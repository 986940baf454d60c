//! A vCPU thread: enter the guest, hand what comes out to a device, wait while paused.
//!
//! Refuses by absence every ioctl but the named ones: a hostile device model cannot rewire the machine from here.

use crate::rule::{Arch, Rule};
use crate::tables::form::{any, is, only, when};
use crate::values::{KVM_GET_REGS, KVM_IRQ_LINE, KVM_RUN, KVM_SIGNAL_MSI};

/// See the module. `KVM_RUN` stands first: it is the hot one.
pub(crate) const RULES: &[Rule] = &[
    when("ioctl", &[is(1, KVM_RUN)], "enters the guest"),
    when("ioctl", &[is(1, KVM_IRQ_LINE)], "a device that cannot start says so by its interrupt"),
    when(
        "ioctl",
        &[is(1, KVM_SIGNAL_MSI)],
        "the same on the PCI bus; the guest unmasks an interrupt that has been waiting",
    ),
    only(
        Arch::X86_64,
        when(
            "ioctl",
            &[is(1, KVM_GET_REGS)],
            "the report of a guest that cannot go on names its instruction pointer",
        ),
    ),
    any("read", "an eventfd that releases or wakes the vCPU; which interrupts the guest has acknowledged"),
    any("ppoll", "whether the console's descriptor takes bytes; a bounded wait for its reader, once"),
];
