//! The control queue (virtio 1.2, 5.1.6.5): how many pairs of queues the driver uses.
//!
//! Owns the queue. Refuses, with `VIRTIO_NET_ERR`, every command but that one, a number of pairs that there are not, and
//! commands of another length. Invariant: a command is answered before the next is taken.

use crate::devices::virtio::guest_io::GuestIo;
use crate::devices::virtio::queue::{Chain, Virtqueue};
use crate::devices::virtio::service::{Answer, Budget, Service};
use crate::devices::virtio::{DeviceError, Memory};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use virtio_bindings::virtio_net as net;
use vm_memory::Permissions;

/// Most commands per event.
const BUDGET: Budget = Budget { looks: 16, cost: 16 };
/// Bytes of `VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET`: class, command and a number of 16 bits.
const COMMAND_BYTES: usize = 4;

pub(super) struct Control {
    service: Service,
}

impl Control {
    pub(super) fn new(queue: Virtqueue, dropped: Arc<AtomicU64>) -> Self {
        Self { service: Service::new(queue, BUDGET, dropped) }
    }

    pub(super) fn queue(&self) -> &Virtqueue {
        &self.service.queue
    }

    pub(super) fn take(&mut self) -> (u16, virtio_queue::Queue) {
        self.service.queue.take()
    }

    /// Answers what the driver commands; the number of pairs that it wants in the end, of `pairs` that there are.
    pub(super) fn serve(&mut self, pairs: u16) -> Result<Option<u16>, DeviceError> {
        let mut wanted = None;
        self.service.serve(|memory, chain| Ok(answer(memory, chain, pairs, &mut wanted)))?;
        Ok(wanted)
    }
}

fn answer(memory: &Memory, chain: &Chain, pairs: u16, wanted: &mut Option<u16>) -> Option<Answer> {
    let mut said = GuestIo::new(memory, &chain.readable, Permissions::Read).ok()?;
    let mut room = GuestIo::new(memory, &chain.writable, Permissions::Write).ok()?;
    let mut bytes = [0; COMMAND_BYTES];
    let whole = said.len() == COMMAND_BYTES && said.copy_into(&mut bytes) == COMMAND_BYTES;
    let [class, command, low, high] = bytes;
    let count = u16::from_le_bytes([low, high]);
    let is_known = (u32::from(class), u32::from(command))
        == (net::VIRTIO_NET_CTRL_MQ, net::VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET);
    let right = whole && is_known && (1..=pairs).contains(&count);
    let status = if right { net::VIRTIO_NET_OK } else { net::VIRTIO_NET_ERR };
    // What has no room for the status, its one byte, is no command.
    if room.fill_from(&[u8::try_from(status).unwrap_or(u8::MAX)]) != 1 {
        return None;
    }
    if right {
        *wanted = Some(count);
    }
    Some(Answer { written: 1, cost: 1 })
}
