//! The device thread: waits for queues and sockets, moves data between guest memory and descriptors that it has.
//!
//! Refuses by absence: files (a drive has a thread of its own), making sockets, connecting, opening; a descriptor that it
//! lacks must come from husk.

use crate::rule::Rule;
use crate::tables::form::{any, is, is_long, when, within_int};
use crate::values::{
    CLOEXEC_NONBLOCK, KVM_IRQ_LINE, KVM_SIGNAL_MSI, MADV_DONTNEED, MADV_HUGEPAGE, MADV_NOHUGEPAGE,
    MSG_FLAGS_RECEIVE, TUNSETOFFLOAD,
};

/// See the module.
pub(crate) const RULES: &[Rule] = &[
    any("epoll_pwait", "the event loop waits"),
    when("ioctl", &[is(1, KVM_IRQ_LINE)], "devices' interrupts"),
    when("ioctl", &[is(1, KVM_SIGNAL_MSI)], "the same, of devices on the PCI bus"),
    any("epoll_ctl", "a connection's interest changes, begins and ends"),
    any("read", "eventfds and timers; a connection"),
    any("ppoll", "whether the console's descriptor takes bytes now; it does not wait for its reader"),
    any("readv", "from a connection or a tap into guest memory"),
    any("writev", "a guest's frame into a tap"),
    when(
        "recvfrom",
        &[within_int(3, MSG_FLAGS_RECEIVE), is_long(4, 0)],
        "from a connection, and frames from a network that is a process; nobody asks who sent them",
    ),
    any("recvmsg", "from a connection into guest memory"),
    any(
        "sendmsg",
        "from guest memory into a connection or to such a network; a request to husk for a host port",
    ),
    when("accept4", &[within_int(3, CLOEXEC_NONBLOCK)], "a host program connects to the vsock listener"),
    any("shutdown", "one direction of a connection ends"),
    when("madvise", &[is(2, MADV_DONTNEED)], "memory in the balloon goes back to the host"),
    when("madvise", &[is(2, MADV_NOHUGEPAGE)], "and no huge page takes it again"),
    when("madvise", &[is(2, MADV_HUGEPAGE)], "until the guest wants it back"),
    when(
        "ioctl",
        &[is(1, TUNSETOFFLOAD)],
        "a tap is told what the guest's driver takes, where that is not everything",
    ),
    any("timerfd_settime", "a connection's deadline; a rate limiter says when a device goes on"),
    any(
        "getrandom",
        "the guest asks its entropy device for bytes; the seed of a hash map's keys, once a thread",
    ),
];
