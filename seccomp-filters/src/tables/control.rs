//! The main thread once the guest runs: hears husk, the vCPUs' ends and its own timers; stops the machine.
//!
//! Refuses by absence whatever builds: no thread, no mapping of a file, no KVM call but an interrupt.

use crate::rule::Rule;
use crate::tables::form::{any, is, when};
use crate::values::{KVM_IRQ_LINE, KVM_SIGNAL_MSI, VCPU_KICK_SIGNAL};

/// See the module.
pub(crate) const RULES: &[Rule] = &[
    any("epoll_pwait", "waits for husk and for the vCPUs"),
    any("read", "eventfds: the ends of vCPUs, the guest's reset"),
    any("recvmsg", "a message of husk, with its descriptors"),
    when("tkill", &[is(1, VCPU_KICK_SIGNAL)], "takes a vCPU thread out of the guest; no other signal"),
    when("ioctl", &[is(1, KVM_IRQ_LINE)], "tells the guest that another amount of memory is asked for"),
    when("ioctl", &[is(1, KVM_SIGNAL_MSI)], "the same, of a memory device on the PCI bus"),
];
