//! A volume's server: takes messages from its one socket, and does below its root what they ask for.
//!
//! Refuses by absence: making sockets, processes and threads, executing, mounting, and, where the volume is read-only, all
//! that changes a file, whatever the server believes. What is opened lies below the root, which is the volume.

use crate::rule::Rule;
use crate::tables::form::{any, is, is_long, when};
use crate::values::F_SETFL;

/// What serving a read-only volume takes.
pub(crate) const RULES: &[Rule] = &[
    when(
        "recvfrom",
        &[is(3, 0), is_long(4, 0)],
        "the next message, as Rust's library asks; nobody asks who sent it",
    ),
    any("writev", "the answer: its header and its content"),
    any("openat", "a name is looked up, a file or directory opened"),
    any("statx", "attributes of what was looked up"),
    any("newfstatat", "the same, by the C library"),
    any("fstat", "the same, of an open file"),
    any("readlinkat", "the target of a symbolic link, which the guest resolves"),
    any("getdents64", "the entries of a directory"),
    any("lseek", "to the entry that the guest has got to; to data and holes"),
    any("preadv", "a file's content into the answer"),
    any("fstatfs", "how full the file system is"),
    any("dup", "a flush is the close of a duplicate"),
    when("fcntl", &[is(1, F_SETFL)], "the guest changed the flags of an open file"),
    any("fsync", "the guest wants it on the disk"),
    any("fdatasync", "the same, without the attributes"),
    any("umask", "modes are the guest's to mask; set when the root is opened"),
    any("getrandom", "the seed of a hash map's keys"),
    any("sigaltstack", "Rust's library takes the main thread's signal stack down at the end"),
];

/// What changes come on top.
pub(crate) const CHANGES: &[Rule] = &[
    any("pwritev", "content from the message into the file"),
    any("fallocate", "room for a file, or a hole in it"),
    any("ftruncate", "the length of a file"),
    any("mkdirat", "a new directory"),
    any("mknodat", "a new file or FIFO; a device takes a capability that the server lacks"),
    any("symlinkat", "a new symbolic link"),
    any("linkat", "another name for a file"),
    any("renameat2", "another name in place of the old"),
    any("unlinkat", "a name is removed"),
    any("fchmod", "permissions of an open file"),
    any("fchmodat", "permissions of what is not open"),
    any("fchownat", "owner and group of a file"),
    any("utimensat", "times of access and change"),
    any("setresuid", "what is made belongs to the guest's user, and back"),
    any("setresgid", "the same for the group"),
];
