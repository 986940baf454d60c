//! Every bit of every device's section, and every length of it.

use crate::fuzz::registers::DEVICES;
use crate::fuzz::state::{PCI, Pair};

#[test]
fn every_bit_of_a_disk_is_refused_or_harmless() {
    every_bit_and_length(0);
}

#[test]
fn every_bit_of_a_source_of_random_bytes_is_refused_or_harmless() {
    every_bit_and_length(1);
}

#[test]
fn every_bit_of_a_balloon_is_refused_or_harmless() {
    every_bit_and_length(2);
}

#[test]
fn every_bit_of_a_network_card_is_refused_or_harmless() {
    every_bit_and_length(3);
}

#[test]
fn every_bit_of_a_socket_device_is_refused_or_harmless() {
    every_bit_and_length(4);
}

#[test]
fn every_bit_of_an_image_is_refused_or_harmless() {
    every_bit_and_length(5);
}

#[test]
fn every_bit_of_a_volume_is_refused_or_harmless() {
    every_bit_and_length(6);
}

#[test]
fn every_bit_of_a_console_is_refused_or_harmless() {
    every_bit_and_length(7);
}

#[test]
fn every_bit_of_memory_that_comes_and_goes_is_refused_or_harmless() {
    every_bit_and_length(8);
}

#[test]
fn every_bit_of_a_function_on_a_pci_bus_is_refused_or_harmless() {
    every_bit_and_length(PCI + 1);
}

#[test]
fn every_device_goes_on_on_another_pci_bus() {
    for kind in (PCI..).take(DEVICES) {
        assert!(Pair::new(kind).load() > 1, "{kind}");
    }
}

fn every_bit_and_length(kind: u8) {
    assert!(usize::from(kind % PCI) < DEVICES);
    let length = Pair::new(kind).bytes.len();
    assert!(Pair::new(kind).load() > 1, "what is sound goes on where it was");
    let mut loaded = 0;
    for bit in 0..8 * length {
        let mut pair = Pair::new(kind);
        pair.bytes[bit / 8] ^= 1 << (bit % 8);
        loaded += u32::from(pair.load() > 0);
    }
    assert!(loaded < 2 * u32::try_from(length).unwrap(), "{loaded} of {} bits mean nothing", 8 * length);
    for length in 0..length {
        let mut pair = Pair::new(kind);
        pair.bytes.truncate(length);
        assert_eq!(pair.load(), 0, "{length} bytes of it are refused");
    }
}
