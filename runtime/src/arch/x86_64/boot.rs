//! What a kernel finds in memory and registers when it is entered: boot parameters, memory map, MP tables, page tables.
//!
//! Sources: Linux' Documentation/arch/x86/boot.rst (64-bit protocol, `struct boot_params`); Xen's
//! `hvm/start_info.h` (PVH). Owns these tables' places in low memory. Invariant: both protocols are told the same
//! memory map, made by one function.

use super::gdt::{CODE_64, DATA, TSS, descriptor};
use super::layout::{
    CMDLINE, GAP_END, GAP_START, GDT, HIMEM, IDENTITY_MAPPED, MEMORY_MAP, MODULES, MP_TABLE, PD, PDPT, PML4,
    SERIAL_IRQ, START_INFO, ZERO_PAGE,
};
use super::{mptable, screen};
use crate::arch::Slot;
use crate::memory::GuestMemory;
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::elf::start_info::{
    XEN_HVM_MEMMAP_TYPE_RAM, XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry,
    hvm_start_info,
};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion};

/// The timer's interrupt. There is no such timer, but kernels that look for it take its absence for a broken machine.
const TIMER_IRQ: u32 = 0;

/// The setup header of a bzImage.
pub type SetupHeader = setup_header;

/// Where and how the first vCPU starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// 64-bit mode, `rsi` at the boot parameters.
    Linux64 {
        /// First instruction.
        address: u64,
    },
    /// 32-bit protected mode, `ebx` at the start info.
    Pvh {
        /// First instruction.
        address: u32,
    },
}

impl Entry {
    /// First instruction.
    #[must_use]
    pub fn address(self) -> u64 {
        match self {
            Self::Linux64 { address } => address,
            Self::Pvh { address } => address.into(),
        }
    }

    /// End of what the guest can address when it is entered so: what the page tables map; all that is below the gap.
    #[must_use]
    pub fn limit(self) -> u64 {
        match self {
            Self::Linux64 { .. } => IDENTITY_MAPPED,
            Self::Pvh { .. } => GAP_START,
        }
    }
}

/// What was loaded, as the tables tell it to the kernel.
#[derive(Debug)]
pub struct Loaded<'a> {
    /// Its entry.
    pub entry: Entry,
    /// The setup header of a bzImage; an ELF kernel has none.
    pub header: Option<SetupHeader>,
    /// Address and bytes of the initrd.
    pub initrd: Option<(u64, usize)>,
    /// The command line without its zero.
    pub cmdline: &'a str,
    /// vCPUs, for the MP tables.
    pub vcpus: u8,
    /// virtio-mmio devices, for the MP tables.
    pub slots: &'a [Slot],
}

/// Writes the tables for `loaded` into low memory.
///
/// # Errors
/// The guest has no memory there.
pub fn write(memory: &GuestMemory, loaded: &Loaded<'_>) -> Result<(), GuestMemoryError> {
    let mut line = loaded.cmdline.as_bytes().to_vec();
    line.push(0);
    memory.write_slice(&line, GuestAddress(CMDLINE))?;
    let devices = loaded.slots.iter().map(|slot| slot.irq);
    let irqs: Vec<u8> =
        [TIMER_IRQ, SERIAL_IRQ].into_iter().chain(devices).filter_map(|irq| u8::try_from(irq).ok()).collect();
    memory.write_slice(&mptable::build(loaded.vcpus, &irqs), GuestAddress(MP_TABLE))?;
    match loaded.entry {
        Entry::Linux64 { .. } => {
            write_page_tables(memory)?;
            write_boot_params(memory, loaded)
        }
        Entry::Pvh { .. } => write_start_info(memory, loaded),
    }
}

/// RAM that the kernel may use: all but the last KiB of low memory (MP tables) and the hole up to [`HIMEM`].
fn ram(memory: &GuestMemory) -> Vec<(u64, u64)> {
    let mut ram = vec![(0, MP_TABLE)];
    for region in memory.iter() {
        let start = region.start_addr().raw_value();
        let end = start + region.len();
        let start = if start < GAP_END { HIMEM } else { start };
        if end > start {
            ram.push((start, end - start));
        }
    }
    ram
}

fn write_page_tables(memory: &GuestMemory) -> Result<(), GuestMemoryError> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    const LARGE_PAGE: u64 = 2 << 20;
    memory.write_obj(PDPT | PRESENT_WRITABLE, GuestAddress(PML4))?;
    memory.write_obj(PD | PRESENT_WRITABLE, GuestAddress(PDPT))?;
    let entries: Vec<u8> = (0..IDENTITY_MAPPED / LARGE_PAGE)
        .flat_map(|page| ((page * LARGE_PAGE) | PRESENT_WRITABLE | LARGE).to_le_bytes())
        .collect();
    memory.write_slice(&entries, GuestAddress(PD))?;
    let table = [0, 0, descriptor(CODE_64, 0xf_ffff), descriptor(DATA, 0xf_ffff), descriptor(TSS, 0x67)];
    let table: Vec<u8> = table.iter().flat_map(|descriptor: &u64| descriptor.to_le_bytes()).collect();
    memory.write_slice(&table, GuestAddress(GDT))
}

