use super::*;
use crate::devices::virtio::block::request::tests::{HEADER, Rig, SECTORS, STATUS, buffer, rig};
use crate::devices::virtio::queue::Chain;
use std::fs::File;
use vm_memory::{Bytes, GuestAddress};

const UNMAP: u32 = blk::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
const RANGES: u64 = 0x20_0000;

/// Runs a request of `kind` with these ranges: sector, sectors, flags. Returns the status.
fn run(rig: &Rig, kind: u32, ranges: &[(u64, u32, u32)]) -> u8 {
    let mut at = RANGES;
    for &(sector, sectors, flags) in ranges {
        rig.memory.write_obj(sector, GuestAddress(at)).unwrap();
        rig.memory.write_obj(sectors, GuestAddress(at + 8)).unwrap();
        rig.memory.write_obj(flags, GuestAddress(at + 12)).unwrap();
        at += 16;
    }
    run_bytes(rig, kind, u32::try_from(at - RANGES).unwrap())
}

fn run_bytes(rig: &Rig, kind: u32, len: u32) -> u8 {
    rig.header(kind, 0);
    let readable = [buffer(HEADER, 16), buffer(RANGES, len)].into_iter().filter(|it| it.len > 0).collect();
    let (result, status) = rig.run(&Chain { head: 0, readable, writable: vec![buffer(STATUS, 1)] });
    assert_eq!(result, Ok(1));
    status
}

fn discard(rig: &Rig, ranges: &[(u64, u32, u32)]) -> u8 {
    run(rig, blk::VIRTIO_BLK_T_DISCARD, ranges)
}

fn zeroes(rig: &Rig, ranges: &[(u64, u32, u32)]) -> u8 {
    run(rig, blk::VIRTIO_BLK_T_WRITE_ZEROES, ranges)
}

/// Which sectors are zeros now; sector 0 always was.
fn holes(rig: &Rig) -> Vec<usize> {
    let file = rig.file();
    assert_eq!(file.len(), usize::try_from(SECTORS).unwrap() * 512, "the length stays");
    let sectors = file.chunks(512).enumerate().skip(1);
    sectors.filter(|(_, sector)| sector.iter().all(|&byte| byte == 0)).map(|(index, _)| index).collect()
}

/// A rig whose disk lies on a file system of this machine.
fn rig_on_disk() -> Rig {
    let mut rig = rig();
    let path = std::env::temp_dir().join(format!("husk-ranges-{}", std::process::id()));
    std::fs::write(&path, rig.file()).unwrap();
    rig.disk.file = File::options().read(true).write(true).open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    rig
}

#[test]
fn discarded_sectors_are_gone_and_the_others_stay() {
    let rig = rig();
    assert_eq!(discard(&rig, &[(8, 8, 0)]), 0);
    assert_eq!(holes(&rig), (8..16).collect::<Vec<_>>());
    assert_eq!(discard(&rig, &[(20, 1, 0), (63, 1, 0), (30, 0, 0)]), 0);
    assert_eq!(holes(&rig), (8..16).chain([20, 63]).collect::<Vec<_>>());
}

#[test]
fn discarded_blocks_are_given_back_to_the_host() {
    use std::os::unix::fs::MetadataExt;
    let rig = rig();
    let before = rig.disk.file.metadata().unwrap().blocks();
    assert_eq!(discard(&rig, &[(0, 64, 0)]), 0);
    assert_eq!((before, rig.disk.file.metadata().unwrap().blocks()), (64, 0));
}

#[test]
fn zeros_are_written_or_the_driver_is_told_to_write_them() {
    let rig = rig_on_disk();
    match zeroes(&rig, &[(9, 3, 0)]) {
        0 => assert_eq!(holes(&rig), [9, 10, 11]),
        status => assert_eq!((status, holes(&rig)), (2, vec![])),
    }
    // A memfd has no ZERO_RANGE; with unmap a hole does.
    let rig = crate::devices::virtio::block::request::tests::rig();
    assert_eq!((zeroes(&rig, &[(9, 3, 0)]), holes(&rig)), (2, vec![]));
    assert_eq!((zeroes(&rig, &[(9, 3, UNMAP)]), holes(&rig)), (0, vec![9, 10, 11]));
}

