//! A function on the PCI bus, as the guest finds it: configuration space by its two ports, a walk through the capabilities,
//! registers in the windows that the address registers name.
//!
//! Nothing of where the runtime puts its windows is known here: what the guest has found is in its memory, in places of
//! [`Found`], and each access adds to that.

use crate::guest::{FOUND, Guest, WINDOWS, WINDOWS_ADDRESS, failure};

/// Ports of configuration space: which register, and its content.
const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;
const ENABLE: u32 = 1 << 31;
/// Capabilities: a vendor's own, as virtio's are, and MSI-X.
const CAP_VENDOR: u32 = 0x09;
const CAP_MSIX: u32 = 0x11;

/// Registers of the header.
pub(crate) const COMMAND: u32 = 0x04;
pub(crate) const PORTS_BAR: u32 = 0x10;
pub(crate) const TABLE_BAR: u32 = 0x14;

/// What is written down of a function; 4 bytes each.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// The first port of the common configuration.
    Common,
    Notify,
    Isr,
    /// Of the device's own configuration.
    Device,
    /// Where the guest sees the table of MSI-X.
    Table,
    /// The address in configuration space of MSI-X's capability, and of virtio's that leads to the windows.
    Msix,
    Access,
    /// The address registers as they were.
    Ports,
    Memory,
}

/// Something that is read and written at one width or another.
#[derive(Clone, Copy)]
pub(crate) enum Place {
    /// Of memory, from an address on.
    Memory(u64),
    /// From a port that was found.
    Port(u64, u32),
    /// From an address that was found.
    Window(u64, u32),
    /// Of configuration space: as the address register has it.
    Space(u32),
    /// Of configuration space, from an address that was found.
    Capability(u64, u32),
}

/// Where the guest writes down what it finds of the function in `slot`.
pub(crate) fn cell(slot: u64, found: Found) -> u64 {
    FOUND + 64 * slot + 4 * found as u64
}

/// Register `offset` of the function in `slot`: the host bridge is before them.
pub(crate) fn space(slot: u64, offset: u32) -> Place {
    Place::Space(ENABLE | u32::try_from(slot + 1).unwrap() << 11 | offset)
}

fn absolute(address: u64) -> [u8; 4] {
    u32::try_from(address).unwrap().to_le_bytes()
}

/// mov dx, port
fn port(number: u16) -> Vec<u8> {
    [&[0x66, 0xba][..], &number.to_le_bytes()].concat()
}

/// eax is the address: mov dx, ADDRESS; out dx, eax; mov dx, DATA and the bytes beyond a register.
fn register(byte: u32) -> Vec<u8> {
    [port(ADDRESS), vec![0xef], port(DATA + u16::try_from(byte & 3).unwrap())].concat()
}

impl Place {
    /// Leaves the address in rdi or the port in dx; keeps ecx.
    fn aim(self) -> Vec<u8> {
        match self {
            // mov rdi, address
            Self::Memory(address) => [&[0x48, 0xbf][..], &address.to_le_bytes()].concat(),
            // movzx edx, word [cell]; add dx, offset
            Self::Port(cell, offset) => {
                let offset = u16::try_from(offset).unwrap().to_le_bytes();
                [&[0x0f, 0xb7, 0x14, 0x25][..], &absolute(cell), &[0x66, 0x81, 0xc2], &offset].concat()
            }
            // mov edi, [cell]; add rdi, offset
            Self::Window(cell, offset) => {
                let offset = offset.to_le_bytes();
                [&[0x8b, 0x3c, 0x25][..], &absolute(cell), &[0x48, 0x81, 0xc7], &offset].concat()
            }
            // mov eax, address
            Self::Space(address) => [&[0xb8][..], &(address & !3).to_le_bytes(), &register(address)].concat(),
            // mov eax, [cell]; add eax, offset
            Self::Capability(cell, offset) => {
                let add = [&[0x05][..], &(offset & !3).to_le_bytes()].concat();
                [&[0x8b, 0x04, 0x25][..], &absolute(cell), &add, &register(offset)].concat()
            }
        }
    }

    fn is_memory(self) -> bool {
        matches!(self, Self::Memory(_) | Self::Window(..))
    }

