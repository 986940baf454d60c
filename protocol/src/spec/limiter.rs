//! The keys of a rate limiter, as Firecracker names them; the same for drives, network cards, the entropy device and volumes.

use serde::{Deserialize, Serialize};

/// Longest time in which a bucket fills, in milliseconds: a day.
pub const MAX_REFILL_MS: u64 = 24 * 60 * 60 * 1000;

/// How much a device may do in a time; a bucket that is absent limits nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawRateLimiter {
    /// Tokens are bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<RawTokenBucket>,
    /// Tokens are operations: a drive's or entropy device's requests, a card's frames, a volume's messages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ops: Option<RawTokenBucket>,
}

/// A bucket that is full at first and fills evenly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawTokenBucket {
    /// Tokens that it holds; 0: no limit.
    pub size: u64,
    /// Tokens on top of it that are there once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub one_time_burst: Option<u64>,
    /// Milliseconds in which an empty bucket fills; 0: no limit.
    pub refill_time: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_and_refill_time_are_needed_as_by_firecracker() {
        let read =
            |text: &str| serde_json::from_str::<RawRateLimiter>(text).map_err(|error| error.to_string());
        let text =
            r#"{"bandwidth":{"size":1,"one_time_burst":2,"refill_time":3},"ops":{"size":4,"refill_time":5}}"#;
        let limiter = read(text).unwrap();
        assert_eq!(
            limiter.bandwidth,
            Some(RawTokenBucket { size: 1, one_time_burst: Some(2), refill_time: 3 })
        );
        assert_eq!(limiter.ops, Some(RawTokenBucket { size: 4, one_time_burst: None, refill_time: 5 }));
        assert_eq!(serde_json::to_string(&limiter).unwrap(), text);
        assert_eq!(read(r#"{"bandwidth": null}"#).unwrap(), RawRateLimiter::default());
        assert_eq!(serde_json::to_string(&RawRateLimiter::default()).unwrap(), "{}");
        for (wrong, word) in [
            (r#"{"ops": {"size": 1}}"#, "missing field `refill_time`"),
            (r#"{"ops": {"refill_time": 1}}"#, "missing field `size`"),
            (r#"{"ops": {"size": 1, "refill_time": 1, "burst": 1}}"#, "unknown field `burst`"),
            (r#"{"bytes": {"size": 1, "refill_time": 1}}"#, "unknown field `bytes`"),
            (r#"{"ops": {"size": -1, "refill_time": 1}}"#, "integer `-1`"),
            (r#"{"ops": {"size": 18446744073709551616, "refill_time": 1}}"#, "expected u64"),
        ] {
            let error = read(wrong).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }
}
