//! The configuration space of a function: 256 bytes with a header of type 0, of which a mask says what can be written.
//!
//! Owns the bytes and the list of capabilities. Refuses writes to bits that the mask does not have. Invariant: a bit that cannot
//! be written never changes.

/// Bytes of it.
pub(crate) const BYTES: usize = 256;

/// Registers of the header (PCI Local Bus 3.0, 6.1).
mod header {
    pub(super) const VENDOR: usize = 0x00;
    pub(super) const DEVICE: usize = 0x02;
    pub(super) const STATUS: usize = 0x06;
    pub(super) const REVISION: usize = 0x08;
    pub(super) const SUBSYSTEM_VENDOR: usize = 0x2c;
    pub(super) const SUBSYSTEM: usize = 0x2e;
    pub(super) const CAPABILITIES: usize = 0x34;
    /// Capabilities lie behind the header.
    pub(super) const END: usize = 0x40;
}

/// Status: there is a list of capabilities.
const HAS_CAPABILITIES: u8 = 1 << 4;

/// See the module.
#[derive(Debug, Clone)]
pub struct ConfigSpace {
    bytes: [u8; BYTES],
    writable: [u8; BYTES],
    /// Where the next capability goes.
    end: usize,
    /// The byte that points to it.
    link: usize,
}

impl ConfigSpace {
    /// Of a function with `(vendor, device)`, `class` (class, subclass, programming interface) and the same pair of its
    /// subsystem; revision 1, without registers to be written, capabilities, an interrupt pin or addresses.
    #[must_use]
    pub fn new(id: (u16, u16), class: u32, subsystem: (u16, u16)) -> Self {
        let (bytes, writable) = ([0; BYTES], [0; BYTES]);
        let mut space = Self { bytes, writable, end: header::END, link: header::CAPABILITIES };
        space.set(header::VENDOR, &id.0.to_le_bytes());
        space.set(header::DEVICE, &id.1.to_le_bytes());
        space.set(header::REVISION, &(class << 8 | 1).to_le_bytes());
        space.set(header::SUBSYSTEM_VENDOR, &subsystem.0.to_le_bytes());
        space.set(header::SUBSYSTEM, &subsystem.1.to_le_bytes());
        space
    }

    /// Adds capability `id` whose bytes behind the link are `content`; those of `writable` that are set can be written. Returns
    /// where it begins. There is room for all that a function has: what did not fit would be no capability.
    pub(crate) fn add(&mut self, id: u8, content: &[u8], writable: &[u8]) -> usize {
        let (at, link) = (self.end, self.link);
        let Ok(place) = u8::try_from(at) else { return at };
        self.set(header::STATUS, &[HAS_CAPABILITIES]);
        self.set(link, &[place]);
        self.set(at, &[id, 0]);
        self.set(at + 2, content);
        self.allow(at + 2, writable);
        (self.end, self.link) = ((at + 2 + content.len()).next_multiple_of(4), at + 1);
        at
    }

    /// Sets bytes at `at`, whether they can be written or not.
    pub(crate) fn set(&mut self, at: usize, bytes: &[u8]) {
        for (byte, value) in self.bytes.iter_mut().skip(at).zip(bytes) {
            *byte = *value;
        }
    }

    /// Lets the bits of `mask` at `at` be written.
    pub(crate) fn allow(&mut self, at: usize, mask: &[u8]) {
        for (byte, value) in self.writable.iter_mut().skip(at).zip(mask) {
            *byte = *value;
        }
    }

    /// `N` bytes at `at`; what lies outside is zero.
    pub(crate) fn get<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut value = [0; N];
        for (byte, value) in self.bytes.iter().skip(at).zip(&mut value) {
            *value = *byte;
        }
        value
    }

    /// Reads at `offset`; what lies outside is all ones.
    pub fn read(&self, offset: u8, data: &mut [u8]) {
        data.fill(0xff);
        for (byte, value) in self.bytes.iter().skip(offset.into()).zip(data) {
            *value = *byte;
        }
    }

    /// Writes what can be written.
    pub fn write(&mut self, offset: u8, data: &[u8]) {
        let at = usize::from(offset);
        for ((byte, mask), value) in self.bytes.iter_mut().zip(&self.writable).skip(at).zip(data) {
            *byte = *byte & !mask | value & mask;
        }
    }

    /// All bytes, to be saved.
    pub(crate) fn bytes(&self) -> &[u8; BYTES] {
        &self.bytes
    }

    /// The same space with `bytes`, if they differ in nothing that cannot be written; else the first that does.
    pub(crate) fn with(&self, bytes: &[u8]) -> Result<Self, usize> {
        let new = <[u8; BYTES]>::try_from(bytes).map_err(|_| bytes.len())?;
        let differ = |at: &usize| (new[*at] ^ self.bytes[*at]) & !self.writable[*at] != 0;
        match (0..BYTES).find(differ) {
            Some(at) => Err(at),
            None => Ok(Self { bytes: new, ..self.clone() }),
        }
    }
}
