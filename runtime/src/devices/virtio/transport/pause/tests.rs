use super::*;
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::balloon::Balloon;
use crate::devices::virtio::entropy::Entropy;
use crate::devices::virtio::mmio::tests::started;
use crate::devices::virtio::testkit::drive::{driver_ok, negotiate, read, set_queue, status, until, write};
use crate::devices::virtio::testkit::rig::{NAME, Rig};
use crate::devices::virtio::testkit::{HIGH, memory};
use std::time::Duration;

fn entropy() -> Box<dyn VirtioDevice> {
    Box::new(Entropy::new(None))
}

const INTERRUPTS: Format = Format { id: "virtio-mmio", version: 2 };
const OTHER: Format = Format { id: "virtio-net", version: 1 };

fn soon() -> Instant {
    Instant::now() + Duration::from_millis(20)
}

/// One request of eight bytes is answered.
fn works(rig: &mut Rig) {
    let head = rig.rings[0].offer(&[(HIGH, 8, true)]);
    rig.kick(0);
    rig.settle();
    assert_eq!(rig.rings[0].take_all_used(), [(head.into(), 8)]);
}

/// What was saved of a device that has answered 3 requests, with one waiting.
fn saved() -> (Rig, Saved) {
    let mut rig = Rig::start(entropy());
    (0..3).for_each(|_| works(&mut rig));
    rig.pause();
    rig.rings[0].offer(&[(HIGH, 8, true)]);
    let saved = FORMAT.parse(&rig.transport.save(NAME).unwrap()).unwrap();
    (rig, saved)
}

/// Loads `saved` into a fresh device over the memory of `rig`.
fn load(rig: &Rig, saved: &Saved) -> Result<Rig, LoadError> {
    let fresh = Rig::on(rig.memory.clone(), entropy(), false);
    fresh.transport.load(NAME, &FORMAT.section(saved))?;
    Ok(fresh)
}

#[test]
fn a_device_without_a_driver_is_paused_at_once_and_starts_when_it_is_resumed() {
    let mut rig = Rig::on(memory(), entropy(), false);
    assert_eq!(rig.transport.save(NAME), Err(NotPaused));
    rig.transport.pause();
    assert!(rig.is_paused());
    // Whatever a driver does meanwhile.
    negotiate(&rig.transport);
    set_queue(&rig.transport, 0, &rig.rings[0].setup);
    driver_ok(&rig.transport);
    rig.rings[0].offer(&[(HIGH, 8, true)]);
    rig.kick(0);
    rig.settle();
    assert_eq!(rig.rings[0].take_used(), None);
    rig.transport.resume();
    assert!(!rig.is_paused());
    rig.settle();
    assert_eq!(rig.rings[0].take_used(), Some((0, 8)));
    rig.transport.resume();
    works(&mut rig);
    rig.is_well();
}

#[test]
fn a_driver_that_is_half_way_goes_on() {
    let rig = Rig::on(memory(), entropy(), false);
    negotiate(&rig.transport);
    write(&rig.transport, 0x30, 0);
    write(&rig.transport, 0x38, 16);
    rig.transport.pause();
    let mut rig = rig.restore(entropy());
    assert_eq!((status(&rig.transport), read(&rig.transport, 0x44)), (11, 0));
    let setup = crate::devices::virtio::queue::QueueSetup { size: 16, ..rig.rings[0].setup };
    set_queue(&rig.transport, 0, &setup);
    driver_ok(&rig.transport);
    rig.rings[0] = crate::devices::virtio::testkit::Ring::new(&rig.memory, 0, 16);
    (0..40).for_each(|_| works(&mut rig));
    rig.is_well();
}

#[test]
fn an_interrupt_that_was_not_acknowledged_is_raised_again() {
    let mut rig = Rig::start(entropy());
    works(&mut rig);
    assert_eq!(read(&rig.transport, 0x60), 1);
    rig.pause();
    let rig = rig.restore(entropy());
    assert!(rig.line.read().is_ok());
    assert_eq!(read(&rig.transport, 0x60), 1);
    write(&rig.transport, 0x64, 1);
    rig.transport.pause();
    let mut rig = rig;
    rig.until(|rig| rig.is_paused());
    rig.transport.resume();
    rig.settle();
    assert!(rig.line.read().is_err(), "nothing is pending");
}

#[test]
fn a_device_that_needs_a_reset_still_does() {
    let mut rig = Rig::start(entropy());
    rig.rings[0].offer_head(64);
    rig.kick(0);
    rig.settle();
    assert_eq!(status(&rig.transport), 15 | 64);
    rig.pause();
    let mut rig = rig.restore(entropy());
    rig.settle();
    assert_eq!(status(&rig.transport), 15 | 64);
    assert_eq!(rig.transport.faults().failures, 0, "it does not fail twice");
    rig.write(crate::devices::virtio::testkit::RINGS, &[0; 0x4000]);
    rig.rings[0] = crate::devices::virtio::testkit::Ring::new(&rig.memory, 0, 64);
    negotiate(&rig.transport);
    set_queue(&rig.transport, 0, &rig.rings[0].setup);
    driver_ok(&rig.transport);
    works(&mut rig);
}

