//! The channel against a peer that speaks the protocol in a thread of its own, over a real socket pair and real pipes.

use super::*;
use crate::poll_set::PollSet;
use crate::timeline::now_ns;
use husk_protocol::exec::{ExecFailureKind, GuestHello, Hello};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

mod hostile;

/// The guest's side, blocking.
struct Peer {
    stream: UnixStream,
    decoder: Decoder,
    /// Credit of standard output that husk has given.
    credit: u32,
}

impl Peer {
    fn say(&mut self, frame: &Frame) {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes).unwrap();
        self.stream.write_all(&bytes).unwrap();
    }

    fn hear(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return Some(frame);
            }
            let mut bytes = [0; 8192];
            let count = self.stream.read(&mut bytes).unwrap_or(0);
            if count == 0 {
                return None;
            }
            self.decoder.push(&bytes[..count]);
        }
    }

    fn greet(&mut self) {
        self.say(&Frame::GuestHello(GuestHello { version: VERSION, features: 0, init_ticks: 0 }));
        self.say(&Frame::Ready);
        self.say(&Frame::Started(SESSION));
    }

    /// Sends standard output within the credit.
    fn print(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(MAX_PAYLOAD) {
            while (self.credit as usize) < piece.len() {
                match self.hear() {
                    Some(Frame::Credit(SESSION, Stream::Stdout, more)) => self.credit += more,
                    other => panic!("{other:?}"),
                }
            }
            self.credit -= u32::try_from(piece.len()).unwrap();
            self.say(&Frame::Data(SESSION, Stream::Stdout, piece.to_vec()));
        }
    }
}

fn pair() -> (OwnedFd, Peer) {
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
    (ours, Peer { stream: theirs.into(), decoder: Decoder::new(), credit: INITIAL_CREDIT })
}

/// Runs the session until `done`.
fn drive(session: &mut Session<'_>, done: impl Fn(&Session<'_>) -> bool) -> Result<Timeline, SessionError> {
    let mut timeline = Timeline::starting_at(now_ns());
    let deadline = Instant::now() + Duration::from_secs(30);
    while !done(session) {
        assert!(Instant::now() < deadline, "the session hangs: {:?}", session.heard);
        let mut set = PollSet::default();
        session.interests(&mut set);
        for token in set.wait(Some(deadline)).unwrap() {
            session.ready(token, &mut timeline)?;
        }
    }
    Ok(timeline)
}

fn pipe() -> (File, File) {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    (reader.into(), writer.into())
}

fn reader_of(mut file: File) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    })
}

#[test]
fn bytes_go_both_ways_as_they_are() {
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let (ours, mut peer) = pair();
    let echo = std::thread::spawn(move || {
        assert!(matches!(peer.hear(), Some(Frame::Hello(_))));
        peer.greet();
        let mut input = Vec::new();
        loop {
            match peer.hear().unwrap() {
                Frame::Data(SESSION, Stream::Stdin, bytes) => {
                    peer.say(&Frame::Credit(SESSION, Stream::Stdin, u32::try_from(bytes.len()).unwrap()));
                    input.extend(bytes);
                }
                Frame::Close(SESSION, Stream::Stdin) => break,
                other => panic!("{other:?}"),
            }
        }
        peer.print(&input);
        peer.say(&Frame::Exit(SESSION, Exit::Status(3)));
    });
    let (stdin, mut feed) = pipe();
    let sent = bytes.clone();
    let feeder = std::thread::spawn(move || feed.write_all(&sent).unwrap());
    let (back, stdout) = pipe();
    let back = reader_of(back);
    let null = File::options().write(true).open("/dev/null").unwrap();
    let stdio = Stdio { stdin: Some(stdin.as_fd()), stdout: stdout.as_fd(), stderr: null.as_fd() };
    let mut session = Session::new(ours, &stdio, false).unwrap();
    session.say(&Frame::Hello(Hello { version: VERSION, features: 0 })).unwrap();
    let timeline =
        drive(&mut session, |session| session.heard.exit.is_some() && session.is_flushed()).unwrap();
    assert_eq!(session.heard.exit, Some(Exit::Status(3)));
    for stage in [Stage::Ready, Stage::Executed, Stage::FirstOutput, Stage::Exited] {
        assert!(timeline.has(stage), "{stage:?}");
    }
    drop(session);
    drop(stdout);
    feeder.join().unwrap();
    echo.join().unwrap();
    assert!(back.join().unwrap() == bytes);
}

