//! Every bit of every device's section, and every length of it.

use crate::fuzz::state::{DEVICES, Pair};

macro_rules! devices {
    ($($name:ident: $kind:literal),*) => {
        $(#[test] fn $name() { whatever_is_wrong_with_a_section_is_refused_or_harmless($kind); })*
        const ALL: [u8; DEVICES as usize] = [$($kind),*];
    };
}

devices!(block: 0, entropy: 1, balloon: 2, net: 3, vsock: 4, pmem: 5, fs: 6, console: 7);

fn whatever_is_wrong_with_a_section_is_refused_or_harmless(kind: u8) {
    assert!(ALL.contains(&kind));
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
