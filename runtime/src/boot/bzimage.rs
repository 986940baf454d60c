//! bzImage: the compressed kernel with its setup header.
//!
//! Source: Linux' Documentation/arch/x86/boot.rst ("The Real-Mode Kernel Header", "64-bit Boot Protocol"). Refuses images
//! older than protocol 2.12 (Linux 3.8), which have no 64-bit entry. Invariant: the memory that the plan asks for is what the
//! decompressor says it needs (`init_size`), not only what the file holds.

use super::error::{BootError, Role};
use super::image::{Fields, Image};
use super::{Plan, Segment};
use crate::arch::boot::SetupHeader;
use crate::arch::{CMDLINE_BYTES, Entry, HIMEM};
use husk_protocol::spec::BootProtocol;
use vm_memory::ByteValued;

/// Start of the setup header in the file.
const HEADER: usize = 0x1f1;
/// Everything that the setup header may hold, with the real-mode code before it.
const SETUP_BYTES: usize = 0x280;
/// Protocol 2.12: `xloadflags`.
const OLDEST: u16 = 0x020c;
const LOADED_HIGH: u8 = 1;
/// `XLF_KERNEL_64`.
const HAS_64_BIT_ENTRY: u16 = 1;
/// The 64-bit entry is this far behind the load address.
const ENTRY_64: u64 = 0x200;
const SECTOR: u64 = 512;
/// Sectors of setup code if the header says 0.
const OLD_SETUP_SECTORS: u8 = 4;

/// Reads the setup header of a bzImage.
pub(super) fn plan(image: &Image<'_>, protocol: BootProtocol) -> Result<Plan, BootError> {
    if protocol == BootProtocol::Pvh {
        return Err(BootError::NoPvh);
    }
    let setup = image.bytes(0, SETUP_BYTES)?;
    let fields = Fields(&setup);
    let (version, load_flags, flags_64) = (fields.u16(0x206), setup[0x211], fields.u16(0x236));
    if version < OLDEST || load_flags & LOADED_HIGH == 0 || flags_64 & HAS_64_BIT_ENTRY == 0 {
        let (major, minor) = (version >> 8, version & 0xff);
        let what = format!("the bzImage (boot protocol {major}.{minor:02}) has no 64-bit entry");
        return Err(BootError::Format(what));
    }
    let sectors = if setup[HEADER] == 0 { OLD_SETUP_SECTORS } else { setup[HEADER] };
    let offset = (u64::from(sectors) + 1) * SECTOR;
    let code_bytes = u64::from(fields.u32(0x1f4)) * 16;
    // The header counts in units of 16 bytes; the last one need not be whole.
    let file_bytes = image.size().checked_sub(offset).filter(|&rest| rest > 0 && rest + 16 > code_bytes);
    let file_bytes = file_bytes.ok_or(BootError::Truncated {
        role: Role::Kernel,
        size: image.size(),
        needed: (offset + code_bytes).max(offset + 1),
    })?;
    let address = fields.u64(0x258).max(HIMEM);
    let memory_bytes = u64::from(fields.u32(0x260)).max(file_bytes);
    let segment = Segment { offset, file_bytes, address, memory_bytes };
    let entry = address.checked_add(ENTRY_64).ok_or(BootError::Entry { address })?;
    let max_cmdline = usize::try_from(fields.u32(0x238)).unwrap_or(0).min(CMDLINE_BYTES - 1);
    Ok(Plan {
        segments: vec![segment],
        entry: Entry::Linux64 { address: entry },
        header: Some(header(&setup)),
        max_cmdline,
        initrd_limit: u64::from(fields.u32(0x22c)) + 1,
    })
}

/// The setup header as far as the image has it: its end is where the jump instruction at 0x200 goes.
fn header(setup: &[u8]) -> SetupHeader {
    let mut header = SetupHeader::default();
    let end = 0x202 + usize::from(setup[0x201]);
    let length = (end - HEADER).min(header.as_slice().len());
    header.as_mut_slice()[..length].copy_from_slice(&setup[HEADER..HEADER + length]);
    header
}
