//! Flushes across a save and a load.

use super::*;
use crate::devices::virtio::testkit::rig::Rig;

#[test]
fn pmem_saves_and_loads_with_requests_in_flight() {
    let image = image();
    let mut rig = Rig::start(Box::new(Pmem::new(&image)));
    rig.transport.pause();
    let offer = |rig: &mut Rig, number: u64| {
        rig.write(RESULT + 4 * number, &[0xff; 4]);
        rig.rings[0].offer(&[(REQUEST, 4, false), (RESULT + 4 * number, 4, true)])
    };
    let heads: Vec<_> = (0..30).map(|number| (u32::from(offer(&mut rig, number)), 4)).collect();
    // A kick that the device does not see before it stands still, and that is lost with it.
    rig.until(|rig| rig.is_paused());
    rig.kick(0);
    assert!(rig.rings[0].take_used().is_none());
    let mut rig = rig.restore(Box::new(Pmem::new(&image)));
    rig.settle();
    assert_eq!(rig.rings[0].take_all_used(), heads);
    assert_eq!(rig.read(RESULT, 120), [0; 120]);
    rig.is_well();
}

#[test]
fn an_image_elsewhere_is_refused() {
    let mut device = Pmem::new(&image());
    let mut other = Pmem::new(&image());
    other.config[3] += 1;
    let error = device.load(&other.save()).unwrap_err().to_string();
    assert!(error.starts_with("virtio-pmem: size and address is 0x"), "{error}");
}

crate::devices::virtio::testkit::rig::over_pci!(
    pmem_saves_and_loads_with_requests_in_flight,
    an_image_elsewhere_is_refused,
);
