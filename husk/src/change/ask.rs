//! Who asks a running sandbox for a change.
//!
//! Owns the opened file until it has gone. Refuses what the sandbox's record says cannot be, before anybody is asked.
//! Invariant: it returns within [`PATIENCE`], with the sandbox's own word or with one that says that there was none.

use super::{Wish, address, receive, send};
use crate::image::{Access, Image, ImageError};
use crate::limits::{DeviceError, IoDevice, Limit, LimitValue, device_of_path};
use crate::plan::BLOCK_MIB;
use crate::state::{DriveRecord, Record, State, StateError};
use husk_protocol::control::{CHANGE_PATIENCE_S, Change, Changed, DriveChange, Fault, MemoryChange, Refusal};
use husk_protocol::spec::FileRef;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Longer than the sandbox takes for an answer, however slow the machine is.
const PATIENCE: Duration = Duration::from_secs(CHANGE_PATIENCE_S + 25);

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ask {
    /// `FILE` in place of the one behind a drive.
    Drive {
        /// The drive's id.
        id: String,
        /// The file.
        file: PathBuf,
    },
    /// So much memory in all, in MiB.
    Memory(u64),
    /// Other limits of its cgroup.
    Limits(Vec<Limit>),
}

/// A change that did not come about.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    /// The sandbox.
    #[error(transparent)]
    State(#[from] StateError),
    /// The file.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A device to limit.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The drive is not there.
    #[error("drive {id:?} is not one of the sandbox's; it has {has}")]
    Drive {
        /// As asked for.
        id: String,
        /// Those that there are.
        has: String,
    },
    /// The drive's disk is not a file of its own.
    #[error(
        "drive {0:?} is a part of a file, as Husk's own root is of husk's; only a whole file can be replaced"
    )]
    Part(String),
    /// More or less than it can have.
    #[error(
        "--memory {asked}M: {least}M, which the sandbox booted in, to {most}M is allowed, in steps of {BLOCK_MIB}M"
    )]
    Memory {
        /// In MiB.
        asked: u64,
        /// What it booted in, in MiB.
        least: u64,
        /// As it was started, in MiB.
        most: u64,
    },
    /// Nobody listens.
    #[error("sandbox {id} cannot be asked: {source}")]
    Socket {
        /// Its id.
        id: String,
        /// The system's word.
        source: io::Error,
    },
    /// It has ended.
    #[error("sandbox {0} has ended")]
    Ended(String),
    /// It said nothing.
    #[error("sandbox {0} did not answer within {PATIENCE:?}")]
    Silence(String),
    /// Its word.
    #[error("sandbox {id}: {message}")]
    Refused {
        /// Its id.
        id: String,
        /// Who is to blame.
        fault: Fault,
        /// Why.
        message: String,
    },
}

impl AskError {
    /// Who is at fault.
    pub(crate) fn fault(&self) -> Fault {
        match self {
            Self::State(error) => error.fault(),
            Self::Image(error) => error.fault(),
            Self::Device(error) => error.fault(),
            Self::Drive { .. } | Self::Part(_) | Self::Memory { .. } | Self::Ended(_) => Fault::Operator,
            Self::Socket { .. } | Self::Silence(_) => Fault::Host,
            Self::Refused { fault, .. } => *fault,
        }
    }
}

/// Asks the sandbox whose id is, or begins with, `prefix`; its whole id, and how it went.
pub(crate) fn ask(state: &State, prefix: &str, ask: &Ask) -> Result<String, AskError> {
    let record = state.find(prefix)?;
    match ask {
        Ask::Drive { id, file } => ask_drive(state, &record, id, file)?,
        Ask::Memory(mib) => tell(state, &record.id, &Wish::Cell(memory(&record, *mib)?), None)?,
        Ask::Limits(limits) => tell(state, &record.id, &Wish::Limits(words(limits)?), None)?,
    }
    Ok(record.id)
}