#[test]
fn a_reader_that_does_not_read_stops_the_guest_and_not_the_loop() {
    let (ours, mut peer) = pair();
    let total = 4 * INITIAL_CREDIT as usize;
    let guest = std::thread::spawn(move || {
        peer.greet();
        peer.print(&vec![7; total]);
        peer.say(&Frame::Exit(SESSION, Exit::Status(0)));
    });
    let (back, stdout) = pipe();
    let null = File::options().write(true).open("/dev/null").unwrap();
    let stdio = Stdio { stdin: None, stdout: stdout.as_fd(), stderr: null.as_fd() };
    let mut session = Session::new(ours, &stdio, false).unwrap();
    let mut timeline = Timeline::starting_at(now_ns());
    let stop = Instant::now() + Duration::from_millis(300);
    while Instant::now() < stop {
        let mut set = PollSet::default();
        session.interests(&mut set);
        for token in set.wait(Some(stop)).unwrap() {
            session.ready(token, &mut timeline).unwrap();
        }
    }
    assert!(session.heard.exit.is_none());
    assert!(session.stdout.backlog() <= INITIAL_CREDIT as usize, "{}", session.stdout.backlog());
    let back = reader_of(back);
    drive(&mut session, |session| session.heard.exit.is_some() && session.is_flushed()).unwrap();
    drop(session);
    drop(stdout);
    guest.join().unwrap();
    assert_eq!(back.join().unwrap().len(), total);
}

/// What husk makes of a guest that says this.
fn hears(frames: &[Frame]) -> (Result<Timeline, SessionError>, Heard) {
    let (ours, mut peer) = pair();
    for frame in frames {
        peer.say(frame);
    }
    drop(peer);
    let null = File::options().write(true).open("/dev/null").unwrap();
    let stdio = Stdio { stdin: None, stdout: null.as_fd(), stderr: null.as_fd() };
    let mut session = Session::new(ours, &stdio, false).unwrap();
    let result = drive(&mut session, |session| session.heard.ended);
    (result, session.heard.clone())
}

fn hello() -> Frame {
    Frame::GuestHello(GuestHello { version: VERSION, features: 0, init_ticks: 1 })
}

#[test]
fn a_guest_that_breaks_the_protocol_is_named() {
    let broken: &[&[Frame]] = &[
        &[Frame::Ready],
        &[hello(), hello()],
        &[Frame::GuestHello(GuestHello { version: 99, features: 0, init_ticks: 1 })],
        &[hello(), Frame::Shutdown],
        &[hello(), Frame::Started(7)],
        &[hello(), Frame::Data(SESSION, Stream::Stdin, vec![1])],
    ];
    for frames in broken {
        assert!(matches!(hears(frames).0, Err(SessionError::Unexpected(_))), "{frames:?}");
    }
    let (ours, mut peer) = pair();
    peer.stream.write_all(&[0xff; 12]).unwrap();
    drop(peer);
    let null = File::options().write(true).open("/dev/null").unwrap();
    let stdio = Stdio { stdin: None, stdout: null.as_fd(), stderr: null.as_fd() };
    let mut session = Session::new(ours, &stdio, false).unwrap();
    assert!(matches!(drive(&mut session, |s| s.heard.ended), Err(SessionError::Protocol(_))));
}

