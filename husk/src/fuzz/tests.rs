use super::{op, session};
use husk_protocol::exec::{MAX_PAYLOAD, VERSION};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Random inputs, and the time after which it is enough.
const RUNS: u32 = 20_000;
const TIME: Duration = Duration::from_secs(2);

const HELLO: [u8; 7] = [op::FRAME, 0, VERSION as u8, 1, 0, 0, 0];
const READY: [u8; 2] = [op::FRAME, 1];
const STARTED: [u8; 2] = [op::FRAME, 3];
const TURN: [u8; 1] = [op::TURN];
const READ: [u8; 3] = [op::READ, 0xff, 0xff];
const EXIT: [u8; 3] = [op::FRAME, 11, 3];

/// Output on a stream (0 standard output, 1 standard error, 2 input).
fn data(stream: u8, length: usize) -> Vec<u8> {
    let length = u16::try_from(length).unwrap().to_le_bytes();
    vec![op::FRAME, 5, stream, length[0], length[1]]
}

fn credit(stream: u8, bytes: u32) -> Vec<u8> {
    [vec![op::FRAME, 8, stream], bytes.to_le_bytes().to_vec()].concat()
}

/// Bytes as they are: a header of a kind, its length, and a payload.
fn raw(kind: u8, length: u32, payload: &[u8]) -> Vec<u8> {
    let frame = [&length.to_le_bytes()[..], &[kind, 0, 0, 0, 1, 0, 0, 0], payload].concat();
    [vec![op::RAW, u8::try_from(frame.len()).unwrap()], frame].concat()
}

/// A sound session, and what a guest-init that is the guest's may do instead (item 18 of the hostile list).
fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let begun = [&HELLO[..], &READY, &STARTED, &TURN].concat();
    let then = |more: &[&[u8]]| [begun.clone(), more.concat(), TURN.to_vec()].concat();
    let feed = [op::FEED, 0, 16];
    let most = data(0, MAX_PAYLOAD - 1);
    let flood =
        (0..8).flat_map(|_| [most.clone(), TURN.to_vec(), READ.to_vec()].concat()).collect::<Vec<_>>();
    let unread = (0..8).flat_map(|_| [most.clone(), TURN.to_vec()].concat()).collect::<Vec<_>>();
    let escape = b"\x1b[2J\x07\r\n";
    let mut fatal = vec![op::FRAME, 2, escape.len() as u8];
    fatal.extend(escape);
    let mut report = vec![op::FRAME, 10, 200, escape.len() as u8];
    report.extend(escape);
    vec![
        ("sound", then(&[&data(0, 100), &data(1, 5), &TURN, &READ, &EXIT])),
        ("input", then(&[&feed, &TURN, &TURN, &credit(2, 4096), &TURN, &feed, &TURN, &EXIT])),
        ("flood", then(&[&flood, &EXIT])),
        ("signals-and-sizes", then(&[&[op::HOST, 0, 15], &[op::HOST, 1, 9, 0, 8, 0], &TURN, &EXIT])),
        ("reader-leaves", then(&[&[op::HOST, 4], &most, &TURN, &most, &TURN, &EXIT])),
        ("hung-up-on", then(&[&feed, &[op::HOST, 2], &TURN, &data(0, 9), &TURN, &READ])),
        ("18-giant-length", then(&[&raw(11, u32::MAX, &[])])),
        ("18-length-over-the-bound", then(&[&raw(11, 65_537, &[1])])),
        ("18-split-header", then(&[&[op::RAW, 5, 1, 0, 0, 0, 11], &TURN, &[op::RAW, 3, 0, 0, 0], &TURN])),
        ("18-split-payload", then(&[&raw(11, 40, &[1; 9]), &TURN, &[op::RAW, 2, 1, 1], &TURN])),
        ("18-never-answers", then(&[&feed, &TURN, &TURN, &TURN])),
        ("18-no-hello", [&READY[..], &TURN].concat()),
        ("18-two-hellos", then(&[&HELLO])),
        ("18-hello-of-tomorrow", [&[op::FRAME, 0, 200, 0, 0, 0, 0][..], &TURN].concat()),
        ("18-exit-before-its-start", [&HELLO[..], &EXIT, &TURN].concat()),
        ("18-two-exits", then(&[&EXIT, &[op::FRAME, 12, 9], &TURN])),
        ("18-output-after-the-exit", then(&[&EXIT, &TURN, &data(0, 100), &TURN, &READ])),
        ("18-nonsense-after-the-exit", then(&[&EXIT, &TURN, &[op::FRAME, 13], &HELLO, &credit(2, u32::MAX)])),
        ("18-exit-of-another-session", then(&[&[op::RAW, 14, 2, 0, 0, 0, 17, 0, 0, 0, 9, 0, 0, 0, 0, 3]])),
        ("18-beyond-its-credit", then(&[&unread])),
        ("18-credit-for-nothing", then(&[&credit(2, 1)])),
        ("18-credit-overflow", then(&[&feed, &TURN, &credit(2, u32::MAX)])),
        ("18-output-on-the-input", then(&[&data(2, 9)])),
        ("18-a-hosts-frame", then(&[&[op::FRAME, 13]])),
        ("18-unknown-kind", then(&[&raw(200, 0, &[])])),
        ("18-last-words-with-escapes", then(&[&fatal])),
        ("18-report-of-200-lines", then(&[&report, &EXIT])),
        ("18-leaves-in-a-frame", then(&[&raw(11, 40, &[1; 9]), &[op::LEAVE], &TURN])),
    ]
}

#[test]
fn the_corpus_breaks_nothing() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/corpus/session");
    for (seed, bytes) in seeds() {
        let path = folder.join(seed);
        if std::env::var_os("HUSK_WRITE_CORPUS").is_some() {
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(&path, &bytes).unwrap();
        }
        let there = std::fs::read(&path).unwrap_or_default();
        assert!(there == bytes, "{} is not this seed: set HUSK_WRITE_CORPUS=1", path.display());
    }
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        println!("{}", path.display());
        let bytes = std::fs::read(&path).unwrap();
        assert!(bytes.len() < 4096, "{} bytes are more than a seed has", bytes.len());
        let frames = session(&bytes);
        assert!(frames > 0, "the guest said nothing");
    }
}

#[test]
fn random_bytes_break_nothing() {
    let mut seed = 0x1234_5678_9abc_def1_u64;
    let mut random = move |limit: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed as usize % limit
    };
    let (seeds, start) = (seeds(), Instant::now());
    let mut frames = 0;
    for _ in 0..RUNS {
        // A sound beginning and sound pieces with a few bytes changed: random ones would seldom get past the hello.
        let mut bytes: Vec<u8> = (0..3).flat_map(|_| seeds[random(seeds.len())].1.clone()).collect();
        for _ in 0..random(6) {
            let at = random(bytes.len());
            bytes[at] = random(256) as u8;
        }
        frames += session(&bytes);
        if start.elapsed() > TIME {
            break;
        }
    }
    assert!(frames > 0);
}
