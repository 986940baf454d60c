//! husk's end of the control socket.
//!
//! Owns the socket and answers that did not fit it yet. Refuses messages that are not JSON of the protocol. Invariant:
//! at most [`MOST_ANSWERS`] answers wait; while so many wait, nothing more is read, so a cell that asks without reading
//! is the one that waits.

use husk_protocol::control::{Change, FromCell, MAX_FILES, MAX_MESSAGE, ToCell};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown, SocketFlags,
    SocketType,
};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Most answers that wait for room in the socket.
const MOST_ANSWERS: usize = 64;

/// The control socket does not work.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    /// The system's word.
    #[error("control socket: {0}")]
    Io(#[from] io::Error),
    /// Too much to say.
    #[error("the machine's description takes {0} bytes; at most {MAX_MESSAGE} are allowed")]
    TooLong(usize),
    /// Too many files.
    #[error("the machine needs {0} open files; at most {MAX_FILES} are allowed")]
    TooManyFiles(usize),
    /// Nonsense from the cell.
    #[error("the cell sent a control message that is not understood: {0}")]
    Malformed(String),
}

impl From<Errno> for ControlError {
    fn from(errno: Errno) -> Self {
        Self::Io(errno.into())
    }
}

/// What a look at the socket brought.
#[derive(Debug)]
pub(crate) enum Received {
    /// A message.
    Message(FromCell),
    /// None yet.
    Nothing,
    /// None ever again.
    End,
}

/// husk's end.
#[derive(Debug)]
pub(crate) struct Control {
    socket: OwnedFd,
    answers: VecDeque<(Vec<u8>, Option<OwnedFd>)>,
    ended: bool,
    buffer: Vec<u8>,
}

/// A pair: husk's end and the cell's.
pub(crate) fn pair() -> Result<(Control, OwnedFd), ControlError> {
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let control =
        Control { socket: ours, answers: VecDeque::new(), ended: false, buffer: vec![0; MAX_MESSAGE + 1] };
    Ok((control, theirs))
}

