use super::*;
use crate::memory::{Backing, map};
use crate::spec::MachineSpec;
use husk_protocol::spec::RawSpec;
use rustix::fs::{MemfdFlags, memfd_create};
use std::io::Write;
use vm_memory::Bytes;

const MIB: u64 = 1 << 20;
const BASE: u64 = 16 * MIB;

fn file(bytes: &[u8]) -> File {
    let mut file = File::from(memfd_create("kernel", MemfdFlags::CLOEXEC).unwrap());
    file.write_all(bytes).unwrap();
    file
}

fn memory(mib: usize) -> GuestMemory {
    map(&[(GuestAddress(0), mib << 20)], Backing::Anonymous).unwrap()
}

/// One program header: (type, offset, address, bytes in the file, bytes in memory).
type Header = (u32, u64, u64, u64, u64);

/// An ELF file with `headers`, whose contents start at 0x1000 and are bytes 0x5a up to `size`.
fn elf(entry: u64, headers: &[Header], size: usize) -> Vec<u8> {
    let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
    bytes.resize(16, 0);
    bytes.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    for word in [entry, 64, 0] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend([0; 4]);
    for half in [64, 56, u16::try_from(headers.len()).unwrap(), 0, 0, 0] {
        bytes.extend(half.to_le_bytes());
    }
    for &(kind, offset, address, file_bytes, memory_bytes) in headers {
        bytes.extend(kind.to_le_bytes());
        bytes.extend(7_u32.to_le_bytes());
        for word in [offset, address, address, file_bytes, memory_bytes, 0x1000] {
            bytes.extend(word.to_le_bytes());
        }
    }
    bytes.resize(bytes.len().max(size.min(0x1000)), 0);
    bytes.resize(bytes.len().max(size), 0x5a);
    bytes
}

fn good() -> Vec<u8> {
    elf(BASE, &[(1, 0x1000, BASE, 0x100, 0x2000)], 0x1100)
}

struct Try<'a> {
    protocol: &'a str,
    args: &'a str,
    mib: usize,
    initrd: Option<&'a File>,
}

impl Default for Try<'_> {
    fn default() -> Self {
        Self { protocol: "auto", args: "quiet", mib: 32, initrd: None }
    }
}

impl Try<'_> {
    fn load(&self, kernel: &[u8]) -> Result<(GuestMemory, Entry), BootError> {
        let json = format!(
            r#"{{"boot-source": {{"kernel_image_path": {{"fd": 1}}, "boot_protocol": "{}"}}}}"#,
            self.protocol
        );
        let raw: RawSpec = serde_json::from_str(&json).unwrap();
        let spec = MachineSpec::try_from(raw).unwrap();
        let request = Request { spec: spec.boot(), args: self.args, devices: Found::Pci, vcpus: 1 };
        let memory = memory(self.mib);
        let entry = load(&memory, &file(kernel), self.initrd, &request)?;
        Ok((memory, entry))
    }

    fn refused(&self, kernel: &[u8]) -> String {
        let text = match self.load(kernel) {
            Ok((_, entry)) => panic!("loaded, entry {entry:?}"),
            Err(error) => error.to_string(),
        };
        assert!(text.starts_with("boot-source."), "no key in {text:?}");
        text
    }
}

fn refused(kernel: &[u8]) -> String {
    Try::default().refused(kernel)
}

#[test]
fn a_segment_is_loaded_and_what_follows_is_zero() {
    let (memory, entry) = Try::default().load(&good()).unwrap();
    assert_eq!(entry, Entry::Linux64 { address: BASE });
    let mut bytes = [0; 0x102];
    memory.read_slice(&mut bytes, GuestAddress(BASE)).unwrap();
    assert!(bytes[..0x100].iter().all(|&byte| byte == 0x5a));
    assert_eq!(bytes[0x100..], [0, 0]);
}

