//! Where a device waits for its rate limiter.
//!
//! Owns a device's limiter and the timer that says when to go on. Refuses a request that the limiter has no tokens for, and
//! every look at the queue until then: a closed gate's worker wants the timer and nothing else of what it limits, so kicks
//! and frames wait where they are, and a storm of them costs nobody a cycle. Invariant: the tokens are the device's, not the
//! driver's: a reset brings no new ones.

use super::DeviceError;
use super::limiter::RateLimiter;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The shortest wait: a limiter wakes its thread at most 4,000 times a second, and each time lets through what has come. A
/// quarter of the shortest time in which a bucket fills, so nothing of note runs over meanwhile.
const SHORTEST_WAIT: Duration = Duration::from_micros(250);

/// A device's limiter, for as long as the device is there.
#[derive(Debug)]
pub struct Limit {
    limiter: Mutex<RateLimiter>,
    /// The limiter's time 0.
    start: Instant,
    timer: OwnedFd,
}

impl Limit {
    /// The limiter, whose time starts now. Makes a descriptor.
    ///
    /// # Errors
    /// No descriptor can be made.
    pub fn new(limiter: RateLimiter) -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        Ok(Self { limiter: Mutex::new(limiter), start: Instant::now(), timer })
    }

    fn wait(&self, bytes: u64) -> Duration {
        let now = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let mut limiter = self.limiter.lock().unwrap_or_else(PoisonError::into_inner);
        Duration::from_nanos(limiter.wait(now, bytes))
    }

    fn take(&self, bytes: u64) {
        self.limiter.lock().unwrap_or_else(PoisonError::into_inner).take(bytes);
    }

    fn arm(&self, wait: Duration) -> io::Result<()> {
        let wait = wait.max(SHORTEST_WAIT);
        let value = Timespec {
            // Fewer seconds than 2^64 ns have.
            tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: wait.subsec_nanos().into(),
        };
        let time = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        Ok(timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &time).map(drop)?)
    }
}

/// One worker's way through a device's limiter; open at first.
#[derive(Debug)]
pub(super) struct Gate {
    limit: Arc<Limit>,
    open: bool,
}

impl Gate {
    pub(super) fn new(limit: Arc<Limit>) -> Self {
        Self { limit, open: true }
    }

    /// The timer, which is readable when a closed gate can open.
    pub(super) fn timer(&self) -> RawFd {
        self.limit.timer.as_raw_fd()
    }

    /// Whether an operation of `bytes` bytes may go on now. If not, the gate is closed until its timer has rung.
    pub(super) fn admits(&mut self, bytes: u64) -> Result<bool, DeviceError> {
        let wait = self.limit.wait(bytes);
        self.open = wait.is_zero();
        if !self.open {
            self.limit.arm(wait).map_err(DeviceError::host("setting a rate limiter's timer"))?;
        }
        Ok(self.open)
    }

    /// An operation has moved `bytes` bytes, whatever was said before.
    pub(super) fn took(&self, bytes: u64) {
        self.limit.take(bytes);
    }

    /// An operation that was paid for has moved `bytes` bytes more.
    pub(super) fn took_more(&self, bytes: u64) {
        self.limit.limiter.lock().unwrap_or_else(PoisonError::into_inner).take_bytes(bytes);
    }

    /// The timer has rung.
    pub(super) fn rang(&mut self) {
        // It fails only where it was armed again meanwhile; the worker then asks, and waits, once more.
        let _ = rustix::io::read(&self.limit.timer, &mut [0; 8]);
        self.open = true;
    }
}

/// Whether a worker's way is free; it always is where nothing limits it.
pub(super) fn is_open(gate: Option<&Gate>) -> bool {
    gate.is_none_or(|gate| gate.open)
}

#[cfg(test)]
pub(super) mod tests;
