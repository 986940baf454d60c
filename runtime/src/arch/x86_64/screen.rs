//! A text screen that nobody sees: where an early kernel prints without an exit.
//!
//! Owns the screen's place and shape. There is no graphics adapter: what a kernel writes to a VGA's memory stays in guest
//! memory (below [`HIMEM`](super::HIMEM), which no kernel takes for RAM), and is read when its console speaks first, or
//! the guest has died. Only Linux' 64-bit
//! protocol says that there is a screen, and only to a kernel that was told to print there. Invariant: reading it takes
//! [`BYTES`] bytes, whatever the guest wrote, and gives no more.

use crate::memory::GuestMemory;
use linux_loader::loader::bootparam::screen_info;
use vm_memory::{Bytes, GuestAddress};

/// Where Linux' early console writes (arch/x86/kernel/early_printk.c).
const ADDRESS: u64 = 0xb_8000;
/// Characters in a row; a longer line goes on in the next.
const COLUMNS: u8 = 160;
/// Rows: what a kernel prints while it boots fits, so that it need not move them all up for each line.
const ROWS: u8 = 255;
/// The end of a line, as consoles print it.
const LINE_END: &[u8] = b"\r\n";
/// A character and its colour.
const CELL: usize = 2;
/// All of it.
const BYTES: usize = CELL * COLUMNS as usize * ROWS as usize;

/// Whether a kernel with this command line prints to the screen.
pub(super) fn is_asked_for(cmdline: &str) -> bool {
    cmdline.split(' ').any(|word| word.starts_with("earlyprintk=vga"))
}

/// What the boot parameters say of it.
pub(super) fn info() -> screen_info {
    screen_info {
        orig_video_cols: COLUMNS,
        orig_video_lines: ROWS,
        orig_video_isVGA: 1,
        ..screen_info::default()
    }
}

/// What stands on it, whatever bytes they are, each line with its end; nothing if nobody wrote there.
#[must_use]
pub fn text(memory: &GuestMemory) -> Vec<u8> {
    let mut cells = vec![0; BYTES];
    if memory.read_slice(&mut cells, GuestAddress(ADDRESS)).is_err() {
        return Vec::new();
    }
    let mut text = Vec::new();
    let mut end = 0;
    for row in cells.as_chunks::<CELL>().0.chunks(COLUMNS.into()) {
        let written = row.iter().map(|cell| cell[0]).take_while(|&character| character != 0);
        let before = text.len();
        text.extend(written);
        // A row that is full goes on in the next one, which is empty if the line ended with it.
        let full = text.len() - before == usize::from(COLUMNS);
        if text.len() > before {
            end = text.len() + if full { 0 } else { LINE_END.len() };
        }
        if !full {
            text.extend(LINE_END);
        }
    }
    text.truncate(end);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Backing, map};

    /// Writes as Linux does; `row` is where the first line begins.
    fn print(memory: &GuestMemory, row: u64, text: &[u8]) {
        let (mut row, mut column) = (row, 0);
        for &byte in text {
            if byte == b'\n' {
                (row, column) = (row + 1, 0);
                continue;
            }
            let place = CELL as u64 * (row * u64::from(COLUMNS) + column);
            memory.write_obj([byte, 7], GuestAddress(ADDRESS + place)).unwrap();
            column += 1;
            if column == u64::from(COLUMNS) {
                (row, column) = (row + 1, 0);
            }
        }
    }

    fn memory() -> GuestMemory {
        map(&[(GuestAddress(0), 16 << 20)], Backing::Anonymous).unwrap()
    }

    #[test]
    fn lines_are_as_they_were_printed() {
        let memory = memory();
        assert!(text(&memory).is_empty());
        let long = "x".repeat(COLUMNS.into());
        let lines = format!("Linux version\n\n{long}yz\n{long}\nend\n");
        print(&memory, 0, lines.as_bytes());
        assert_eq!(String::from_utf8(text(&memory)).unwrap(), lines.replace('\n', "\r\n"));
    }

    #[test]
    fn what_anybody_wrote_is_bounded_and_need_not_be_text() {
        let memory = memory();
        memory.write_slice(&[0xff; BYTES + 64], GuestAddress(ADDRESS)).unwrap();
        assert_eq!(text(&memory), [0xff; BYTES / CELL]);
    }

    #[test]
    fn it_is_told_of_where_it_is_asked_for_and_ends_below_high_memory() {
        assert!(is_asked_for("quiet earlyprintk=vga,keep x") && !is_asked_for("earlyprintk=serial,vga"));
        assert!(ADDRESS + BYTES as u64 <= super::super::HIMEM);
        let info = info();
        assert_eq!(usize::from(info.orig_video_cols) * usize::from(info.orig_video_lines) * CELL, BYTES);
    }
}
