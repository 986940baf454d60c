//! Blocks that are plugged, and requests for more, across a save and a load.

use super::*;
use crate::devices::virtio::testkit::rig::Rig;

#[test]
fn mem_saves_and_loads_with_requests_in_flight() {
    let (device, hotplug) = device(20);
    hotplug.plug(3..5).unwrap();
    hotplug.plug(9..10).unwrap();
    let mut rig = Rig::start(Box::new(device));
    rig.transport.pause();
    let offer = |rig: &mut Rig, number: u64| {
        rig.write(REQUEST + 32 * number, &request(PLUG, START + (20 + 2 * number) * BLOCK, 1));
        rig.write(RESPONSE + 16 * number, &[0xff; 16]);
        rig.rings[0].offer(&[(REQUEST + 32 * number, 24, false), (RESPONSE + 16 * number, 10, true)])
    };
    let heads: Vec<_> = (0..10).map(|number| (u32::from(offer(&mut rig, number)), 10)).collect();
    rig.until(|rig| rig.is_paused());
    rig.kick(0);
    assert!(rig.rings[0].take_used().is_none());
    let (other, loaded) = super::device(20);
    let mut rig = rig.restore(Box::new(other));
    assert_eq!(loaded.runs(), [(3, 2), (9, 1)], "what was plugged is, before anything is asked for");
    rig.settle();
    assert_eq!(rig.rings[0].take_all_used(), heads);
    for number in 0..10 {
        assert_eq!(rig.read(RESPONSE + 16 * number, 2), ACK.to_le_bytes());
        assert!(loaded.allows(START + (20 + 2 * number) * BLOCK, BLOCK));
    }
    assert_eq!(hotplug.plugged_bytes(), 3 * BLOCK, "the first device did nothing more");
    assert_eq!(loaded.plugged_bytes(), 13 * BLOCK);
    rig.is_well();
}

#[test]
fn a_region_elsewhere_and_runs_that_are_none_are_refused() {
    let (mut mem, hotplug) = device(20);
    let load = |mem: &mut Mem, start: u64, runs: &[(u64, u64)]| {
        let section = FORMAT.section(&(start, BLOCKS * BLOCK, runs.to_vec()));
        mem.load(&section).unwrap_err().to_string()
    };
    let error = load(&mut mem, START + BLOCK, &[]);
    assert!(error.starts_with("virtio-mem: region is 0x100200000+"), "{error}");
    let wrong: [&[(u64, u64)]; 6] = [
        &[(0, 0)],
        &[(4, 1), (2, 1)],
        &[(4, 2), (6, 1)],
        &[(BLOCKS - 1, 2)],
        &[(u64::MAX, 2)],
        &[(1, u64::MAX - 1), (3, 1)],
    ];
    for runs in wrong {
        let error = load(&mut mem, START, runs);
        assert!(error.starts_with("virtio-mem: run of blocks is "), "{error}");
        assert_eq!(hotplug.plugged_bytes(), 0, "nothing was taken over");
    }
}

crate::devices::virtio::testkit::rig::over_pci!(
    mem_saves_and_loads_with_requests_in_flight,
    a_region_elsewhere_and_runs_that_are_none_are_refused,
);
