//! A balloon across a save and a load.

use super::*;
use crate::devices::virtio::testkit::rig::Rig;
use husk_protocol::control::BalloonReport;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

const STATS: usize = 2;

/// A balloon of so many MiB that asks for statistics every so many seconds, and what it tells.
fn device(amount_mib: u32, seconds: u16) -> (Box<Balloon>, Receiver<BalloonReport>) {
    let (sender, receiver) = channel();
    let sender = Mutex::new(sender);
    let tell: Tell = Arc::new(move |report| drop(sender.lock().unwrap().send(report)));
    let balloon = Balloon::new(amount_mib, true, true);
    (Box::new(balloon.with_statistics(NonZeroU16::new(seconds).unwrap(), tell).unwrap()), receiver)
}

fn interrupts(rig: &Rig) -> u32 {
    let mut status = [0; 4];
    crate::devices::BusDevice::read(&rig.transport, 0x60, &mut status);
    u32::from_le_bytes(status)
}

/// The statistics buffer stays with the device between two ticks; here also from one process to the next.
#[test]
fn balloon_saves_and_loads_with_requests_in_flight() {
    let (first, told) = device(4, 10_000);
    let mut rig = Rig::start(first);
    crate::devices::BusDevice::write(&rig.transport, 0x104, &700_u32.to_le_bytes());
    rig.write(LIST, &[4, 0, 9, 0, 0, 0, 0, 0, 0, 0]);
    let held = u32::from(rig.rings[STATS].offer(&[(LIST, 10, false)]));
    rig.kick(2);
    rig.settle();
    assert_eq!(told.try_recv().unwrap().statistics.free_memory, Some(9));
    assert!(rig.rings[STATS].take_used().is_none(), "the device has it");
    rig.pause();
    rig.write(PAGES, &[0xaa; 4096]);
    rig.write(LIST + 4096, &page(PAGES).to_le_bytes());
    let inflated = u32::from(rig.rings[INFLATE].offer(&[(LIST + 4096, 4, false)]));
    rig.kick(0);

    let (second, told) = device(4, 1);
    let mut rig = rig.restore(second);
    rig.settle();
    assert_eq!(rig.rings[INFLATE].take_all_used(), [(inflated, 0)]);
    assert_eq!(rig.read(PAGES, 4096), [0; 4096]);
    let mut actual = [0; 4];
    crate::devices::BusDevice::read(&rig.transport, 0x104, &mut actual);
    assert_eq!(u32::from_le_bytes(actual), 700);
    assert_eq!(told.try_recv().unwrap().actual_mib, 700 / PAGES_PER_MIB);
    let deadline = Instant::now() + Duration::from_secs(10);
    rig.until(|rig| {
        assert!(Instant::now() < deadline, "no tick within 10 s");
        std::thread::sleep(Duration::from_millis(5));
        rig.rings[STATS].take_used() == Some((held, 0))
    });
    rig.settle();
    assert!(rig.rings[STATS].take_used().is_none(), "once");
    assert_eq!(interrupts(&rig) & 2, 0, "the configuration is what it was");
    rig.is_well();
}

#[test]
fn a_driver_hears_of_another_amount() {
    let mut rig = Rig::start(device(4, 10_000).0);
    rig.pause();
    let rig = rig.restore(device(5, 10_000).0);
    assert_eq!(interrupts(&rig) & 2, 2);
    let mut amount = [0; 4];
    crate::devices::BusDevice::read(&rig.transport, 0x100, &mut amount);
    assert_eq!(u32::from_le_bytes(amount), 5 * PAGES_PER_MIB);
}

crate::devices::virtio::testkit::rig::over_pci!(
    balloon_saves_and_loads_with_requests_in_flight,
    a_driver_hears_of_another_amount,
);
