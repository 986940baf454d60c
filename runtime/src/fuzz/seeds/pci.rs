//! The seeds of [`crate::fuzz::pci`]: those of the registers, and what only a PCI bus has.

use super::Seed;
use super::devices::registers;
use crate::fuzz::pci::op::{READ_PORTS, READ_SPACE, READ_TABLE, WRITE_PORTS, WRITE_SPACE, WRITE_TABLE};
use crate::fuzz::registers::op;

fn access(operation: u8, place: u16, bytes: &[u8]) -> Vec<u8> {
    [&[operation][..], &place.to_le_bytes(), &[bytes.len() as u8], bytes].concat()
}

fn read(operation: u8, place: u16, width: u8) -> Vec<u8> {
    [&[operation][..], &place.to_le_bytes(), &[width]].concat()
}

pub(super) fn pci() -> Vec<Seed> {
    let started = [1, op::NEGOTIATE, op::QUEUES, op::WRITE, 0x70, 0, 15, 0, 0, 0, op::TURN];
    let then = |more: &[Vec<u8>]| [started.to_vec(), more.concat(), vec![op::OFFER, op::TURN]].concat();
    let every = |operation: u8, places: u16| (0..places).map(|at| read(operation, at, 4)).collect::<Vec<_>>();
    let moved = [0x10, 0x14].map(|bar| access(WRITE_SPACE, bar, &0x1000_u32.to_le_bytes()));
    // Where the capability for configuration access is: behind four others.
    let reached = |bar: u8, offset: u32, length: u32| {
        (0x40..0xf0)
            .step_by(4)
            .flat_map(|at| {
                let dwords = [u32::from(bar), offset, length, 0];
                (at..)
                    .step_by(4)
                    .zip(dwords)
                    .flat_map(|(at, value)| access(WRITE_SPACE, at, &value.to_le_bytes()))
                    .collect::<Vec<u8>>()
            })
            .collect::<Vec<u8>>()
    };
    let masked = access(WRITE_TABLE, 28, &1_u32.to_le_bytes());
    let unmasked = access(WRITE_TABLE, 28, &0_u32.to_le_bytes());
    let nowhere = access(WRITE_TABLE, 16, &[0xff; 8]);
    let vectors = [0x10, 0x1a].map(|field| access(WRITE_PORTS, field, &[9, 9]));
    let queue = access(WRITE_PORTS, 0x16, &[0xff, 0xff]);
    let seeds = [
        ("sound", then(&[])),
        ("15-space", then(&every(READ_SPACE, 256))),
        ("15-ports", then(&every(READ_PORTS, 0x40))),
        ("15-table", then(&every(READ_TABLE, 0x40))),
        ("15-moved", then(&moved)),
        ("15-access", then(&[reached(0, 0x14, 1)[..400].to_vec()])),
        ("07-masked", then(&[masked, vec![op::OFFER, op::TURN], unmasked])),
        ("07-message-to-nowhere", then(&[nowhere])),
        ("07-vectors", then(&vectors)),
        ("07-no-such-queue", then(&[queue, access(WRITE_PORTS, 0x1c, &[1, 0])])),
    ];
    let own = seeds.into_iter().map(|(name, bytes)| (format!("pci-{name}"), bytes));
    let own = own.map(|(name, bytes)| (if name == "pci-sound" { "sound".into() } else { name }, bytes));
    registers().into_iter().chain(own).collect()
}
