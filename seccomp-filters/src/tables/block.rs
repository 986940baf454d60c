//! A drive's thread: waits for the drive's queues, moves data between guest memory and the drive's one file.
//!
//! Refuses by absence whatever is not a disk's: sockets, opening, and the making or changing of a ring, whose operations pass
//! by every filter.

use crate::rule::Rule;
use crate::tables::form::{any, is, is_long, when};
use crate::values::{F_GETFL, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE, KVM_IRQ_LINE, KVM_SIGNAL_MSI};

/// See the module.
pub(crate) const RULES: &[Rule] = &[
    any("epoll_pwait", "the event loop waits"),
    when("ioctl", &[is(1, KVM_IRQ_LINE)], "the drive's interrupt"),
    when("ioctl", &[is(1, KVM_SIGNAL_MSI)], "the same, of a drive on the PCI bus"),
    any("epoll_ctl", "a worker's queues are watched from its start to its end"),
    any("read", "eventfds: acknowledged interrupts, the loop's commands; a rate limiter's timer"),
    any("timerfd_settime", "a rate limiter says when the drive goes on"),
    any("preadv", "the drive's file into guest memory"),
    any("pwritev", "from guest memory into the drive's file"),
    any("fdatasync", "the guest flushes the drive"),
    when("fallocate", &[is(1, FALLOC_PUNCH_HOLE)], "the guest discards a range; never another length"),
    when("fallocate", &[is(1, FALLOC_ZERO_RANGE)], "the guest writes zeros to a range; never another length"),
    any("fstat", "size and kind of a file that is to take the drive's place"),
    any("lseek", "the size of a block device that is to: where its end is"),
    when("fcntl", &[is(1, F_GETFL)], "whether such a file was opened for writing"),
];

/// What a drive with a ring does on top.
pub(crate) const RING: &[Rule] = &[when(
    "io_uring_enter",
    &[is(2, 0), is(3, 0), is_long(4, 0)],
    "requests go to the drive's ring, which knows one file and four operations; it never waits there",
)];
