//! Item 18 of the hostile list: guest-init is the guest. What it says is bounded, believed only where it may be, and ends at
//! worst its own sandbox. What else there is to it: `pump::tests` (it never answers, falls silent, does not end) and `fuzz`.

use super::*;
use husk_protocol::exec::HEADER_BYTES;

/// A header of a kind of frame, alone.
fn header(kind: u8, length: u32) -> Vec<u8> {
    [&length.to_le_bytes()[..], &[kind, 0, 0, 0], &SESSION.to_le_bytes()].concat()
}

/// The kind of frames that carry standard output.
fn output_kind() -> u8 {
    let mut bytes = Vec::new();
    Frame::Data(SESSION, Stream::Stdout, vec![0]).encode(&mut bytes).unwrap();
    bytes[4]
}

/// What husk makes of these bytes after a sound beginning, in pieces of so many, and what it printed.
fn after_the_beginning(bytes: &[u8], piece: usize) -> (Result<Timeline, SessionError>, Heard, Vec<u8>) {
    let (ours, mut peer) = pair();
    peer.greet();
    let null = File::options().write(true).open("/dev/null").unwrap();
    let (mut back, stdout) = pipe();
    let stdio = Stdio { stdin: None, stdout: stdout.as_fd(), stderr: null.as_fd() };
    let mut session = Session::new(ours, &stdio, false).unwrap();
    let mut result = drive(&mut session, |session| session.greeted);
    for piece in bytes.chunks(piece) {
        if result.is_ok() {
            peer.stream.write_all(piece).unwrap();
            let mut set = PollSet::default();
            session.interests(&mut set);
            let mut timeline = Timeline::starting_at(now_ns());
            for token in set.wait(Some(Instant::now() + Duration::from_secs(5))).unwrap() {
                result = result.and_then(|last| session.ready(token, &mut timeline).map(|()| last));
            }
        }
    }
    drop(peer);
    let result = result.and_then(|_| drive(&mut session, |session| session.heard.ended));
    let heard = session.heard.clone();
    drop(session);
    drop(stdout);
    let mut printed = Vec::new();
    back.read_to_end(&mut printed).unwrap();
    (result, heard, printed)
}

fn wire(frames: &[Frame]) -> Vec<u8> {
    let mut bytes = Vec::new();
    frames.iter().for_each(|frame| frame.encode(&mut bytes).unwrap());
    bytes
}

#[test]
fn item_18_a_giant_length_is_refused_by_its_header() {
    for length in [u32::try_from(MAX_PAYLOAD).unwrap() + 1, u32::MAX] {
        let (result, ..) = after_the_beginning(&header(output_kind(), length), HEADER_BYTES);
        let error = result.unwrap_err();
        assert!(matches!(error, SessionError::Protocol(DecodeError::TooLong { .. })), "{error}");
    }
}

#[test]
fn item_18_frames_that_are_split_anywhere_mean_the_same() {
    let bytes = wire(&[
        Frame::Data(SESSION, Stream::Stdout, b"one".to_vec()),
        Frame::Data(SESSION, Stream::Stdout, b"two".to_vec()),
        Frame::Exit(SESSION, Exit::Status(4)),
    ]);
    for piece in [1, 2, 11, 12, 13, bytes.len()] {
        let (result, heard, printed) = after_the_beginning(&bytes, piece);
        result.unwrap();
        assert_eq!((heard.exit, printed.as_slice()), (Some(Exit::Status(4)), &b"onetwo"[..]), "{piece}");
    }
}

#[test]
fn item_18_a_frame_that_never_ends_is_the_channels_end_and_nothing_is_printed() {
    let bytes = [header(output_kind(), 40), vec![7; 39]].concat();
    let (result, heard, printed) = after_the_beginning(&bytes, 1000);
    result.unwrap();
    assert!(heard.ended && heard.exit.is_none() && printed.is_empty());
}

#[test]
fn item_18_a_guest_that_never_answers_is_held_for_nothing() {
    let (ours, _peer) = pair();
    let (stdin, mut feeder) = pipe();
    feeder.write_all(&[1; 4096]).unwrap();
    let null = File::options().write(true).open("/dev/null").unwrap();
    let stdio = Stdio { stdin: Some(stdin.as_fd()), stdout: null.as_fd(), stderr: null.as_fd() };
    let mut session = Session::new(ours, &stdio, false).unwrap();
    let mut timeline = Timeline::starting_at(now_ns());
    for _ in 0..10_000 {
        session.say(&Frame::Hello(Hello { version: VERSION, features: 0 })).unwrap();
        let size = WindowSize { rows: 1, cols: 1 };
        session.resize(size).unwrap();
        let mut set = PollSet::default();
        session.interests(&mut set);
        for token in set.wait(Some(Instant::now())).unwrap() {
            session.ready(token, &mut timeline).unwrap();
        }
        if !session.outbox.has_room() {
            break;
        }
    }
    // What husk wants to say to it waits, up to a bound; the loop goes on.
    assert!(!session.outbox.has_room(), "a socket that nobody reads took everything");
    session.resize(WindowSize { rows: 2, cols: 2 }).unwrap();
    assert!(!session.heard.ended && session.heard.exit.is_none());
}

#[test]
fn item_18_the_first_exit_counts_and_what_follows_means_nothing() {
    let bytes = wire(&[
        Frame::Data(SESSION, Stream::Stdout, b"before".to_vec()),
        Frame::Exit(SESSION, Exit::Status(3)),
        Frame::Exit(SESSION, Exit::Status(0)),
        Frame::Exit(SESSION, Exit::Signal(9)),
        Frame::Data(SESSION, Stream::Stdout, b"after".to_vec()),
        Frame::Fatal("after".into()),
        Frame::Report(GuestReport { unclean: vec!["after".into()], ..GuestReport::default() }),
        Frame::Credit(SESSION, Stream::Stdin, u32::MAX),
    ]);
    let (result, heard, printed) = after_the_beginning(&bytes, bytes.len());
    result.unwrap();
    assert_eq!((heard.exit, printed.as_slice()), (Some(Exit::Status(3)), &b"before"[..]));
    assert!(heard.fatal.is_none() && heard.report.is_none());
    // Only frames mean nothing: bytes that are none still end the channel.
    let broken = [bytes, vec![0xff; HEADER_BYTES]].concat();
    let (result, heard, _) = after_the_beginning(&broken, broken.len());
    assert!(matches!(result, Err(SessionError::Protocol(_))));
    assert_eq!(heard.exit, Some(Exit::Status(3)));
}

#[test]
fn item_18_an_exit_of_a_session_that_is_not_there_is_not_believed() {
    for session in [0, 2, u32::MAX] {
        let (result, heard, _) = after_the_beginning(&wire(&[Frame::Exit(session, Exit::Status(0))]), 100);
        assert!(matches!(result, Err(SessionError::Unexpected(_))), "{session}");
        assert_eq!(heard.exit, None);
    }
}

#[test]
fn item_18_credit_that_was_not_spent_is_not_taken() {
    let (ours, mut peer) = pair();
    peer.greet();
    peer.say(&Frame::Credit(SESSION, Stream::Stdin, 1));
    let (stdin, _feeder) = pipe();
    let null = File::options().write(true).open("/dev/null").unwrap();
    let stdio = Stdio { stdin: Some(stdin.as_fd()), stdout: null.as_fd(), stderr: null.as_fd() };
    let mut session = Session::new(ours, &stdio, false).unwrap();
    let error = drive(&mut session, |session| session.heard.ended).unwrap_err();
    assert!(error.to_string().contains("credit for more input than was sent"), "{error}");
}
