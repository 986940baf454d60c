use super::*;
use crate::devices::virtio::testkit::{
    Bell, HIGH, IMAGE, INDIRECT, LOW_END, NEXT, Ring, WRITE, memory, notifiers,
};
use vm_memory::Address;

const SIZE: u16 = 16;

struct Rig {
    ring: Ring,
    queue: Virtqueue,
    bell: Arc<Bell>,
}

fn rig(event_idx: bool) -> Rig {
    let memory = memory();
    let ring = Ring::new(&memory, 0, SIZE);
    let queue = ring.setup.check(SIZE, event_idx, &memory).unwrap();
    let bell = Arc::new(Bell::default());
    let queue = Virtqueue::new(0, queue, memory, notifiers(1), bell.clone());
    Rig { ring, queue, bell }
}

impl Rig {
    fn pop(&mut self) -> (Popped, Chain) {
        let mut chain = Chain::default();
        (self.queue.pop(&mut chain).unwrap(), chain)
    }

    fn interrupts(&self) -> u32 {
        self.bell.queues.load(Ordering::SeqCst)
    }
}

fn buffer(addr: u64, len: u32) -> Buffer {
    Buffer { addr: GuestAddress(addr), len }
}

#[test]
fn a_chain_comes_out_as_it_went_in() {
    let mut rig = rig(false);
    rig.ring.offer(&[(0x1000, 16, false), (0x2000, 0, false), (0x3000, 512, true), (0x4000, 1, true)]);
    let (popped, chain) = rig.pop();
    assert_eq!(popped, Popped::Chain);
    assert_eq!(chain.readable, [buffer(0x1000, 16)]);
    assert_eq!(chain.writable, [buffer(0x3000, 512), buffer(0x4000, 1)]);
    assert_eq!((chain.readable_bytes(), chain.writable_bytes()), (16, 513));
    assert_eq!(rig.pop().0, Popped::Empty);
    rig.queue.unpop(1);
    assert_eq!(rig.pop().0, Popped::Chain);
    rig.queue.add_used(chain.head, 513).unwrap();
    assert_eq!(rig.ring.take_used(), Some((0, 513)));
}

#[test]
fn item_1_cycles_and_successors_outside_the_table_are_malformed() {
    let mut rig = rig(false);
    rig.ring.describe(0, (0x1000, 1, NEXT, 0));
    rig.ring.describe(1, (0x1000, 1, NEXT, 2));
    rig.ring.describe(2, (0x1000, 1, NEXT, 1));
    rig.ring.describe(3, (0x1000, 1, NEXT, SIZE));
    rig.ring.describe(4, (0x1000, 1, NEXT, u16::MAX));
    for head in 0..5 {
        rig.ring.offer_head(head);
        let (popped, chain) = rig.pop();
        assert_eq!((popped, chain.head), (Popped::Malformed, head));
    }
}

#[test]
fn item_1_a_head_outside_the_table_is_the_queues_end() {
    for head in [SIZE, u16::MAX] {
        let mut rig = rig(false);
        rig.ring.offer_head(head);
        let error = rig.queue.pop(&mut Chain::default()).unwrap_err();
        assert!(matches!(error, QueueError::Head { head: found, size: SIZE } if found == head), "{error}");
    }
}

#[test]
fn item_2_an_index_that_jumps_or_goes_back_is_the_queues_end() {
    for index in [SIZE + 1, 1000, u16::MAX] {
        let mut rig = rig(false);
        rig.ring.set_available(index);
        assert!(matches!(rig.queue.pop(&mut Chain::default()), Err(QueueError::Rings(_))), "{index}");
    }
    let mut rig = rig(false);
    rig.ring.offer(&[(0x1000, 1, true)]);
    rig.pop();
    rig.ring.set_available(0);
    assert!(matches!(rig.queue.pop(&mut Chain::default()), Err(QueueError::Rings(_))));
}

