use super::*;
use crate::memory::{Backing, HUGE_PAGE, discard, map, populate};
use std::fs::File;
use std::io::Write;
use vm_memory::{Bytes, GuestMemory as _};

const RAM: u64 = 1 << 20;
const BASE: u64 = 1 << 30;
const BYTES: u64 = 5000;

fn file() -> File {
    let fd = rustix::fs::memfd_create("image", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let mut file = File::from(fd);
    file.write_all(&vec![7; usize::try_from(BYTES).unwrap()]).unwrap();
    file
}

fn ram() -> GuestMemory {
    map(&[(GuestAddress(0), usize::try_from(RAM).unwrap())], Backing::Anonymous).unwrap()
}

fn with(file: &File, base: u64) -> Result<DeviceMemory, MemoryError> {
    DeviceMemory::new(&ram(), &[Image::map(file, "a", BYTES, GuestAddress(base)).unwrap()])
}

/// The line of /proc/self/maps that the mapping at `address` has.
fn mapping_at(address: u64) -> String {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let line = maps.lines().find(|line| line.starts_with(&format!("{address:08x}-")));
    line.unwrap_or_default().to_owned()
}

#[test]
fn an_image_is_its_file_and_then_zeros_and_read_only_throughout() {
    let file = file();
    let image = Image::map(&file, "a", BYTES, GuestAddress(BASE)).unwrap();
    assert_eq!((image.start(), image.bytes()), (BASE, HUGE_PAGE as u64));
    assert!(image.host_address().is_multiple_of(HUGE_PAGE as u64));
    let memory = DeviceMemory::new(&ram(), std::slice::from_ref(&image)).unwrap();
    let mut bytes = vec![1; HUGE_PAGE];
    memory.read_slice(&mut bytes, GuestAddress(BASE)).unwrap();
    let (content, rest) = bytes.split_at(usize::try_from(BYTES).unwrap());
    assert!(content.iter().all(|&byte| byte == 7));
    assert!(rest.iter().all(|&byte| byte == 0));
    // Two mappings: the file's two pages, and what follows them.
    let (first, second) = (mapping_at(image.host_address()), mapping_at(image.host_address() + 8192));
    assert!(first.contains(" r--s ") && first.contains("memfd:image"), "{first}");
    assert!(second.contains(" r--p ") && !second.contains("memfd"), "{second}");
    // Shared: what somebody else writes to the file is seen.
    rustix::io::pwrite(&file, &[9], 4).unwrap();
    assert_eq!(memory.read_obj::<u8>(GuestAddress(BASE + 4)).unwrap(), 9);
}

#[test]
fn what_is_whole_pages_has_no_byte_too_many() {
    let file = file();
    file.set_len(HUGE_PAGE as u64).unwrap();
    let image = Image::map(&file, "a", HUGE_PAGE as u64, GuestAddress(BASE)).unwrap();
    assert_eq!(image.bytes(), HUGE_PAGE as u64);
    assert!(mapping_at(image.host_address()).contains(" r--s "));
}

#[test]
fn an_image_is_read_and_every_access_with_writing_is_refused() {
    let file = file();
    let memory = with(&file, BASE).unwrap();
    let allowed = |address, count, access| {
        let by_check = memory.check_range(GuestAddress(address), count, access);
        let slices = memory.get_slices(GuestAddress(address), count, access).unwrap();
        assert_eq!(
            slices.into_iter().all(|slice| slice.is_ok()),
            by_check,
            "{address:#x} {count} {access:?}"
        );
        by_check
    };
    for access in [Permissions::Write, Permissions::ReadWrite] {
        for (address, count) in [(BASE, 1), (BASE + 4999, 4), (BASE + 8192, 1), (BASE, HUGE_PAGE)] {
            assert!(!allowed(address, count, access), "{address:#x} {count} {access:?}");
        }
        assert!(allowed(RAM - 4, 4, access) && !allowed(RAM - 4, 5, access));
    }
    assert!(allowed(BASE, HUGE_PAGE, Permissions::Read) && !allowed(BASE, HUGE_PAGE + 1, Permissions::Read));
    assert!(!allowed(BASE - 1, 2, Permissions::Read));
    assert!(memory.write_obj(1_u8, GuestAddress(BASE)).is_err());
    assert!(memory.store(1_u32, GuestAddress(BASE), std::sync::atomic::Ordering::SeqCst).is_err());
    assert!(memory.physical_memory().is_none(), "no way around");
    assert_eq!(memory.read_obj::<u8>(GuestAddress(BASE)).unwrap(), 7);
}

#[test]
fn an_access_that_begins_in_memory_and_ends_in_an_image_writes_nothing() {
    let file = file();
    // Right behind memory.
    let memory = with(&file, RAM).unwrap();
    let both = (GuestAddress(RAM - 8), 16);
    assert!(memory.check_range(both.0, both.1, Permissions::Read));
    assert!(!memory.check_range(both.0, both.1, Permissions::Write));
    assert!(memory.write_slice(&[1; 16], both.0).is_err());
    assert_eq!(memory.read_obj::<u8>(GuestAddress(RAM)).unwrap(), 7);
}

#[test]
fn what_populates_and_gives_back_sees_no_image() {
    let file = file();
    let memory = with(&file, BASE).unwrap();
    populate(memory.ram()).unwrap();
    discard(memory.ram(), GuestAddress(0), u64::MAX).unwrap();
    assert_eq!(memory.read_obj::<u8>(GuestAddress(BASE)).unwrap(), 7);
    assert!(memory.ram().write_obj(1_u8, GuestAddress(BASE)).is_err());
    assert_eq!(memory.ram().last_addr(), GuestAddress(RAM - 1));
}

#[test]
fn an_image_does_not_overlap_memory_or_another() {
    let file = file();
    assert!(matches!(with(&file, 0), Err(MemoryError::Regions(_))));
    let image = |base| Image::map(&file, "a", BYTES, GuestAddress(base)).unwrap();
    let two = |second| DeviceMemory::new(&ram(), &[image(BASE), image(second)]);
    assert!(two(BASE + HUGE_PAGE as u64).is_ok());
    assert!(matches!(two(BASE), Err(MemoryError::Regions(_))));
}

#[test]
fn more_than_can_be_mapped_is_named() {
    let error = Image::map(file(), "root", 1 << 60, GuestAddress(BASE)).unwrap_err().to_string();
    assert!(error.starts_with("pmem \"root\": the 1152921504606846976 bytes"), "{error}");
    let error = Image::map(file(), "root", u64::MAX, GuestAddress(BASE)).unwrap_err();
    assert!(matches!(error, MemoryError::Image { .. }), "{error}");
    // What cannot be mapped at all.
    let (pipe, _writer) = std::io::pipe().unwrap();
    assert!(matches!(Image::map(&pipe, "a", 10, GuestAddress(BASE)), Err(MemoryError::Image { .. })));
}
