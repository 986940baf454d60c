use super::super::Block;
use super::*;
use crate::devices::virtio::event_loop::EventLoop;
use crate::devices::virtio::guest_ring::tests::ring_of;
use crate::devices::virtio::testkit::Bench;
use crate::devices::virtio::testkit::drive::until;
use crate::devices::virtio::{VirtioDevice, event_loop};
use husk_protocol::spec::CacheType;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;

const HEADER: u64 = 0x10_0000;
const DATA: u64 = 0x20_0000;

fn file(len: usize, byte: u8) -> File {
    let file = File::from(rustix::fs::memfd_create("disk", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    file.write_all_at(&vec![byte; len], 0).unwrap();
    file
}

/// A disk, the loop that would be its thread's, and the way to change it.
struct Rig {
    block: Block,
    event_loop: event_loop::EventLoop,
    exchange: Exchange,
    answers: Arc<Answers>,
}

impl Rig {
    fn new(block: Block) -> Self {
        let (event_loop, handle) = EventLoop::new().unwrap();
        let exchange = block.exchange(handle);
        Self { block, event_loop, exchange, answers: Arc::new(Answers::new().unwrap()) }
    }

    fn of(file: File, read_only: bool) -> Self {
        Self::new(Block::new(file, "vda", read_only, CacheType::Unsafe).unwrap())
    }

    fn wish(&self, file: File, number: u32) {
        self.exchange.wish(file, number, &self.answers).unwrap();
    }

    /// The drive's thread gets to its commands.
    fn thread(&mut self) {
        assert!(self.event_loop.turn(0).unwrap().is_continue());
    }

    /// The next answer; empty if the wish was fulfilled.
    fn answer(&mut self) -> (u32, String) {
        self.thread();
        let mut answers = self.answers.take();
        assert_eq!(answers.len(), 1);
        let (number, result) = answers.remove(0);
        (number, result.err().map_or_else(String::new, |error| error.to_string()))
    }

    fn sectors(&self) -> u64 {
        let mut bytes = [0; 8];
        self.block.read_config(0, &mut bytes);
        u64::from_le_bytes(bytes)
    }
}

fn read(bench: &mut Bench) -> Vec<u8> {
    bench.write(HEADER, &[0; 16]);
    bench.rings[0].offer(&[(HEADER, 16, false), (DATA, 512, true), (DATA + 512, 1, true)]);
    bench.kick(0);
    until(|| {
        bench.round().unwrap();
        bench.rings[0].take_used().is_some()
    });
    bench.read(DATA, 513)
}

#[test]
fn a_driver_sees_the_new_capacity_and_content_and_the_old_file_is_closed() {
    let mut rig = Rig::of(file(4096, 1), false);
    let mut bench = Bench::start(&mut rig.block);
    assert_eq!(read(&mut bench), [[1; 512].as_slice(), &[0]].concat());
    let old = Arc::downgrade(&rig.block.seat.lock().disk);
    let generation = rig.block.config_generation();
    rig.wish(file(1 << 20, 2), 7);
    rig.thread();
    assert_eq!((rig.sectors(), rig.answers.take().len()), (8, 0), "the worker comes to it first");
    bench.settle();
    assert_eq!(rig.answer(), (7, String::new()));
    assert_eq!((rig.sectors(), bench.bell.configs.load(Ordering::SeqCst)), (2048, 1));
    assert_ne!(rig.block.config_generation(), generation);
    assert_eq!(read(&mut bench), [[2; 512].as_slice(), &[0]].concat());
    assert!(old.upgrade().is_none(), "nobody has the old file");
}

#[test]
fn without_a_worker_the_file_is_there_at_once() {
    let mut rig = Rig::of(file(4096, 1), false);
    rig.wish(file(8192, 2), 1);
    assert_eq!(rig.answer(), (1, String::new()));
    assert_eq!(rig.sectors(), 16);
    let mut bench = Bench::start(&mut rig.block);
    assert_eq!(read(&mut bench)[0], 2);
}

#[test]
fn item_22_a_file_that_cannot_be_the_disk_is_refused_and_nothing_changes() {
    let mut rig = Rig::of(file(4096, 1), false);
    let mut bench = Bench::start(&mut rig.block);
    let read_only = File::open("/proc/self/exe").unwrap();
    let (device, directory) = (File::open("/dev/null").unwrap(), File::open("/").unwrap());
    let writable = File::options().read(true).write(true).open("/dev/null").unwrap();
    let wrong = [
        (file(0, 0), "has 0 bytes; a multiple of 512"),
        (file(513, 0), "has 513 bytes"),
        (read_only, "not open for writing"),
        (device, "not open for writing"),
        (writable, "neither a regular file nor a block device"),
        (directory, "not open for writing"),
    ];
    for (number, (file, text)) in (0..).zip(wrong) {
        rig.wish(file, number);
        let (answered, line) = rig.answer();
        assert!(answered == number && line.contains(text), "{line}");
        bench.settle();
        assert_eq!((rig.sectors(), read(&mut bench)[0]), (8, 1));
    }
    let whole = File::open("/proc/self/exe").unwrap();
    let mut readable = Rig::of(file(512, 1), true);
    readable.wish(whole, 1);
    let line = readable.answer().1;
    assert!(
        line.is_empty() || line.contains("a multiple of 512"),
        "a read-only drive takes a read-only file: {line}"
    );
    let part = Block::of_part(file(4096, 1), Some(512..1024), "x", true, CacheType::Unsafe).unwrap();
    let rig = Rig::new(part);
    let refused = rig.exchange.wish(file(512, 2), 1, &rig.answers).unwrap_err();
    assert!(matches!(refused, ExchangeError::Part));
}

#[test]
fn a_wish_that_was_taken_back_changes_nothing_however_late() {
    let mut rig = Rig::of(file(4096, 1), false);
    let mut bench = Bench::start(&mut rig.block);
    rig.wish(file(8192, 2), 1);
    assert!(matches!(rig.exchange.wish(file(512, 3), 2, &rig.answers), Err(ExchangeError::Busy)));
    // The thread has not looked at the file yet.
    assert!(rig.exchange.withdraw(1) && !rig.exchange.withdraw(1));
    for number in 10..20 {
        let refused = rig.exchange.wish(file(512, 3), number, &rig.answers);
        assert!(matches!(refused, Err(ExchangeError::Busy)), "a thread that hangs keeps one file, not many");
    }
    rig.thread();
    bench.settle();
    assert_eq!((rig.sectors(), read(&mut bench)[0], rig.answers.take().len()), (8, 1, 0));
    // It has, and waits for the worker.
    rig.wish(file(8192, 2), 3);
    rig.thread();
    assert!(rig.exchange.withdraw(3));
    bench.settle();
    assert_eq!((rig.sectors(), read(&mut bench)[0], rig.answers.take().len()), (8, 1, 0));
    // It was too late to take it back.
    rig.wish(file(8192, 2), 4);
    rig.thread();
    bench.settle();
    assert!(!rig.exchange.withdraw(4));
    assert_eq!(rig.answer(), (4, String::new()));
    assert_eq!(read(&mut bench)[0], 2);
}

#[test]
fn a_reset_meanwhile_fulfils_the_wish() {
    let mut rig = Rig::of(file(4096, 1), false);
    let mut bench = Bench::start(&mut rig.block);
    rig.wish(file(8192, 2), 1);
    rig.thread();
    bench.worker.drain(std::time::Instant::now()).unwrap();
    assert_eq!(rig.answer(), (1, String::new()));
    let mut bench = Bench::start(&mut rig.block);
    assert_eq!((rig.sectors(), read(&mut bench)[0]), (16, 2));
}

#[test]
fn a_ring_goes_with_its_file_and_nothing_in_flight_meets_the_new_one() {
    let (old, new) = (file(64 << 10, 1), file(64 << 10, 2));
    if ring_of::<()>(&old).is_none() {
        return;
    }
    let block = Block::new(old.try_clone().unwrap(), "vda", false, CacheType::Unsafe).unwrap();
    block.add_ring().unwrap();
    let mut rig = Rig::new(block);
    let mut bench = Bench::start(&mut rig.block);
    // Writes of nines: those before the change to the old file, those after it to the new one.
    bench.write(HEADER, &1_u32.to_le_bytes());
    bench.write(DATA, &[9; 512]);
    let offer = |bench: &mut Bench| {
        for _ in 0..30 {
            bench.rings[0].offer(&[(HEADER, 16, false), (DATA, 512, false), (DATA + 512, 1, true)]);
        }
        bench.kick(0);
    };
    offer(&mut bench);
    bench.round().unwrap();
    rig.wish(new.try_clone().unwrap(), 1);
    rig.thread();
    let mut used = 0;
    until(|| {
        bench.round().unwrap();
        used += bench.rings[0].take_all_used().len();
        used == 30
    });
    bench.settle();
    assert_eq!(rig.answer(), (1, String::new()));
    let (mut first, mut second) = ([0; 512], [0; 512]);
    old.read_exact_at(&mut first, 0).unwrap();
    new.read_exact_at(&mut second, 0).unwrap();
    assert_eq!((first, second), ([9; 512], [2; 512]));
    old.write_all_at(&[1; 512], 0).unwrap();
    offer(&mut bench);
    bench.settle();
    assert_eq!(bench.rings[0].take_all_used().len(), 30, "without a ring each is answered at once");
    old.read_exact_at(&mut first, 0).unwrap();
    new.read_exact_at(&mut second, 0).unwrap();
    assert_eq!((first, second), ([1; 512], [9; 512]));
}

/// A disk whose ring reads from a pipe: it hangs until something is written there. `None`: skipped.
fn hanging() -> Option<(Rig, rustix::fd::OwnedFd)> {
    use std::os::fd::AsFd;
    let disk = file(64 << 10, 1);
    drop(ring_of::<()>(&disk)?);
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let rig = Rig::of(disk, false);
    rig.block.seat.lock().ring = Some(GuestRing::new(reader.as_fd()).unwrap());
    Some((rig, writer))
}

fn offer_read(bench: &mut Bench) {
    bench.write(HEADER, &[0; 16]);
    bench.rings[0].offer(&[(HEADER, 16, false), (DATA, 512, true), (DATA + 512, 1, true)]);
    bench.kick(0);
}

#[test]
fn item_7_a_reset_keeps_the_buffers_of_what_is_in_flight_until_it_ends() {
    let Some((mut rig, disk)) = hanging() else { return };
    let mut bench = Bench::start(&mut rig.block);
    offer_read(&mut bench);
    bench.settle();
    for _ in 0..100 {
        assert!(bench.worker.drain(std::time::Instant::now()).is_err());
        offer_read(&mut bench);
        bench.round().unwrap();
    }
    assert_eq!((bench.rings[0].take_used(), bench.read(DATA, 513)), (None, vec![0; 513]));
    assert_eq!(rustix::io::write(&disk, &[5; 100]).unwrap(), 100);
    assert!(bench.worker.drain(std::time::Instant::now()).is_err(), "the rest of it is in flight now");
    assert_eq!(rustix::io::write(&disk, &[6; 412]).unwrap(), 412);
    until(|| bench.worker.drain(std::time::Instant::now()).is_ok());
    assert_eq!(bench.rings[0].take_all_used(), [(0, 513)], "what came after the reset was not taken");
    assert_eq!(bench.read(DATA, 513), [[5; 100].as_slice(), &[6; 412], &[0]].concat());
    // The next driver has the ring.
    let mut bench = Bench::start(&mut rig.block);
    offer_read(&mut bench);
    bench.settle();
    assert_eq!(rustix::io::write(&disk, &[7; 512]).unwrap(), 512);
    until(|| bench.round().unwrap() > 0 && bench.rings[0].take_used().is_some());
    assert_eq!(bench.read(DATA, 1), [7]);
}

#[test]
fn a_disk_that_hangs_does_not_let_go_and_goes_on_when_the_wish_is_taken_back() {
    let Some((mut rig, disk)) = hanging() else { return };
    let mut bench = Bench::start(&mut rig.block);
    offer_read(&mut bench);
    bench.settle();
    rig.wish(file(8192, 2), 1);
    rig.thread();
    offer_read(&mut bench);
    bench.settle();
    assert_eq!((rig.sectors(), rig.answers.take().len()), (128, 0));
    assert!(rig.exchange.withdraw(1));
    bench.settle();
    assert_eq!(rustix::io::write(&disk, &[5; 1024]).unwrap(), 1024);
    let mut used = 0;
    until(|| {
        bench.round().unwrap();
        used += bench.rings[0].take_all_used().len();
        used == 2
    });
    assert_eq!(
        (rig.sectors(), rig.answers.take().len()),
        (128, 0),
        "the second was taken, and from the old file"
    );
    assert_eq!(bench.read(DATA, 513), [[5; 512].as_slice(), &[0]].concat());
}
