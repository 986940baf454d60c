//! The exec channel: standard streams and everything else that is said to guest-init.
//!
//! Owns husk's end of the channel, the credit of three streams and what waits in either direction. Refuses frames that
//! the protocol does not allow, after which the channel counts as dead. Invariant: whatever the guest does, at most the
//! credit of its streams and one frame are held for it.

mod outbox;
mod sink;

use crate::poll_set::{PollSet, Token};
use crate::timeline::Timeline;
use husk_protocol::control::Stage;
use husk_protocol::exec::{
    DecodeError, Decoder, EncodeError, ExecFailure, Exit, Frame, GuestReport, INITIAL_CREDIT, MAX_PAYLOAD,
    Stream, VERSION, WindowSize,
};
use outbox::Outbox;
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use sink::{Sink, Written};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The one session of `husk run`.
pub(crate) const SESSION: u32 = 1;
/// Most console bytes that wait for standard error.
const CONSOLE_BACKLOG: usize = MAX_PAYLOAD;

/// Something is wrong with the channel or the streams.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    /// The guest broke the protocol.
    #[error("guest-init broke the exec protocol: {0}")]
    Protocol(#[from] DecodeError),
    /// A frame that may not come now.
    #[error("guest-init broke the exec protocol: {0}")]
    Unexpected(&'static str),
    /// What is to be said does not fit.
    #[error("the command, its environment and directory do not fit a message: {0}")]
    TooLong(#[from] EncodeError),
    /// Output cannot be written.
    #[error("the command's output cannot be written to standard {name}: {source}", source = std::io::Error::from(*errno))]
    Output {
        /// `output` or `error`.
        name: &'static str,
        /// The system's word.
        errno: Errno,
    },
    /// The channel itself failed.
    #[error("the exec channel failed: {source}", source = std::io::Error::from(*.0))]
    Channel(Errno),
}

/// husk's own standard streams, or what stands in for them.
#[derive(Debug)]
pub struct Stdio<'a> {
    /// What the command reads; `None`: /dev/null.
    pub stdin: Option<BorrowedFd<'a>>,
    /// Where its output goes.
    pub stdout: BorrowedFd<'a>,
    /// Where its errors and the guest's console go.
    pub stderr: BorrowedFd<'a>,
}

/// What the guest has said.
#[derive(Debug, Clone, Default)]
pub(crate) struct Heard {
    pub(crate) fatal: Option<String>,
    pub(crate) exec_failed: Option<ExecFailure>,
    pub(crate) report: Option<GuestReport>,
    pub(crate) exit: Option<Exit>,
    /// Nobody reads the command's output any more.
    pub(crate) no_reader: bool,
    /// What the command wrote to standard error last was not a whole line.
    pub(crate) mid_line: bool,
    /// End of the channel.
    pub(crate) ended: bool,
}

#[derive(Debug)]
struct Input<'a> {
    fd: BorrowedFd<'a>,
    credit: u32,
}

/// The channel and the streams.
#[derive(Debug)]
pub(crate) struct Session<'a> {
    channel: OwnedFd,
    decoder: Decoder,
    outbox: Outbox,
    input: Option<Input<'a>>,
    stdout: Sink,
    stderr: Sink,
    /// The guest's console, beside the command's errors and not under their credit.
    console: Option<Sink>,
    pub(crate) heard: Heard,
    greeted: bool,
    buffer: Vec<u8>,
}

impl<'a> Session<'a> {
    /// Takes husk's end of the channel; with `console`, the guest's console goes to standard error too.
    pub(crate) fn new(channel: OwnedFd, stdio: &Stdio<'a>, console: bool) -> Result<Self, SessionError> {
        let sink = |name, fd| Sink::new(fd).map_err(|errno| output(name, errno));
        Ok(Self {
            channel,
            decoder: Decoder::new(),
            outbox: Outbox::default(),
            input: stdio.stdin.map(|fd| Input { fd, credit: INITIAL_CREDIT }),
            stdout: sink("output", stdio.stdout)?,
            stderr: sink("error", stdio.stderr)?,
            console: if console { Some(sink("error", stdio.stderr)?) } else { None },
            heard: Heard::default(),
            greeted: false,
            buffer: vec![0; 2 * MAX_PAYLOAD],
        })
    }

    /// Says something to the guest; it need not be there yet.
    pub(crate) fn say(&mut self, frame: &Frame) -> Result<(), SessionError> {
        self.outbox.put(frame)?;
        self.outbox.flush(self.channel.as_fd()).map_err(SessionError::Channel)
    }

