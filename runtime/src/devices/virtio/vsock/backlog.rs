//! Bytes of the guest's that the host's socket did not take yet.
//!
//! Owns one connection's bytes in order. Refuses nothing itself: the credit that the guest was granted bounds it.
//! Invariant: while nothing waits, no memory is held.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::net::SendFlags;

#[derive(Debug, Default)]
pub(super) struct Backlog {
    bytes: Vec<u8>,
    /// Bytes before this are sent.
    sent: usize,
}

impl Backlog {
    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.sent
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where more is appended.
    pub(super) fn tail(&mut self) -> &mut Vec<u8> {
        if self.sent > 0 {
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
        &mut self.bytes
    }

    /// Forgets all of it; returns how much it was.
    pub(super) fn clear(&mut self) -> usize {
        let len = self.len();
        *self = Self::default();
        len
    }

    /// Sends as much as `socket` takes without waiting; returns how much it was.
    pub(super) fn flush(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let mut total = 0;
        while !self.is_empty() {
            match rustix::net::send(
                socket,
                &self.bytes[self.sent..],
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            ) {
                Ok(count) => {
                    self.sent += count;
                    total += count;
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Ok(total),
                Err(error) => return Err(error.into()),
            }
        }
        *self = Self::default();
        Ok(total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn bytes_come_out_in_order_however_slow_the_reader() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let mut backlog = Backlog::default();
        let sent: Vec<u8> =
            (0..3_000_000u32).map(|number| number.to_le_bytes()[0] ^ number.to_le_bytes()[1]).collect();
        let mut got = Vec::new();
        for chunk in sent.chunks(100_000) {
            backlog.tail().extend(chunk);
            backlog.flush(near.as_fd()).unwrap();
            let mut piece = vec![0; 70_000];
            far.read_exact(&mut piece).unwrap();
            got.extend(piece);
        }
        while !backlog.is_empty() {
            backlog.flush(near.as_fd()).unwrap();
            let mut piece = vec![0; 10_000.min(sent.len() - got.len())];
            far.read_exact(&mut piece).unwrap();
            got.extend(piece);
        }
        assert_eq!(backlog.bytes.capacity(), 0);
        drop(near);
        far.read_to_end(&mut got).unwrap();
        assert!(got == sent);
    }

    #[test]
    fn a_closed_socket_is_an_error_and_no_signal() {
        let (near, far) = UnixStream::pair().unwrap();
        drop(far);
        let mut backlog = Backlog::default();
        backlog.tail().extend(b"nobody");
        assert_eq!(backlog.flush(near.as_fd()).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(backlog.clear(), 6);
        assert!(backlog.is_empty());
    }
}
