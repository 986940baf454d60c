//! The little of HTTP that Firecracker's API socket needs: PUT a JSON object, expect 204.
//!
//! Owns the wait for the socket, which is told by the kernel (inotify) and not polled for. Refuses every status but 204,
//! with the peer's own words. Invariant: one request at a time, on one connection.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;

/// The socket's name in its directory.
pub(super) const SOCKET: &str = "firecracker.socket";

/// A watch for the socket's birth. Made before the peer starts, so that it cannot be missed, and to be dropped when the
/// stamps are taken: closing an inotify descriptor waits for the kernel's readers, some ticks long.
pub(super) struct Birth {
    watch: rustix::fd::OwnedFd,
}

impl Birth {
    /// Watches a directory that exists.
    pub(super) fn expect_in(dir: &Path) -> io::Result<Self> {
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC)?;
        inotify::add_watch(&watch, dir, inotify::WatchFlags::CREATE)?;
        Ok(Self { watch })
    }

    /// Waits for the socket and connects to it.
    pub(super) fn connect(&self, dir: &Path, limit: Duration) -> io::Result<UnixStream> {
        let deadline = Instant::now() + limit;
        let socket = dir.join(SOCKET);
        while !socket.exists() {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).map_err(io::Error::other)?;
            if poll(&mut [PollFd::new(&self.watch, PollFlags::IN)], Some(&left))? == 0 {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "no API socket appeared"));
            }
            let mut buffer = [std::mem::MaybeUninit::uninit(); 1024];
            let mut events = inotify::Reader::new(&self.watch, &mut buffer);
            while events.next()?.file_name().map(|name| OsStr::new(name.to_str().unwrap_or_default()))
                != Some(OsStr::new(SOCKET))
            {}
        }
        // Between bind and listen a connection is refused: that is a few instructions, not a state to wait in.
        loop {
            match UnixStream::connect(&socket) {
                Err(error)
                    if error.kind() == io::ErrorKind::ConnectionRefused && Instant::now() < deadline =>
                {
                    std::thread::yield_now();
                }
                other => return other,
            }
        }
    }
}

/// PUTs an object.
pub(super) fn put(stream: &mut UnixStream, path: &str, body: &serde_json::Value) -> io::Result<()> {
    let body = body.to_string();
    let request = format!(
        "PUT {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = [0; 4096];
    let mut got = 0;
    while !answer[..got].windows(4).any(|end| end == b"\r\n\r\n") && got < answer.len() {
        match stream.read(&mut answer[got..])? {
            0 => break,
            more => got += more,
        }
    }
    let answer = String::from_utf8_lossy(&answer[..got]);
    if answer.starts_with("HTTP/1.1 204") {
        return Ok(());
    }
    Err(io::Error::other(format!("PUT {path}: {}", answer.replace("\r\n", " | "))))
}
