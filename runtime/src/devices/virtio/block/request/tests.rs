use super::*;
use crate::devices::virtio::queue::Buffer;
use crate::devices::virtio::testkit::{HIGH, IMAGE, IMAGE_BYTES, LOW_END, memory};
use std::io::{Read, Seek, SeekFrom, Write};
use vm_memory::{Bytes, GuestAddress};

pub(crate) const HEADER: u64 = 0x10_0000;
const DATA: u64 = 0x20_0000;
pub(crate) const STATUS: u64 = 0x30_0000;
pub(crate) const SECTORS: u64 = 64;

pub(crate) struct Rig {
    pub(crate) memory: Memory,
    pub(crate) disk: Disk,
}

/// A disk whose sector N is filled with N.
pub(crate) fn rig() -> Rig {
    let mut file = tempfile();
    for sector in 0..u8::try_from(SECTORS).unwrap() {
        file.write_all(&[sector; 512]).unwrap();
    }
    let disk = Disk {
        start: 0,
        file,
        sectors: SECTORS,
        read_only: false,
        writeback: true,
        serial: *b"drive\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
    };
    Rig { memory: memory(), disk }
}

fn tempfile() -> File {
    let fd = rustix::fs::memfd_create("disk", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    File::from(fd)
}

pub(crate) fn buffer(addr: u64, len: u32) -> Buffer {
    Buffer { addr: GuestAddress(addr), len }
}

impl Rig {
    pub(crate) fn header(&self, kind: u32, sector: u64) {
        self.memory.write_obj(kind, GuestAddress(HEADER)).unwrap();
        self.memory.write_obj(0u32, GuestAddress(HEADER + 4)).unwrap();
        self.memory.write_obj(sector, GuestAddress(HEADER + 8)).unwrap();
        self.memory.write_obj(0xffu8, GuestAddress(STATUS)).unwrap();
    }

    pub(crate) fn run(&self, chain: &Chain) -> (Result<u32, Nonsense>, u8) {
        let (result, status) = self.run_and_count(chain);
        (result.map(|answer| answer.written), status)
    }

    /// What it did, and what it cost in bytes.
    pub(crate) fn run_and_count(&self, chain: &Chain) -> (Result<Answer, Nonsense>, u8) {
        let result = handle(&self.memory, chain, &self.disk);
        (result, self.memory.read_obj(GuestAddress(STATUS)).unwrap())
    }

    fn read(&self, sector: u64, data: &[Buffer]) -> (Result<u32, Nonsense>, u8) {
        self.header(blk::VIRTIO_BLK_T_IN, sector);
        let writable = data.iter().copied().chain([buffer(STATUS, 1)]).collect();
        self.run(&Chain { head: 0, readable: vec![buffer(HEADER, 16)], writable })
    }

    fn write(&self, sector: u64, data: &[Buffer]) -> (Result<u32, Nonsense>, u8) {
        self.header(blk::VIRTIO_BLK_T_OUT, sector);
        let readable = [buffer(HEADER, 16)].into_iter().chain(data.iter().copied()).collect();
        self.run(&Chain { head: 0, readable, writable: vec![buffer(STATUS, 1)] })
    }

    fn plain(&self, kind: u32, writable: u32) -> (Result<u32, Nonsense>, u8) {
        self.header(kind, 0);
        let writable = [buffer(DATA, writable)]
            .into_iter()
            .filter(|buffer| buffer.len > 0)
            .chain([buffer(STATUS, 1)])
            .collect();
        self.run(&Chain { head: 0, readable: vec![buffer(HEADER, 16)], writable })
    }

    pub(crate) fn file(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        (&self.disk.file).seek(SeekFrom::Start(0)).unwrap();
        (&self.disk.file).read_to_end(&mut bytes).unwrap();
        bytes
    }

    fn guest(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(addr)).unwrap();
        bytes
    }
}

#[test]
fn sectors_are_read_into_scattered_buffers() {
    let rig = rig();
    // Sector 5, 6 and half of 7 in pieces of odd sizes.
    let pieces = [buffer(DATA, 1), buffer(DATA + 1, 700), buffer(HIGH + 3, 323), buffer(DATA + 0x1000, 512)];
    assert_eq!(rig.read(5, &pieces), (Ok(1537), 0));
    assert_eq!(rig.guest(DATA, 512), [5; 512]);
    assert_eq!(rig.guest(DATA + 512, 189), [6; 189]);
    assert_eq!(rig.guest(HIGH + 3, 323), [6; 323]);
    assert_eq!(rig.guest(DATA + 0x1000, 512), [7; 512]);
}

#[test]
fn sectors_are_written_where_they_belong() {
    let rig = rig();
    rig.memory.write_slice(&[0xaa; 1024], GuestAddress(DATA)).unwrap();
    assert_eq!(rig.write(62, &[buffer(DATA, 100), buffer(DATA + 100, 924)]), (Ok(1), 0));
    let file = rig.file();
    assert_eq!(file.len(), 64 * 512);
    assert_eq!(file[61 * 512..62 * 512], [61; 512]);
    assert_eq!(file[62 * 512..], [0xaa; 1024]);
}