#[test]
fn item_2_an_index_that_flips_gives_nothing_away() {
    let mut rig = rig(false);
    for _ in 0..100 {
        rig.ring.set_available(0);
        assert_eq!(rig.pop().0, Popped::Empty);
        assert!(!rig.queue.want_kicks().unwrap());
        rig.ring.describe(0, (0x1000, 1, WRITE, 0));
        rig.ring.set_available(1);
        assert!(rig.queue.want_kicks().unwrap());
    }
    assert_eq!(rig.pop().0, Popped::Chain);
}

#[test]
fn item_3_buffers_outside_memory_are_found_when_they_are_used() {
    use crate::devices::virtio::guest_io::{BadBuffer, GuestIo};
    let memory = memory();
    for (addr, len) in [
        (LOW_END - 8, 16),
        (LOW_END, 1),
        (HIGH - 1, 2),
        (u64::MAX, 1),
        (u64::MAX - 7, 16),
        (0, u32::MAX),
        (1 << 63, 8),
    ] {
        let io = GuestIo::new(&memory, &[buffer(addr, len)], Permissions::Write);
        assert_eq!(io.err(), Some(BadBuffer { addr, len }), "{addr:#x}");
    }
    assert_eq!(GuestIo::new(&memory, &[buffer(LOW_END - 8, 8)], Permissions::Read).unwrap().len(), 8);
}

#[test]
fn item_4_empty_and_endless_chains_are_bounded() {
    let mut rig = rig(false);
    rig.ring.offer(&[(0x1000, 0, false), (0, 0, true)]);
    let (popped, chain) = rig.pop();
    assert_eq!((popped, chain.readable.len(), chain.writable.len()), (Popped::Chain, 0, 0));
    rig.ring.offer(&[(0x1000, u32::MAX, false), (0x2000, 1, false)]);
    assert_eq!(rig.pop().0, Popped::Malformed, "more than 2^32 bytes");
}

#[test]
fn item_4_readable_after_writable_is_malformed() {
    let mut rig = rig(false);
    rig.ring.offer(&[(0x1000, 16, true), (0x2000, 16, false)]);
    assert_eq!(rig.pop().0, Popped::Malformed);
}

#[test]
fn an_indirect_table_is_followed() {
    let mut rig = rig(false);
    let table = 0x20_0000;
    rig.ring.describe_at(table, 0, (0x1000, 16, NEXT, 2));
    rig.ring.describe_at(table, 2, (0x3000, 512, WRITE, 0));
    rig.ring.describe(5, (table, 48, INDIRECT, 0));
    rig.ring.offer_head(5);
    let (popped, chain) = rig.pop();
    assert_eq!((popped, chain.head), (Popped::Chain, 5));
    assert_eq!((chain.readable, chain.writable), (vec![buffer(0x1000, 16)], vec![buffer(0x3000, 512)]));
}

#[test]
fn item_5_wrong_indirect_tables_are_malformed() {
    let mut rig = rig(false);
    let table = 0x20_0000;
    // Nested.
    rig.ring.describe_at(table, 0, (table, 16, INDIRECT, 0));
    // A cycle inside the table.
    rig.ring.describe_at(table + 0x100, 0, (0x1000, 1, NEXT, 0));
    // One byte each, far more of them than the queue has.
    for index in 0..999 {
        rig.ring.describe_at(table + 0x1000, index, (0x1000, 1, NEXT, index + 1));
    }
    let wrong = [
        (table, 16, INDIRECT, 0),
        (table + 0x100, 16, INDIRECT, 0),
        (table + 0x1000, 16_000, INDIRECT, 0),
        (table, 0, INDIRECT, 0),
        (table, 15, INDIRECT, 0),
        (table, 17, INDIRECT, 0),
        (table, !15, INDIRECT, 0),
        (LOW_END, 16, INDIRECT, 0),
        (LOW_END - 8, 16, INDIRECT, 0),
        (u64::MAX - 15, 16, INDIRECT, 0),
    ];
    for descriptor in wrong {
        rig.ring.describe(0, descriptor);
        rig.ring.offer_head(0);
        let (popped, chain) = rig.pop();
        assert_eq!(popped, Popped::Malformed, "{descriptor:x?}");
        assert!(chain.readable.len() <= usize::from(SIZE) + 1);
    }
}

