//! The registers of a virtio-mmio device (virtio 1.2, 4.2.2): which offset is what of the negotiation.
//!
//! Owns nothing. Refuses nothing: what is at no register's place is none, and reads as zero. Invariant: what a register means is
//! said in one place for all transports, [`negotiation`](crate::devices::virtio::transport::negotiation).

use crate::devices::virtio::transport::negotiation::{Negotiation, Part, Write};
use virtio_bindings::virtio_mmio as mmio;

/// Reads "virt".
const MAGIC: u32 = 0x7472_6976;
/// Virtio 1.0 and later, no legacy interface.
const VERSION: u32 = 2;
/// Nobody in particular.
const VENDOR: u32 = 0;

/// The register at `offset`, below the configuration space; device id, interrupt status and generation are the transport's.
pub(super) fn read(negotiation: &Negotiation, offset: u32) -> u32 {
    let queue = || negotiation.selected_queue();
    match offset {
        mmio::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
        mmio::VIRTIO_MMIO_VERSION => VERSION,
        mmio::VIRTIO_MMIO_VENDOR_ID => VENDOR,
        mmio::VIRTIO_MMIO_DEVICE_FEATURES => negotiation.selected_offered(),
        mmio::VIRTIO_MMIO_QUEUE_NUM_MAX => queue().map_or(0, |(_, _, max)| max.into()),
        mmio::VIRTIO_MMIO_QUEUE_READY => queue().map_or(0, |(_, setup, _)| setup.ready.into()),
        mmio::VIRTIO_MMIO_STATUS => negotiation.status(),
        // No shared memory region has any length (4.2.2: all ones).
        mmio::VIRTIO_MMIO_SHM_LEN_LOW..=mmio::VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
        _ => 0,
    }
}

/// What a write of `value` at `offset` says; the interrupt's acknowledgement is the transport's.
pub(super) fn write(offset: u32, value: u32) -> Option<Write> {
    Some(match offset {
        mmio::VIRTIO_MMIO_STATUS => Write::Status(value),
        mmio::VIRTIO_MMIO_QUEUE_NOTIFY => Write::Notify(value),
        mmio::VIRTIO_MMIO_DEVICE_FEATURES_SEL => Write::SelectOffered(value),
        mmio::VIRTIO_MMIO_DRIVER_FEATURES_SEL => Write::SelectAcknowledged(value),
        mmio::VIRTIO_MMIO_DRIVER_FEATURES => Write::Acknowledge(value),
        mmio::VIRTIO_MMIO_QUEUE_SEL => Write::SelectQueue(value),
        mmio::VIRTIO_MMIO_QUEUE_NUM => Write::Queue(Part::Size, value),
        mmio::VIRTIO_MMIO_QUEUE_READY => Write::Queue(Part::Ready, value),
        mmio::VIRTIO_MMIO_QUEUE_DESC_LOW => Write::Queue(Part::DescriptorsLow, value),
        mmio::VIRTIO_MMIO_QUEUE_DESC_HIGH => Write::Queue(Part::DescriptorsHigh, value),
        mmio::VIRTIO_MMIO_QUEUE_AVAIL_LOW => Write::Queue(Part::AvailableLow, value),
        mmio::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => Write::Queue(Part::AvailableHigh, value),
        mmio::VIRTIO_MMIO_QUEUE_USED_LOW => Write::Queue(Part::UsedLow, value),
        mmio::VIRTIO_MMIO_QUEUE_USED_HIGH => Write::Queue(Part::UsedHigh, value),
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