#[test]
fn files_that_are_no_kernels_are_named() {
    assert!(refused(b"").contains("truncated: it has 0 bytes"));
    assert!(refused(b"#!/bin/sh\n").contains("starts with 23 21 2f 62"));
    assert!(refused(b"\x7f").contains("starts with 7f;"));
    assert!(refused(&[0; 0x300]).contains("starts with 00 00 00 00"));
    assert!(refused(b"\x7fELF").contains("truncated: it has 4 bytes, and at least 64"));
}

#[test]
fn elf_files_of_other_kinds_are_named() {
    let change = |at: usize, value: u8| {
        let mut bytes = good();
        bytes[at] = value;
        refused(&bytes)
    };
    assert!(change(4, 1).contains("not 64-bit little-endian"));
    assert!(change(5, 2).contains("not 64-bit little-endian"));
    assert!(change(16, 1).contains("type 1 and machine 62"));
    assert!(change(18, 183).contains("machine 183"));
    assert!(change(54, 55).contains("1 program headers of 55 bytes"));
    assert!(change(56, 0).contains("0 program headers"));
    assert!(change(56, 65).contains("65 program headers"));
}

#[test]
fn every_truncation_is_an_error() {
    let kernel = good();
    for length in 0..kernel.len() {
        if length % 64 == 0 || !(130..0x10f0).contains(&length) {
            refused(&kernel[..length]);
        }
    }
}

#[test]
fn every_flipped_bit_of_the_headers_is_an_error_or_a_kernel() {
    let kernel = good();
    for bit in 0..(64 + 56) * 8 {
        let mut bytes = kernel.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        // Must not panic, whatever it says.
        let _outcome = Try::default().load(&bytes).map(|(_, entry)| entry);
    }
}

#[test]
fn segments_where_no_memory_is_are_refused() {
    let one = |header: Header| refused(&elf(BASE, &[header], 0x2000));
    assert!(one((1, 0x1000, 0x7000, 0x100, 0x100)).contains("at guest address 0x7000"), "boot parameters");
    assert!(one((1, 0x1000, 0xf_ffff, 0x100, 0x100)).contains("0x100000 to 0x2000000 is allowed"));
    assert!(one((1, 0x1000, 32 * MIB, 0x100, 0x100)).contains("at guest address 0x2000000"));
    assert!(one((1, 0x1000, 32 * MIB - 1, 1, 2)).contains("needs 2 bytes"));
    assert!(one((1, 0x1000, BASE, 0x100, u64::MAX)).contains("needs 18446744073709551615 bytes"));
    assert!(one((1, 0x1000, u64::MAX, 0x100, 0x100)).contains("0xffffffffffffffff"));
    assert!(one((1, 0x1000, u64::MAX - 1, 1, 1)).contains("0xfffffffffffffffe"));
    assert!(
        one((1, 0x1000, BASE, 0x100, 0x50)).contains("needs 80 bytes"),
        "more in the file than in memory"
    );
}

#[test]
fn segments_past_the_files_end_are_truncations() {
    let one = |header: Header| refused(&elf(BASE, &[header], 0x2000));
    assert!(one((1, 0x1f00, BASE, 0x101, 0x101)).contains("has 8192 bytes, and at least 8193"));
    assert!(one((1, u64::MAX, BASE, 1, 1)).contains("truncated"));
    assert!(one((1, 0x1000, BASE, u64::MAX, u64::MAX)).contains("truncated"));
    assert!(one((4, u64::MAX - 3, 0, 8, 8)).contains("truncated"), "notes");
}

#[test]
fn an_entry_outside_the_kernel_is_refused() {
    for entry in [0, BASE - 1, BASE + 0x2000, u64::MAX] {
        let kernel = elf(entry, &[(1, 0x1000, BASE, 0x100, 0x2000)], 0x1100);
        assert!(refused(&kernel).contains("is in no segment"));
    }
    assert!(refused(&elf(BASE, &[(4, 0x1000, 0, 0, 0)], 0x1100)).contains("is in no segment"), "no segment");
}

