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

/// Two regions of 16 KiB with a hole between them, each byte 7.
fn sevens() -> GuestMemory {
    let ranges = [(GuestAddress(0), 16 << 10), (GuestAddress(64 << 10), 16 << 10)];
    let memory = map(&ranges, Backing::Anonymous).unwrap();
    for (start, length) in ranges {
        memory.write_slice(&vec![7; length], start).unwrap();
    }
    memory
}

/// The pages that read as zero, by number.
fn gone(memory: &GuestMemory) -> Vec<u64> {
    let page = |number: &u64| {
        let mut bytes = [1; 4096];
        memory.read_slice(&mut bytes, GuestAddress(number * 4096)).is_ok() && bytes == [0; 4096]
    };
    (0..32).filter(page).collect()
}

#[test]
fn what_is_discarded_reads_as_zero_and_its_neighbours_stay() {
    let memory = sevens();
    discard(&memory, GuestAddress(4096), 8192).unwrap();
    assert_eq!(gone(&memory), [1, 2]);
    memory.write_obj(9_u64, GuestAddress(4096)).unwrap();
    assert_eq!(memory.read_obj::<u64>(GuestAddress(4096)).unwrap(), 9, "it comes back when it is touched");
}

#[test]
fn only_whole_pages_of_guest_memory_are_discarded() {
    for (start, length, expected) in [
        (0, 0, &[][..]),
        (0, 4095, &[]),
        (1, 8191, &[1]),
        (4095, 4098, &[1]),
        (0x3000, 0xe000, &[3, 16]),
        (0x4000, 0xc000, &[]),
        (0x13000, 1 << 40, &[19]),
        (0, u64::MAX, &[0, 1, 2, 3, 16, 17, 18, 19]),
        (u64::MAX, u64::MAX, &[]),
        (u64::MAX - 0xfff, 0x1000, &[]),
    ] {
        let memory = sevens();
        discard(&memory, GuestAddress(start), length).unwrap();
        assert_eq!(gone(&memory), expected, "{length:#x} bytes at {start:#x}");
    }
}

#[test]
fn a_region_discards_nothing_beyond_itself() {
    let memory = sevens();
    let region = memory.iter().next().unwrap();
    for place in [(0, 20 << 10), (16 << 10, 4096), (usize::MAX - 4095, 4096), (1, 4096), (0, 1)] {
        assert_eq!(mapping::discard(region, place), Err(Errno::INVAL), "{place:?}");
    }
    assert!(gone(&memory).is_empty());
}

/// Whether each 2 MiB of `memory` are advised to be huge pages, from /proc/self/smaps. Empty where the kernel has none.
fn advised(memory: &GuestMemory) -> Vec<bool> {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let start = memory.get_host_address(GuestAddress(0)).unwrap().addr();
    let flags_at = |address: usize| {
        let mut inside = false;
        for line in smaps.lines() {
            let range = line.split(' ').next().and_then(|range| range.split_once('-'));
            let parsed = range.and_then(|(from, to)| {
                Some((usize::from_str_radix(from, 16).ok()?, usize::from_str_radix(to, 16).ok()?))
            });
            if let Some((from, to)) = parsed {
                inside = (from..to).contains(&address);
            } else if let (true, Some(flags)) = (inside, line.strip_prefix("VmFlags:")) {
                let flags: Vec<&str> = flags.split_whitespace().collect();
                return Some((flags.contains(&"hg"), flags.contains(&"nh")));
            }
        }
        None
    };
    let places = total_bytes(memory) / HUGE_PAGE;
    let flags = (0..places).map(|place| flags_at(start + place * HUGE_PAGE).unwrap());
    flags.filter(|(huge, small)| *huge != *small).map(|(huge, _)| huge).collect()
}

#[test]
fn no_huge_page_fills_the_hole_that_a_discarded_part_of_it_leaves() {
    let memory = map(&[(GuestAddress(0), 5 * HUGE_PAGE)], Backing::Anonymous).unwrap();
    if advised(&memory).is_empty() {
        println!("HUSK-SKIP this kernel has no transparent huge pages");
        return;
    }
    let huge = HUGE_PAGE as u64;
    // The last page of the first, the whole second, the first page of the third.
    discard(&memory, GuestAddress(huge - 4096), huge + 8192).unwrap();
    assert_eq!(advised(&memory), [false, true, false, true, true]);
    discard(&memory, GuestAddress(3 * huge), 2 * huge).unwrap();
    assert_eq!(advised(&memory), [false, true, false, true, true], "whole ones leave no hole");
    prefer(&memory, GuestAddress(12_288), Pages::Huge);
    assert_eq!(advised(&memory), [true, true, false, true, true], "until the guest wants it back");
    prefer(&memory, GuestAddress(1 << 40), Pages::Small);
}
