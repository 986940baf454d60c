//! The headers of FUSE messages (linux/fuse.h), as far as they concern a carrier.
//!
//! Pure. What guest and server wrote are allegations alike: a [`Request`] and an [`Answer`] exist only where the length in
//! the header is the length of the bytes.

/// Bytes of `fuse_in_header`: length, opcode, unique, node, user, group, process, padding.
pub(super) const IN_HEADER: usize = 40;
/// Bytes of `fuse_out_header`: length, error, unique.
pub(super) const OUT_HEADER: usize = 16;
/// Longest message: 32 pages of data, the most that the server agrees to, and a page for what stands before them.
pub(super) const LONGEST: usize = 33 << 12;
/// Errors that FUSE knows: from -511 to -1 (fs/fuse/dev.c).
const ERRORS: std::ops::RangeInclusive<i32> = -511..=-1;

const FORGET: u32 = 2;
const INTERRUPT: u32 = 36;
const DESTROY: u32 = 38;
const BATCH_FORGET: u32 = 42;

/// The header of a request whose length is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    opcode: u32,
    /// The guest's number of it.
    pub(super) unique: u64,
}

impl Request {
    /// Of `bytes`, all of a request.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let length = usize::try_from(word(bytes, 0)?).ok()?;
        let request = Self { opcode: word(bytes, 4)?, unique: long(bytes, 8)? };
        (length == bytes.len() && (IN_HEADER..=LONGEST).contains(&length)).then_some(request)
    }

    /// Whether the server says something to it.
    pub(super) fn is_answered(&self) -> bool {
        !matches!(self.opcode, FORGET | INTERRUPT | BATCH_FORGET)
    }

    /// Whether it goes to the server: it serves one request after the other, so there is nothing to interrupt.
    pub(super) fn is_carried(&self) -> bool {
        self.opcode != INTERRUPT
    }
}

/// Puts `tag` in the place of the guest's number.
pub(super) fn renumber(request: &mut [u8], tag: u64) {
    if let Some(place) = request.get_mut(8..16) {
        place.copy_from_slice(&tag.to_le_bytes());
    }
}

/// A request to forget all files, without the guest's asking.
pub(super) fn destroy(tag: u64) -> Vec<u8> {
    let mut bytes = vec![0; IN_HEADER];
    bytes[0] = 40;
    bytes[4..8].copy_from_slice(&DESTROY.to_le_bytes());
    renumber(&mut bytes, tag);
    bytes
}

/// How long the answer is whose first bytes are `head`; none if no answer is so long.
pub(super) fn answer_length(head: &[u8]) -> Option<usize> {
    let length = usize::try_from(word(head, 0)?).ok()?;
    (OUT_HEADER..=LONGEST).contains(&length).then_some(length)
}

/// The tag of an answer of at least [`OUT_HEADER`] bytes.
pub(super) fn answer_tag(answer: &[u8]) -> Option<u64> {
    long(answer, 8)
}

/// The answer as the guest gets it, whose number of the request is `unique` and whose buffers have `room` bytes: the
/// server's, or an error where it is none that the guest could take.
pub(super) fn answer_for(answer: &[u8], unique: u64, room: u64) -> ([u8; OUT_HEADER], &[u8]) {
    let error = word(answer, 4).map_or(0, u32::cast_signed);
    let (length, body) = (answer.len(), answer.get(OUT_HEADER..).unwrap_or_default());
    let sound = if error == 0 { true } else { ERRORS.contains(&error) && body.is_empty() };
    match u32::try_from(length) {
        Ok(length) if sound && u64::from(length) <= room => (header(length, error, unique), body),
        _ => (refusal(unique), &[]),
    }
}

/// `EIO`, whatever was asked.
pub(super) fn refusal(unique: u64) -> [u8; OUT_HEADER] {
    header(16, -libc::EIO, unique)
}

fn header(length: u32, error: i32, unique: u64) -> [u8; OUT_HEADER] {
    let mut bytes = [0; OUT_HEADER];
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    bytes[4..8].copy_from_slice(&error.to_le_bytes());
    bytes[8..].copy_from_slice(&unique.to_le_bytes());
    bytes
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}