fn write_boot_params(memory: &GuestMemory, loaded: &Loaded<'_>) -> Result<(), GuestMemoryError> {
    const BOOT_FLAG: u16 = 0xaa55;
    const HEADER_MAGIC: u32 = 0x5372_6448;
    const UNKNOWN_LOADER: u8 = 0xff;
    const KERNEL_ALIGNMENT: u32 = 0x100_0000;
    const E820_RAM: u32 = 1;
    let mut params = boot_params {
        hdr: loaded.header.unwrap_or(setup_header {
            boot_flag: BOOT_FLAG,
            header: HEADER_MAGIC,
            kernel_alignment: KERNEL_ALIGNMENT,
            ..Default::default()
        }),
        ..Default::default()
    };
    params.hdr.type_of_loader = UNKNOWN_LOADER;
    params.hdr.cmd_line_ptr = low(CMDLINE);
    params.hdr.cmdline_size = u32::try_from(loaded.cmdline.len()).unwrap_or(0);
    if let Some((address, bytes)) = loaded.initrd {
        params.hdr.ramdisk_image = low(address);
        params.hdr.ramdisk_size = u32::try_from(bytes).unwrap_or(0);
    }
    if screen::is_asked_for(loaded.cmdline) {
        params.screen_info = screen::info();
    }
    let ram = ram(memory);
    for (entry, &(addr, size)) in params.e820_table.iter_mut().zip(&ram) {
        *entry = boot_e820_entry { addr, size, r#type: E820_RAM };
    }
    params.e820_entries = u8::try_from(ram.len()).unwrap_or(u8::MAX);
    memory.write_obj(params, GuestAddress(ZERO_PAGE))
}

fn write_start_info(memory: &GuestMemory, loaded: &Loaded<'_>) -> Result<(), GuestMemoryError> {
    let ram = ram(memory);
    let mut info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: 1,
        cmdline_paddr: CMDLINE,
        memmap_paddr: MEMORY_MAP,
        memmap_entries: u32::try_from(ram.len()).unwrap_or(0),
        ..Default::default()
    };
    if let Some((paddr, bytes)) = loaded.initrd {
        let module = hvm_modlist_entry { paddr, size: bytes as u64, ..Default::default() };
        memory.write_obj(module, GuestAddress(MODULES))?;
        info.nr_modules = 1;
        info.modlist_paddr = MODULES;
    }
    let mut at = GuestAddress(MEMORY_MAP);
    for (addr, size) in ram {
        let entry = hvm_memmap_table_entry { addr, size, type_: XEN_HVM_MEMMAP_TYPE_RAM, reserved: 0 };
        memory.write_obj(entry, at)?;
        at = at.unchecked_add(size_of::<hvm_memmap_table_entry>() as u64);
    }
    memory.write_obj(info, GuestAddress(START_INFO))
}

/// An address of low memory or of what was placed below 4 GiB, as the 32-bit fields hold it.
fn low(address: u64) -> u32 {
    u32::try_from(address).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Backing, map};

    fn loaded(entry: Entry) -> Loaded<'static> {
        Loaded {
            entry,
            header: None,
            initrd: Some((0x200_0000, 1000)),
            cmdline: "quiet",
            vcpus: 2,
            slots: &[],
        }
    }

    fn memory() -> GuestMemory {
        map(&[(GuestAddress(0), 64 << 20), (GuestAddress(GAP_END), 32 << 20)], Backing::Anonymous).unwrap()
    }

    #[test]
    fn the_memory_map_leaves_out_the_hole() {
        assert_eq!(ram(&memory()), [(0, 0x9fc00), (0x10_0000, 63 << 20), (GAP_END, 32 << 20)]);
    }

    #[test]
    fn boot_params_say_what_was_loaded() {
        let memory = memory();
        write(&memory, &loaded(Entry::Linux64 { address: 0x100_0000 })).unwrap();
        let params: boot_params = memory.read_obj(GuestAddress(ZERO_PAGE)).unwrap();
        assert_eq!(params.e820_entries, 3);
        assert_eq!({ params.hdr.ramdisk_image }, 0x200_0000);
        assert_eq!({ params.hdr.ramdisk_size }, 1000);
        let mut line = [0; 6];
        memory.read_slice(&mut line, GuestAddress({ params.hdr.cmd_line_ptr }.into())).unwrap();
        assert_eq!(&line, b"quiet\0");
        let last: u64 = memory.read_obj(GuestAddress(PD + 511 * 8)).unwrap();
        assert_eq!(last, (511 << 21) | 0x83);
    }

    #[test]
    fn start_info_says_what_was_loaded() {
        let memory = memory();
        write(&memory, &loaded(Entry::Pvh { address: 0x100_0000 })).unwrap();
        let info: hvm_start_info = memory.read_obj(GuestAddress(START_INFO)).unwrap();
        assert_eq!((info.magic, info.version, info.nr_modules, info.memmap_entries), (0x336e_c578, 1, 1, 3));
        let module: hvm_modlist_entry = memory.read_obj(GuestAddress(info.modlist_paddr)).unwrap();
        assert_eq!((module.paddr, module.size), (0x200_0000, 1000));
        let second: hvm_memmap_table_entry = memory.read_obj(GuestAddress(info.memmap_paddr + 24)).unwrap();
        assert_eq!((second.addr, second.size, second.type_), (0x10_0000, 63 << 20, 1));
    }

    #[test]
    fn memory_that_is_too_small_is_an_error() {
        let memory = map(&[(GuestAddress(0), 0x8000)], Backing::Anonymous).unwrap();
        assert!(write(&memory, &loaded(Entry::Linux64 { address: 0x100_0000 })).is_err());
    }
}
