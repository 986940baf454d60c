use super::exec_frames;
use crate::exec::decoder_examples;
use crate::exec::{Frame, HEADER_BYTES, MAX_PAYLOAD};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Random inputs, and the time after which it is enough.
const RUNS: u32 = 20_000;
const TIME: Duration = Duration::from_secs(2);

fn wire(frame: &Frame) -> Vec<u8> {
    let mut bytes = vec![7];
    frame.encode(&mut bytes).unwrap();
    bytes
}

/// A header and a payload, however wrong.
fn raw(kind: u8, length: usize, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(length).unwrap().to_le_bytes();
    [&[3], length.as_slice(), &[kind, 0, 0, 0, 1, 0, 0, 0], payload].concat()
}

/// Each kind of frame, all in one stream, and what a guest that lies would send (item 18 of the hostile list).
fn seeds() -> Vec<(String, Vec<u8>)> {
    let mut seeds = Vec::new();
    let mut all = vec![5];
    for frame in decoder_examples() {
        let bytes = wire(&frame);
        if bytes.len() < 4096 {
            all.extend(&bytes[1..]);
            let stream =
                if let Frame::Data(_, stream, _) = &frame { format!("-{stream:?}") } else { String::new() };
            seeds.push((format!("{}{stream}", frame.name()), bytes));
        }
    }
    let exec = seeds.iter().find(|(name, _)| name == "Exec").unwrap().1.clone();
    let cut = |at: usize| exec[..at].to_vec();
    let more = [
        ("all", all),
        ("18-giant-length", raw(11, u32::MAX as usize, &[])),
        ("18-length-over-the-bound", raw(11, MAX_PAYLOAD + 1, &[1])),
        ("18-split-header", cut(HEADER_BYTES - 3)),
        ("18-split-payload", cut(HEADER_BYTES + 9)),
        ("18-unknown-kind", raw(200, 0, &[])),
        ("18-lying-vector", raw(7, 5, &[0x80, 0x80, 0x80, 0x80, 1])),
        ("18-endless-varint", raw(15, 16, &[0xff; 16])),
        ("18-no-utf8", raw(6, 64, &[0xff; 64])),
        ("18-empty-data", raw(11, 0, &[])),
        ("18-payload-of-nothing", raw(5, 4, &[0; 4])),
    ];
    seeds.extend(more.map(|(name, bytes)| (name.to_owned(), bytes)));
    seeds
}

#[test]
fn the_corpus_breaks_nothing() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/corpus/exec_frames");
    for (seed, bytes) in seeds() {
        let path = folder.join(&seed);
        if std::env::var_os("HUSK_WRITE_CORPUS").is_some() {
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(&path, &bytes).unwrap();
        }
        let there = std::fs::read(&path).unwrap_or_default();
        assert!(there == bytes, "{} is not this seed: set HUSK_WRITE_CORPUS=1", path.display());
        assert_eq!(exec_frames(&bytes) > 0, !seed.starts_with("18-") || seed == "18-no-utf8", "{seed}");
    }
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        println!("{}", path.display());
        let bytes = std::fs::read(&path).unwrap();
        assert!(bytes.len() < 4096, "{} bytes are more than a seed has", bytes.len());
        exec_frames(&bytes);
    }
}

#[test]
fn random_bytes_break_nothing() {
    let mut seed = 0x1234_5678_9abc_def1_u64;
    let mut random = move |limit: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        usize::try_from(seed % limit).unwrap()
    };
    let (seeds, start) = (seeds(), Instant::now());
    let mut frames = 0;
    for _ in 0..RUNS {
        // Sound frames with a few bytes changed: random headers would seldom get past the length.
        let mut bytes =
            [seeds[random(seeds.len() as u64)].1.clone(), seeds[random(20)].1[1..].to_vec()].concat();
        for _ in 0..random(4) {
            let at = random(bytes.len() as u64);
            bytes[at] = u8::try_from(random(256)).unwrap();
        }
        frames += exec_frames(&bytes);
        if start.elapsed() > TIME {
            break;
        }
    }
    assert!(frames > 0);
}
