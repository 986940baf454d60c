use super::*;
use crate::devices::virtio::testkit::{HIGH, IMAGE, LOW_END, memory};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use vm_memory::{Bytes, GuestAddress};

/// A ring for `file`; says that its test is skipped, and that there is none, where this kernel gives none.
pub(crate) fn ring_of<T>(file: &File) -> Option<GuestRing<T>> {
    match GuestRing::new(file.as_fd()) {
        Ok(ring) => Some(ring),
        Err(error) => {
            println!("HUSK-SKIP this kernel gives no io_uring: {error}");
            None
        }
    }
}

fn file(len: usize) -> File {
    let file = File::from(rustix::fs::memfd_create("disk", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    let bytes: Vec<u8> = (0..len).map(|at| u8::try_from(at % 251).unwrap()).collect();
    file.write_all_at(&bytes, 0).unwrap();
    file
}

/// Waits for `count` completions.
fn finish<T>(ring: &mut GuestRing<T>, count: usize) -> Vec<(T, io::Result<usize>)> {
    ring.submit().unwrap();
    let mut done = Vec::new();
    while done.len() < count {
        // SAFETY: the ring, and its bell with it, outlives the wait.
        #[expect(unsafe_code, reason = "a test's poll of a raw descriptor")]
        let bell = unsafe { BorrowedFd::borrow_raw(ring.bell()) };
        let mut fds = [PollFd::from_borrowed_fd(bell, PollFlags::IN)];
        assert_eq!(poll(&mut fds, Some(&Timespec { tv_sec: 10, tv_nsec: 0 })).unwrap(), 1, "no completion");
        ring.hush();
        done.extend(std::iter::from_fn(|| ring.completed()));
    }
    done
}

fn buffer(addr: u64, len: u32) -> Buffer {
    Buffer { addr: GuestAddress(addr), len }
}

fn pinned(memory: &Memory, buffers: &[Buffer], access: Permissions) -> Result<Pinned, BadBuffer> {
    Pinned::new(memory, &Part { buffers, bytes: 0..usize::MAX }, access)
}

#[test]
fn bytes_move_both_ways_and_a_part_is_a_part() {
    let (memory, disk) = (memory(), file(8192));
    let Some(mut ring) = ring_of(&disk) else { return };
    let buffers = [buffer(0x10_0000, 1000), buffer(HIGH, 3096)];
    let part = Part { buffers: &buffers, bytes: 500..4000 };
    ring.read(Pinned::new(&memory, &part, Permissions::Write).unwrap(), 100, 'r');
    let done = finish(&mut ring, 1);
    assert!(matches!(&done[..], [('r', Ok(3500))]), "{done:?}");
    let mut bytes = [0; 3000];
    memory.read_slice(&mut bytes, GuestAddress(HIGH)).unwrap();
    assert!((0..3000).all(|at| usize::from(bytes[at]) == (100 + 500 + at) % 251));
    ring.write(pinned(&memory, &[buffer(IMAGE, 512)], Permissions::Read).unwrap(), 0, 'w');
    let done = finish(&mut ring, 1);
    assert!(matches!(&done[..], [('w', Ok(512))]), "{done:?}");
    let mut written = [0; 513];
    disk.read_exact_at(&mut written, 0).unwrap();
    assert!(written[..512].iter().all(|&byte| byte == 0xda) && written[512] == 10);
    for nowhere in [buffer(LOW_END - 4, 8), buffer(IMAGE, 8)] {
        assert!(pinned(&memory, &[nowhere], Permissions::Write).is_err());
    }
}

#[test]
fn flushes_and_allocations_go_to_the_file_alone() {
    let disk = file(8192);
    let Some(mut ring) = ring_of(&disk) else { return };
    ring.flush(0);
    ring.allocate(FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 4096..8192, 1);
    let mut done = finish(&mut ring, 2);
    done.sort_by_key(|(tag, _)| *tag);
    assert!(matches!(&done[..], [(0, Ok(0)), (1, Ok(0))]), "{done:?}");
    let mut bytes = [1; 4096];
    disk.read_exact_at(&mut bytes, 4096).unwrap();
    assert_eq!((bytes, disk.metadata().unwrap().len()), ([0; 4096], 8192));
}

#[test]
fn what_is_in_flight_is_bounded_and_room_comes_back() {
    let (memory, disk) = (memory(), file(512));
    let Some(mut ring) = ring_of(&disk) else { return };
    for round in 0..3 {
        let mut started = 0;
        while ring.has_room() {
            ring.read(pinned(&memory, &[buffer(0x10_0000, 512)], Permissions::Write).unwrap(), 0, round);
            started += 1;
        }
        assert_eq!((started, ring.in_flight()), (128, 128));
        assert_eq!(finish(&mut ring, started).len(), 128);
        assert_eq!(ring.in_flight(), 0);
    }
}

#[test]
fn an_enabled_ring_takes_no_other_operation_file_or_registration() {
    let (disk, other) = (file(512), file(512));
    let Some(mut ring) = ring_of::<()>(&disk) else { return };
    let submitter = ring.ring.submitter();
    assert!(submitter.register_files_update(0, &[other.as_raw_fd()]).is_err());
    assert!(submitter.unregister_files().is_err());
    assert!(submitter.unregister_eventfd().is_err());
    assert!(submitter.register_restrictions(&mut [Restriction::sqe_op(opcode::Nop::CODE)]).is_err());
    let nop = opcode::Nop::new().build();
    let unregistered = opcode::Fsync::new(io_uring::types::Fd(other.as_raw_fd())).build();
    let close = opcode::Close::new(FILE).build();
    for entry in [nop, unregistered, close] {
        // SAFETY: none of them names memory.
        #[expect(unsafe_code, reason = "past the ring's own operations")]
        unsafe { ring.ring.submission().push(&entry) }.unwrap();
        ring.ring.submit_and_wait(1).unwrap();
        let result = ring.ring.completion().next().unwrap().result();
        assert_eq!(result, -libc::EACCES);
    }
    drop(disk);
    ring.flush(());
    assert!(finish(&mut ring, 1)[0].1.is_ok(), "the registered file stays open with the ring");
}
