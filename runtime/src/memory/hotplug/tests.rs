use super::*;
use crate::memory::{Backing, DeviceMemory, GuestMemory, map, read_file};
use std::os::fd::AsRawFd;
use vm_memory::{Bytes, GuestMemory as _, Permissions};

const BASE: u64 = 1 << 32;
const BLOCKS: usize = 200;

fn region() -> Hotplug {
    Hotplug::map(BLOCKS as u64 * BLOCK, GuestAddress(BASE)).unwrap()
}

fn ram() -> GuestMemory {
    map(&[(GuestAddress(0), 1 << 20)], Backing::Anonymous).unwrap()
}

fn seen(hotplug: &Hotplug) -> DeviceMemory {
    DeviceMemory::new(&ram(), &[]).unwrap().with_hotplug(hotplug).unwrap()
}

/// Guest address of a block.
fn at(block: u64) -> GuestAddress {
    GuestAddress(BASE + block * BLOCK)
}

/// What the host allows at a block, and whether it has memory there: from the process's own list of mappings.
fn host(hotplug: &Hotplug, block: u64) -> (String, u64) {
    let address = hotplug.host_address() + block * BLOCK;
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut found = None;
    for line in maps.lines() {
        if let Some((range, rest)) = line.split_once(' ')
            && let Some((from, to)) = range.split_once('-')
            && let (Ok(from), Ok(to)) = (u64::from_str_radix(from, 16), u64::from_str_radix(to, 16))
        {
            found = (from..to).contains(&address).then(|| rest[..3].to_owned());
        } else if let (Some(rights), Some(kib)) = (&found, line.strip_prefix("Rss:")) {
            return (rights.clone(), kib.trim().trim_end_matches(" kB").parse().unwrap());
        }
    }
    panic!("nothing is mapped at {address:#x}");
}

