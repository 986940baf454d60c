//! What a card's wire ends in: a tap, or a stream to a process that is the network.
//!
//! Owns the one or the other. Refuses nothing. Invariant: which of them it is stays as it was made; what is asked about the
//! other's ways has an answer that changes nothing.

use super::stream::Stream;
use super::tap::Tap;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

#[derive(Debug)]
pub(super) enum Wire {
    Tap(Tap),
    /// Locked by the device thread for each frame, and by a vCPU that reads the link's status.
    Stream(Mutex<Stream>),
}

pub(super) fn lock(stream: &Mutex<Stream>) -> MutexGuard<'_, Stream> {
    stream.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Wire {
    fn stream(&self) -> Option<MutexGuard<'_, Stream>> {
        match self {
            Self::Tap(_) => None,
            Self::Stream(stream) => Some(lock(stream)),
        }
    }

    /// A descriptor for each of its queues, readable when there is something to receive.
    pub(super) fn descriptors(&self) -> Vec<RawFd> {
        match self {
            Self::Tap(tap) => (0..tap.queues()).map(|number| tap.queue(number).as_raw_fd()).collect(),
            Self::Stream(stream) => vec![lock(stream).peer.socket()],
        }
    }

    /// How many queues it has.
    pub(super) fn queues(&self) -> usize {
        match self {
            Self::Tap(tap) => tap.queues(),
            Self::Stream(_) => 1,
        }
    }

    /// What is readable when half a frame can go on, if it ever has to.
    pub(super) fn room(&self) -> Option<RawFd> {
        self.stream().map(|stream| stream.peer.room())
    }

    /// Whether the other end is gone, for good. A tap that is gone fails the device instead.
    pub(super) fn is_dead(&self) -> bool {
        self.stream().is_some_and(|stream| stream.peer.is_dead())
    }

    /// Whether half a frame has to go before another. Not if nobody is there to take it.
    pub(super) fn is_full(&self) -> bool {
        self.stream().is_some_and(|stream| stream.peer.is_full() && !stream.peer.is_dead())
    }

    /// Whether a frame is here that the descriptor does not tell of.
    pub(super) fn has_frame(&self) -> bool {
        self.stream().is_some_and(|stream| stream.has_frame())
    }

    /// Goes on with half a frame.
    pub(super) fn flush(&self) {
        if let Some(mut stream) = self.stream() {
            stream.peer.flush();
        }
    }
}