/// A spoiled value, and what the error says.
type Wrong = (fn(&mut Saved), &'static str);

#[test]
fn values_that_no_driver_brings_about_are_refused() {
    let (rig, good) = saved();
    let wrong: [Wrong; 20] = [
        (|it| it.name = "another".into(), r#"name is "another"; the device is allowed"#),
        (|it| it.kind = 2, "kind is 2; 4 is allowed"),
        (|it| it.face = INTERRUPTS.section(&4_u32), "virtio-mmio: interrupt status is 4; 0 to 3"),
        (|it| it.negotiation.status |= 16, "status is 0x1f;"),
        (|it| it.negotiation.status = 4, "status is 0x4;"),
        (|it| it.negotiation.status = 11 | 64, "status is 0x4b;"),
        (|it| it.negotiation.acknowledged |= 1 << 7, "acknowledged features is 0x1200000"),
        (|it| it.negotiation.acknowledged &= !(1 << 32), "acknowledged features is 0x2"),
        (|it| it.negotiation.queues.clear(), "number of queues is 0; 1 is allowed"),
        (|it| it.positions.push(None), "number of positions is 2; 1 is allowed"),
        (|it| it.negotiation.queues[0].size = 63, "queue is 0: size 63 is not a power of two of at most 64"),
        (|it| it.negotiation.queues[0].size = 128, "queue is 0: size 128"),
        (|it| it.negotiation.queues[0].used += 1, "queue is 0: the used ring at 0x13001 is not aligned"),
        (|it| it.negotiation.queues[0].available = 1 << 40, "does not lie in guest memory"),
        (|it| it.negotiation.queues[0].descriptors = u64::MAX - 15, "does not lie in guest memory"),
        (|it| it.negotiation.queues[0].available = it.negotiation.queues[0].used, "overlaps"),
        (|it| it.negotiation.queues[0].ready = false, "position of a queue that is not ready is 0; none"),
        (|it| it.positions[0].as_mut().unwrap().next_used += 1, "next_used is 4; 3, as in the used ring"),
        (|it| it.positions[0].as_mut().unwrap().next_avail += 1, "next_avail is 4; 3 is allowed"),
        (|it| it.device = OTHER.section(&()), "virtio-entropy: there is a section"),
    ];
    for (spoil, said) in wrong {
        let mut bad = good.clone();
        spoil(&mut bad);
        let error = load(&rig, &bad).map(drop).unwrap_err().to_string();
        assert!(error.starts_with("the device: virtio") && error.contains(said), "{error:?}: {said:?}");
    }
    let mut rig = load(&rig, &good).unwrap();
    rig.transport.resume();
    rig.settle();
    assert_eq!(read(&rig.transport, 0x60), 1);
}

/// The rings in memory are the guest's, and it may write there what it likes.
#[test]
fn rings_that_contradict_the_position_are_refused() {
    let (mut rig, good) = saved();
    let available = rig.rings[0].available;
    rig.rings[0].set_available(available + 64);
    let error = load(&rig, &good).map(drop).unwrap_err().to_string();
    assert!(error.contains("number of chains that wait is 65; 0 to 64 is allowed"), "{error}");
    rig.rings[0].set_available(available);
    let used = rig.rings[0].setup.used + 2;
    rig.write(used, &[9, 0]);
    let error = load(&rig, &good).map(drop).unwrap_err().to_string();
    assert!(error.contains("next_used is 3; 9, as in the used ring is allowed"), "{error}");
}

#[test]
fn only_a_device_at_reset_is_loaded() {
    let (rig, good) = saved();
    let section = FORMAT.section(&good);
    let started = |rig: &Rig| matches!(rig.transport.load(NAME, &section), Err(LoadError::Started { .. }));
    assert!(started(&rig), "it is paused, and has a driver");
    let fresh = load(&rig, &good).unwrap();
    assert!(started(&fresh), "it was loaded already");
    let fresh = Rig::on(rig.memory.clone(), Box::new(Balloon::new(1, false, false)), false);
    let error = fresh.transport.load(NAME, &section).unwrap_err().to_string();
    assert_eq!(error, "the device: virtio: kind is 4; 5 is allowed");
}

/// With the loop on a thread of its own, as in a machine.
#[test]
fn a_pause_is_waited_for_and_may_be_taken_back() {
    let mut rig = started();
    rig.busy.store(true, Ordering::SeqCst);
    rig.transport.pause();
    assert_eq!(rig.transport.wait_paused(soon()), Err(Busy));
    assert_eq!(rig.transport.save(NAME), Err(NotPaused));
    rig.transport.resume();
    rig.transport.pause();
    assert_eq!(rig.transport.wait_paused(soon()), Err(Busy));
    rig.busy.store(false, Ordering::SeqCst);
    assert_eq!(rig.transport.wait_paused(Instant::now() + Duration::from_secs(10)), Ok(()));
    rig.transport.resume();
    rig.ring.offer(&[(HIGH, 8, true)]);
    write(&rig.transport, 0x50, 0);
    until(|| rig.ring.take_used().is_some());
    assert_eq!(rig.transport.wait_paused(soon()), Err(Busy), "it runs");
    assert_eq!(rig.transport.faults().failures, 0);
}

#[test]
fn a_reset_and_a_pause_wait_for_the_same_worker() {
    for pause_first in [true, false] {
        let rig = started();
        rig.busy.store(true, Ordering::SeqCst);
        if pause_first {
            rig.transport.pause();
        }
        write(&rig.transport, 0x70, 0);
        rig.transport.pause();
        assert_eq!(rig.transport.wait_paused(soon()), Err(Busy));
        assert_ne!(status(&rig.transport), 0);
        rig.busy.store(false, Ordering::SeqCst);
        assert_eq!(rig.transport.wait_paused(Instant::now() + Duration::from_secs(10)), Ok(()));
        assert_eq!(status(&rig.transport), 0);
        rig.transport.resume();
        assert_eq!(rig.transport.faults().failures, 0);
    }
}

crate::devices::virtio::testkit::rig::over_pci!(
    a_device_without_a_driver_is_paused_at_once_and_starts_when_it_is_resumed,
    a_driver_that_is_half_way_goes_on,
    a_device_that_needs_a_reset_still_does,
    rings_that_contradict_the_position_are_refused,
    only_a_device_at_reset_is_loaded,
);
