//! A kernel that does what a list of steps says: registers, memory, ports, waiting.
//!
//! Each step becomes a few instructions, one after the other, so an attack is data and needs no assembler. Invariant: every
//! wait ends; one that was in vain prints its name and resets the machine.

use crate::cell::{BASE, kernel};
use std::os::fd::OwnedFd;

/// Where the guest sees the devices' windows: a page of 2 MiB that the boot's tables map to nothing.
pub(crate) const WINDOWS: u64 = 0x3fe0_0000;
/// What is there: the devices' memory.
pub(crate) const WINDOWS_ADDRESS: u64 = 0xd000_0000;
/// The entry of that page, and what makes it the devices': present, writable, a large page at their address.
const WINDOWS_ENTRY: (u64, u64) = (0xb000 + 511 * 8, 0xd000_0083);
/// Where data is put: behind the code.
const DATA: u64 = 0x18_0000;
/// Times that a wait looks before it gives up: each leaves the guest, which takes some ten to a hundred microseconds.
const LOOKS: u32 = 200_000;
const SERIAL: u16 = 0x3f8;

/// Where a guest writes down what it finds, before all that is placed: so many bytes.
pub(crate) const FOUND: u64 = DATA;
const FOUND_BYTES: usize = 0x400;

/// How a guest finds its devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bus {
    /// By their places.
    Mmio,
    /// By their functions on the PCI bus.
    Pci,
}

impl Bus {
    pub(crate) const BOTH: [Self; 2] = [Self::Mmio, Self::Pci];
}

/// Steps and memory.
pub(crate) struct Guest {
    pub(crate) bus: Bus,
    code: Vec<u8>,
    data: Vec<u8>,
}

/// The address at which the guest finds register `offset` of the device in `slot`.
pub(crate) fn register(slot: u64, offset: u64) -> u64 {
    WINDOWS + 0x1000 * slot + offset
}

impl Guest {
    /// One that sees the devices' memory.
    pub(crate) fn new(bus: Bus) -> Self {
        let mut guest = Self { bus, code: Vec::new(), data: vec![0; FOUND_BYTES] };
        guest.store(8, WINDOWS_ENTRY.0, WINDOWS_ENTRY.1);
        guest
    }

    /// Instructions as they are.
    pub(crate) fn code(&mut self, bytes: &[u8]) {
        self.code.extend(bytes);
    }

    /// mov rdi, address
    pub(crate) fn point(&mut self, address: u64) {
        self.code(&[0x48, 0xbf]);
        self.code(&address.to_le_bytes());
    }

    /// Bytes of code so far.
    pub(crate) fn code_length(&self) -> usize {
        self.code.len()
    }

    /// Stores the low `width` bytes of `value`.
    pub(crate) fn store(&mut self, width: u8, address: u64, value: u64) {
        self.point(address);
        // mov rax, value
        self.code(&[0x48, 0xb8]);
        self.code(&value.to_le_bytes());
        // mov [rdi], al | ax | eax | rax
        self.code(match width {
            1 => &[0x88, 0x07],
            2 => &[0x66, 0x89, 0x07],
            4 => &[0x89, 0x07],
            _ => &[0x48, 0x89, 0x07],
        });
    }

    /// Loads `width` bytes, and forgets them.
    pub(crate) fn load(&mut self, width: u8, address: u64) {
        self.point(address);
        // mov al | ax | eax | rax, [rdi]
        self.code(match width {
            1 => &[0x8a, 0x07],
            2 => &[0x66, 0x8b, 0x07],
            4 => &[0x8b, 0x07],
            _ => &[0x48, 0x8b, 0x07],
        });
    }

    /// Writes the low `width` bytes of `value` to a port.
    pub(crate) fn out(&mut self, width: u8, port: u16, value: u32) {
        // mov dx, port; mov eax, value
        self.code(&[0x66, 0xba]);
        self.code(&port.to_le_bytes());
        self.code(&[0xb8]);
        self.code(&value.to_le_bytes());
        // out dx, al | ax | eax
        self.code(match width {
            1 => &[0xee],
            2 => &[0x66, 0xef],
            _ => &[0xef],
        });
    }

    /// Reads `width` bytes from a port, and forgets them.
    pub(crate) fn input(&mut self, width: u8, port: u16) {
        // mov dx, port
        self.code(&[0x66, 0xba]);
        self.code(&port.to_le_bytes());
        // in al | ax | eax, dx
        self.code(match width {
            1 => &[0xec],
            2 => &[0x66, 0xed],
            _ => &[0xed],
        });
    }

