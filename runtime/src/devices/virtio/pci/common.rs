//! The common configuration of a virtio PCI device (virtio 1.2, 4.1.4.3): which offset is what of the negotiation.
//!
//! Owns nothing. Refuses, as `None`, what is no field, or is not accessed by the field's own width (4.1.3.1). Invariant: what a
//! field means is said in one place for all transports, [`negotiation`](crate::devices::virtio::transport::negotiation).

use crate::devices::virtio::transport::negotiation::{Negotiation, Part, Write, half};

/// Bytes of it, up to the addresses of a queue.
pub(super) const BYTES: u32 = 56;

/// A field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Field {
    OfferedSelect,
    Offered,
    AcknowledgedSelect,
    Acknowledged,
    ConfigVector,
    Queues,
    Status,
    Generation,
    QueueSelect,
    QueueSize,
    QueueVector,
    QueueEnable,
    QueueNotifyOffset,
    Address(Part),
}

/// The field of `len` bytes at `offset`.
pub(super) fn field(offset: u64, len: usize) -> Option<Field> {
    Some(match (offset, len) {
        (0x00, 4) => Field::OfferedSelect,
        (0x04, 4) => Field::Offered,
        (0x08, 4) => Field::AcknowledgedSelect,
        (0x0c, 4) => Field::Acknowledged,
        (0x10, 2) => Field::ConfigVector,
        (0x12, 2) => Field::Queues,
        (0x14, 1) => Field::Status,
        (0x15, 1) => Field::Generation,
        (0x16, 2) => Field::QueueSelect,
        (0x18, 2) => Field::QueueSize,
        (0x1a, 2) => Field::QueueVector,
        (0x1c, 2) => Field::QueueEnable,
        (0x1e, 2) => Field::QueueNotifyOffset,
        (0x20, 4) => Field::Address(Part::DescriptorsLow),
        (0x24, 4) => Field::Address(Part::DescriptorsHigh),
        (0x28, 4) => Field::Address(Part::AvailableLow),
        (0x2c, 4) => Field::Address(Part::AvailableHigh),
        (0x30, 4) => Field::Address(Part::UsedLow),
        (0x34, 4) => Field::Address(Part::UsedHigh),
        _ => return None,
    })
}

/// What `field` reads as; vectors and generation are the transport's. Of a queue that is not there all is zero.
pub(super) fn read(negotiation: &Negotiation, field: Field) -> u32 {
    let (offered, acknowledged, selected) = negotiation.selectors();
    let queue = negotiation.selected_queue();
    let of_queue = |read: fn(u16, crate::devices::virtio::queue::QueueSetup) -> u32| {
        queue.map_or(0, |(index, setup, _)| read(index, setup))
    };
    match field {
        Field::OfferedSelect => offered,
        Field::Offered => negotiation.selected_offered(),
        Field::AcknowledgedSelect => acknowledged,
        Field::Acknowledged => half(negotiation.acknowledged(), acknowledged),
        Field::Queues => u32::try_from(negotiation.queues().count()).unwrap_or(0),
        Field::Status => negotiation.status(),
        Field::QueueSelect => selected,
        Field::QueueSize => of_queue(|_, setup| setup.size),
        Field::QueueEnable => of_queue(|_, setup| setup.ready.into()),
        Field::QueueNotifyOffset => of_queue(|index, _| index.into()),
        Field::Address(part) => queue.map_or(0, |(_, setup, _)| match part {
            Part::DescriptorsLow => half(setup.descriptors, 0),
            Part::DescriptorsHigh => half(setup.descriptors, 1),
            Part::AvailableLow => half(setup.available, 0),
            Part::AvailableHigh => half(setup.available, 1),
            Part::UsedLow => half(setup.used, 0),
            Part::UsedHigh => half(setup.used, 1),
            Part::Size | Part::Ready => 0,
        }),
        Field::ConfigVector | Field::QueueVector | Field::Generation => 0,
    }
}

/// What a write of `value` to `field` says; vectors are the transport's.
pub(super) fn write(field: Field, value: u32) -> Option<Write> {
    Some(match field {
        Field::OfferedSelect => Write::SelectOffered(value),
        Field::AcknowledgedSelect => Write::SelectAcknowledged(value),
        Field::Acknowledged => Write::Acknowledge(value),
        Field::Status => Write::Status(value),
        Field::QueueSelect => Write::SelectQueue(value),
        Field::QueueSize => Write::Queue(Part::Size, value),
        // A driver does not take a queue back by itself (4.1.4.3.2); it resets the device.
        Field::QueueEnable if value == 1 => Write::Queue(Part::Ready, value),
        Field::Address(part) => Write::Queue(part, value),
        _ => return None,
    })
}
