use super::{TARGETS, seeds};
use std::path::PathBuf;
use std::time::{Duration, Instant};

mod items;
mod liars;
mod ring;
mod state;

/// Random inputs a target, and the time after which it is enough.
const RUNS: u32 = 20_000;
const TIME: Duration = Duration::from_secs(2);

fn random_bytes_break_nothing(name: &str) {
    let (_, target) = TARGETS.into_iter().find(|target| target.0 == name).unwrap();
    let mut seed = 0x1234_5678_9abc_def1_u64;
    let mut random = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let start = Instant::now();
    for run in 0..RUNS {
        let length = random() % 300;
        // Small numbers are operations and areas: let half of the bytes be some.
        let byte = |number: u64| if number & 0x100 != 0 { number as u8 } else { number as u8 % 12 };
        let bytes: Vec<u8> = (0..length).map(|_| byte(random())).collect();
        target(&bytes);
        if start.elapsed() > TIME {
            println!("{run} inputs");
            return;
        }
    }
}

/// Runs every file of a target's corpus. With `HUSK_WRITE_CORPUS` set it writes the seeds first; without, they must be there.
fn the_corpus_breaks_nothing(name: &str) {
    let (_, target) = TARGETS.into_iter().find(|target| target.0 == name).unwrap();
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/corpus").join(name);
    for (seed, bytes) in seeds::of(name) {
        let path = folder.join(&seed);
        if std::env::var_os("HUSK_WRITE_CORPUS").is_some() {
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(&path, &bytes).unwrap();
        }
        let there = std::fs::read(&path).unwrap_or_default();
        assert!(there == bytes, "{} is not this seed: set HUSK_WRITE_CORPUS=1", path.display());
    }
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        // A test's output is shown if it fails.
        println!("{}", path.display());
        let bytes = std::fs::read(&path).unwrap();
        assert!(bytes.len() < 4096, "{} bytes are more than a seed has", bytes.len());
        let answered = target(&bytes);
        let plain = path.file_name().unwrap() == "sound";
        assert!(answered > 0 || !plain, "a sound request is answered");
    }
}

/// A test of each target, named as it is.
macro_rules! each_target {
    ($check:path) => {
        each_target!($check: block, net, vsock, vsock_packets, entropy, balloon, mem, pmem, fs, console, registers, pci, state);
    };
    ($check:path: $($target:ident),*) => {
        $(#[test] fn $target() { $check(stringify!($target)); })*
    };
}

mod corpus {
    each_target!(super::the_corpus_breaks_nothing);
}

mod random {
    each_target!(super::random_bytes_break_nothing);
}