    /// What is there, in al, ax, eax or rax.
    fn load(self, width: u8) -> Vec<u8> {
        let access: &[u8] = match (self.is_memory(), width) {
            (true, 1) => &[0x8a, 0x07],
            (true, 2) => &[0x66, 0x8b, 0x07],
            (true, 4) => &[0x8b, 0x07],
            (true, _) => &[0x48, 0x8b, 0x07],
            (false, 1) => &[0xec],
            (false, 2) => &[0x66, 0xed],
            (false, _) => &[0xed],
        };
        [&self.aim(), access].concat()
    }

    /// Writes al, ax, eax or rax, which `value` sets.
    fn store(self, width: u8, value: &[u8]) -> Vec<u8> {
        let access: &[u8] = match (self.is_memory(), width) {
            (true, 1) => &[0x88, 0x07],
            (true, 2) => &[0x66, 0x89, 0x07],
            (true, 4) => &[0x89, 0x07],
            (true, _) => &[0x48, 0x89, 0x07],
            (false, 1) => &[0xee],
            (false, 2) => &[0x66, 0xef],
            (false, _) => &[0xef],
        };
        [&self.aim(), value, access].concat()
    }
}

impl Guest {
    /// Writes the low `width` bytes of `value`.
    pub(crate) fn put(&mut self, place: Place, width: u8, value: u64) {
        // mov rax, value
        let value = [&[0x48, 0xb8][..], &value.to_le_bytes()].concat();
        self.code(&place.store(width, &value));
    }

    /// Reads `width` bytes, and forgets them.
    pub(crate) fn get(&mut self, place: Place, width: u8) {
        self.code(&place.load(width));
    }

    /// Waits until the `width` bytes there are `value`.
    pub(crate) fn wait_at(&mut self, name: &str, place: Place, width: u8, value: u32) {
        let mask = if width < 4 { (1 << (8 * width)) - 1 } else { u32::MAX };
        self.wait_for(name, &place.load(width), mask, value & mask);
    }

    /// Waits until the 4 bytes there are `value` in the bits of `mask`.
    pub(crate) fn wait_bits(&mut self, name: &str, place: Place, mask: u32, value: u32) {
        self.wait_for(name, &place.load(4), mask, value);
    }

    /// mov [cell], eax
    fn write_down(&mut self, cell: u64) {
        self.code(&[0x89, 0x04, 0x25]);
        self.code(&absolute(cell));
    }

    /// Puts back the 4 bytes that were written down.
    pub(crate) fn put_back(&mut self, place: Place, cell: u64) {
        // mov eax, [cell]
        let value = [&[0x8b, 0x04, 0x25][..], &absolute(cell)].concat();
        self.code(&place.store(4, &value));
    }

    /// Goes through the capabilities of the function in `slot` to the first whose first 4 bytes are `value` in the bits of
    /// `mask`, and writes down the address of its first register; without one `name` is printed.
    fn walk(&mut self, name: &str, slot: u64, (mask, value): (u32, u32), cell: u64) {
        // The first pointer: movzx ecx, al
        self.code(&space(slot, 0x34).load(1));
        self.code(&[0x0f, 0xb6, 0xc8]);
        let start = self.code_length();
        // mov eax, function; or al, cl; (address and data) in eax, dx; mov esi, eax; and eax, mask; cmp eax, value
        let Place::Space(function) = space(slot, 0) else { return };
        let mut look = [&[0xb8][..], &function.to_le_bytes(), &[0x08, 0xc8], &register(0)].concat();
        look.extend([0xed, 0x89, 0xc6, 0x25]);
        look.extend(mask.to_le_bytes());
        look.push(0x3d);
        look.extend(value.to_le_bytes());
        self.code(&look);
        let failed = failure(name);
        // je past all; shr esi, 8; movzx ecx, sil; test ecx, ecx; jnz start
        let tail = [0xc1, 0xee, 0x08, 0x40, 0x0f, 0xb6, 0xce, 0x85, 0xc9, 0x0f, 0x85];
        self.code(&[0x0f, 0x84]);
        self.code(&u32::try_from(tail.len() + 4 + failed.len()).unwrap().to_le_bytes());
        self.code(&tail);
        let back = i32::try_from(self.code_length() + 4 - start).unwrap();
        self.code(&(-back).to_le_bytes());
        self.code(&failed);
        // mov eax, function; or al, cl
        self.code(&[0xb8]);
        self.code(&function.to_le_bytes());
        self.code(&[0x08, 0xc8]);
        self.write_down(cell);
    }

