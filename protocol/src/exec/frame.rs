//! Frames and their payloads. Every variable part is bounded by [`MAX_PAYLOAD`](super::MAX_PAYLOAD).

use super::MAX_PAYLOAD;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// Bytes of a frame's header: payload length (`u32`), kind (`u8`), three zero bytes, session (`u32`); little-endian.
pub const HEADER_BYTES: usize = 12;

/// A frame cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// What was to be said does not fit a frame.
    #[error("a frame's payload has {bytes} bytes; at most {MAX_PAYLOAD} are allowed")]
    TooLong {
        /// Its size.
        bytes: usize,
    },
    /// The payload cannot be serialized.
    #[error("a frame cannot be serialized: {0}")]
    Postcard(#[from] postcard::Error),
}

/// One thing said. `session` numbers are chosen by the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Host's first frame.
    Hello(Hello),
    /// Guest's first frame.
    GuestHello(GuestHello),
    /// Host: what the guest's file system is made of. Once.
    Mounts(Mounts),
    /// Host: what is done with the network card. At most once, between `Mounts` and `Identity`.
    Network(Network),
    /// Host: who this guest is. Before any exec, and again after a fork.
    Identity(Identity),
    /// Guest: mounted, and the identity taken on.
    Ready,
    /// Guest: it cannot go on; one line. The last frame.
    Fatal(String),
    /// Host: execute a command.
    Exec(u32, Exec),
    /// Guest: the command was executed.
    Started(u32),
    /// Guest: it was not. For a `last` session this is its end, and comes after `Report` as an `Exit` would.
    ExecFailed(u32, ExecFailure),
    /// Bytes of a stream: at least one, at most [`MAX_PAYLOAD`].
    Data(u32, Stream, Vec<u8>),
    /// No more bytes come on this stream. Host for stdin, guest for stdout and stderr.
    Close(u32, Stream),
    /// The receiver of a stream returns this many bytes of credit.
    Credit(u32, Stream, u32),
    /// Host: the terminal's window changed.
    Resize(u32, WindowSize),
    /// Host: send this signal (Linux's number) to the command's process group.
    Signal(u32, u32),
    /// Guest: the command ended; all its output was sent before. For a `last` session the guest's file systems are
    /// unmounted by now.
    Exit(u32, Exit),
    /// Host: end everything: kill all processes, sync, unmount; answered with `Report`.
    Shutdown,
    /// Guest: how its end went; before the last session's `Exit` or `ExecFailed`, or as the answer to `Shutdown`.
    Report(GuestReport),
}

/// The host introduces itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Highest version that it speaks.
    pub version: u32,
    /// Optional abilities, a bit each; none yet.
    pub features: u64,
}

/// The guest introduces itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestHello {
    /// Highest version that it speaks.
    pub version: u32,
    /// Optional abilities, a bit each; none yet.
    pub features: u64,
    /// The time stamp counter when PID 1 entered `main` (x86-64: `rdtsc`; aarch64: `cntvct_el0`).
    pub init_ticks: u64,
}

/// What the guest's file system is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mounts {
    /// The root.
    pub root: RootMount,
    /// Further drives and images, mounted in this order after the root.
    pub drives: Vec<DriveMount>,
}

/// What holds a file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Disk {
    /// The disk with this serial (the drive's id).
    Drive(String),
    /// The image in memory with this number, counted from 0 in the machine's order; mounted with DAX, and never for writing.
    Pmem(u32),
    /// The directory of the host with this tag, by virtio-fs.
    Volume(String),
}

/// The root: a read-only image under a writable overlay in memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootMount {
    /// What holds it.
    pub disk: Disk,
    /// File system; empty: found out (erofs, ext4).
    pub fs_type: String,
}

/// A drive and its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriveMount {
    /// What holds it.
    pub disk: Disk,
    /// File system; empty: found out (erofs, ext4).
    pub fs_type: String,
    /// Absolute directory in the guest; made if missing.
    pub target: String,
    /// Mounted read-only.
    pub read_only: bool,
}

/// What is done with a network card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// The card's Ethernet address.
    pub mac: [u8; 6],
    /// Largest packet in bytes.
    pub mtu: u32,
    /// Its addresses, each with the length of its network's prefix in bits.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Routers to everywhere, at most one a family.
    pub gateways: Vec<IpAddr>,
    /// Name servers for /etc/resolv.conf; none: the file stays as it is.
    pub dns: Vec<IpAddr>,
}

