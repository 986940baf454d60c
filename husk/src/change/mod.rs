//! Changes of a sandbox that runs, from the husk that is asked for one to the husk that waits for the sandbox.
//!
//! Owns the socket's name (`sandboxes/<id>/socket`) and the form of its messages: one [`Change`] with its open files, one
//! [`Changed`] back. Refuses messages that are longer than the protocol allows. Invariant: who asks opens the files, so that
//! his permissions count, and the descriptors that he was given are what the sandbox gets.

mod ask;
mod desk;

pub(crate) use ask::{Ask, ask};
pub(crate) use desk::{Desk, Question};

use husk_protocol::control::{Change, MAX_CHANGE};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SocketAddrUnix, recvmsg,
};
use serde::{Deserialize, Serialize};
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// What a sandbox is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Wish {
    /// Of its machine: the cell's to do.
    Cell(Change),
    /// Other limits of its cgroup, each `NAME=VALUE`: husk's, and no word of them reaches the cell.
    Limits(Vec<String>),
}

/// The socket in a sandbox's directory.
const NAME: &str = "socket";
/// Most open files beside a message.
const MOST_FILES: usize = 1;

/// The address of the socket in `directory`, and the descriptor that makes it valid: paths may be longer than addresses.
fn address(directory: &Path) -> Result<(SocketAddrUnix, OwnedFd), Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(directory, flags, Mode::empty())?;
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}/{NAME}", directory.as_raw_fd()))?;
    Ok((address, directory))
}

/// A message and its files; no bytes: the other end has gone. `MSGSIZE`: more than the protocol allows.
fn receive(socket: BorrowedFd<'_>) -> Result<(Vec<u8>, Vec<OwnedFd>), Errno> {
    let mut bytes = vec![0; MAX_CHANGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FILES))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, flags)?;
    // Taken before anything is refused: what is dropped is closed.
    let messages = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(files) => Some(files),
        _ => None,
    });
    let files: Vec<OwnedFd> = messages.flatten().collect();
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) || files.len() > MOST_FILES {
        return Err(Errno::MSGSIZE);
    }
    bytes.truncate(received.bytes);
    Ok((bytes, files))
}

/// Sends one message without waiting.
fn send(socket: &impl AsFd, text: &[u8], files: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    crate::control::send(socket.as_fd(), text, files)
}

#[cfg(test)]
mod tests;