    /// Says nothing more to the guest, and lets it see that; what it says is still heard.
    pub(crate) fn hang_up(&mut self) {
        self.input = None;
        self.outbox.close();
        let _ = rustix::net::shutdown(&self.channel, rustix::net::Shutdown::Write);
    }

    /// Sends the command a signal.
    pub(crate) fn signal(&mut self, number: i32) -> Result<(), SessionError> {
        self.say(&Frame::Signal(SESSION, number.unsigned_abs()))
    }

    /// Tells the command's terminal its new size. Only the latest matters, so a full outbox drops it.
    pub(crate) fn resize(&mut self, size: WindowSize) -> Result<(), SessionError> {
        if self.outbox.has_room() { self.say(&Frame::Resize(SESSION, size)) } else { Ok(()) }
    }

    /// What this waits for.
    pub(crate) fn interests<'s>(&'s self, set: &mut PollSet<'s>) {
        let mut channel = PollFlags::empty();
        channel.set(PollFlags::IN, !self.heard.ended);
        channel.set(PollFlags::OUT, !self.outbox.is_empty());
        set.add(Token::Channel, self.channel.as_fd(), channel);
        if let Some(input) = self.input.as_ref().filter(|input| input.credit > 0 && self.outbox.has_room()) {
            set.add(Token::Stdin, input.fd, PollFlags::IN);
        }
        let console = self.console.as_ref().map(|sink| (Token::ConsoleOut, sink));
        for (token, sink) in
            [(Token::Stdout, &self.stdout), (Token::Stderr, &self.stderr)].into_iter().chain(console)
        {
            if !sink.is_empty() {
                set.add(token, sink.as_fd(), PollFlags::OUT);
            }
        }
    }

    /// Does what can be done for one of [`Session::interests`].
    pub(crate) fn ready(&mut self, token: Token, timeline: &mut Timeline) -> Result<(), SessionError> {
        match token {
            Token::Channel => self.read(timeline)?,
            Token::Stdin => self.read_input()?,
            Token::Stdout => {
                let written = self.stdout.flush();
                self.judge("output", written)?;
            }
            Token::Stderr => {
                let written = self.stderr.flush();
                self.judge("error", written)?;
            }
            // A lost console is no reason to end a command.
            Token::ConsoleOut => drop(self.console.as_mut().map(Sink::flush)),
            _ => {}
        }
        self.return_credit()?;
        self.outbox.flush(self.channel.as_fd()).map_err(SessionError::Channel)
    }

    /// One read of the channel, and all frames that it completes.
    fn read(&mut self, timeline: &mut Timeline) -> Result<(), SessionError> {
        let count = match recv(&self.channel, &mut self.buffer[..], RecvFlags::DONTWAIT) {
            Ok((count, _)) => count,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
            Err(Errno::CONNRESET | Errno::PIPE) => 0,
            Err(errno) => return Err(SessionError::Channel(errno)),
        };
        if count == 0 {
            self.heard.ended = true;
            return Ok(());
        }
        self.decoder.push(self.buffer.get(..count).unwrap_or_default());
        while let Some(frame) = self.decoder.next_frame()? {
            self.hear(frame, timeline)?;
        }
        Ok(())
    }

    fn hear(&mut self, frame: Frame, timeline: &mut Timeline) -> Result<(), SessionError> {
        if !self.greeted && !matches!(frame, Frame::GuestHello(_) | Frame::Fatal(_)) {
            return Err(SessionError::Unexpected("its first frame is not a hello"));
        }
        if self.heard.exit.is_some() {
            // Nothing that comes after the exit has a meaning.
            return Ok(());
        }
        match frame {
            Frame::GuestHello(hello) if !self.greeted && (1..=VERSION).contains(&hello.version) => {
                self.greeted = true;
                timeline.init_ticks(hello.init_ticks);
            }
            Frame::GuestHello(_) => {
                return Err(SessionError::Unexpected("a second hello, or one of an unknown version"));
            }
            Frame::Ready => timeline.mark(Stage::Ready),
            Frame::Fatal(message) => self.heard.fatal = Some(crate::text::line(&message)),
            Frame::Started(SESSION) => timeline.mark(Stage::Executed),
            Frame::ExecFailed(SESSION, failure) => {
                let message = crate::text::line(&failure.message);
                self.heard.exec_failed = Some(ExecFailure { message, ..failure });
            }
            Frame::Data(SESSION, stream, bytes) => {
                timeline.mark(Stage::FirstOutput);
                self.output(stream, &bytes)?;
            }
            Frame::Close(SESSION, Stream::Stdout | Stream::Stderr) => {}
            Frame::Credit(SESSION, Stream::Stdin, bytes) => self.take_credit(bytes)?,
            Frame::Report(report) => self.heard.report = Some(tame(report)),
            Frame::Exit(SESSION, exit) => {
                timeline.mark(Stage::Exited);
                self.heard.exit = Some(exit);
            }
            _ => {
                return Err(SessionError::Unexpected(
                    "a frame that only a host sends, or of an unknown session",
                ));
            }
        }
        Ok(())
    }

    fn output(&mut self, stream: Stream, bytes: &[u8]) -> Result<(), SessionError> {
        let (name, sink) = match stream {
            Stream::Stdout => ("output", &mut self.stdout),
            Stream::Stderr => ("error", &mut self.stderr),
            Stream::Stdin => return Err(SessionError::Unexpected("output on standard input")),
        };
        let beyond = |_| SessionError::Unexpected("more output than its credit allows");
        let written = sink.take(bytes).map_err(beyond)?;
        if let (Stream::Stderr, Some(last)) = (stream, bytes.last()) {
            self.heard.mid_line = *last != b'\n';
        }
        self.judge(name, written)
    }

    fn judge(&mut self, name: &'static str, written: Written) -> Result<(), SessionError> {
        match written {
            Written::Fine => Ok(()),
            Written::NoReader => {
                self.heard.no_reader = true;
                Ok(())
            }
            Written::Failed(errno) => Err(output(name, errno)),
        }
    }

    fn take_credit(&mut self, bytes: u32) -> Result<(), SessionError> {
        let Some(input) = &mut self.input else { return Ok(()) };
        input.credit = input
            .credit
            .checked_add(bytes)
            .filter(|&credit| credit <= INITIAL_CREDIT)
            .ok_or(SessionError::Unexpected("credit for more input than was sent"))?;
        Ok(())
    }

    fn return_credit(&mut self) -> Result<(), SessionError> {
        for (stream, sink) in [(Stream::Stdout, &mut self.stdout), (Stream::Stderr, &mut self.stderr)] {
            if let Some(bytes) = sink.credit() {
                self.outbox.put(&Frame::Credit(SESSION, stream, bytes))?;
            }
        }
        Ok(())
    }

    /// One read of standard input, not more than the guest takes.
    fn read_input(&mut self) -> Result<(), SessionError> {
        let Some(input) = &mut self.input else { return Ok(()) };
        let most = usize::try_from(input.credit).unwrap_or(0);
        let fd = input.fd;
        match self.outbox.put_stdin(SESSION, most, |buffer| rustix::io::read(fd, buffer)) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            // An error (a terminal that hung up) is the end of the input as well.
            Ok(0) | Err(_) => {
                self.input = None;
                self.outbox.put(&Frame::Close(SESSION, Stream::Stdin))?;
            }
            Ok(count) => input.credit = input.credit.saturating_sub(u32::try_from(count).unwrap_or(u32::MAX)),
        }
        Ok(())
    }

    /// Whether console output may be put on standard error now.
    pub(crate) fn takes_console(&self) -> bool {
        self.console.as_ref().is_some_and(|sink| sink.backlog() < CONSOLE_BACKLOG)
    }

    /// Puts console output on standard error.
    pub(crate) fn console(&mut self, bytes: &[u8]) {
        let _ = self.console.as_mut().map(|sink| sink.put(bytes));
    }

    /// Bytes of output that wait for their readers: standard output's, standard error's.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn backlogs(&self) -> [usize; 2] {
        [self.stdout.backlog(), self.stderr.backlog()]
    }

    /// Whether all output is with its reader.
    pub(crate) fn is_flushed(&self) -> bool {
        self.stdout.is_empty() && self.stderr.is_empty() && self.console.as_ref().is_none_or(Sink::is_empty)
    }
}

fn output(name: &'static str, errno: Errno) -> SessionError {
    SessionError::Output { name, errno }
}

/// The guest's report, bounded.
fn tame(mut report: GuestReport) -> GuestReport {
    report.unclean.truncate(16);
    for line in &mut report.unclean {
        *line = crate::text::line(line);
    }
    report
}

#[cfg(test)]
mod tests;
