//! Kernels of a few instructions: 64-bit ELF images that a virtual machine enters by Linux's 64-bit boot protocol.
//!
//! Made by hand because no assembler is needed for a dozen bytes; each instruction is named beside them.

/// Where the image is loaded and entered.
const LOAD_ADDRESS: u64 = 0x20_0000;
/// COM1's transmit register.
const SERIAL: u16 = 0x3f8;

/// Spins for ever.
#[must_use]
pub fn endless_loop() -> Vec<u8> {
    // 1: jmp 1b
    elf(&[0xeb, 0xfe])
}

/// Resets by a triple fault: an empty interrupt table, then an interrupt.
#[must_use]
pub fn triple_fault() -> Vec<u8> {
    elf(&TRIPLE_FAULT)
}

/// Prints on the serial port, then resets.
#[must_use]
pub fn print_and_reset(text: &str) -> Vec<u8> {
    let mut code = Vec::new();
    let port = SERIAL.to_le_bytes();
    // mov dx, SERIAL
    code.extend_from_slice(&[0x66, 0xba, port[0], port[1]]);
    for byte in text.bytes() {
        // mov al, byte; out dx, al
        code.extend_from_slice(&[0xb0, byte, 0xee]);
    }
    code.extend_from_slice(&TRIPLE_FAULT);
    elf(&code)
}

/// push 0; push 0; lidt [rsp]; int 3 is not emulated everywhere: ud2 instead.
const TRIPLE_FAULT: [u8; 10] = [0x6a, 0x00, 0x6a, 0x00, 0x0f, 0x01, 0x1c, 0x24, 0x0f, 0x0b];

/// An ELF64 executable with one loadable segment that holds `code`, entered at its start.
#[must_use]
pub fn elf(code: &[u8]) -> Vec<u8> {
    const HEADERS: u64 = 64 + 56;
    let mut image = Vec::new();
    // e_ident: 64-bit, little-endian, version 1.
    image.extend_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    // e_type ET_EXEC, e_machine EM_X86_64, e_version.
    image.extend_from_slice(&[2, 0, 62, 0, 1, 0, 0, 0]);
    image.extend_from_slice(&LOAD_ADDRESS.to_le_bytes());
    image.extend_from_slice(&64_u64.to_le_bytes());
    image.extend_from_slice(&0_u64.to_le_bytes());
    // e_flags; e_ehsize 64, e_phentsize 56, e_phnum 1, no sections.
    image.extend_from_slice(&[0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0]);
    // PT_LOAD, readable, writable, executable.
    image.extend_from_slice(&[1, 0, 0, 0, 7, 0, 0, 0]);
    let size = code.len() as u64;
    for word in [HEADERS, LOAD_ADDRESS, LOAD_ADDRESS, size, size, 16] {
        image.extend_from_slice(&word.to_le_bytes());
    }
    image.extend_from_slice(code);
    image
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_headers_have_their_sizes_and_the_code_is_at_its_offset() {
        let image = endless_loop();
        assert_eq!(image.len(), 64 + 56 + 2);
        assert_eq!(&image[120..], &[0xeb, 0xfe]);
        assert_eq!(u64::from_le_bytes(image[24..32].try_into().unwrap()), LOAD_ADDRESS);
    }
}
