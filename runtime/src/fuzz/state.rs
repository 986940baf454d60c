//! A device that is saved, and loaded from what the input makes of it.
//!
//! Owns both devices' other sides. Refuses, by a panic, a load that does not take what was saved, what [`super::guard`] refuses
//! of the device that was loaded, and one that a reset and a proper start do not bring back.
//! Invariant: what is spoiled is the saved bytes or guest memory, never both devices at once: the first was sound.

use super::guard::Guard;
use super::input::Input;
use super::registers::{DEVICES, Rig, device};
use crate::devices::virtio::DeviceKind;
use crate::devices::virtio::testkit::pci::Shown;
use crate::state;
use std::time::Instant;
use vm_memory::{Bytes, GuestAddress};

const NAME: &str = "fuzz";
/// Added to the number of a device, it is on a PCI bus.
pub(super) const PCI: u8 = 0x80;
/// Most chains of a queue that are used in a turn.
const MOST: u16 = 2200;
/// Turns that are judged.
const TURNS: u32 = 8;

/// What an operation is; its operands follow.
pub(super) mod op {
    pub(crate) const FLIP: u8 = 0;
    pub(crate) const SET: u8 = 1;
    pub(crate) const CUT: u8 = 2;
    pub(crate) const INSERT: u8 = 3;
    pub(crate) const MEMORY: u8 = INSERT + 1;
    pub(super) const COUNT: u8 = MEMORY + 1;
}

/// Runs one input: a byte that says which device and whether it is on a PCI bus, then what is spoiled. Says how much the loaded device answered.
pub(super) fn run(mut input: Input<'_>) -> u32 {
    let mut pair = Pair::new(input.u8());
    while !input.is_empty() {
        pair.spoil(&mut input);
    }
    pair.load()
}

/// A device that was saved, and what is left of that.
pub(super) struct Pair {
    kind: usize,
    pci: bool,
    first: Rig,
    saved: Vec<u8>,
    pub(super) bytes: Vec<u8>,
    spoiled: bool,
}

impl Pair {
    /// Saves a device that has answered two requests, with a third one waiting.
    pub(super) fn new(kind: u8) -> Self {
        let (kind, pci) = (usize::from(kind % PCI) % DEVICES, kind >= PCI);
        let mut first = if pci { Rig::on_bus(device(kind)) } else { Rig::new(device(kind)) };
        first.start();
        for _ in 0..2 {
            first.offer();
            first.until(Rig::answered);
        }
        first.transport.pause();
        first.until(|rig| rig.transport.wait_paused(Instant::now()).is_ok());
        first.offer();
        let saved = state::to_bytes(&[first.transport.save(NAME).unwrap()]);
        Self { kind, pci, first, bytes: saved.clone(), saved, spoiled: false }
    }

    fn spoil(&mut self, input: &mut Input<'_>) {
        let operation = input.u8() % op::COUNT;
        if operation == op::MEMORY {
            let (addr, count) = (input.place(), input.u8());
            // What does not lie in memory, nobody writes.
            drop(self.first.memory.write_slice(input.bytes(count.into()), GuestAddress(addr)));
            self.spoiled = true;
            return;
        }
        let (place, value) = (usize::from(input.u16()) % self.bytes.len().max(1), input.u8());
        match operation {
            _ if self.bytes.is_empty() => {}
            op::FLIP => self.bytes[place] ^= 1 << (value % 8),
            op::SET => self.bytes[place] = value,
            op::CUT => self.bytes.truncate(place),
            _ => self.bytes.insert(place, value),
        }
    }

    /// Loads what is left into a fresh device, and lets it go on.
    pub(super) fn load(self) -> u32 {
        let Ok(sections) = state::from_bytes(&self.bytes) else {
            assert!(self.bytes != self.saved, "what was saved is refused");
            return 0;
        };
        let [section] = &sections[..] else { return 0 };
        let fresh = device(self.kind);
        let discards = fresh.0.kind() == DeviceKind::Balloon;
        let mut rig = Rig::within(self.first.memory.clone(), fresh, self.pci);
        if let Err(error) = rig.transport.load(NAME, section) {
            assert!(self.spoiled || self.bytes != self.saved, "what was saved is refused: {error}");
            return 0;
        }
        let mut guard = Guard::new(rig.transport.running_queues(), discards);
        rig.transport.resume();
        for _ in 0..TURNS {
            guard.before(&rig.memory);
            rig.turn();
            guard.after(&rig.memory, MOST);
        }
        assert!(rig.transport.faults().failures <= 1, "a failure that nobody caused");
        if let Shown::Pci(pci) = &rig.transport {
            pci.set_up();
        }
        rig.finish() + guard.used()
    }
}