/// Who this guest is. Two forks of one snapshot must differ in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Host name, at most 64 bytes.
    pub hostname: String,
    /// `CLOCK_REALTIME` of the host, nanoseconds since 1970.
    pub realtime_ns: u64,
    /// Fresh randomness for the guest's generator.
    pub entropy: [u8; 32],
}

/// A command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// Program and arguments; the program is looked up in PATH if it has no `/`. At least one.
    pub argv: Vec<Vec<u8>>,
    /// Environment as `K=V`, over the default PATH, HOME (and TERM with a terminal).
    pub env: Vec<Vec<u8>>,
    /// Working directory, absolute; empty: `/`.
    pub cwd: Vec<u8>,
    /// Who runs it.
    pub user: User,
    /// A terminal of this size; `None`: three pipes.
    pub terminal: Option<WindowSize>,
    /// Whether stdin is a stream; otherwise it is /dev/null.
    pub stdin: bool,
    /// The sandbox ends with this session: leftovers are killed, drives unmounted, then `Report` and `Exit` sent.
    pub last: bool,
}

/// Who runs a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum User {
    /// uid 0, gid 0.
    Root,
    /// `NAME`, `UID`, `NAME:GROUP` or `UID:GID`, looked up in the guest's /etc/passwd and /etc/group.
    Spec(String),
}

/// A terminal's window in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub cols: u16,
}

/// A stream of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Stream {
    /// Host to guest. With a terminal: the keys.
    Stdin,
    /// Guest to host. With a terminal: all that it prints.
    Stdout,
    /// Guest to host.
    Stderr,
}

/// Why a command was not executed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecFailure {
    /// For the exit status.
    pub kind: ExecFailureKind,
    /// One line that names the program, directory or user.
    pub message: String,
}

/// Why a command was not executed, as shells distinguish it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExecFailureKind {
    /// No such program: status 127.
    NotFound,
    /// There, but not executable: status 126.
    NotExecutable,
    /// The working directory, the user or the terminal could not be had: status 125.
    Setup,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// With this status.
    Status(u8),
    /// By this signal (Linux's number).
    Signal(u8),
}

/// How the guest's end went, and what the command cost.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestReport {
    /// Processes that were still there and were killed.
    pub leftovers_killed: u32,
    /// Writable drives that could not be unmounted cleanly, each `serial: reason`; at most 16.
    pub unclean: Vec<String>,
    /// CPU time of everything that ran, user, in microseconds.
    pub user_us: u64,
    /// CPU time of everything that ran, system, in microseconds.
    pub system_us: u64,
    /// Largest resident set of one process, in KiB.
    pub max_rss_kib: u64,
}

/// Kinds on the wire. A number is never given a second meaning.
pub(super) mod kind {
    pub(crate) const HELLO: u8 = 1;
    pub(crate) const GUEST_HELLO: u8 = 2;
    pub(crate) const MOUNTS: u8 = 3;
    pub(crate) const IDENTITY: u8 = 4;
    pub(crate) const READY: u8 = 5;
    pub(crate) const FATAL: u8 = 6;
    pub(crate) const EXEC: u8 = 7;
    pub(crate) const STARTED: u8 = 8;
    pub(crate) const EXEC_FAILED: u8 = 9;
    pub(crate) const STDIN: u8 = 10;
    pub(crate) const STDOUT: u8 = 11;
    pub(crate) const STDERR: u8 = 12;
    pub(crate) const CLOSE: u8 = 13;
    pub(crate) const CREDIT: u8 = 14;
    pub(crate) const RESIZE: u8 = 15;
    pub(crate) const SIGNAL: u8 = 16;
    pub(crate) const EXIT: u8 = 17;
    pub(crate) const SHUTDOWN: u8 = 18;
    pub(crate) const REPORT: u8 = 19;
    pub(crate) const NETWORK: u8 = 20;
}

impl Stream {
    const fn data_kind(self) -> u8 {
        match self {
            Self::Stdin => kind::STDIN,
            Self::Stdout => kind::STDOUT,
            Self::Stderr => kind::STDERR,
        }
    }
}