#[test]
fn header_and_status_may_share_buffers_with_data() {
    let rig = rig();
    rig.header(blk::VIRTIO_BLK_T_IN, 9);
    let readable = vec![buffer(HEADER, 4), buffer(HEADER + 4, 12)];
    let result = rig.run(&Chain { head: 0, readable, writable: vec![buffer(DATA, 513)] }).0;
    assert_eq!(result, Ok(513));
    assert_eq!(rig.guest(DATA, 512), [9; 512]);
    assert_eq!(rig.guest(DATA + 512, 1), [0]);
}

#[test]
fn item_10_what_is_not_on_the_disk_is_an_error() {
    let rig = rig();
    let before = rig.file();
    for (sector, len) in [
        (SECTORS, 512),
        (SECTORS - 1, 1024),
        (0, 65 * 512),
        (u64::MAX, 512),
        (u64::MAX - 1, 512),
        (u64::MAX / 512 + 1, 512),
        (1 << 55, 512),
        (0, 511),
        (0, 513),
        (0, 1),
    ] {
        assert_eq!(rig.read(sector, &[buffer(DATA, len)]).1, 1, "read {sector}+{len}");
        assert_eq!(rig.write(sector, &[buffer(DATA, len)]).1, 1, "write {sector}+{len}");
    }
    assert!(rig.file() == before);
    assert_eq!(rig.read(SECTORS, &[]).1, 0, "nothing at the very end is nothing");
}

#[test]
fn item_10_unknown_requests_are_unsupported() {
    let rig = rig();
    for kind in [2, 3, 5, 7, 9, 10, 12, 14, 15, 0x8000_0000, u32::MAX] {
        assert_eq!(rig.plain(kind, 0), (Ok(1), 2), "{kind}");
    }
}

#[test]
fn item_8_a_read_only_disk_is_not_written() {
    let mut rig = rig();
    rig.disk.read_only = true;
    let before = rig.file();
    assert_eq!(rig.write(0, &[buffer(DATA, 512)]), (Ok(1), 1));
    assert!(rig.file() == before);
    assert_eq!(rig.read(3, &[buffer(DATA, 512)]).1, 0);
}

#[test]
fn item_4_chains_that_are_no_requests_are_nonsense() {
    let rig = rig();
    rig.header(blk::VIRTIO_BLK_T_IN, 0);
    let status = vec![buffer(STATUS, 1)];
    let before = rig.file();
    for readable in [vec![], vec![buffer(HEADER, 15)], vec![buffer(HEADER, 8), buffer(HEADER, 7)]] {
        assert_eq!(rig.run(&Chain { head: 0, readable, writable: status.clone() }), (Err(Nonsense), 0xff));
    }
    let readable = vec![buffer(HEADER, 16)];
    assert_eq!(rig.run(&Chain { head: 0, readable: readable.clone(), writable: vec![] }).0, Err(Nonsense));
    // Swapped: the header where the device writes.
    assert_eq!(rig.run(&Chain { head: 0, readable: vec![], writable: readable }).0, Err(Nonsense));
    assert!(rig.file() == before);
}

#[test]
fn item_3_buffers_outside_memory_are_nonsense() {
    let rig = rig();
    for bad in [buffer(LOW_END - 256, 512), buffer(LOW_END, 512), buffer(u64::MAX - 100, 512)] {
        assert_eq!(rig.read(0, &[bad]).0, Err(Nonsense));
        assert_eq!(rig.write(0, &[bad]).0, Err(Nonsense));
    }
}

#[test]
fn item_4_a_request_larger_than_the_device_allows_is_an_error() {
    let mut rig = rig();
    rig.disk.sectors = 1 << 40;
    rig.disk.file.set_len(1 << 40).unwrap();
    let mebibyte = buffer(DATA, 1 << 20);
    assert_eq!(rig.read(0, &[mebibyte; 31]).1, 0);
    assert_eq!(rig.read(0, &[mebibyte; 32]).1, 1);
    let start = std::time::Instant::now();
    assert_eq!(rig.read(0, &[buffer(0, 8 << 20); 126]).1, 1);
    assert!(start.elapsed().as_millis() < 1000);
}

#[test]
fn item_22_a_file_that_shrank_is_an_error_and_no_more() {
    let rig = rig();
    rig.disk.file.set_len(10 * 512 + 100).unwrap();
    assert_eq!(rig.read(9, &[buffer(DATA, 512)]).1, 0);
    assert_eq!(rig.read(10, &[buffer(DATA, 512)]).1, 1);
    assert_eq!(rig.read(20, &[buffer(DATA, 512)]).1, 1);
}

#[test]
fn item_29_a_full_disk_is_an_error() {
    let mut rig = rig();
    rig.disk.file = File::options().read(true).write(true).open("/dev/full").unwrap();
    assert_eq!(rig.write(0, &[buffer(DATA, 512)]).1, 1);
}