/// A kernel with a PVH note that names `entry`.
fn with_note(entry: u64) -> Vec<u8> {
    let headers = [(1, 0x1000, BASE, 0x100, 0x2000), (4, 0x1100, 0, 24, 24)];
    let mut kernel = elf(BASE, &headers, 0x1100);
    kernel.extend([4_u32, 8, 18].into_iter().flat_map(u32::to_le_bytes));
    kernel.extend(b"Xen\0");
    kernel.extend(entry.to_le_bytes());
    kernel
}

#[test]
fn the_protocol_is_as_asked_for() {
    let entry = |protocol, kernel: &[u8]| Try { protocol, ..Try::default() }.load(kernel).unwrap().1;
    let kernel = with_note(BASE + 0x10);
    assert_eq!(entry("auto", &kernel), Entry::Pvh { address: 0x100_0010 });
    assert_eq!(entry("pvh", &kernel), Entry::Pvh { address: 0x100_0010 });
    assert_eq!(entry("linux64", &kernel), Entry::Linux64 { address: BASE });
    let error = Try { protocol: "pvh", ..Try::default() }.refused(&good());
    assert!(error.starts_with("boot-source.boot_protocol"), "{error}");
    assert!(refused(&with_note(0x7000)).contains("the entry 0x7000 is in no segment"));
}

#[test]
fn endless_notes_end() {
    // A gigabyte of empty notes, claimed by a sparse file.
    let headers = [(1, 0x1000, BASE, 0x100, 0x2000), (4, 0x1100, 0, 1 << 30, 1 << 30)];
    let kernel = elf(BASE, &headers, 0x1100);
    let sparse = file(&kernel);
    sparse.set_len(2 << 30).unwrap();
    let spec = MachineSpec::try_from(RawSpec::default()).unwrap();
    let request = Request { spec: spec.boot(), args: "", devices: Found::Pci, vcpus: 1 };
    let entry = load(&memory(32), &sparse, None, &request).unwrap();
    assert_eq!(entry, Entry::Linux64 { address: BASE });
}

#[test]
fn an_initrd_fits_or_is_refused() {
    let load = |bytes: usize| {
        let initrd = file(&vec![0xee; bytes]);
        Try { initrd: Some(&initrd), ..Try::default() }.load(&good()).map(|(memory, _)| memory)
    };
    let memory = load(5000).unwrap();
    let mut end = [0; 2];
    memory.read_slice(&mut end, GuestAddress(BASE + 0x2000 + 4999)).unwrap();
    assert_eq!(end, [0xee, 0]);
    load((16 << 20) - 0x2000).unwrap();
    let error = load((16 << 20) - 0x1fff).unwrap_err().to_string();
    assert!(error.contains("has 16769025 bytes, and 16769024 are free"), "{error}");
    let error = load(0).unwrap_err().to_string();
    assert!(error.starts_with("boot-source.initrd_path: the file is truncated"), "{error}");
}

#[test]
fn a_command_line_that_is_too_long_is_refused() {
    let args = "x".repeat(2048);
    let error = Try { args: &args, ..Try::default() }.refused(&good());
    assert!(error.contains("has 2048 bytes"), "{error}");
}

