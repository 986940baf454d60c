//! A disk behind a ring, with more than one request in flight, is the disk that it is without.

use crate::devices::virtio::guest_ring::tests::ring_of;
use crate::fuzz::seeds::{self, block::RING_OPTION};
use crate::fuzz::{block, hosts};

#[test]
fn a_disk_with_a_ring_answers_as_much_as_one_without() {
    let disk =
        std::fs::File::from(rustix::fs::memfd_create("disk", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    if ring_of::<()>(&disk).is_none() {
        return;
    }
    assert!(hosts::disk(RING_OPTION).0.add_ring().is_ok(), "what has no ring shows nothing");
    for (name, mut bytes) in seeds::of("block") {
        bytes[0] &= !RING_OPTION;
        let without = block(&bytes);
        bytes[0] |= RING_OPTION;
        let with = [block(&bytes), block(&bytes)];
        assert_eq!(with, [without; 2], "{name}");
    }
}