impl Control {
    /// Says what the cell is to be. The first message, before there is a cell.
    pub(crate) fn start(&mut self, start: &ToCell, files: &[BorrowedFd<'_>]) -> Result<(), ControlError> {
        if files.len() > MAX_FILES {
            return Err(ControlError::TooManyFiles(files.len()));
        }
        let text = serde_json::to_vec(start).map_err(io::Error::from)?;
        if text.len() > MAX_MESSAGE {
            return Err(ControlError::TooLong(text.len()));
        }
        send(self.socket.as_fd(), &text, files)?;
        Ok(())
    }

    /// The next message, without waiting.
    pub(crate) fn receive(&mut self) -> Result<Received, ControlError> {
        loop {
            match rustix::net::recv(&self.socket, &mut self.buffer[..], RecvFlags::DONTWAIT) {
                Ok((0, _)) | Err(Errno::CONNRESET) => {
                    self.ended = true;
                    return Ok(Received::End);
                }
                Ok((length, _)) => return self.parse(length),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(Received::Nothing),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn parse(&self, length: usize) -> Result<Received, ControlError> {
        let bytes = self.buffer.get(..length.min(MAX_MESSAGE)).unwrap_or_default();
        serde_json::from_slice(bytes)
            .map(Received::Message)
            .map_err(|error| ControlError::Malformed(crate::text::line(&error.to_string())))
    }

    /// Asks the cell to end the machine and to tell what its console said last.
    pub(crate) fn stop(&mut self) -> Result<(), ControlError> {
        self.answers.push_back((serde_json::to_vec(&ToCell::Stop).map_err(io::Error::from)?, None));
        self.flush()
    }

    /// Answers the guest's wish for a connection.
    pub(crate) fn answer(&mut self, request: u32, stream: Option<OwnedFd>) -> Result<(), ControlError> {
        let answer = ToCell::VsockConnected { request, connected: stream.is_some() };
        self.answers.push_back((serde_json::to_vec(&answer).map_err(io::Error::from)?, stream));
        self.flush()
    }

    /// Asks for a change of the machine that runs, with its file, if it has one.
    pub(crate) fn change(
        &mut self,
        request: u32,
        change: Change,
        file: Option<OwnedFd>,
    ) -> Result<(), ControlError> {
        let change = ToCell::Change { request, change };
        self.answers.push_back((serde_json::to_vec(&change).map_err(io::Error::from)?, file));
        self.flush()
    }

    /// Sends what waits, as far as there is room.
    pub(crate) fn flush(&mut self) -> Result<(), ControlError> {
        while let Some((text, stream)) = self.answers.front() {
            let files: Vec<BorrowedFd<'_>> = stream.iter().map(AsFd::as_fd).collect();
            match send(self.socket.as_fd(), text, &files) {
                Err(Errno::AGAIN) => return Ok(()),
                // The cell is gone; that it is shows elsewhere.
                Err(Errno::PIPE | Errno::CONNRESET) => self.answers.clear(),
                Err(errno) => return Err(errno.into()),
                Ok(()) => {
                    self.answers.pop_front();
                }
            }
        }
        Ok(())
    }

    /// No more is said; a cell that reads on sees the end, and ends.
    pub(crate) fn hang_up(&mut self) {
        self.answers.clear();
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Write);
    }

    /// Whether a message may be read.
    pub(crate) fn wants_to_read(&self) -> bool {
        !self.ended && self.answers.len() < MOST_ANSWERS
    }

    /// Whether something waits to be sent.
    pub(crate) fn wants_to_write(&self) -> bool {
        !self.ended && !self.answers.is_empty()
    }

    /// Whether the cell's last end is closed.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Sends one message with `files` beside it, without waiting.
pub(crate) fn send(socket: BorrowedFd<'_>, text: &[u8], files: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(Errno::TOOMANYREFS);
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    loop {
        match rustix::net::sendmsg(socket, &[IoSlice::new(text)], &mut ancillary, flags) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use husk_protocol::spec::RawSpec;
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, recvmsg};
    use std::io::IoSliceMut;

    #[test]
    fn the_start_carries_its_files() {
        let (mut control, cell) = pair().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        let start = ToCell::Start { spec: Box::new(RawSpec::default()) };
        control.start(&start, &[file.as_fd(), file.as_fd()]).unwrap();
        let mut bytes = vec![0; MAX_MESSAGE];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received =
            recvmsg(&cell, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
                .unwrap();
        let files: usize = ancillary
            .drain()
            .map(
                |message| {
                    if let RecvAncillaryMessage::ScmRights(files) = message { files.count() } else { 0 }
                },
            )
            .sum();
        assert_eq!(files, 2);
        let text: serde_json::Value = serde_json::from_slice(&bytes[..received.bytes]).unwrap();
        assert!(text["start"]["spec"].is_object(), "{text}");
    }

    #[test]
    fn messages_nonsense_and_the_end_are_told_apart() {
        let (mut control, cell) = pair().unwrap();
        assert!(matches!(control.receive().unwrap(), Received::Nothing));
        send(cell.as_fd(), br#"{"cloned":{"pid":7}}"#, &[]).unwrap();
        assert!(matches!(control.receive().unwrap(), Received::Message(FromCell::Cloned { pid: 7 })));
        send(cell.as_fd(), b"{\"cloned\":\x1b", &[]).unwrap();
        assert!(matches!(control.receive(), Err(ControlError::Malformed(_))));
        drop(cell);
        assert!(matches!(control.receive().unwrap(), Received::End));
        assert!(control.has_ended() && !control.wants_to_read());
    }

    #[test]
    fn a_cell_that_asks_without_reading_is_held() {
        let (mut control, cell) = pair().unwrap();
        let mut request = 0;
        while control.wants_to_read() {
            control.answer(request, None).unwrap();
            request += 1;
            assert!(request < 100_000);
        }
        assert!(control.wants_to_write());
        let mut bytes = [0; 1024];
        for expected in 0..request {
            let (length, _) = rustix::net::recv(&cell, &mut bytes[..], RecvFlags::DONTWAIT).unwrap();
            let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
            assert!(text.contains(&format!("\"request\":{expected},")), "{text}");
            control.flush().unwrap();
        }
        assert!(!control.wants_to_write());
    }
}
