//! The host's end of a stream: takes everything and says so, or gives as much as is wanted.
//!
//! Owns a listener for one connection. Refuses more. Invariant: a stream from the guest is answered with one byte when its
//! last byte has been read here.

use super::{BLOCK, CHUNK, Way};
use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::thread::JoinHandle;

/// Serves one stream on its own thread; how it ended.
#[must_use]
pub fn on_tcp(listener: TcpListener, way: Way, mib: u64) -> JoinHandle<io::Result<()>> {
    std::thread::spawn(move || serve(&mut listener.accept()?.0, way, mib))
}

/// The same on a unix socket: vsock's host side.
#[must_use]
pub fn on_unix(listener: UnixListener, way: Way, mib: u64) -> JoinHandle<io::Result<()>> {
    std::thread::spawn(move || serve(&mut listener.accept()?.0, way, mib))
}

fn serve(stream: &mut (impl Read + Write), way: Way, mib: u64) -> io::Result<()> {
    match way {
        Way::Out => {
            let (mut room, mut left) = (vec![0; BLOCK], mib << 20);
            while left > 0 {
                let count = stream.read(&mut room)?;
                if count == 0 {
                    return Err(io::Error::other(format!("the guest's stream ended {left} bytes early")));
                }
                left = left.saturating_sub(count as u64);
            }
            stream.write_all(b".")
        }
        Way::In => {
            let chunk = vec![0xa5; CHUNK];
            (0..(mib << 20) / CHUNK as u64).try_for_each(|_| stream.write_all(&chunk))
        }
    }
}
