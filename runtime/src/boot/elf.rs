//! ELF kernels: `vmlinux`.
//!
//! Sources: System V gABI chapters 4 and 5; Xen's `public/elfnote.h` for the note with the PVH entry. Refuses what is not a
//! little-endian 64-bit x86 file, and tables over fixed bounds, so that a header cannot make the loader work for long.
//! Invariant: the plan's numbers are the file's own; `super::check` is what makes them safe.

use super::error::BootError;
use super::image::{Fields, Image};
use super::{Plan, Segment};
use crate::arch::{CMDLINE_BYTES, ELF_MACHINE, Entry, GAP_START};
use husk_protocol::spec::BootProtocol;

const HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: usize = 56;
/// A kernel has about five.
const MAX_PROGRAM_HEADERS: u16 = 64;
/// A kernel's notes have some hundred bytes; what is past this is not looked at.
const MAX_NOTE_BYTES: u64 = 64 * 1024;
/// Size of a note's own header.
const NOTE_HEADER_BYTES: usize = 12;

const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const TYPE_EXECUTABLE: u16 = 2;
const TYPE_SHARED: u16 = 3;
const SEGMENT_LOAD: u32 = 1;
const SEGMENT_NOTE: u32 = 4;
/// `XEN_ELFNOTE_PHYS32_ENTRY`.
const NOTE_PHYS32_ENTRY: u32 = 18;
const NOTE_OWNER: &[u8] = b"Xen\0";

/// Reads the headers of an ELF kernel.
pub(super) fn plan(image: &Image<'_>, protocol: BootProtocol) -> Result<Plan, BootError> {
    let header = image.bytes(0, HEADER_BYTES)?;
    let fields = Fields(&header);
    if header[4] != CLASS_64 || header[5] != LITTLE_ENDIAN {
        return Err(BootError::Format("the ELF file is not 64-bit little-endian".into()));
    }
    let (kind, machine) = (fields.u16(16), fields.u16(18));
    if !matches!(kind, TYPE_EXECUTABLE | TYPE_SHARED) || machine != ELF_MACHINE {
        return Err(BootError::Format(format!("the ELF file has type {kind} and machine {machine}")));
    }
    let (size, count) = (fields.u16(54), fields.u16(56));
    if usize::from(size) != PROGRAM_HEADER_BYTES || count == 0 || count > MAX_PROGRAM_HEADERS {
        let what = format!("the ELF file has {count} program headers of {size} bytes");
        return Err(BootError::Format(what));
    }
    let table = image.bytes(fields.u64(32), PROGRAM_HEADER_BYTES * usize::from(count))?;
    let mut segments = Vec::new();
    let mut pvh = None;
    for header in table.as_chunks::<PROGRAM_HEADER_BYTES>().0.iter().map(|header| Fields(header)) {
        let (offset, address) = (header.u64(8), header.u64(24));
        let (file_bytes, memory_bytes) = (header.u64(32), header.u64(40));
        match header.u32(0) {
            SEGMENT_LOAD if memory_bytes > 0 => {
                segments.push(Segment { offset, file_bytes, address, memory_bytes });
            }
            SEGMENT_NOTE if pvh.is_none() && protocol != BootProtocol::Linux64 => {
                pvh = find_entry(&image.bytes(offset, note_bytes(file_bytes))?);
            }
            _ => {}
        }
    }
    let entry = match (protocol, pvh) {
        (BootProtocol::Pvh | BootProtocol::Auto, Some(address)) => Entry::Pvh { address },
        (BootProtocol::Pvh, None) => return Err(BootError::NoPvh),
        (BootProtocol::Auto | BootProtocol::Linux64, _) => Entry::Linux64 { address: fields.u64(24) },
    };
    Ok(Plan { segments, entry, header: None, max_cmdline: CMDLINE_BYTES - 1, initrd_limit: GAP_START })
}

fn note_bytes(file_bytes: u64) -> usize {
    usize::try_from(file_bytes.min(MAX_NOTE_BYTES)).unwrap_or(0)
}

/// The PVH entry among `notes`. Each step consumes at least a note's header, so this ends.
fn find_entry(notes: &[u8]) -> Option<u32> {
    let mut rest = notes;
    while rest.len() >= NOTE_HEADER_BYTES {
        let (header, after) = rest.split_at(NOTE_HEADER_BYTES);
        let header = Fields(header);
        let (owner, after) = split(after, header.u32(0))?;
        let (description, after) = split(after, header.u32(4))?;
        if header.u32(8) == NOTE_PHYS32_ENTRY && owner == NOTE_OWNER {
            return match description.len() {
                4 => Some(Fields(description).u32(0)),
                8 => u32::try_from(Fields(description).u64(0)).ok(),
                _ => None,
            };
        }
        rest = after;
    }
    None
}

/// The first `length` bytes, and what comes after their padding to four; `None` if there are not as many.
fn split(bytes: &[u8], length: u32) -> Option<(&[u8], &[u8])> {
    let length = usize::try_from(length).ok()?;
    let field = bytes.get(..length)?;
    let padded = length.checked_next_multiple_of(4)?;
    Some((field, bytes.get(padded..).unwrap_or(&[])))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(owner: &[u8], kind: u32, description: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for number in [owner.len(), description.len(), usize::try_from(kind).unwrap()] {
            bytes.extend(u32::try_from(number).unwrap().to_le_bytes());
        }
        for part in [owner, description] {
            bytes.extend(part);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        bytes
    }

    #[test]
    fn the_entry_is_found_behind_other_notes() {
        let mut notes = note(b"GNU\0", 3, &[7; 20]);
        notes.extend(note(b"Xen\0", 6, b"linux\0"));
        notes.extend(note(b"Xen\0", 18, &0x100_0200_u64.to_le_bytes()));
        assert_eq!(find_entry(&notes), Some(0x100_0200));
        let four = note(b"Xen\0", 18, &0x100_0300_u32.to_le_bytes());
        assert_eq!(find_entry(&four), Some(0x100_0300));
    }

    #[test]
    fn notes_that_lie_are_no_entry() {
        assert_eq!(find_entry(&[]), None);
        assert_eq!(find_entry(&[0xff; 64]), None, "lengths past the end");
        assert_eq!(find_entry(&vec![0; 64 * 1024]), None, "endless empty notes");
        assert_eq!(find_entry(&note(b"Xen\0", 18, &[1, 2])), None, "too short");
        assert_eq!(find_entry(&note(b"Xen\0", 18, &u64::MAX.to_le_bytes())), None, "not 32 bits");
        assert_eq!(find_entry(&note(b"Nex\0", 18, &[0; 4])), None, "another owner");
        let cut = note(b"Xen\0", 18, &[0; 8]);
        assert_eq!(find_entry(&cut[..cut.len() - 1]), None);
    }
}
