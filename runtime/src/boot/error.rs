//! Why a kernel cannot be booted, in the operator's words.

use crate::arch::cmdline::CmdlineError;
use crate::memory::FillError;
use std::fmt;
use vm_memory::GuestMemoryError;

/// Which file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The kernel.
    Kernel,
    /// The initrd.
    Initrd,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "boot-source.kernel_image_path",
            Self::Initrd => "boot-source.initrd_path",
        })
    }
}

/// A kernel cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The file cannot be read.
    #[error("{role}: {source}")]
    Read {
        /// Which file.
        role: Role,
        /// Why.
        source: FillError,
    },
    /// It is no kernel.
    #[error("boot-source.kernel_image_path: {0}; a 64-bit x86 ELF kernel (vmlinux) or a bzImage is needed")]
    Format(String),
    /// Its headers name parts that the file does not have.
    #[error("{role}: the file is truncated: it has {size} bytes, and at least {needed} are needed")]
    Truncated {
        /// Which file.
        role: Role,
        /// Bytes of the file.
        size: u64,
        /// Bytes that it should have.
        needed: u64,
    },
    /// A part of the kernel would be where no memory is.
    #[error(
        "boot-source.kernel_image_path: the kernel needs {bytes} bytes at guest address {address:#x}; \
         {low:#x} to {high:#x} is allowed (machine-config.mem_size_mib decides the end)"
    )]
    Segment {
        /// Guest address.
        address: u64,
        /// Bytes.
        bytes: u64,
        /// First address for kernels.
        low: u64,
        /// End of memory.
        high: u64,
    },
    /// The entry is not in the kernel.
    #[error("boot-source.kernel_image_path: the entry {address:#x} is in no segment of the kernel")]
    Entry {
        /// Guest address.
        address: u64,
    },
    /// The protocol cannot reach all of the kernel.
    #[error(
        "boot-source.kernel_image_path: the kernel ends at {end:#x}; its boot protocol allows {limit:#x}"
    )]
    Beyond {
        /// Its end.
        end: u64,
        /// What is allowed.
        limit: u64,
    },
    /// PVH is asked for and not there.
    #[error(
        "boot-source.boot_protocol: \"pvh\" is asked for, but the kernel has no PVH note; \"auto\" or \"linux64\" is allowed"
    )]
    NoPvh,
    /// The initrd does not fit.
    #[error(
        "boot-source.initrd_path: the initrd has {size} bytes, and {room} are free behind the kernel \
         (machine-config.mem_size_mib decides)"
    )]
    InitrdTooLarge {
        /// Its bytes.
        size: u64,
        /// Bytes that are free.
        room: u64,
    },
    /// The command line does not fit Linux' bound.
    #[error(transparent)]
    Cmdline(#[from] CmdlineError),
    /// The command line does not fit the kernel's own bound.
    #[error(
        "boot-source.boot_args: the kernel command line has {length} bytes with the device declarations; this kernel takes {allowed}"
    )]
    CmdlineOverKernels {
        /// Its bytes.
        length: usize,
        /// The kernel's bound.
        allowed: usize,
    },
    /// The tables do not fit memory.
    #[error("boot tables: {0}")]
    Tables(#[from] GuestMemoryError),
}
