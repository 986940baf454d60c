//! Where a running sandbox is asked for changes: the listening end of the socket.
//!
//! Owns the listener and the one asker who is served. Refuses askers of another user, and what is not a change, in words.
//! Invariant: one asker at a time, whose question has come within [`QUESTION_PATIENCE`] or he is sent away; the others wait in
//! the backlog, so neither descriptors nor memory grow with their number.

use super::{Wish, address, receive, send};
use husk_protocol::control::{Changed, Fault};
use rustix::event::PollFlags;
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, accept_with, bind, listen, socket_with, sockopt::socket_peercred,
};
use rustix::process::geteuid;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

/// Askers that may wait.
const BACKLOG: i32 = 8;
/// Who has connected asks at once.
const QUESTION_PATIENCE: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Debug)]
pub(crate) struct Desk {
    listener: OwnedFd,
    asker: Option<Asker>,
    /// Number of the next question.
    next: u32,
}

#[derive(Debug)]
struct Asker {
    socket: OwnedFd,
    /// Until when he may ask.
    until: Instant,
    /// The number of his question, once he has asked.
    question: Option<u32>,
}

/// A question to pass on.
#[derive(Debug)]
pub(crate) struct Question {
    /// For [`Desk::answer`].
    pub(crate) number: u32,
    pub(crate) wish: Wish,
    pub(crate) file: Option<OwnedFd>,
}

impl Desk {
    /// Opens in the sandbox's `directory`, which only its owner may enter.
    pub(crate) fn open(directory: &Path) -> io::Result<Self> {
        let (address, _directory) = address(directory)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let listener = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        bind(&listener, &address)?;
        listen(&listener, BACKLOG)?;
        Ok(Self { listener, asker: None, next: 0 })
    }

    /// What it waits for now.
    pub(crate) fn interest(&self) -> (BorrowedFd<'_>, PollFlags) {
        match &self.asker {
            None => (self.listener.as_fd(), PollFlags::IN),
            Some(Asker { socket, question: None, .. }) => (socket.as_fd(), PollFlags::IN),
            // The sandbox has to answer first.
            Some(Asker { socket, .. }) => (socket.as_fd(), PollFlags::empty()),
        }
    }

    /// When to call [`Self::ready`] whatever happens.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.asker.as_ref().filter(|asker| asker.question.is_none()).map(|asker| asker.until)
    }

    /// What it waits for has come, or the deadline has: a question, if there is one now.
    pub(crate) fn ready(&mut self) -> Option<Question> {
        let Some(asker) = &self.asker else {
            self.accept();
            return None;
        };
        if asker.question.is_some() {
            return None;
        }
        let (bytes, files) = match receive(asker.socket.as_fd()) {
            Ok((bytes, files)) if !bytes.is_empty() => (bytes, files),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) if asker.until > Instant::now() => {
                return None;
            }
            Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {
                self.asker = None;
                return None;
            }
            Err(errno) => {
                self.send_away(Fault::Operator, &format!("the question cannot be taken: {errno}"));
                return None;
            }
        };
        match serde_json::from_slice(&bytes) {
            Ok(wish) => {
                let number = self.next;
                self.next = number.wrapping_add(1);
                self.asker.as_mut()?.question = Some(number);
                Some(Question { number, wish, file: files.into_iter().next() })
            }
            Err(error) => {
                let line = crate::text::line(&error.to_string());
                self.send_away(Fault::Operator, &format!("the question is not understood: {line}"));
                None
            }
        }
    }

    fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // Who has gone again is not missed.
        let Ok(socket) = accept_with(&self.listener, flags) else { return };
        let until = Instant::now() + QUESTION_PATIENCE;
        let same = socket_peercred(&socket).is_ok_and(|peer| peer.uid == geteuid() || peer.uid.is_root());
        self.asker = Some(Asker { socket, until, question: None });
        if !same {
            self.send_away(Fault::Operator, "only the user who started the sandbox may change it");
        }
    }

    /// The answer to question `number`; the next asker's turn has come.
    pub(crate) fn answer(&mut self, number: u32, changed: &Changed) {
        if let Some(asker) = self.asker.take_if(|asker| asker.question == Some(number))
            && let Ok(text) = serde_json::to_vec(changed)
        {
            // Who does not wait for it does not want it.
            let _ = send(&asker.socket, &text, &[]);
        }
    }

    fn send_away(&mut self, fault: Fault, line: &str) {
        if let Some(asker) = self.asker.take()
            && let Ok(text) = serde_json::to_vec(&Changed::refused(fault, line))
        {
            let _ = send(&asker.socket, &text, &[]);
        }
    }
}
