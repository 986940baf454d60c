//! From the guest to the wire, one frame at a time.
//!
//! Owns nothing. Refuses a chain that is no frame, and all that `header` and `policy` refuse. Invariant: the header
//! and the frame's first bytes are copied once, judged, and sent from the copy.

use super::header::{Header, Refused};
use super::policy::JUDGED_BYTES;
use super::stream::PREFIX_BYTES;
use super::wire::{Wire, lock};
use super::{Card, HEADER_BYTES, LONGEST_FRAME};
use crate::devices::virtio::guest_io::GuestIo;
use crate::devices::virtio::queue::Chain;
use crate::devices::virtio::{DeviceError, Memory};
use std::io;
use vm_memory::Permissions;

/// Sends the frame in `chain`; `Ok(false)`: it was refused, by us or by the host, and is lost, as on any wire.
/// Into queue `number` of the tap, if it is one.
pub(super) fn send(
    memory: &Memory,
    chain: &Chain,
    (card, number): (&Card, usize),
    features: u64,
) -> Result<bool, DeviceError> {
    let mut head = [0; HEADER_BYTES + JUDGED_BYTES];
    let Ok((mut rest, judged)) = judge(memory, chain, card, features, &mut head) else { return Ok(false) };
    let tap = match &card.wire {
        Wire::Tap(tap) => tap,
        Wire::Stream(stream) => {
            // The virtio header asks for nothing, since nothing was offered; the length takes its place.
            let length = u32::try_from(judged + rest.len()).unwrap_or(u32::MAX);
            let start = HEADER_BYTES - PREFIX_BYTES;
            head[start..HEADER_BYTES].copy_from_slice(&length.to_be_bytes());
            return Ok(lock(stream).send(&head[start..HEADER_BYTES + judged], &mut rest));
        }
    };
    loop {
        match rest.write_frame(tap.queue(number), &head[..HEADER_BYTES + judged]) {
            Ok(_) => return Ok(true),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if is_gone(&error) => return Err(DeviceError::host("sending to the tap")(error)),
            // It is down, or full, or does not like the frame.
            Err(_) => return Ok(false),
        }
    }
}

/// Whether the interface behind the descriptor was deleted: then nothing will ever work again.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADFD | libc::EBADF | libc::ENODEV))
}

/// Fills `head` with the checked header and the frame's first bytes; returns the rest of the frame, and how many bytes
/// of it are in `head`.
fn judge<'m>(
    memory: &'m Memory,
    chain: &Chain,
    card: &Card,
    features: u64,
    head: &mut [u8; HEADER_BYTES + JUDGED_BYTES],
) -> Result<(GuestIo<'m>, usize), Refused> {
    // Virtio 1.2, 5.1.6.2: a transmitted packet has nothing to write into.
    if !chain.writable.is_empty() {
        return Err(Refused);
    }
    let mut io = GuestIo::new(memory, &chain.readable, Permissions::Read).map_err(|_| Refused)?;
    let mut header = [0; HEADER_BYTES];
    if io.copy_into(&mut header) != HEADER_BYTES || io.len() > LONGEST_FRAME {
        return Err(Refused);
    }
    let length = io.len();
    let (place, bytes) = head.split_at_mut(HEADER_BYTES);
    let judged = io.copy_into(bytes);
    let summary = card.policy.judge(&card.mac, &bytes[..judged], length).map_err(|_| Refused)?;
    let header = Header::from_bytes(header).check(features, length, card.mtu, &summary)?;
    place.copy_from_slice(&header.to_bytes());
    Ok((io, judged))
}
