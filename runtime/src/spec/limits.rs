//! Rate limiters as they are asked for.
//!
//! Invariant: as for the other parts: private fields, one constructor, which is where the rules are. A bucket that limits
//! nothing is no bucket, and a limiter without one is no limiter.

use super::SpecError;
use husk_protocol::spec::{MAX_REFILL_MS, RawRateLimiter, RawTokenBucket};
use std::num::{NonZeroU32, NonZeroU64};

/// How much a device may do in a time. One bucket at least is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimiterSpec {
    bandwidth: Option<BucketSpec>,
    operations: Option<BucketSpec>,
}

impl LimiterSpec {
    /// The limiter under `key`, if it limits anything.
    pub(super) fn new(raw: Option<RawRateLimiter>, key: &str) -> Result<Option<Self>, SpecError> {
        let Some(raw) = raw else { return Ok(None) };
        let bandwidth = BucketSpec::new(raw.bandwidth, key, "bandwidth")?;
        let operations = BucketSpec::new(raw.ops, key, "ops")?;
        Ok((bandwidth.is_some() || operations.is_some()).then_some(Self { bandwidth, operations }))
    }

    /// The bucket of bytes.
    #[must_use]
    pub fn bandwidth(&self) -> Option<BucketSpec> {
        self.bandwidth
    }

    /// The bucket of operations.
    #[must_use]
    pub fn operations(&self) -> Option<BucketSpec> {
        self.operations
    }
}

/// One bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BucketSpec {
    size: NonZeroU64,
    burst: u64,
    refill_ms: NonZeroU32,
}

impl BucketSpec {
    /// As by Firecracker, a bucket without size, or that fills in no time, limits nothing.
    fn new(raw: Option<RawTokenBucket>, key: &str, name: &str) -> Result<Option<Self>, SpecError> {
        let Some(raw) = raw else { return Ok(None) };
        let bounded = u32::try_from(raw.refill_time).ok().filter(|_| raw.refill_time <= MAX_REFILL_MS);
        let refill_ms = bounded.ok_or_else(|| SpecError::OutOfRange {
            key: format!("{key}.{name}.refill_time"),
            value: raw.refill_time,
            allowed: format!("0 to {MAX_REFILL_MS} ms, a day (0: no limit)"),
        })?;
        let burst = raw.one_time_burst.unwrap_or(0);
        let both = NonZeroU64::new(raw.size).zip(NonZeroU32::new(refill_ms));
        Ok(both.map(|(size, refill_ms)| Self { size, burst, refill_ms }))
    }

    /// Tokens that it holds.
    #[must_use]
    pub fn size(&self) -> NonZeroU64 {
        self.size
    }

    /// Tokens on top of it that are there once.
    #[must_use]
    pub fn burst(&self) -> u64 {
        self.burst
    }

    /// Milliseconds in which it fills, at most a day.
    #[must_use]
    pub fn refill_ms(&self) -> NonZeroU32 {
        self.refill_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(size: u64, refill_time: u64) -> Option<RawTokenBucket> {
        Some(RawTokenBucket { size, one_time_burst: Some(7), refill_time })
    }

    #[test]
    fn what_limits_nothing_is_no_limiter() {
        assert_eq!(LimiterSpec::new(None, "x"), Ok(None));
        for nothing in [None, bucket(0, 0), bucket(0, 100), bucket(100, 0)] {
            let raw = RawRateLimiter { bandwidth: nothing, ops: nothing };
            assert_eq!(LimiterSpec::new(Some(raw), "x"), Ok(None));
            let raw = RawRateLimiter { bandwidth: nothing, ops: bucket(5, 100) };
            let limiter = LimiterSpec::new(Some(raw), "x").unwrap().unwrap();
            assert_eq!(limiter.bandwidth(), None);
            let ops = limiter.operations().unwrap();
            assert_eq!((ops.size().get(), ops.burst(), ops.refill_ms().get()), (5, 7, 100));
        }
    }

    #[test]
    fn a_bucket_fills_within_a_day() {
        let limiter = |refill| {
            let raw = RawRateLimiter { bandwidth: bucket(1, 1), ops: bucket(u64::MAX, refill) };
            LimiterSpec::new(Some(raw), "drives[3].rate_limiter").map_err(|error| error.to_string())
        };
        assert_eq!(limiter(86_400_000).unwrap().unwrap().operations().unwrap().size().get(), u64::MAX);
        for refill in [86_400_001, 1 << 32, (1 << 32) + 5, u64::MAX] {
            let error = limiter(refill).unwrap_err();
            let start =
                format!("drives[3].rate_limiter.ops.refill_time: {refill} is not allowed; allowed is");
            assert!(error.starts_with(&start) && error.contains("0 to 86400000 ms"), "{error}");
        }
    }
}