/// The twelve bytes before a payload.
pub(super) fn header(kind: u8, session: u32, length: usize) -> Result<[u8; HEADER_BYTES], EncodeError> {
    let too_long = EncodeError::TooLong { bytes: length };
    let length = u32::try_from(length).ok().filter(|&n| n as usize <= MAX_PAYLOAD).ok_or(too_long)?;
    let mut bytes = [0; HEADER_BYTES];
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    bytes[4] = kind;
    bytes[8..].copy_from_slice(&session.to_le_bytes());
    Ok(bytes)
}

impl Frame {
    /// Appends the frame to `out`; `out` is as before on an error.
    ///
    /// # Errors
    /// The payload is longer than [`MAX_PAYLOAD`].
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        match self {
            Self::Hello(it) => put(out, kind::HELLO, 0, it),
            Self::GuestHello(it) => put(out, kind::GUEST_HELLO, 0, it),
            Self::Mounts(it) => put(out, kind::MOUNTS, 0, it),
            Self::Network(it) => put(out, kind::NETWORK, 0, it),
            Self::Identity(it) => put(out, kind::IDENTITY, 0, it),
            Self::Ready => put_raw(out, kind::READY, 0, &[]),
            Self::Fatal(message) => put_raw(out, kind::FATAL, 0, message.as_bytes()),
            Self::Exec(session, it) => put(out, kind::EXEC, *session, it),
            Self::Started(session) => put_raw(out, kind::STARTED, *session, &[]),
            Self::ExecFailed(session, it) => put(out, kind::EXEC_FAILED, *session, it),
            Self::Data(session, stream, bytes) => Self::encode_data(*session, *stream, bytes, out),
            Self::Close(session, stream) => put(out, kind::CLOSE, *session, stream),
            Self::Credit(session, stream, bytes) => put(out, kind::CREDIT, *session, &(stream, bytes)),
            Self::Resize(session, it) => put(out, kind::RESIZE, *session, it),
            Self::Signal(session, number) => put(out, kind::SIGNAL, *session, number),
            Self::Exit(session, it) => put(out, kind::EXIT, *session, it),
            Self::Shutdown => put_raw(out, kind::SHUTDOWN, 0, &[]),
            Self::Report(it) => put(out, kind::REPORT, 0, it),
        }
    }

    /// What it is called, for messages.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "Hello",
            Self::GuestHello(_) => "GuestHello",
            Self::Mounts(_) => "Mounts",
            Self::Network(_) => "Network",
            Self::Identity(_) => "Identity",
            Self::Ready => "Ready",
            Self::Fatal(_) => "Fatal",
            Self::Exec(..) => "Exec",
            Self::Started(..) => "Started",
            Self::ExecFailed(..) => "ExecFailed",
            Self::Data(..) => "Data",
            Self::Close(..) => "Close",
            Self::Credit(..) => "Credit",
            Self::Resize(..) => "Resize",
            Self::Signal(..) => "Signal",
            Self::Exit(..) => "Exit",
            Self::Shutdown => "Shutdown",
            Self::Report(_) => "Report",
        }
    }

    /// Appends a data frame without an owned copy of its bytes.
    ///
    /// # Errors
    /// `bytes` is longer than [`MAX_PAYLOAD`].
    pub fn encode_data(
        session: u32,
        stream: Stream,
        bytes: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), EncodeError> {
        put_raw(out, stream.data_kind(), session, bytes)
    }

    /// The header of a data frame whose `length` payload bytes the caller sends itself.
    ///
    /// # Errors
    /// `length` is over [`MAX_PAYLOAD`].
    pub fn data_header(
        session: u32,
        stream: Stream,
        length: usize,
    ) -> Result<[u8; HEADER_BYTES], EncodeError> {
        header(stream.data_kind(), session, length)
    }
}

fn put<T: Serialize>(out: &mut Vec<u8>, kind: u8, session: u32, payload: &T) -> Result<(), EncodeError> {
    put_raw(out, kind, session, &postcard::to_allocvec(payload)?)
}

fn put_raw(out: &mut Vec<u8>, kind: u8, session: u32, payload: &[u8]) -> Result<(), EncodeError> {
    let header = header(kind, session, payload.len())?;
    out.extend_from_slice(&header);
    out.extend_from_slice(payload);
    Ok(())
}
