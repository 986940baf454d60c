//! What fuzzing calls: functions from bytes to a panic, or none.
//!
//! Owns no bytes: `fuzz/` finds new ones with libFuzzer on a nightly compiler, the tests here replay those of
//! `tests/corpus` and random ones on any compiler, without KVM. Refuses, by a panic, what a device must never do
//! whatever its driver does: write outside of what it was offered, claim more than there is, work without end, keep a
//! queue, or not recover from a reset. Invariant: the same bytes do the same, but for what entropy is.
//!
//! Not in release binaries: the module exists under `cfg(test)` and with the feature `fuzzing`.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "what cannot be set up, and what a device must not do, ends the run by a panic"
)]

mod guard;
mod hosts;
mod input;
mod pci;
mod registers;
mod script;
mod sockets;
mod state;
mod volumes;

use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::balloon::Balloon;
use crate::devices::virtio::entropy::Entropy;
use crate::devices::virtio::mem::Mem;
use crate::devices::virtio::pmem::Pmem;
use crate::devices::virtio::testkit::image;
use input::Input;
use script::{Subject, run};

/// A target: its name, which is also its corpus's, and its function, which says how much the device answered.
pub type Target = (&'static str, fn(&[u8]) -> u32);

/// All of them.
pub const TARGETS: [Target; 13] = [
    ("block", block),
    ("net", net),
    ("vsock", vsock),
    ("vsock_packets", vsock_packets),
    ("entropy", entropy),
    ("balloon", balloon),
    ("mem", mem),
    ("pmem", pmem),
    ("fs", fs),
    ("console", console),
    ("registers", registers),
    ("pci", pci),
    ("state", state),
];

/// A disk: one byte of options, of which bit 4 is a ring, then operations of a driver.
pub fn block(bytes: &[u8]) -> u32 {
    let mut input = Input(bytes);
    let options = input.u8();
    let (mut disk, mut host) = hosts::disk(options);
    // A kernel that gives no ring leaves a disk without.
    let flies = options >> 4 & 1 != 0 && disk.add_ring().is_ok();
    let features = disk.features();
    // One round may be a queue's kick, and the completions that make room for more of it.
    let most = if flies { 128 } else { 64 };
    let subject = Subject { device: &mut disk, features, host: &mut host, most, discards: false, flies };
    run(subject, input)
}

/// A network card: one byte of features that the driver does without (bits 0 to 5) and of what it is on, a tap with one queue
/// or two (bit 6) or a stream (bit 7), then operations; the host's are frames.
pub fn net(bytes: &[u8]) -> u32 {
    let mut input = Input(bytes);
    let options = input.u8();
    let queues = 1 + usize::from(options >> 6 & 1);
    let (mut card, mut host): (_, Box<dyn script::Host>) = if options >> 7 == 1 {
        let (card, host) = hosts::stream_card();
        (card, Box::new(host))
    } else {
        let (card, host) = hosts::card(queues);
        (card, Box::new(host))
    };
    let features = card.features() & !hosts::without(options);
    // One round may be an event of each of the tap's queues, and one of each queue's kick, at which all of them are read.
    let most = if queues == 1 { 2200 } else { 4400 };
    let subject =
        Subject { device: &mut card, features, host: &mut *host, most, discards: false, flies: false };
    run(subject, input)
}

/// A socket device: operations of a driver; the host's are streams, answers and the ends of both.
pub fn vsock(bytes: &[u8]) -> u32 {
    let (mut device, mut host) = sockets::device();
    let features = device.features();
    let subject =
        Subject { device: &mut device, features, host: &mut host, most: 2200, discards: false, flies: false };
    run(subject, Input(bytes))
}

/// A socket device whose driver sends sound chains with unsound packets in them.
pub fn vsock_packets(bytes: &[u8]) -> u32 {
    sockets::packets(Input(bytes))
}

/// A source of random bytes: operations of a driver.
pub fn entropy(bytes: &[u8]) -> u32 {
    let mut device = Entropy::new(None);
    let features = device.features();
    let subject =
        Subject { device: &mut device, features, host: &mut (), most: 64, discards: false, flies: false };
    run(subject, Input(bytes))
}

/// A balloon that reports free pages: operations of a driver.
pub fn balloon(bytes: &[u8]) -> u32 {
    let mut balloon = Balloon::new(4, true, true);
    let features = balloon.features();
    let subject =
        Subject { device: &mut balloon, features, host: &mut (), most: 32, discards: true, flies: false };
    run(subject, Input(bytes))
}

/// Memory that comes and goes: operations of a driver; the host's are what it asks for, and a thread at guest memory.
pub fn mem(bytes: &[u8]) -> u32 {
    let (mut host, region) = hosts::memory();
    let mut device = Mem::new(&region);
    host.asked_of(&device);
    let features = device.features();
    let subject =
        Subject { device: &mut device, features, host: &mut host, most: 64, discards: false, flies: false };
    run(subject, Input(bytes))
}

/// An image in memory: operations of a driver.
pub fn pmem(bytes: &[u8]) -> u32 {
    let mut device = Pmem::new(&image());
    let features = device.features();
    let subject =
        Subject { device: &mut device, features, host: &mut (), most: 64, discards: false, flies: false };
    run(subject, Input(bytes))
}

/// A volume: one byte of the server's manner, then operations of a driver; the host's are the server's answers.
pub fn fs(bytes: &[u8]) -> u32 {
    let mut input = Input(bytes);
    let (mut device, mut host) = volumes::device(input.u8());
    let features = device.features();
    // One round may be an event of the server's answers and one of a kick, and the burial of what is left.
    let subject =
        Subject { device: &mut device, features, host: &mut host, most: 192, discards: false, flies: false };
    run(subject, input)
}

/// A console: operations of a driver; the host's are its reader's.
pub fn console(bytes: &[u8]) -> u32 {
    let (mut device, mut host) = hosts::console();
    let features = device.features();
    let subject =
        Subject { device: &mut device, features, host: &mut host, most: 64, discards: false, flies: false };
    run(subject, Input(bytes))
}

/// A function's configuration space, ports and MSI-X before a device: one byte that says which, then accesses.
pub fn pci(bytes: &[u8]) -> u32 {
    pci::run(Input(bytes))
}

/// A transport's registers before a device: one byte that says which, then accesses.
pub fn registers(bytes: &[u8]) -> u32 {
    registers::run(Input(bytes))
}

/// A device that is loaded from spoiled state: one byte that says which, then what is spoiled.
pub fn state(bytes: &[u8]) -> u32 {
    state::run(Input(bytes))
}

#[cfg(test)]
mod seeds;
#[cfg(test)]
mod tests;
