//! How much a device may do in a time: token buckets.
//!
//! Owns arithmetic alone: no clock (the time is an argument, in nanoseconds since whenever the caller likes), no floating
//! point, no rounding that adds up. Refuses nothing: it says how long to wait, and what is taken without waiting becomes a
//! debt. Invariant: in any span of time no more is let through than the span brings, plus the bucket's size, what is left
//! of the one-time burst, and the one request that a full bucket was too small for, whose debt is paid before the next.

use std::num::{NonZeroU32, NonZeroU64};

const NANOS_PER_MS: u64 = 1_000_000;

/// A bucket that fills evenly and is full at time 0.
#[derive(Debug, Clone)]
pub struct TokenBucket {
    /// Tokens that it holds; also the grains that come in a nanosecond.
    size: u64,
    /// Nanoseconds in which `size` tokens come; also the grains that a token is made of. So a nanosecond brings a whole
    /// number of grains, and below 2^64 tokens of less than 2^52 grains fit an `i128` many times over.
    refill: u64,
    /// Grains in it, at most `size * refill`; below zero: a debt.
    level: i128,
    /// Tokens that are there once, and go first.
    burst: u64,
    /// Until when `level` has been filled, in nanoseconds.
    filled: u64,
}

impl TokenBucket {
    /// A bucket of `size` tokens that fills in `refill_ms` milliseconds, with `burst` tokens more that are there once.
    #[must_use]
    pub fn new(size: NonZeroU64, burst: u64, refill_ms: NonZeroU32) -> Self {
        let (size, refill) = (size.get(), u64::from(refill_ms.get()) * NANOS_PER_MS);
        Self { size, refill, level: i128::from(size) * i128::from(refill), burst, filled: 0 }
    }

    /// Nanoseconds from `now` until `tokens` may be taken; 0: now. More than the bucket holds may be taken once it is full,
    /// or nobody could ever ask for so much. No tokens at all wait only for a debt.
    pub fn wait(&mut self, now: u64, tokens: u64) -> u64 {
        self.fill(now);
        let wanted = tokens.saturating_sub(self.burst).min(self.size);
        let missing = u128::try_from(self.grains(wanted).saturating_sub(self.level)).unwrap_or(0);
        u64::try_from(missing.div_ceil(self.size.into())).unwrap_or(u64::MAX)
    }

    /// Takes `tokens`, those of the burst first; what the bucket lacks becomes its debt.
    pub fn take(&mut self, tokens: u64) {
        let once = tokens.min(self.burst);
        self.burst -= once;
        self.level = self.level.saturating_sub(self.grains(tokens - once));
    }

    /// A clock that goes back brings nothing.
    fn fill(&mut self, now: u64) {
        let come = i128::from(now.saturating_sub(self.filled)).saturating_mul(self.size.into());
        self.filled = self.filled.max(now);
        self.level = self.level.saturating_add(come).min(self.grains(self.size));
    }

    fn grains(&self, tokens: u64) -> i128 {
        i128::from(tokens) * i128::from(self.refill)
    }
}

/// A bucket of bytes and one of operations; what is absent limits nothing.
#[derive(Debug, Clone)]
pub struct RateLimiter {
    bytes: Option<TokenBucket>,
    operations: Option<TokenBucket>,
}

impl RateLimiter {
    /// Both have to be waited for.
    #[must_use]
    pub fn new(bytes: Option<TokenBucket>, operations: Option<TokenBucket>) -> Self {
        Self { bytes, operations }
    }

    /// Nanoseconds from `now` until one operation of `bytes` bytes may go on; 0: now.
    pub fn wait(&mut self, now: u64, bytes: u64) -> u64 {
        let operations = self.operations.as_mut().map_or(0, |bucket| bucket.wait(now, 1));
        operations.max(self.bytes.as_mut().map_or(0, |bucket| bucket.wait(now, bytes)))
    }

    /// One operation of `bytes` bytes went on, whether or not it was waited for.
    pub fn take(&mut self, bytes: u64) {
        if let Some(bucket) = &mut self.operations {
            bucket.take(1);
        }
        if let Some(bucket) = &mut self.bytes {
            bucket.take(bytes);
        }
    }

    /// `bytes` bytes more have moved for an operation that went on before.
    pub fn take_bytes(&mut self, bytes: u64) {
        if let Some(bucket) = &mut self.bytes {
            bucket.take(bytes);
        }
    }
}

#[cfg(test)]
mod tests;
