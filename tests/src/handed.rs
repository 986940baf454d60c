//! What a probe is handed on its control socket, as a runtime is: one message with names, and open files beside it.
//!
//! Owns the order of the files. Invariant: the message is sent before the probe starts, so that it never waits.

use crate::attempts::{Targets, World};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, IntoRawFd, OwnedFd};

/// Most files beside a message.
const MOST: usize = 8;
/// Most bytes of a message.
const BYTES: usize = 4096;

/// The files, in the order in which they are sent: program, image, disk, terminal, then those that there may be.
#[derive(Debug)]
pub struct Files<'a> {
    /// Those that every probe is handed.
    pub always: [BorrowedFd<'a>; 4],
    /// `/dev/kvm`.
    pub kvm: Option<BorrowedFd<'a>>,
    /// A filter that is none of Husk's: `struct sock_filter`s, one after another.
    pub filter: Option<BorrowedFd<'a>>,
}

#[derive(Serialize, Deserialize)]
struct Message {
    targets: Targets,
    kvm: bool,
    filter: bool,
}

/// Hands it over.
///
/// # Errors
/// The socket does not take it.
pub fn send(socket: &OwnedFd, targets: &Targets, files: &Files) -> Result<(), Errno> {
    let message =
        Message { targets: targets.clone(), kvm: files.kvm.is_some(), filter: files.filter.is_some() };
    let text = serde_json::to_vec(&message).map_err(|_| Errno::INVAL)?;
    let all: Vec<_> = files.always.iter().copied().chain(files.kvm).chain(files.filter).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&all));
    sendmsg(socket, &[IoSlice::new(&text)], &mut control, SendFlags::NOSIGNAL).map(drop)
}

/// What was handed over: the world, and the filter if there is one.
///
/// # Errors
/// It is no such message.
pub fn receive(socket: BorrowedFd, control: i32) -> Result<(World, Option<OwnedFd>), String> {
    let mut bytes = [0; BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let count = recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::empty())
        .map_err(|error| format!("what is handed over: {error}"))?
        .bytes;
    let message: Message =
        serde_json::from_slice(&bytes[..count]).map_err(|error| format!("what is handed over: {error}"))?;
    let mut files = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(files) => Some(files),
        _ => None,
    });
    let mut files = files.next().into_iter().flatten();
    let mut next = || files.next().ok_or("too few files were handed over");
    // Open until the end: attempts take them by number.
    let [program, image, disk, terminal] = [next()?, next()?, next()?, next()?].map(IntoRawFd::into_raw_fd);
    let kvm = if message.kvm { Some(next()?.into_raw_fd()) } else { None };
    let filter = if message.filter { Some(next()?) } else { None };
    Ok((World { targets: message.targets, control, program, image, disk, terminal, kvm }, filter))
}
