use super::*;
use std::io::Write;
use vm_memory::Bytes;

fn file_with(bytes: &[u8]) -> std::fs::File {
    let fd = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let mut file = std::fs::File::from(fd);
    file.write_all(bytes).unwrap();
    file
}

#[test]
fn regions_are_aligned_for_huge_pages() {
    for bytes in [4096, HUGE_PAGE, 3 * HUGE_PAGE + 4096] {
        let memory = map(&[(GuestAddress(0), bytes)], Backing::Anonymous).unwrap();
        let host = memory.get_host_address(GuestAddress(0)).unwrap();
        assert!(host.addr().is_multiple_of(HUGE_PAGE), "{host:?}");
        assert_eq!(total_bytes(&memory), bytes);
    }
}

#[test]
fn a_region_of_part_of_a_page_is_refused() {
    assert!(matches!(
        map(&[(GuestAddress(0), 4097)], Backing::Anonymous),
        Err(MemoryError::NotPages { bytes: 4097, page: 4096 })
    ));
    assert!(matches!(map(&[(GuestAddress(0), 0)], Backing::Anonymous), Err(MemoryError::NotPages { .. })));
    assert!(matches!(
        map(&[(GuestAddress(0), 4096)], Backing::HugeTlb2M),
        Err(MemoryError::NotPages { page: HUGE_PAGE, .. })
    ));
}

#[test]
fn more_than_there_is_names_the_size() {
    let error = map(&[(GuestAddress(0), 1 << 60)], Backing::Anonymous).unwrap_err();
    assert!(error.to_string().contains("1099511627776 MiB"), "{error}");
}

#[test]
fn too_few_huge_pages_are_counted() {
    let error = map(&[(GuestAddress(0), 1 << 50)], Backing::HugeTlb2M).unwrap_err();
    let MemoryError::NoHugePages { needed, free, .. } = error else { panic!("{error}") };
    assert_eq!(needed, 1 << 29);
    assert!(free < needed);
}

#[test]
fn overlapping_regions_are_refused() {
    let ranges = [(GuestAddress(0), 8192), (GuestAddress(4096), 8192)];
    assert!(matches!(map(&ranges, Backing::Anonymous), Err(MemoryError::Regions(_))));
}

#[test]
fn populated_memory_is_zero_and_writable() {
    let memory = map(&[(GuestAddress(0), 64 << 10)], Backing::Anonymous).unwrap();
    populate(&memory).unwrap();
    assert_eq!(memory.read_obj::<u64>(GuestAddress(4096)).unwrap(), 0);
}

#[test]
fn a_file_goes_across_regions() {
    let ranges = [(GuestAddress(0), 4096), (GuestAddress(4096), 4096)];
    let memory = map(&ranges, Backing::Anonymous).unwrap();
    let bytes: Vec<u8> = (0..8192_u32).map(|n| n.to_le_bytes()[0]).collect();
    read_file(&memory, file_with(&bytes), 10, GuestAddress(4000), 200).unwrap();
    let mut back = [0; 200];
    memory.read_slice(&mut back, GuestAddress(4000)).unwrap();
    assert_eq!(back[..], bytes[10..210]);
}

#[test]
fn a_file_that_ends_early_or_a_target_outside_is_refused() {
    let memory = map(&[(GuestAddress(0), 4096)], Backing::Anonymous).unwrap();
    let file = file_with(&[1; 100]);
    let error = read_file(&memory, &file, 50, GuestAddress(0), 51).unwrap_err();
    assert!(matches!(error, FillError::Short { offset: 50, end: 100 }), "{error}");
    let error = read_file(&memory, &file, 0, GuestAddress(4090), 50).unwrap_err();
    assert!(matches!(error, FillError::Outside { at: 4090, length: 50 }), "{error}");
    let error = read_file(&memory, &file, u64::MAX - 10, GuestAddress(0), 5).unwrap_err();
    assert!(matches!(error, FillError::Read { .. }), "{error}");
}