#[test]
fn a_flush_reaches_the_file_or_is_not_offered() {
    let mut rig = rig();
    assert_eq!(rig.plain(blk::VIRTIO_BLK_T_FLUSH, 0), (Ok(1), 0));
    rig.disk.writeback = false;
    assert_eq!(rig.plain(blk::VIRTIO_BLK_T_FLUSH, 0), (Ok(1), 2));
    rig.disk.writeback = true;
    // A pipe cannot be synchronised: what the host refuses is an error of the request.
    let (reader, _writer) = std::io::pipe().unwrap();
    rig.disk.file = File::from(std::os::fd::OwnedFd::from(reader));
    assert_eq!(rig.plain(blk::VIRTIO_BLK_T_FLUSH, 0), (Ok(1), 1));
}

#[test]
fn a_disk_that_is_a_part_ends_where_the_part_does() {
    let mut rig = rig();
    rig.disk = Disk { start: 5 * 512, sectors: 3, read_only: true, ..rig.disk };
    assert_eq!(rig.read(2, &[buffer(DATA, 512)]).1, Status::Ok as u8);
    assert_eq!(rig.memory.read_obj::<u8>(GuestAddress(DATA)).unwrap(), 7);
    for beyond in [3, u64::MAX / 512, u64::MAX] {
        assert_eq!(rig.read(beyond, &[buffer(DATA, 512)]).1, Status::IoError as u8, "{beyond}");
    }
    assert_eq!(rig.read(2, &[buffer(DATA, 1024)]).1, Status::IoError as u8, "across its end");
    assert_eq!(rig.write(0, &[buffer(DATA, 512)]).1, Status::IoError as u8);
}

#[test]
fn the_serial_is_what_fits() {
    let rig = rig();
    assert_eq!(rig.plain(blk::VIRTIO_BLK_T_GET_ID, 20), (Ok(21), 0));
    assert_eq!(rig.guest(DATA, 6), *b"drive\0");
    assert_eq!(rig.plain(blk::VIRTIO_BLK_T_GET_ID, 4), (Ok(5), 0));
    assert_eq!(rig.plain(blk::VIRTIO_BLK_T_GET_ID, 0), (Ok(1), 0));
    assert_eq!(rig.plain(blk::VIRTIO_BLK_T_GET_ID, 512), (Ok(21), 0));
}

#[test]
fn a_request_costs_what_it_moved() {
    let rig = rig();
    let cost = |kind, sector, readable: &[Buffer], writable: &[Buffer]| {
        rig.header(kind, sector);
        let readable = [&[buffer(HEADER, 16)], readable].concat();
        let writable = [writable, &[buffer(STATUS, 1)]].concat();
        rig.run_and_count(&Chain { head: 0, readable, writable }).0.unwrap().cost
    };
    let data = |len| [buffer(DATA, len)];
    assert_eq!(cost(blk::VIRTIO_BLK_T_IN, 0, &[], &data(1024)), 1024);
    assert_eq!(cost(blk::VIRTIO_BLK_T_OUT, 1, &data(512), &[]), 512);
    assert_eq!(cost(blk::VIRTIO_BLK_T_FLUSH, 0, &[], &[]), 0);
    // What is refused moves nothing, whatever it claims.
    assert_eq!(cost(blk::VIRTIO_BLK_T_IN, SECTORS, &[], &data(512)), 0);
    assert_eq!(cost(blk::VIRTIO_BLK_T_OUT, 0, &[buffer(0, 8 << 20); 126], &[]), 0);
    assert_eq!(cost(99, 0, &data(512), &data(512)), 0);
}

#[test]
fn an_image_is_written_to_disk_and_never_read_into() {
    let rig = rig();
    let image = |offset: u64| buffer(IMAGE + offset, 512);
    assert_eq!(rig.write(3, &[image(0), buffer(DATA, 512), image(IMAGE_BYTES)]).0, Ok(1));
    let file = rig.file();
    assert!(file[3 * 512..4 * 512].iter().all(|&byte| byte == 0xda));
    assert!(file[5 * 512..6 * 512].iter().all(|&byte| byte == 0), "what follows an image");
    for data in [[image(0)].as_slice(), &[buffer(DATA, 512), image(0)], &[image(IMAGE_BYTES)]] {
        assert_eq!(rig.read(9, data).0, Err(Nonsense), "{data:?}");
    }
    assert_eq!(rig.memory.read_obj::<u8>(GuestAddress(DATA)).unwrap(), 0, "refused before a byte is moved");
    rig.header(blk::VIRTIO_BLK_T_IN, 1);
    let chain = |status| Chain { head: 0, readable: vec![buffer(HEADER, 16)], writable: vec![status] };
    assert_eq!(rig.run(&chain(buffer(IMAGE, 1))).0, Err(Nonsense), "the status");
}
