//! `virtio_net_hdr` as the guest wrote it (virtio 1.2, 5.1.6): an allegation until it was compared with its frame.
//!
//! Owns nothing. Refuses what was not negotiated, what contradicts the frame, and a checksum anywhere but in the
//! checksum field of the frame's own transport header: the host fills it in after the policy has judged the frame, so
//! elsewhere it could change the destination. Invariant: a header that passes has only fields that were looked at.

use super::policy::{Summary, Transport};
use super::{ETHERNET_BYTES, HEADER_BYTES, LONGEST_FRAME};
use virtio_bindings::virtio_net as net;

const NEEDS_CHECKSUM: u8 = byte(net::VIRTIO_NET_HDR_F_NEEDS_CSUM);
const GSO_NONE: u8 = byte(net::VIRTIO_NET_HDR_GSO_NONE);
const GSO_TCP4: u8 = byte(net::VIRTIO_NET_HDR_GSO_TCPV4);
const GSO_TCP6: u8 = byte(net::VIRTIO_NET_HDR_GSO_TCPV6);

#[expect(clippy::cast_possible_truncation, reason = "the specification's fields are a byte long")]
const fn byte(constant: u32) -> u8 {
    constant as u8
}

/// The frame is not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refused;

/// The fields, all little-endian in memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) flags: u8,
    pub(super) gso: u8,
    pub(super) header_bytes: u16,
    pub(super) gso_bytes: u16,
    pub(super) checksum_start: u16,
    pub(super) checksum_offset: u16,
}

impl Header {
    pub(super) fn from_bytes(bytes: [u8; HEADER_BYTES]) -> Self {
        let [flags, gso, a, b, c, d, e, f, g, h, ..] = bytes;
        let word = |low, high| u16::from_le_bytes([low, high]);
        Self {
            flags,
            gso,
            header_bytes: word(a, b),
            gso_bytes: word(c, d),
            checksum_start: word(e, f),
            checksum_offset: word(g, h),
        }
    }

    /// As the tap takes it; the count of buffers means nothing in this direction.
    pub(super) fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        (bytes[0], bytes[1]) = (self.flags, self.gso);
        let words = [self.header_bytes, self.gso_bytes, self.checksum_start, self.checksum_offset];
        for (place, word) in bytes[2..10].as_chunks_mut().0.iter_mut().zip(words) {
            *place = word.to_le_bytes();
        }
        bytes
    }

    /// Compares it with a frame of `length` bytes that says `summary` of itself, sent under `features` over an interface
    /// of `mtu` bytes. Returns the header to send it with.
    pub(super) fn check(
        self,
        features: u64,
        length: usize,
        mtu: u16,
        summary: &Summary,
    ) -> Result<Self, Refused> {
        let refuse_if = |wrong: bool| if wrong { Err(Refused) } else { Ok(()) };
        let has = |feature: u32| features & super::bit(feature) != 0;
        refuse_if(self.flags & !NEEDS_CHECKSUM != 0 || length > LONGEST_FRAME)?;
        let checksum = self.flags & NEEDS_CHECKSUM != 0;
        let mut checked = Self { flags: self.flags, ..Self::default() };
        if checksum {
            let (start, offset) = summary.checksum().ok_or(Refused)?;
            let right =
                (usize::from(self.checksum_start), usize::from(self.checksum_offset)) == (start, offset);
            refuse_if(!has(net::VIRTIO_NET_F_CSUM) || !right || start + offset + 2 > length)?;
            (checked.checksum_start, checked.checksum_offset) = (self.checksum_start, self.checksum_offset);
        }
        let (feature, ip6) = match self.gso {
            GSO_NONE => {
                refuse_if(length > usize::from(mtu) + ETHERNET_BYTES)?;
                return Ok(checked);
            }
            GSO_TCP4 => (net::VIRTIO_NET_F_HOST_TSO4, false),
            GSO_TCP6 => (net::VIRTIO_NET_F_HOST_TSO6, true),
            _ => return Err(Refused),
        };
        refuse_if(!has(feature) || !checksum || self.gso_bytes == 0 || self.gso_bytes > mtu)?;
        let Some(Transport::Tcp { headers }) = summary.transport() else { return Err(Refused) };
        refuse_if(summary.is_ip6() != ip6 || headers > length)?;
        // The driver's number is a hint; the frame's own headers say what it has to be.
        let header_bytes = u16::try_from(headers).map_err(|_| Refused)?;
        Ok(Self { gso: self.gso, gso_bytes: self.gso_bytes, header_bytes, ..checked })
    }
}

#[cfg(test)]
mod tests;