fn is_readable(hotplug: &Hotplug) -> bool {
    let mut poll = libc::pollfd { fd: hotplug.left().as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one structure, which outlives the call.
    #[expect(unsafe_code, reason = "poll(2)")]
    let count = unsafe { libc::poll(&raw mut poll, 1, 0) };
    count == 1
}

#[test]
fn nothing_is_there_before_it_is_plugged() {
    let hotplug = region();
    assert!(hotplug.host_address().is_multiple_of(BLOCK));
    assert_eq!((hotplug.plugged_bytes(), hotplug.open_bytes()), (0, 0));
    assert_eq!(host(&hotplug, 0), ("---".into(), 0));
    let memory = seen(&hotplug);
    for access in [Permissions::Read, Permissions::Write, Permissions::ReadWrite] {
        assert!(!memory.check_range(at(0), 1, access));
    }
    memory.read_obj::<u8>(at(0)).unwrap_err();
    memory.write_obj(1_u8, at(7)).unwrap_err();
    // The kernel does not write there for anybody either.
    let zero = std::fs::File::open("/dev/zero").unwrap();
    let error = read_file(memory.ram(), zero, 0, at(0), 1).unwrap_err().to_string();
    assert!(error.contains("Bad address"), "{error}");
}

#[test]
fn a_block_is_used_while_it_is_plugged_and_goes_back_to_the_host() {
    let hotplug = region();
    let memory = seen(&hotplug);
    hotplug.plug(2..5).unwrap();
    assert_eq!((hotplug.plugged_bytes(), hotplug.open_bytes()), (3 * BLOCK, 3 * BLOCK));
    assert_eq!(hotplug.state(2..5), Blockwise::Plugged);
    memory.write_slice(&vec![7; 3 * HUGE_PAGE], at(2)).unwrap();
    assert_eq!(host(&hotplug, 3), ("rw-".into(), (3 * BLOCK) >> 10));
    // From a plugged block into one that is not.
    memory.write_slice(&[1; 2], GuestAddress(at(5).0 - 1)).unwrap_err();
    memory.read_slice(&mut [0; 2], GuestAddress(at(2).0 - 1)).unwrap_err();
    hotplug.unplug(3..5).unwrap();
    assert_eq!(hotplug.open_bytes(), 3 * BLOCK, "not before it is taken away");
    memory.read_obj::<u8>(at(3)).unwrap_err();
    hotplug.take_away();
    assert_eq!((hotplug.plugged_bytes(), hotplug.open_bytes()), (BLOCK, BLOCK));
    assert_eq!(host(&hotplug, 2), ("rw-".into(), BLOCK >> 10));
    assert_eq!(host(&hotplug, 3), ("---".into(), 0));
    assert_eq!(memory.read_obj::<u8>(at(2)).unwrap(), 7);
    // It comes back empty.
    hotplug.plug(3..4).unwrap();
    assert_eq!(memory.read_obj::<u8>(at(3)).unwrap(), 0);
    assert_eq!(hotplug.state(0..8), Blockwise::Mixed);
    hotplug.unplug_all();
    hotplug.take_away();
    assert_eq!((hotplug.plugged_bytes(), hotplug.open_bytes()), (0, 0));
    assert_eq!(host(&hotplug, 2), ("---".into(), 0));
    assert!(!is_readable(&hotplug));
}

#[test]
fn other_memory_is_what_it_was() {
    let hotplug = region();
    let memory = seen(&hotplug);
    memory.write_obj(5_u64, GuestAddress(8)).unwrap();
    assert!(memory.check_range(GuestAddress(0), 1 << 20, Permissions::Write));
    assert!(hotplug.allows(0, BASE) && hotplug.allows(BASE - 1, 1));
    assert!(!hotplug.allows(BASE - 1, 2) && !hotplug.allows(0, u64::MAX) && !hotplug.allows(BASE, 1));
    assert!(hotplug.allows(BASE + hotplug.bytes(), u64::MAX), "above the region");
    assert!(hotplug.allows(BASE + 5, 0), "no byte");
    assert!(
        !memory.check_range(GuestAddress(BASE + hotplug.bytes()), 1, Permissions::Read),
        "but nothing is there"
    );
}

#[test]
fn blocks_are_whole_and_of_the_region() {
    let hotplug = region();
    assert_eq!(hotplug.blocks(at(1).0, 2 * BLOCK), Some(1..3));
    assert_eq!(hotplug.blocks(BASE, hotplug.bytes()), Some(0..BLOCKS));
    for (start, bytes) in [
        (BASE, 0),
        (BASE + 4096, BLOCK),
        (BASE, BLOCK + 4096),
        (BASE - BLOCK, BLOCK),
        (0, BLOCK),
        (at(199).0, 2 * BLOCK),
        (at(200).0, BLOCK),
        (u64::MAX - BLOCK + 1, BLOCK),
        (u64::MAX, u64::MAX),
    ] {
        assert_eq!(hotplug.blocks(start, bytes), None, "{bytes} at {start:#x}");
    }
}

#[test]
fn a_region_is_of_whole_blocks_and_fits() {
    let map = |bytes, base| Hotplug::map(bytes, GuestAddress(base)).unwrap_err();
    assert!(matches!(map(0, BASE), MemoryError::NotPages { .. }));
    assert!(matches!(map(BLOCK + 4096, BASE), MemoryError::NotPages { .. }));
    assert!(matches!(map(BLOCK, u64::MAX - 4096), MemoryError::Wraps(_)));
    let text = map(1 << 60, BASE).to_string();
    assert!(
        text.starts_with("memory-hotplug.total_size_mib: 1099511627776 MiB cannot be reserved"),
        "{text}"
    );
    let ram = DeviceMemory::new(&ram(), &[]).unwrap();
    let over = Hotplug::map(BLOCK, GuestAddress(0)).unwrap();
    assert!(matches!(ram.with_hotplug(&over), Err(MemoryError::Regions(_))));
}

#[test]
fn nothing_is_taken_away_from_under_a_reader() {
    let hotplug = region();
    let reader = hotplug.reader();
    let bystander = hotplug.reader();
    hotplug.plug(0..4).unwrap();
    reader.enter();
    bystander.enter();
    bystander.leave();
    hotplug.unplug(1..3).unwrap();
    hotplug.take_away();
    assert_eq!(hotplug.open_bytes(), 4 * BLOCK);
    assert_eq!(host(&hotplug, 1).0, "rw-");
    assert!(!is_readable(&hotplug), "nothing can be done before it leaves");
    // A reader that comes later does not see the blocks.
    bystander.enter();
    reader.leave();
    assert!(is_readable(&hotplug));
    hotplug.take_away();
    assert_eq!(hotplug.open_bytes(), 2 * BLOCK);
    assert_eq!(host(&hotplug, 1).0, "---");
    bystander.leave();
    // One that left and came back does not hold it up.
    reader.enter();
    hotplug.unplug(0..1).unwrap();
    reader.leave();
    reader.enter();
    hotplug.take_away();
    assert_eq!(hotplug.open_bytes(), BLOCK);
    reader.leave();
}

#[test]
fn one_that_is_not_waited_for_calls_nobody() {
    let hotplug = region();
    let (hung, busy) = (hotplug.reader(), hotplug.reader());
    hotplug.plug(0..2).unwrap();
    hung.enter();
    busy.enter();
    hotplug.unplug(0..1).unwrap();
    hotplug.take_away();
    busy.leave();
    assert!(is_readable(&hotplug), "it was waited for");
    hotplug.left().read().unwrap();
    hotplug.take_away();
    for _ in 0..3 {
        busy.enter();
        busy.leave();
        assert!(!is_readable(&hotplug), "it came after the block was unplugged");
    }
    // Another block: whoever is there now counts.
    busy.enter();
    hotplug.unplug(1..2).unwrap();
    hotplug.take_away();
    busy.leave();
    assert!(is_readable(&hotplug));
    hotplug.left().read().unwrap();
    hung.leave();
    assert!(is_readable(&hotplug));
    hotplug.take_away();
    assert_eq!(hotplug.open_bytes(), 0);
}

#[test]
fn what_is_plugged_again_meanwhile_stays() {
    let hotplug = region();
    let memory = seen(&hotplug);
    let reader = hotplug.reader();
    hotplug.plug(0..3).unwrap();
    memory.write_obj(9_u8, at(1)).unwrap();
    reader.enter();
    hotplug.unplug(0..3).unwrap();
    hotplug.take_away();
    hotplug.plug(1..2).unwrap();
    reader.leave();
    hotplug.take_away();
    assert_eq!((hotplug.plugged_bytes(), hotplug.open_bytes()), (BLOCK, BLOCK));
    // It was the guest's all the time.
    assert_eq!(memory.read_obj::<u8>(at(1)).unwrap(), 9);
}

#[test]
fn so_much_is_taken_away_at_once() {
    let hotplug = region();
    hotplug.plug(0..BLOCKS).unwrap();
    hotplug.unplug_all();
    hotplug.take_away();
    assert_eq!(hotplug.open_bytes(), BLOCKS as u64 * BLOCK - TAKEN_AT_ONCE);
    assert!(is_readable(&hotplug), "and the rest is not forgotten");
    hotplug.take_away();
    assert_eq!(hotplug.open_bytes(), 0);
}

#[test]
fn pieces_are_counted_and_bounded() {
    let count = 2 * MOST_PIECES + 3;
    let hotplug = Hotplug::map(count as u64 * BLOCK, GuestAddress(BASE)).unwrap();
    for piece in 0..MOST_PIECES {
        hotplug.plug(2 * piece..2 * piece + 1).unwrap();
    }
    let last = 2 * MOST_PIECES;
    assert_eq!(hotplug.plug(last..last + 1), Err(NotNow));
    assert_eq!(hotplug.state(last..last + 1), Blockwise::Unplugged);
    // Between two pieces, and at the end of one.
    hotplug.plug(1..2).unwrap();
    hotplug.plug(last..last + 2).unwrap();
    assert_eq!(hotplug.unplug(1..2), Err(NotNow), "it would be two pieces again");
    hotplug.unplug(0..3).unwrap();
    hotplug.plug(0..1).unwrap();
    assert_eq!(hotplug.plug(2..3), Err(NotNow));
    hotplug.unplug_all();
    while hotplug.open_bytes() > 0 {
        hotplug.take_away();
    }
    hotplug.plug(2..3).unwrap();
}

/// Copies of bytes in one thread, blocks that come and go in another: whoever got an address may use it.
#[test]
fn a_copy_is_never_torn_away() {
    const ROUNDS: u64 = 50;
    let hotplug = region();
    let memory = seen(&hotplug);
    let reader = hotplug.reader();
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (stopped, count) = (Arc::clone(&stop), Arc::clone(&done));
    #[expect(clippy::disallowed_methods, reason = "a test's own thread")]
    let copies = std::thread::spawn(move || {
        let mut bytes = vec![0; 64 << 10];
        while !stopped.load(Ordering::SeqCst) {
            reader.enter();
            for block in 0..4 {
                // Without the reader's count this is a SIGSEGV sooner or later.
                let both = memory.read_slice(&mut bytes, at(block)).is_ok()
                    && memory.write_slice(&bytes, at(block)).is_ok();
                count.fetch_add(both.into(), Ordering::SeqCst);
            }
            reader.leave();
        }
    });
    for _ in 0..ROUNDS {
        hotplug.plug(0..4).unwrap();
        let before = done.load(Ordering::SeqCst);
        // It is in the midst of it then.
        while done.load(Ordering::SeqCst) == before {
            std::thread::yield_now();
        }
        hotplug.unplug(1..3).unwrap();
        hotplug.take_away();
        hotplug.unplug_all();
        while hotplug.open_bytes() > 0 {
            hotplug.take_away();
            std::thread::yield_now();
        }
    }
    stop.store(true, Ordering::SeqCst);
    copies.join().unwrap();
    assert!(done.load(Ordering::SeqCst) >= ROUNDS);
}
