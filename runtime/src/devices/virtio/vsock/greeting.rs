//! The host's programs introduce themselves: `CONNECT <port>\n`, answered by `OK <port>\n` (Firecracker's protocol).
//!
//! Owns sockets that were accepted and have not said where they want to go. Refuses lines longer than [`MOST_BYTES`]
//! and more than [`MOST_GREETINGS`] at a time. Invariant: not a byte after the line is taken from the socket.

use rustix::net::RecvFlags;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// Longest line, with its end.
const MOST_BYTES: usize = 32;
/// Most sockets that have not finished their line.
pub(super) const MOST_GREETINGS: usize = 64;

/// What a look at a socket came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// Not all of it is there.
    Incomplete,
    /// The port that the program wants.
    Port(u32),
    /// It is no such line, or the program is gone.
    Wrong,
}

#[derive(Debug)]
struct Guest {
    socket: OwnedFd,
    deadline: Instant,
}

/// A fixed number of places; an id is place and generation, as with connections.
#[derive(Debug)]
pub(super) struct Greetings {
    places: Vec<(u32, Option<Guest>)>,
}

impl Default for Greetings {
    fn default() -> Self {
        Self { places: (0..MOST_GREETINGS).map(|_| (0, None)).collect() }
    }
}

impl Greetings {
    /// A place for one more, if there is one: index and generation.
    pub(super) fn place(&self) -> Option<(u32, u32)> {
        (0..)
            .zip(&self.places)
            .find(|(_, (_, guest))| guest.is_none())
            .map(|(index, &(generation, _))| (index, generation))
    }

    /// Puts a socket into the place.
    pub(super) fn put(&mut self, index: u32, socket: OwnedFd, deadline: Instant) {
        if let Some((_, guest)) = self.places.get_mut(index as usize) {
            *guest = Some(Guest { socket, deadline });
        }
    }

    /// Looks at the line of the one in the place.
    pub(super) fn look(&self, index: u32, generation: u32) -> Line {
        match self.places.get(index as usize) {
            Some((current, Some(guest))) if *current == generation => take_line(guest.socket.as_fd()),
            _ => Line::Incomplete,
        }
    }

    /// Takes the socket out of its place.
    pub(super) fn take(&mut self, index: u32, generation: u32) -> Option<OwnedFd> {
        let (current, guest) =
            self.places.get_mut(index as usize).filter(|(current, _)| *current == generation)?;
        let guest = guest.take()?;
        *current = (*current + 1) & 0xff_ffff;
        Some(guest.socket)
    }

    /// So much time has passed that counts for nothing.
    pub(super) fn put_off(&mut self, pause: Duration) {
        for (_, guest) in &mut self.places {
            if let Some(guest) = guest {
                guest.deadline += pause;
            }
        }
    }

    /// Drops those that were too slow; returns when the next one is, if there is one.
    pub(super) fn expire(&mut self, now: Instant) -> Option<Instant> {
        for (generation, guest) in &mut self.places {
            if guest.take_if(|guest| guest.deadline <= now).is_some() {
                *generation = (*generation + 1) & 0xff_ffff;
            }
        }
        self.places.iter().filter_map(|(_, guest)| Some(guest.as_ref()?.deadline)).min()
    }
}

fn take_line(socket: BorrowedFd<'_>) -> Line {
    let mut bytes = [0; MOST_BYTES];
    let peeked = match rustix::net::recv(socket, &mut bytes, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
        Ok((_, 0)) => return Line::Wrong,
        Ok((_, count)) => count,
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Line::Incomplete,
        Err(_) => return Line::Wrong,
    };
    let Some(end) = bytes[..peeked].iter().position(|&byte| byte == b'\n') else {
        return if peeked == MOST_BYTES { Line::Wrong } else { Line::Incomplete };
    };
    let mut line = [0; MOST_BYTES];
    match rustix::net::recv(socket, &mut line[..=end], RecvFlags::DONTWAIT) {
        Ok((_, count)) if count == end + 1 => parse(&line[..end]).map_or(Line::Wrong, Line::Port),
        _ => Line::Wrong,
    }
}

fn parse(line: &[u8]) -> Option<u32> {
    let (word, port) = std::str::from_utf8(line).ok()?.trim_end_matches('\r').split_once(' ')?;
    let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    (word.eq_ignore_ascii_case("connect") && digits).then(|| port.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn lines_are_taken_as_firecracker_takes_them() {
        for (line, port) in
            [("CONNECT 52", 52), ("connect 0", 0), ("Connect 4294967295", u32::MAX), ("CONNECT 7\r", 7)]
        {
            assert_eq!(parse(line.as_bytes()), Some(port), "{line}");
        }
        for line in [
            "",
            "CONNECT",
            "CONNECT ",
            "CONNECT -1",
            "CONNECT +1",
            "CONNECT 4294967296",
            "CONNECT 1 2",
            "GET /",
            "CONNECT  1",
        ] {
            assert_eq!(parse(line.as_bytes()), None, "{line:?}");
        }
        assert_eq!(parse(b"CONNECT \xff"), None);
    }

    #[test]
    fn what_follows_the_line_stays_in_the_socket() {
        let (mut far, near) = UnixStream::pair().unwrap();
        far.write_all(b"CONNECT").unwrap();
        assert_eq!(take_line(near.as_fd()), Line::Incomplete);
        far.write_all(b" 9\nhello").unwrap();
        drop(far);
        assert_eq!(take_line(near.as_fd()), Line::Port(9));
        let mut rest = String::new();
        (&near).read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "hello");
        assert_eq!(take_line(near.as_fd()), Line::Wrong);
    }

    #[test]
    fn a_line_without_an_end_is_wrong() {
        let (mut far, near) = UnixStream::pair().unwrap();
        far.write_all(&[b'C'; MOST_BYTES]).unwrap();
        assert_eq!(take_line(near.as_fd()), Line::Wrong);
    }

    #[test]
    fn the_slow_are_dropped_and_places_are_reused() {
        let mut greetings = Greetings::default();
        let now = Instant::now();
        let mut far_ends = Vec::new();
        for round in 0..MOST_GREETINGS {
            let (far, near) = UnixStream::pair().unwrap();
            let (index, _) = greetings.place().unwrap();
            greetings.put(index, near.into(), now + Duration::from_secs(if round == 3 { 9 } else { 1 }));
            far_ends.push(far);
        }
        assert_eq!(greetings.place(), None);
        assert_eq!(greetings.expire(now), Some(now + Duration::from_secs(1)));
        assert_eq!(greetings.expire(now + Duration::from_secs(1)), Some(now + Duration::from_secs(9)));
        assert_eq!(far_ends[0].read(&mut [0]).unwrap(), 0, "closed");
        assert_eq!(greetings.place(), Some((0, 1)));
        assert!(greetings.take(0, 0).is_none());
        assert!(greetings.take(3, 0).is_some());
    }
}
