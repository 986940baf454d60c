//! The header of a vsock packet (virtio 1.2, 5.10.6).
//!
//! Owns the layout and the names of operations. Refuses nothing: what a guest sends is an allegation, and
//! [`Header::op`] says so by being an option. Invariant: encoding what was decoded gives the same bytes.

/// Bytes of a header.
pub(super) const HEADER_BYTES: usize = 44;
/// The same, as lengths in used rings are counted.
pub(super) const HEADER_LEN: u32 = 44;
/// The host's context id.
pub(super) const HOST_CID: u64 = 2;
/// The only socket type here (`VIRTIO_VSOCK_TYPE_STREAM`).
pub(super) const TYPE_STREAM: u16 = 1;
/// Shutdown flag: the sender receives no more.
pub(super) const SHUT_RECEIVE: u32 = 1;
/// Shutdown flag: the sender sends no more.
pub(super) const SHUT_SEND: u32 = 2;
/// Both.
pub(super) const SHUT_BOTH: u32 = SHUT_RECEIVE | SHUT_SEND;

/// What a packet does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Op {
    /// Asks for a connection.
    Request = 1,
    /// Grants it.
    Response = 2,
    /// Ends it, or refuses it.
    Reset = 3,
    /// Will not receive, or not send, any more.
    Shutdown = 4,
    /// Carries data.
    Data = 5,
    /// Tells how much was consumed.
    CreditUpdate = 6,
    /// Asks for that.
    CreditRequest = 7,
}

/// Two ports: which connection of the guest's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) host_port: u32,
    pub(super) guest_port: u32,
}

/// `virtio_vsock_hdr`, with integers of this machine's order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) src_cid: u64,
    pub(super) dst_cid: u64,
    pub(super) src_port: u32,
    pub(super) dst_port: u32,
    /// Bytes of data that follow.
    pub(super) len: u32,
    pub(super) kind: u16,
    pub(super) raw_op: u16,
    pub(super) flags: u32,
    /// The sender's buffer for this connection, in bytes.
    pub(super) buf_alloc: u32,
    /// Bytes that the sender has consumed so far, modulo 2^32.
    pub(super) fwd_cnt: u32,
}

impl Header {
    pub(super) fn decode(bytes: &[u8; HEADER_BYTES]) -> Self {
        let mut fields = Fields(bytes);
        Self {
            src_cid: u64::from_le_bytes(fields.next()),
            dst_cid: u64::from_le_bytes(fields.next()),
            src_port: u32::from_le_bytes(fields.next()),
            dst_port: u32::from_le_bytes(fields.next()),
            len: u32::from_le_bytes(fields.next()),
            kind: u16::from_le_bytes(fields.next()),
            raw_op: u16::from_le_bytes(fields.next()),
            flags: u32::from_le_bytes(fields.next()),
            buf_alloc: u32::from_le_bytes(fields.next()),
            fwd_cnt: u32::from_le_bytes(fields.next()),
        }
    }

    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..8].copy_from_slice(&self.src_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.kind.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.raw_op.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        bytes
    }

    /// The operation, if there is one of that number.
    pub(super) fn op(&self) -> Option<Op> {
        [Op::Request, Op::Response, Op::Reset, Op::Shutdown, Op::Data, Op::CreditUpdate, Op::CreditRequest]
            .into_iter()
            .find(|&op| op as u16 == self.raw_op)
    }

    /// The connection that a packet from the guest is about.
    pub(super) fn key(&self) -> Key {
        Key { host_port: self.dst_port, guest_port: self.src_port }
    }

    /// The reset that answers this packet of the guest's.
    pub(super) fn reset(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            raw_op: Op::Reset as u16,
            ..Self::default()
        }
    }
}

/// Takes fields off the front; the header's length covers all of them.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn next<const N: usize>(&mut self) -> [u8; N] {
        let mut field = [0; N];
        if let Some((first, rest)) = self.0.split_first_chunk() {
            field = *first;
            self.0 = rest;
        }
        field
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_the_specifications() {
        let bytes: [u8; HEADER_BYTES] = std::array::from_fn(|index| u8::try_from(index).unwrap());
        let header = Header::decode(&bytes);
        assert_eq!(header.src_cid, 0x0706_0504_0302_0100);
        assert_eq!(header.src_port, 0x1312_1110);
        assert_eq!(header.len, 0x1b1a_1918);
        assert_eq!(header.kind, 0x1d1c);
        assert_eq!(header.raw_op, 0x1f1e);
        assert_eq!(header.fwd_cnt, 0x2b2a_2928);
        assert_eq!(header.encode(), bytes);
    }

    #[test]
    fn only_seven_operations_exist() {
        let known = (0..=u16::MAX).filter(|&raw_op| Header { raw_op, ..Header::default() }.op().is_some());
        assert_eq!(known.collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn a_reset_goes_back_where_the_packet_came_from() {
        let packet =
            Header { src_cid: 3, dst_cid: 2, src_port: 7, dst_port: 9, kind: 5, len: 8, ..Header::default() };
        let reset = packet.reset();
        assert_eq!((reset.src_cid, reset.dst_cid, reset.src_port, reset.dst_port), (2, 3, 9, 7));
        assert_eq!((reset.kind, reset.op(), reset.len), (5, Some(Op::Reset), 0));
    }
}
