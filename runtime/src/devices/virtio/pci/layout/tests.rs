use super::*;
use std::collections::BTreeMap;

const WINDOWS: Windows = Windows { ports: 0x1000, table: 0xd000_0000 };

fn dword(space: &ConfigSpace, at: usize) -> u32 {
    u32::from_le_bytes(space.get(at))
}

#[test]
fn a_driver_finds_every_structure_and_none_overlaps() {
    let Layout { space, control, access } = Layout::new(DeviceKind::Block, WINDOWS, 3);
    assert_eq!(dword(&space, 0), 0x1042_1af4);
    assert_eq!(dword(&space, 8), 0x0180_0001);
    assert_eq!(space.get(0x3d), [0], "no pin");
    let (mut places, mut at) = (BTreeMap::new(), usize::from(space.get::<1>(0x34)[0]));
    while at != 0 {
        let [id, next] = space.get(at);
        if id == CAP_VENDOR {
            let [length, kind, bar] = space.get(at + 2);
            assert_eq!((bar, at % 4), (0, 0));
            assert!(usize::from(length) >= 16);
            places.insert(kind, (dword(&space, at + 8), dword(&space, at + 12)));
        } else {
            assert_eq!((id, at + 2), (CAP_MSIX, control));
            assert_eq!(space.get(control), [2, 0], "three vectors");
            assert_eq!((dword(&space, at + 4), dword(&space, at + 8)), (1, 0x801));
        }
        at = next.into();
    }
    assert_eq!(places.remove(&kind::PCI), Some((0, 0)));
    assert_eq!(places.keys().copied().collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert_eq!(space.get(access + 3), [kind::PCI]);
    let mut ranges: Vec<_> = places.values().map(|&(offset, length)| (offset, offset + length)).collect();
    ranges.sort_unstable();
    assert!(ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{ranges:?}");
    assert!(ranges.iter().all(|&(_, end)| u64::from(end) <= PORTS));
    // A drive has at most a queue a vCPU, a card 17.
    assert!(MOST_QUEUES >= u64::from(crate::spec::MAX_VCPUS));
}

#[test]
fn the_windows_say_how_long_they_are() {
    let mut space = Layout::new(DeviceKind::Net, WINDOWS, 4).space;
    for bar in [PORTS_BAR, TABLE_BAR] {
        space.write(u8::try_from(bar).unwrap(), &[0xff; 4]);
    }
    assert_eq!(dword(&space, PORTS_BAR), 0xffff_ff01);
    assert_eq!(dword(&space, TABLE_BAR), 0xffff_f000);
    for bar in [0x18, 0x1c, 0x20, 0x24, 0x30] {
        space.write(bar, &[0xff; 4]);
        assert_eq!(dword(&space, bar.into()), 0, "no other window");
    }
}