    /// Finds where the structure of virtio's capability `kind` is: at an offset of the window that it names.
    fn find_structure(&mut self, slot: u64, kind: u32, found: Found) {
        let cell = cell(slot, found);
        self.walk(&format!("no capability {kind}"), slot, (0xff00_00ff, kind << 24 | CAP_VENDOR), cell);
        // Which address register: and eax, 7; the register's own address, whose content's lowest bits are no address.
        self.code(&Place::Capability(cell, 4).load(4));
        // and eax, 7; shl eax, 2; add eax, first register
        let Place::Space(first) = space(slot, PORTS_BAR) else { return };
        self.code(&[0x83, 0xe0, 0x07, 0xc1, 0xe0, 0x02, 0x05]);
        self.code(&first.to_le_bytes());
        self.code(&register(0));
        // in eax, dx; and eax, ~3; mov ebx, eax
        self.code(&[0xed, 0x83, 0xe0, 0xfc, 0x89, 0xc3]);
        // Its offset there: add eax, ebx
        self.code(&Place::Capability(cell, 8).load(4));
        self.code(&[0x01, 0xd8]);
        self.write_down(cell);
    }

    /// Finds the function in `slot`, which is that of a device with this id of virtio's, and turns it on.
    pub(crate) fn find_function(&mut self, slot: u64, id: u32) {
        let name = format!("function of virtio device {id}");
        self.wait_at(&name, space(slot, 0), 4, (0x1040 + id) << 16 | 0x1af4);
        for (bar, found) in [(PORTS_BAR, Found::Ports), (TABLE_BAR, Found::Memory)] {
            self.get(space(slot, bar), 4);
            self.write_down(cell(slot, found));
        }
        self.put(space(slot, COMMAND), 2, 7);
        let structures = [(1, Found::Common), (2, Found::Notify), (3, Found::Isr), (4, Found::Device)];
        for (kind, found) in structures {
            self.find_structure(slot, kind, found);
        }
        self.walk("no access", slot, (0xff00_00ff, 5 << 24 | CAP_VENDOR), cell(slot, Found::Access));
        self.walk("no MSI-X", slot, (0xff, CAP_MSIX), cell(slot, Found::Msix));
        // Its table: in the second window, where the guest sees the devices' memory.
        let msix = cell(slot, Found::Msix);
        self.wait_bits("table's window", Place::Capability(msix, 4), 7, 1);
        self.get(space(slot, TABLE_BAR), 4);
        // sub eax, what lies between
        self.code(&[0x2d]);
        self.code(&absolute(WINDOWS_ADDRESS - WINDOWS));
        self.write_down(cell(slot, Found::Table));
    }

    /// As it was before it was attacked.
    pub(crate) fn put_function_back(&mut self, slot: u64) {
        self.put_back(space(slot, PORTS_BAR), cell(slot, Found::Ports));
        self.put_back(space(slot, TABLE_BAR), cell(slot, Found::Memory));
        self.put(space(slot, COMMAND), 2, 7);
    }

    /// Message `data` to `address` for `vector`, masked or not.
    pub(crate) fn set_vector(&mut self, slot: u64, vector: u32, (address, data, masked): (u64, u32, bool)) {
        let at = |offset| Place::Window(cell(slot, Found::Table), 16 * vector + offset);
        self.put(at(0), 8, address);
        self.put(at(8), 4, data.into());
        self.put(at(12), 4, masked.into());
    }

    /// Message control: 1 << 15 turns MSI-X on, 1 << 14 masks all.
    pub(crate) fn control_vectors(&mut self, slot: u64, control: u16) {
        self.put(Place::Capability(cell(slot, Found::Msix), 2), 2, control.into());
    }
}