#[test]
fn data_beyond_the_credit_is_a_violation() {
    let (ours, mut peer) = pair();
    let guest = std::thread::spawn(move || {
        peer.say(&hello());
        let piece = Frame::Data(SESSION, Stream::Stderr, vec![0; MAX_PAYLOAD]);
        let mut bytes = Vec::new();
        piece.encode(&mut bytes).unwrap();
        for _ in 0..10 {
            // husk hangs up in the middle; that is what is tested.
            let _ = peer.stream.write_all(&bytes);
        }
    });
    // Nobody reads: nothing is credited.
    let (_back, stderr) = pipe();
    let null = File::options().write(true).open("/dev/null").unwrap();
    let stdio = Stdio { stdin: None, stdout: null.as_fd(), stderr: stderr.as_fd() };
    let mut session = Session::new(ours, &stdio, false).unwrap();
    let error = drive(&mut session, |session| session.heard.ended).unwrap_err();
    assert!(matches!(error, SessionError::Unexpected("more output than its credit allows")), "{error}");
    drop(session);
    guest.join().unwrap();
}

#[test]
fn failures_reports_and_last_words_are_kept_and_tamed() {
    let failure = ExecFailure { kind: ExecFailureKind::NotFound, message: "x\x1b[2J: not found\n".into() };
    let report = GuestReport { unclean: vec!["data: \nbusy".into(); 100], ..GuestReport::default() };
    let frames =
        [hello(), Frame::ExecFailed(SESSION, failure), Frame::Report(report), Frame::Fatal("a\nb".into())];
    let (result, heard) = hears(&frames);
    result.unwrap();
    assert_eq!(heard.exec_failed.unwrap().message, "x?[2J: not found");
    let unclean = heard.report.unwrap().unclean;
    assert_eq!((unclean.len(), unclean[0].as_str()), (16, "data: ?busy"));
    assert_eq!(heard.fatal.unwrap(), "a?b");
}

#[test]
fn a_reader_that_went_away_is_noticed_and_the_rest_thrown_away() {
    let (ours, mut peer) = pair();
    let guest = std::thread::spawn(move || {
        peer.greet();
        peer.print(&vec![7; 2 * INITIAL_CREDIT as usize]);
        peer.say(&Frame::Exit(SESSION, Exit::Signal(13)));
    });
    let (back, stdout) = pipe();
    drop(back);
    let null = File::options().write(true).open("/dev/null").unwrap();
    let stdio = Stdio { stdin: None, stdout: stdout.as_fd(), stderr: null.as_fd() };
    let mut session = Session::new(ours, &stdio, false).unwrap();
    drive(&mut session, |session| session.heard.exit.is_some()).unwrap();
    assert!(session.heard.no_reader && session.is_flushed());
    guest.join().unwrap();
}

#[test]
fn a_full_disk_is_an_error_with_a_name() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let (ours, mut peer) = pair();
    peer.greet();
    peer.say(&Frame::Data(SESSION, Stream::Stdout, vec![1]));
    let stdio = Stdio { stdin: None, stdout: full.as_fd(), stderr: full.as_fd() };
    let mut session = Session::new(ours, &stdio, false).unwrap();
    let error = drive(&mut session, |session| session.heard.ended).unwrap_err().to_string();
    assert!(error.contains("standard output: No space left"), "{error}");
}

#[test]
fn a_shared_pipe_is_not_made_non_blocking() {
    let (_back, stdout) = pipe();
    let (ours, _peer) = pair();
    let stdio = Stdio { stdin: None, stdout: stdout.as_fd(), stderr: stdout.as_fd() };
    let session = Session::new(ours, &stdio, false).unwrap();
    let flags = rustix::fs::fcntl_getfl(&stdout).unwrap();
    assert!(!flags.contains(rustix::fs::OFlags::NONBLOCK));
    assert_ne!(session.stdout.as_fd().as_raw_fd(), stdout.as_raw_fd());
}