/// The limits with the devices of files in the files' place: it is the asker whose names they are.
fn words(limits: &[Limit]) -> Result<Vec<String>, AskError> {
    let word = |limit: &Limit| {
        let mut limit = limit.clone();
        if let LimitValue::Io { of, .. } = &mut limit.value
            && let IoDevice::Path(path) = of
        {
            *of = IoDevice::Device(device_of_path(path)?);
        }
        Ok(limit.to_string())
    };
    limits.iter().map(word).collect()
}

fn memory(record: &Record, asked: u64) -> Result<Change, AskError> {
    let (least, most) = (record.booted_mib, record.memory_mib);
    let more = asked.checked_sub(least).filter(|more| asked <= most && more.is_multiple_of(BLOCK_MIB));
    let requested_size_mib = more.ok_or(AskError::Memory { asked, least, most })?;
    Ok(Change::Memory(MemoryChange { requested_size_mib }))
}

fn ask_drive(state: &State, record: &Record, id: &str, file: &Path) -> Result<(), AskError> {
    let drive = drive(record, id)?;
    let access = if drive.writable { Access::WritableDisk } else { Access::Disk };
    let image = Image::open("drive", file, access)?;
    // The lock goes with the descriptor: from here on the file is the sandbox's.
    image.lock(drive.writable)?;
    let change = Change::Drive(DriveChange { drive_id: id.to_owned(), path_on_host: FileRef::Fd(0) });
    tell(state, &record.id, &Wish::Cell(change), Some(image.file.into()))
}

fn drive<'r>(record: &'r Record, id: &str) -> Result<&'r DriveRecord, AskError> {
    let Some(drive) = record.drives.iter().find(|drive| drive.id == id) else {
        let ids: Vec<&str> = record.drives.iter().map(|drive| drive.id.as_str()).collect();
        let has = if ids.is_empty() { "none".to_owned() } else { ids.join(", ") };
        return Err(AskError::Drive { id: crate::text::line(id), has });
    };
    if drive.part { Err(AskError::Part(id.to_owned())) } else { Ok(drive) }
}

/// Sends the question, and waits for the answer.
fn tell(state: &State, id: &str, wish: &Wish, file: Option<OwnedFd>) -> Result<(), AskError> {
    let failed = |errno: Errno| AskError::Socket { id: id.to_owned(), source: errno.into() };
    let (address, _directory) = address(&state.sandboxes().join(id)).map_err(|errno| match errno {
        Errno::NOENT => AskError::Ended(id.to_owned()),
        errno => failed(errno),
    })?;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
    let socket = socket.map_err(failed)?;
    connect(&socket, &address).map_err(|errno| match errno {
        Errno::CONNREFUSED => AskError::Ended(id.to_owned()),
        errno => failed(errno),
    })?;
    let text = serde_json::to_vec(wish).map_err(|_| failed(Errno::INVAL))?;
    let files: Vec<BorrowedFd<'_>> = file.iter().map(AsFd::as_fd).collect();
    match send(&socket, &text, &files) {
        // It may have sent us away before we could speak; it says so.
        Ok(()) | Err(Errno::PIPE) => {}
        Err(errno) => return Err(failed(errno)),
    }
    drop(file);
    let deadline = Instant::now() + PATIENCE;
    let bytes = loop {
        match receive(socket.as_fd()) {
            Ok((bytes, _)) => break bytes,
            Err(Errno::CONNRESET) => break Vec::new(),
            Err(Errno::AGAIN | Errno::INTR) if Instant::now() < deadline => {}
            Err(Errno::AGAIN | Errno::INTR) => return Err(AskError::Silence(id.to_owned())),
            Err(errno) => return Err(failed(errno)),
        }
        let rest = Timespec::try_from(deadline.saturating_duration_since(Instant::now()));
        let mut fds = [PollFd::new(&socket, PollFlags::IN)];
        match poll(&mut fds, rest.ok().as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(failed(errno)),
        }
    };
    if bytes.is_empty() {
        return Err(AskError::Ended(id.to_owned()));
    }
    let Changed { refused } = serde_json::from_slice(&bytes).map_err(|_| failed(Errno::PROTO))?;
    let Some(Refusal { fault, message }) = refused else { return Ok(()) };
    Err(AskError::Refused { id: id.to_owned(), fault, message: crate::text::line(&message) })
}
