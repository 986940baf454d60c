use super::{MAGIC, mmio};
use crate::devices::virtio::queue::QueueSetup;
use crate::devices::virtio::transport::negotiation::{Effect, Negotiation, half};
use crate::devices::virtio::{FEATURE_EVENT_IDX, FEATURE_INDIRECT, FEATURE_VERSION_1};
use std::ops::{Deref, DerefMut};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE as ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER as DRIVER,
    VIRTIO_CONFIG_S_DRIVER_OK as DRIVER_OK, VIRTIO_CONFIG_S_FAILED as FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK as FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET as NEEDS_RESET,
};

const OFFERED: u64 = FEATURE_EVENT_IDX | 1 << 3;

/// The negotiation, through the registers.
struct Registers(Negotiation);

impl Registers {
    fn read(&self, offset: u32) -> u32 {
        super::read(&self.0, offset)
    }

    fn write(&mut self, offset: u32, value: u32) -> Effect {
        super::write(offset, value).map_or(Effect::None, |write| self.0.write(write))
    }
}

impl Deref for Registers {
    type Target = Negotiation;
    fn deref(&self) -> &Negotiation {
        &self.0
    }
}

impl DerefMut for Registers {
    fn deref_mut(&mut self) -> &mut Negotiation {
        &mut self.0
    }
}

fn registers() -> Registers {
    Registers(Negotiation::new(OFFERED, &[128, 64]))
}

fn acknowledge(registers: &mut Registers, features: u64) {
    for select in [0, 1] {
        registers.write(mmio::VIRTIO_MMIO_DRIVER_FEATURES_SEL, select);
        registers.write(mmio::VIRTIO_MMIO_DRIVER_FEATURES, half(features, select));
    }
}

fn status(registers: &mut Registers, value: u32) -> (u32, Effect) {
    let effect = registers.write(mmio::VIRTIO_MMIO_STATUS, value);
    (registers.read(mmio::VIRTIO_MMIO_STATUS), effect)
}

