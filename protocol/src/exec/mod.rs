//! The exec protocol: host and guest-init, over one vsock stream.
//!
//! Owns the frames, their encoding and the [`Decoder`] that bounds what the other side may send. A frame is a header of
//! [`HEADER_BYTES`] (length, kind, session) and a payload: raw bytes for the three data kinds, a postcard-encoded
//! structure for the others.
//!
//! The order of a life: each side sends `Hello` first. The host may send everything else at once, before the guest has
//! even booted: `Mounts`, `Identity`, then any number of `Exec`. The guest answers `Hello`, `Ready` (mounted, and its
//! identity taken on), then per session `Started` or `ExecFailed`, output, `Exit`.
//!
//! Credit: a sender of a stream (stdin: the host; stdout, stderr: the guest) may have [`INITIAL_CREDIT`] bytes
//! under way; the receiver returns credit as it disposes of them. Data beyond the credit is a violation.

mod decoder;
mod frame;

#[cfg(test)]
pub(crate) use decoder::tests::examples as decoder_examples;
pub use decoder::{DecodeError, Decoder};
pub use frame::{
    Disk, DriveMount, EncodeError, Exec, ExecFailure, ExecFailureKind, Exit, Frame, GuestHello, GuestReport,
    HEADER_BYTES, Hello, Identity, Mounts, Network, RootMount, Stream, User, WindowSize,
};

/// vsock port on the host (CID 2) that guest-init connects to.
pub const PORT: u32 = 1024;
/// Version of the protocol that this crate speaks.
pub const VERSION: u32 = 1;
/// Largest payload of a frame in bytes.
pub const MAX_PAYLOAD: usize = 64 * 1024;
/// Bytes of a stream that may be under way before the receiver returns credit.
pub const INITIAL_CREDIT: u32 = 256 * 1024;
/// Most sessions at one time.
pub const MAX_SESSIONS: usize = 256;
