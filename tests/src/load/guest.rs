//! The guest's end of a load.
//!
//! Owns the disk or the stream for one job. Refuses short reads and streams that end early. Invariant: the clock starts
//! when the disk or the stream is open, and stops when the other end has everything.

use super::{BLOCK, CHUNK, Job, PAGE, Took, Way};
use crate::bench::stages::now_ns;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::pread;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;

/// Does a job.
///
/// # Errors
/// The guest's kernel said no, or the other end went away.
pub fn run(job: &Job) -> io::Result<Took> {
    match job {
        Job::Random { disk, reads } => random(disk, *reads),
        Job::Sequential { disk, reads } => sequential(disk, *reads),
        Job::Tcp { address, way, mib } => stream(&mut TcpStream::connect(address)?, *way, *mib),
        Job::Vsock { port, way, mib } => {
            stream(&mut File::from(crate::guest_vsock::connect(*port)?), *way, *mib)
        }
    }
}

/// A disk, past the page cache, and its bytes.
fn disk(path: &str) -> io::Result<(OwnedFd, u64)> {
    let file = open(path, OFlags::RDONLY | OFlags::DIRECT, Mode::empty())?;
    let bytes = File::from(file.try_clone()?).seek(SeekFrom::End(0))?;
    Ok((file, bytes))
}

/// Room that direct reads can go to: aligned to a page.
fn with_room<T>(bytes: usize, f: impl FnOnce(&mut [u8]) -> io::Result<T>) -> io::Result<T> {
    let mut room = vec![0; bytes + PAGE];
    let start = room.as_ptr().align_offset(PAGE);
    let room = room.get_mut(start..start + bytes).ok_or_else(|| io::Error::other("no aligned room"))?;
    // Its pages are there before the clock starts.
    room.fill(1);
    f(room)
}

fn whole(read: usize, wanted: usize, at: u64) -> io::Result<()> {
    if read == wanted { Ok(()) } else { Err(io::Error::other(format!("{read} of {wanted} bytes at {at}"))) }
}

fn random(path: &str, reads: u64) -> io::Result<Took> {
    let (file, bytes) = disk(path)?;
    let pages = (bytes / PAGE as u64).max(1);
    with_room(PAGE, |room| {
        // Knuth's 64-bit generator; the same places in every run.
        let mut place = 1_u64;
        let start = now_ns();
        for _ in 0..reads {
            place = place.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let at = (place >> 33) % pages * PAGE as u64;
            whole(pread(&file, &mut *room, at)?, PAGE, at)?;
        }
        Ok(Took { operations: reads, bytes: reads * PAGE as u64, ns: now_ns() - start })
    })
}

fn sequential(path: &str, reads: u64) -> io::Result<Took> {
    let (file, bytes) = disk(path)?;
    let blocks = (bytes / BLOCK as u64).max(1);
    with_room(BLOCK, |room| {
        let start = now_ns();
        for block in 0..reads {
            let at = block % blocks * BLOCK as u64;
            whole(pread(&file, &mut *room, at)?, BLOCK, at)?;
        }
        Ok(Took { operations: reads, bytes: reads * BLOCK as u64, ns: now_ns() - start })
    })
}

fn stream(stream: &mut (impl Read + Write), way: Way, mib: u64) -> io::Result<Took> {
    let bytes = mib << 20;
    let mut chunk = vec![0x5a; CHUNK];
    let start = now_ns();
    match way {
        Way::Out => {
            for _ in 0..bytes / CHUNK as u64 {
                stream.write_all(&chunk)?;
            }
            // The far end says so when it has everything. A half-close would not do: the peer's vsock does not pass it on.
            stream.read_exact(&mut chunk[..1])?;
        }
        Way::In => {
            let mut left = bytes;
            while left > 0 {
                let count = stream.read(&mut chunk)?;
                if count == 0 {
                    return Err(io::Error::other(format!("the stream ended {left} bytes early")));
                }
                left = left.saturating_sub(count as u64);
            }
        }
    }
    Ok(Took { operations: 1, bytes, ns: now_ns() - start })
}