fn negotiated() -> Registers {
    let mut registers = registers();
    status(&mut registers, ACKNOWLEDGE | DRIVER);
    acknowledge(&mut registers, FEATURE_VERSION_1);
    status(&mut registers, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    registers
}

#[test]
fn a_driver_finds_the_device() {
    let mut registers = registers();
    assert_eq!(registers.read(0), MAGIC);
    assert_eq!(registers.read(4), 2);
    registers.write(mmio::VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
    assert_eq!(registers.read(0x10), 1, "VERSION_1 is always offered");
    registers.write(mmio::VIRTIO_MMIO_DEVICE_FEATURES_SEL, 2);
    assert_eq!(registers.read(0x10), 0);
    for (queue, max) in [(0, 128), (1, 64), (2, 0), (u32::MAX, 0)] {
        registers.write(mmio::VIRTIO_MMIO_QUEUE_SEL, queue);
        assert_eq!(registers.read(mmio::VIRTIO_MMIO_QUEUE_NUM_MAX), max);
    }
    assert_eq!(registers.read(mmio::VIRTIO_MMIO_SHM_LEN_LOW), u32::MAX);
    assert_eq!(registers.read(0xf0), 0);
}

#[test]
fn item_8_features_not_offered_do_not_stick() {
    for wrong in [FEATURE_INDIRECT, 1, 1 << 63, u64::MAX] {
        let mut registers = registers();
        status(&mut registers, ACKNOWLEDGE | DRIVER);
        acknowledge(&mut registers, FEATURE_VERSION_1 | wrong);
        assert_eq!(
            status(&mut registers, ACKNOWLEDGE | DRIVER | FEATURES_OK).0,
            ACKNOWLEDGE | DRIVER,
            "{wrong:#x}"
        );
        let all = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
        assert_eq!(status(&mut registers, all), (ACKNOWLEDGE | DRIVER, Effect::None));
    }
}

#[test]
fn item_8_features_beyond_the_second_word_do_not_stick() {
    let mut registers = registers();
    status(&mut registers, ACKNOWLEDGE | DRIVER);
    acknowledge(&mut registers, FEATURE_VERSION_1);
    registers.write(mmio::VIRTIO_MMIO_DRIVER_FEATURES_SEL, 2);
    registers.write(mmio::VIRTIO_MMIO_DRIVER_FEATURES, 1);
    assert_eq!(status(&mut registers, ACKNOWLEDGE | DRIVER | FEATURES_OK).0, ACKNOWLEDGE | DRIVER);
}

#[test]
fn a_legacy_driver_is_refused() {
    let mut registers = registers();
    status(&mut registers, ACKNOWLEDGE | DRIVER);
    acknowledge(&mut registers, OFFERED);
    assert_eq!(status(&mut registers, ACKNOWLEDGE | DRIVER | FEATURES_OK).0, ACKNOWLEDGE | DRIVER);
}

#[test]
fn features_are_fixed_once_they_are_ok() {
    let mut registers = registers();
    acknowledge(&mut registers, FEATURE_VERSION_1);
    assert_eq!(registers.acknowledged(), 0, "not before DRIVER");
    let mut registers = negotiated();
    acknowledge(&mut registers, u64::MAX);
    assert_eq!(registers.acknowledged(), FEATURE_VERSION_1);
}

#[test]
fn item_7_status_bits_out_of_order_do_nothing() {
    let mut registers = registers();
    for value in [DRIVER, FEATURES_OK, DRIVER_OK, NEEDS_RESET, DRIVER | DRIVER_OK, 16, 32] {
        assert_eq!(status(&mut registers, value), (0, Effect::None), "{value}");
    }
    let mut registers = negotiated();
    let before = ACKNOWLEDGE | DRIVER | FEATURES_OK;
    assert_eq!(status(&mut registers, ACKNOWLEDGE), (before, Effect::None), "nothing is taken back");
    assert_eq!(status(&mut registers, before | DRIVER_OK), (before | DRIVER_OK, Effect::Activate));
    assert_eq!(status(&mut registers, before | DRIVER_OK), (before | DRIVER_OK, Effect::None), "once");
}

#[test]
fn a_driver_that_gave_up_starts_over_only_by_reset() {
    let mut registers = negotiated();
    let before = ACKNOWLEDGE | DRIVER | FEATURES_OK;
    assert_eq!(status(&mut registers, before | FAILED).0, before | FAILED);
    assert_eq!(status(&mut registers, before | FAILED | DRIVER_OK), (before | FAILED, Effect::None));
    assert_eq!(status(&mut registers, 0).1, Effect::Reset);
}

#[test]
fn item_7_queue_registers_are_locked_after_driver_ok() {
    let mut registers = negotiated();
    registers.write(mmio::VIRTIO_MMIO_QUEUE_SEL, 1);
    registers.write(mmio::VIRTIO_MMIO_QUEUE_NUM, 16);
    registers.write(mmio::VIRTIO_MMIO_QUEUE_DESC_HIGH, 1);
    registers.write(mmio::VIRTIO_MMIO_QUEUE_DESC_LOW, 0x1000);
    registers.write(mmio::VIRTIO_MMIO_QUEUE_READY, 1);
    status(&mut registers, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    let before: Vec<_> = registers.queues().collect();
    assert_eq!(
        before[1].1,
        QueueSetup { size: 16, ready: true, descriptors: 0x1_0000_1000, available: 0, used: 0 }
    );
    for offset in (mmio::VIRTIO_MMIO_QUEUE_NUM..0x100).step_by(4) {
        if offset != mmio::VIRTIO_MMIO_STATUS {
            registers.write(offset, 0x7777);
        }
    }
    registers.write(mmio::VIRTIO_MMIO_QUEUE_SEL, 1);
    assert_eq!(registers.queues().collect::<Vec<_>>(), before);
}

#[test]
fn queue_registers_are_closed_before_features_are_ok() {
    let mut registers = registers();
    status(&mut registers, ACKNOWLEDGE | DRIVER);
    registers.write(mmio::VIRTIO_MMIO_QUEUE_READY, 1);
    assert_eq!(registers.read(mmio::VIRTIO_MMIO_QUEUE_READY), 0);
}

#[test]
fn item_9_a_notify_for_a_queue_that_does_not_exist_is_nothing() {
    let mut registers = negotiated();
    assert_eq!(registers.write(mmio::VIRTIO_MMIO_QUEUE_NOTIFY, 0), Effect::None, "not before DRIVER_OK");
    status(&mut registers, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    assert_eq!(registers.write(mmio::VIRTIO_MMIO_QUEUE_NOTIFY, 1), Effect::Notify(1));
    for index in [2, 0xffff, 0x1_0000, u32::MAX] {
        assert_eq!(registers.write(mmio::VIRTIO_MMIO_QUEUE_NOTIFY, index), Effect::None);
    }
}

#[test]
fn a_reset_under_way_takes_nothing() {
    let mut registers = negotiated();
    status(&mut registers, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    let (before, effect) = status(&mut registers, 0);
    assert_eq!(effect, Effect::Reset);
    assert_ne!(before, 0);
    for offset in (0..0x100).step_by(4) {
        assert_eq!(registers.write(offset, 0), Effect::None);
    }
    assert_eq!(registers.read(mmio::VIRTIO_MMIO_STATUS), before);
    assert_eq!(registers.read(mmio::VIRTIO_MMIO_QUEUE_READY), 0);
    registers.reset();
    assert_eq!(registers.read(mmio::VIRTIO_MMIO_STATUS), 0);
    assert_eq!(registers.acknowledged(), 0);
}

#[test]
fn a_million_random_writes_break_no_rule() {
    let mut registers = registers();
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let mut activations = 0;
    for _ in 0..1_000_000 {
        let anywhere = u32::try_from(random() % 0x42).unwrap() * 4;
        // Half of the steps are those of a driver that is nearly right, or the walk would not get far.
        let (offset, value) = match random() % 8 {
            0 | 1 => {
                (mmio::VIRTIO_MMIO_STATUS, registers.read(mmio::VIRTIO_MMIO_STATUS) | 1 << (random() % 4))
            }
            2 => (mmio::VIRTIO_MMIO_DRIVER_FEATURES_SEL, u32::try_from(random() % 3).unwrap()),
            3 => (mmio::VIRTIO_MMIO_DRIVER_FEATURES, u32::try_from(random() % 2).unwrap()),
            4 if random() % 8 == 0 => (mmio::VIRTIO_MMIO_STATUS, 0),
            5 => (anywhere, u32::try_from(random() % 16).unwrap()),
            _ => (anywhere, half(random(), 0)),
        };
        match registers.write(offset, value) {
            Effect::Activate => {
                activations += 1;
                assert_eq!(registers.acknowledged() & !(OFFERED | FEATURE_VERSION_1), 0);
            }
            Effect::Notify(index) => assert!(index < 2),
            Effect::Reset => registers.reset(),
            Effect::None => {}
        }
        assert!(!registers.is_live() || registers.features_are_sound());
    }
    assert!(activations > 10, "the walk reached the end {activations} times");
}
