//! The bounds of rate limiters, checked where the configuration's own places in its lists are still known: the machine that
//! is made from it has the root first.
//!
//! Pure. Refuses a bucket that takes longer to fill than the runtime takes. Invariant: the key is the configuration's.

use super::PlanError;
use husk_protocol::spec::{MAX_REFILL_MS, RawRateLimiter, RawSpec};

/// Whether each bucket of the configuration `base` can be.
pub(super) fn check(base: &RawSpec) -> Result<(), PlanError> {
    for (index, drive) in base.drives.iter().enumerate() {
        limiter(drive.rate_limiter, || format!("drives[{index}].rate_limiter"))?;
    }
    for (index, card) in base.network_interfaces.iter().enumerate() {
        let key = |name: &str| format!("network-interfaces[{index}].{name}");
        limiter(card.rx_rate_limiter, || key("rx_rate_limiter"))?;
        limiter(card.tx_rate_limiter, || key("tx_rate_limiter"))?;
    }
    let entropy = base.entropy.as_ref().and_then(|entropy| entropy.rate_limiter);
    limiter(entropy, || "entropy.rate_limiter".to_owned())
}

fn limiter(raw: Option<RawRateLimiter>, key: impl Fn() -> String) -> Result<(), PlanError> {
    let Some(raw) = raw else { return Ok(()) };
    for (name, bucket) in [("bandwidth", raw.bandwidth), ("ops", raw.ops)] {
        if let Some(bucket) = bucket.filter(|bucket| bucket.refill_time > MAX_REFILL_MS) {
            let key = format!("{}.{name}.refill_time", key());
            return Err(PlanError::Refill { key, value: bucket.refill_time });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use husk_protocol::spec::{RawDrive, RawEntropy, RawNetwork, RawTokenBucket};

    #[test]
    fn a_bucket_is_named_by_its_place_in_the_configuration() {
        let limiter = |refill_time| {
            let ops = Some(RawTokenBucket { size: 1, one_time_burst: None, refill_time });
            Some(RawRateLimiter { bandwidth: None, ops })
        };
        let spec = |drive, receive, transmit, entropy| {
            let root = crate::plan::tests::drive("root", true);
            let drive = RawDrive { rate_limiter: limiter(drive), ..crate::plan::tests::drive("x", false) };
            let card = RawNetwork {
                rx_rate_limiter: limiter(receive),
                tx_rate_limiter: limiter(transmit),
                ..RawNetwork::default()
            };
            RawSpec {
                drives: vec![root, drive],
                network_interfaces: vec![card],
                entropy: Some(RawEntropy { rate_limiter: limiter(entropy) }),
                ..RawSpec::default()
            }
        };
        let most = MAX_REFILL_MS;
        check(&spec(most, most, most, most)).unwrap();
        let over = most + 1;
        for (wrong, key) in [
            (spec(over, 0, 0, 0), "drives[1].rate_limiter"),
            (spec(0, over, 0, 0), "network-interfaces[0].rx_rate_limiter"),
            (spec(0, 0, over, 0), "network-interfaces[0].tx_rate_limiter"),
            (spec(0, 0, 0, over), "entropy.rate_limiter"),
        ] {
            let text = check(&wrong).unwrap_err().to_string();
            let start = format!("config: {key}.ops.refill_time 86400001 is out of range; 0 to 86400000 ms");
            assert!(text.starts_with(&start), "{text}");
        }
    }
}