    /// Prints on the serial port.
    pub(crate) fn print(&mut self, text: &str) {
        for byte in text.bytes() {
            self.out(1, SERIAL, byte.into());
        }
    }

    /// The keyboard controller's reset, then a halt.
    pub(crate) fn reset(&mut self) {
        self.out(1, 0x64, 0xfe);
        // 1: hlt; jmp 1b
        self.code(&[0xf4, 0xeb, 0xfd]);
    }

    /// Does `body` so many times.
    pub(crate) fn repeat(&mut self, times: u32, body: impl FnOnce(&mut Self)) {
        // mov ebx, times
        self.code(&[0xbb]);
        self.code(&times.to_le_bytes());
        let start = self.code.len();
        body(self);
        // dec ebx; jnz start
        self.code(&[0xff, 0xcb, 0x0f, 0x85]);
        let back = i32::try_from(self.code.len() + 4 - start).unwrap();
        self.code(&(-back).to_le_bytes());
    }

    /// Adds one to the 2 bytes at `address`.
    pub(crate) fn increment(&mut self, address: u64) {
        self.point(address);
        // inc word [rdi]
        self.code(&[0x66, 0xff, 0x07]);
    }

    /// Waits, for ever, until the 2 bytes at both places are the same.
    pub(crate) fn wait_same(&mut self, one: u64, other: u64) {
        self.point(one);
        // mov rsi, other; 1: mov ax, [rdi]; cmp ax, [rsi]; jne 1b
        self.code(&[0x48, 0xbe]);
        self.code(&other.to_le_bytes());
        self.code(&[0x66, 0x8b, 0x07, 0x66, 0x3b, 0x06, 0x75, 0xf8]);
    }

    /// Waits until the 4 bytes at `address` are `value` in the bits of `mask`; `name` is printed if they never are.
    pub(crate) fn wait(&mut self, name: &str, address: u64, mask: u32, value: u32) {
        self.point(address);
        // mov dx, 0x61; in al, dx; mov eax, [rdi]
        self.wait_for(name, &[0x66, 0xba, 0x61, 0, 0xec, 0x8b, 0x07], mask, value);
    }

    /// Waits until what `look` leaves in eax, while it keeps ecx and rdi, is `value` in the bits of `mask`.
    pub(crate) fn wait_for(&mut self, name: &str, look: &[u8], mask: u32, value: u32) {
        // mov ecx, LOOKS; 1:
        self.code(&[0xb9]);
        self.code(&LOOKS.to_le_bytes());
        let start = self.code.len();
        self.code(look);
        // and eax, mask; cmp eax, value
        self.code(&[0x25]);
        self.code(&mask.to_le_bytes());
        self.code(&[0x3d]);
        self.code(&value.to_le_bytes());
        let failed = failure(name);
        // je past what follows
        let tail = [0xf3, 0x90, 0xff, 0xc9, 0x0f, 0x85];
        self.code(&[0x0f, 0x84]);
        self.code(&u32::try_from(tail.len() + 4 + failed.len()).unwrap().to_le_bytes());
        // pause; dec ecx; jnz 1b
        self.code(&tail);
        let back = i32::try_from(self.code.len() + 4 - start).unwrap();
        self.code(&(-back).to_le_bytes());
        self.code(&failed);
    }

    /// Puts bytes into memory before the guest runs; returns where. Aligned to 64 bytes.
    pub(crate) fn place(&mut self, bytes: &[u8]) -> u64 {
        self.data.resize(self.data.len().next_multiple_of(64), 0);
        let at = DATA + self.data.len() as u64;
        self.data.extend(bytes);
        at
    }

    /// Changes what was placed.
    pub(crate) fn poke(&mut self, address: u64, bytes: &[u8]) {
        let at = usize::try_from(address - DATA).unwrap();
        self.data[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// The image.
    pub(crate) fn kernel(self) -> OwnedFd {
        let gap = usize::try_from(DATA - BASE).unwrap();
        assert!(self.code.len() <= gap, "{} bytes of code", self.code.len());
        let space = vec![0; gap - self.code.len()];
        kernel(&[&self.code, &space, &self.data])
    }
}

/// Prints `name`, then resets.
pub(crate) fn failure(name: &str) -> Vec<u8> {
    let mut guest = Guest { bus: Bus::Mmio, code: Vec::new(), data: Vec::new() };
    guest.print(&format!("{name}\n"));
    guest.reset();
    guest.code
}