#[test]
fn zeros_cost_what_the_host_may_have_written() {
    let disk = rig_on_disk();
    let cost = |rig: &Rig, kind, flags: u32| {
        rig.memory.write_obj(9_u64, GuestAddress(RANGES)).unwrap();
        rig.memory.write_obj(3_u32, GuestAddress(RANGES + 8)).unwrap();
        rig.memory.write_obj(flags, GuestAddress(RANGES + 12)).unwrap();
        rig.header(kind, 0);
        let readable = vec![buffer(HEADER, 16), buffer(RANGES, 16)];
        let chain = Chain { head: 0, readable, writable: vec![buffer(STATUS, 1)] };
        let (answer, status) = rig.run_and_count(&chain);
        (status, answer.unwrap().cost)
    };
    // The ranges themselves are 16 bytes. A host that does not zero has written nothing.
    let (status, bytes) = cost(&disk, blk::VIRTIO_BLK_T_WRITE_ZEROES, 0);
    assert_eq!(bytes, if status == 0 { 16 + 3 * 512 } else { 16 });
    let memory = crate::devices::virtio::block::request::tests::rig();
    assert_eq!(cost(&memory, blk::VIRTIO_BLK_T_WRITE_ZEROES, UNMAP), (0, 16), "a hole");
    assert_eq!(cost(&memory, blk::VIRTIO_BLK_T_WRITE_ZEROES, 0), (2, 16));
    assert_eq!(cost(&memory, blk::VIRTIO_BLK_T_DISCARD, 0), (0, 16));
}

#[test]
fn item_10_ranges_that_are_not_on_the_disk_are_errors() {
    let rig = rig();
    for (sector, sectors) in [
        (SECTORS, 1),
        (SECTORS - 1, 2),
        (0, 65),
        (u64::MAX, 1),
        (u64::MAX, u32::MAX),
        (u64::MAX - 1, 1),
        (1 << 55, 8),
        (0, u32::MAX),
        (SECTORS + 1, 0),
    ] {
        assert_eq!(discard(&rig, &[(sector, sectors, 0)]), 1, "{sector}+{sectors}");
        assert_eq!(zeroes(&rig, &[(sector, sectors, UNMAP)]), 1, "{sector}+{sectors}");
        // One bad range spoils the request, and the good one before it is not touched.
        assert_eq!(discard(&rig, &[(1, 1, 0), (sector, sectors, 0)]), 1);
    }
    assert!(holes(&rig).is_empty());
    assert_eq!(discard(&rig, &[(SECTORS, 0, 0)]), 0, "nothing at the very end is nothing");
}

#[test]
fn item_10_ranges_longer_than_the_configuration_says_are_errors() {
    let mut rig = rig();
    rig.disk.sectors = 1 << 30;
    rig.disk.file.set_len(1 << 39).unwrap();
    assert_eq!(discard(&rig, &[(0, DISCARD_SECTORS, 0)]), 0);
    assert_eq!(discard(&rig, &[(0, DISCARD_SECTORS + 1, 0)]), 1);
    assert_eq!(zeroes(&rig, &[(0, ZEROES_SECTORS, UNMAP)]), 0);
    assert_eq!(zeroes(&rig, &[(0, ZEROES_SECTORS + 1, UNMAP)]), 1);
}

#[test]
fn item_10_an_array_is_whole_and_no_longer_than_the_configuration_says() {
    let rig = rig();
    for len in [0, 1, 15, 17, 31] {
        assert_eq!(run_bytes(&rig, blk::VIRTIO_BLK_T_DISCARD, len), 1, "{len}");
        assert_eq!(run_bytes(&rig, blk::VIRTIO_BLK_T_WRITE_ZEROES, len), 1, "{len}");
    }
    assert_eq!(discard(&rig, &[(1, 1, 0); 17]), 1);
    assert_eq!(zeroes(&rig, &[(1, 1, UNMAP); 2]), 1);
    assert!(holes(&rig).is_empty());
    assert_eq!(discard(&rig, &[(1, 1, 0); 16]), 0);
    assert_eq!(run_bytes(&rig, blk::VIRTIO_BLK_T_DISCARD, 1 << 20), 1, "a long one costs nothing");
}

#[test]
fn flags_that_a_kind_does_not_know_are_unsupported() {
    let rig = rig();
    for flags in [UNMAP, 2, 3, 0x8000_0000, u32::MAX] {
        assert_eq!(discard(&rig, &[(1, 1, flags)]), 2, "{flags:#x}");
    }
    for flags in [2, 3, 0x8000_0000, u32::MAX] {
        assert_eq!(zeroes(&rig, &[(1, 1, flags)]), 2, "{flags:#x}");
    }
    assert!(holes(&rig).is_empty());
}

#[test]
fn item_8_a_read_only_disk_keeps_its_sectors() {
    let mut rig = rig();
    rig.disk.read_only = true;
    assert_eq!(discard(&rig, &[(1, 1, 0)]), 1);
    assert_eq!(zeroes(&rig, &[(1, 1, UNMAP)]), 1);
    assert!(holes(&rig).is_empty());
}

#[test]
fn item_29_what_the_host_refuses_is_an_error_of_the_request() {
    let mut rig = rig();
    let (reader, _writer) = std::io::pipe().unwrap();
    rig.disk.file = File::from(std::os::fd::OwnedFd::from(reader));
    assert_eq!(discard(&rig, &[(1, 1, 0)]), 1);
    assert_eq!(zeroes(&rig, &[(1, 1, UNMAP)]), 1);
}