#[test]
fn item_5_an_unaligned_table_and_a_successor_beside_it_do_no_harm() {
    let mut rig = rig(false);
    let table = 0x20_0003;
    rig.ring.describe_at(table, 0, (0x1000, 16, WRITE, 0));
    rig.ring.describe(0, (table, 16, INDIRECT | NEXT, 1));
    rig.ring.describe(1, (0xdead_0000, 16, 0, 0));
    rig.ring.offer_head(0);
    let (popped, chain) = rig.pop();
    assert_eq!(popped, Popped::Chain);
    assert_eq!(chain.writable, [buffer(0x1000, 16)]);
    assert!(chain.readable.is_empty());
}

#[test]
fn interrupts_are_suppressed_by_flag() {
    let mut rig = rig(false);
    let flags = GuestAddress(rig.ring.setup.available);
    rig.ring.memory.write_obj(1u16, flags).unwrap();
    rig.queue.add_used(0, 0).unwrap();
    rig.queue.signal().unwrap();
    assert_eq!(rig.interrupts(), 0);
    rig.ring.memory.write_obj(0u16, flags).unwrap();
    rig.queue.signal().unwrap();
    assert_eq!(rig.interrupts(), 0, "nothing new was used");
    rig.queue.add_used(0, 0).unwrap();
    rig.queue.signal().unwrap();
    assert_eq!(rig.interrupts(), 1);
}

#[test]
fn interrupts_are_suppressed_by_index() {
    let mut rig = rig(true);
    rig.ring.set_used_event(9);
    for _ in 0..9 {
        rig.queue.add_used(0, 0).unwrap();
        rig.queue.signal().unwrap();
    }
    assert_eq!(rig.interrupts(), 0);
    for _ in 0..5 {
        rig.queue.add_used(0, 0).unwrap();
    }
    rig.queue.signal().unwrap();
    assert_eq!(rig.interrupts(), 1);
}

#[test]
fn kicks_are_asked_for_by_index() {
    let mut rig = rig(true);
    rig.ring.offer(&[(0x1000, 1, true)]);
    rig.pop();
    assert!(!rig.queue.want_kicks().unwrap());
    let at = GuestAddress(rig.ring.setup.used).unchecked_add(4 + 8 * u64::from(SIZE));
    assert_eq!(rig.ring.memory.read_obj::<u16>(at).unwrap(), 1);
}

#[test]
fn no_ring_lies_in_an_image() {
    let memory = memory();
    let good = Ring::new(&memory, 0, SIZE).setup;
    good.check(SIZE, false, &memory).unwrap();
    for setup in [
        QueueSetup { descriptors: IMAGE, ..good },
        QueueSetup { available: IMAGE, ..good },
        QueueSetup { used: IMAGE + 0x10_0000, ..good },
    ] {
        let error = setup.check(SIZE, false, &memory).unwrap_err();
        assert!(matches!(error, QueueError::OutsideMemory { .. }), "{error}");
    }
}

#[test]
fn an_indirect_table_may_lie_in_an_image() {
    let mut rig = rig(false);
    rig.ring.describe(0, (IMAGE, 16, INDIRECT, 0));
    rig.ring.offer_head(0);
    let (popped, chain) = rig.pop();
    // The flags 0xdada: to be written, and no successor.
    assert_eq!((popped, chain.readable.len()), (Popped::Chain, 0));
    assert_eq!(chain.writable, [buffer(0xdada_dada_dada_dada, 0xdada_dada)]);
}