/// A bzImage whose code is `code` bytes 0xa5, loaded at 16 MiB.
fn bzimage(code: usize) -> Vec<u8> {
    let mut bytes = vec![0; 1024];
    bytes[0x1f1] = 1;
    bytes[0x1f4..0x1f8].copy_from_slice(&u32::try_from(code.div_ceil(16)).unwrap().to_le_bytes());
    bytes[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    bytes[0x200..0x202].copy_from_slice(&[0xeb, 0x66]);
    bytes[0x202..0x206].copy_from_slice(b"HdrS");
    bytes[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
    bytes[0x211] = 1;
    bytes[0x22c..0x230].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
    bytes[0x236] = 1;
    bytes[0x238..0x23c].copy_from_slice(&100_u32.to_le_bytes());
    bytes[0x258..0x260].copy_from_slice(&BASE.to_le_bytes());
    bytes[0x260..0x264].copy_from_slice(&0x10_0000_u32.to_le_bytes());
    bytes.resize(1024 + code, 0xa5);
    bytes
}

#[test]
fn a_bzimage_is_loaded_with_its_header() {
    let (memory, entry) = Try::default().load(&bzimage(5000)).unwrap();
    assert_eq!(entry, Entry::Linux64 { address: BASE + 0x200 });
    assert_eq!(memory.read_obj::<u8>(GuestAddress(BASE + 4999)).unwrap(), 0xa5);
    // The header is in the boot parameters, with our answers in it.
    assert_eq!(memory.read_obj::<u32>(GuestAddress(0x7000 + 0x202)).unwrap(), 0x5372_6448);
    assert_eq!(memory.read_obj::<u8>(GuestAddress(0x7000 + 0x210)).unwrap(), 0xff);
}

#[test]
fn a_bzimage_that_lies_is_refused() {
    let change = |at: usize, values: &[u8]| {
        let mut bytes = bzimage(5000);
        bytes[at..at + values.len()].copy_from_slice(values);
        refused(&bytes)
    };
    assert!(change(0x206, &[0x0b, 0x02]).contains("boot protocol 2.11) has no 64-bit entry"));
    assert!(change(0x211, &[0]).contains("no 64-bit entry"));
    assert!(change(0x236, &[0]).contains("no 64-bit entry"));
    assert!(change(0x1f1, &[255]).contains("truncated"));
    assert!(change(0x1f4, &[0xff; 4]).contains("truncated"));
    assert!(change(0x260, &[0xff; 4]).contains("needs 4294967295 bytes"));
    for length in [0, 0x1f1, 0x206, 0x263, 0x27f, 1024, 3000, 6000] {
        refused(&bzimage(5000)[..length]);
    }
    let error = Try { protocol: "pvh", ..Try::default() }.refused(&bzimage(5000));
    assert!(error.contains("no PVH note"), "{error}");
}

#[test]
fn every_flipped_bit_of_a_setup_header_is_an_error_or_a_kernel() {
    let kernel = bzimage(5000);
    for bit in 0x1f1 * 8..0x270 * 8 {
        let mut bytes = kernel.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let _outcome = Try::default().load(&bytes).map(|(_, entry)| entry);
    }
}

#[test]
fn a_bzimages_own_bound_of_the_command_line_holds() {
    let args = "x".repeat(101);
    let error = Try { args: &args, ..Try::default() }.refused(&bzimage(5000));
    assert!(error.contains("this kernel takes 100"), "{error}");
}

#[test]
fn windows_with_little_in_them_are_sparse() {
    let segment =
        |address: u64, file_bytes: u64| Segment { offset: 0, file_bytes, address, memory_bytes: 3 * MIB };
    let sparse = |segments: &[Segment]| sparse_windows(segments.iter());
    assert_eq!(sparse(&[segment(16 * MIB, 8192)]), [16 * MIB]);
    assert_eq!(sparse(&[segment(16 * MIB, SPARSE)]), [16 * MIB]);
    assert!(sparse(&[segment(16 * MIB, SPARSE + 1)]).is_empty());
    assert!(sparse(&[segment(16 * MIB, SPARSE), segment(17 * MIB, 1)]).is_empty(), "they share a window");
    assert_eq!(sparse(&[segment(16 * MIB, 6 * MIB + 1)]), [22 * MIB], "only the end of the last");
    assert_eq!(sparse(&[segment(18 * MIB - 5, 4 * MIB + 10)]), [16 * MIB, 22 * MIB]);
    assert!(sparse(&[segment(16 * MIB, 0)]).is_empty());
}
