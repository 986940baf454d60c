use super::*;

const MS: u64 = NANOS_PER_MS;
const DAY_MS: u32 = 86_400_000;

fn bucket(size: u64, burst: u64, refill_ms: u32) -> TokenBucket {
    TokenBucket::new(NonZeroU64::new(size).unwrap(), burst, NonZeroU32::new(refill_ms).unwrap())
}

/// Takes if that is allowed now; else says how long it has to wait.
fn attempt(bucket: &mut TokenBucket, now: u64, tokens: u64) -> u64 {
    let wait = bucket.wait(now, tokens);
    if wait == 0 {
        bucket.take(tokens);
    }
    wait
}

#[test]
fn a_full_bucket_gives_its_size_and_then_at_its_rate() {
    let mut bucket = bucket(1000, 0, 100);
    assert_eq!(attempt(&mut bucket, 0, 600), 0);
    assert_eq!(attempt(&mut bucket, 0, 400), 0);
    assert_eq!(attempt(&mut bucket, 0, 0), 0, "nothing is free");
    assert_eq!(attempt(&mut bucket, 0, 1), MS / 10, "10 tokens come in a millisecond");
    assert_eq!(attempt(&mut bucket, 0, 1000), 100 * MS);
    assert_eq!(attempt(&mut bucket, 10 * MS, 101), MS / 10);
    assert_eq!(attempt(&mut bucket, 10 * MS, 100), 0);
    assert_eq!(attempt(&mut bucket, 10 * MS, 1), MS / 10);
}

#[test]
fn it_holds_no_more_than_its_size_however_long_it_waits() {
    let mut bucket = bucket(50, 0, 10);
    for now in [0, 3600 * 1000 * MS, u64::MAX] {
        assert_eq!(attempt(&mut bucket, now, 50), 0);
        assert_eq!(attempt(&mut bucket, now, 1), MS / 5);
    }
}

#[test]
fn the_burst_goes_first_and_once() {
    let mut bucket = bucket(10, 100, 10);
    assert_eq!(attempt(&mut bucket, 0, 60), 0);
    assert_eq!(attempt(&mut bucket, 0, 45), 0, "40 of the burst and 5 of the bucket");
    assert_eq!(attempt(&mut bucket, 0, 5), 0);
    assert_eq!(attempt(&mut bucket, 0, 1), MS);
    assert_eq!(attempt(&mut bucket, 1000 * MS, 11), 0, "a full bucket and a debt of 1");
    assert_eq!(attempt(&mut bucket, 1000 * MS, 1), 2 * MS);
}

#[test]
fn more_than_it_holds_waits_for_a_full_bucket_and_leaves_a_debt() {
    let mut bucket = bucket(10, 0, 10);
    assert_eq!(attempt(&mut bucket, 0, 4), 0);
    assert_eq!(attempt(&mut bucket, 0, 1_000), 4 * MS, "until it is full, no longer");
    assert_eq!(attempt(&mut bucket, 4 * MS, 1_000), 0);
    assert_eq!(attempt(&mut bucket, 4 * MS, 0), 990 * MS, "nothing before the debt is paid");
    assert_eq!(attempt(&mut bucket, 4 * MS, 10), 1_000 * MS);
    assert_eq!(attempt(&mut bucket, 994 * MS, 0), 0);
    assert_eq!(attempt(&mut bucket, 994 * MS, 1), MS);
}

#[test]
fn no_fraction_of_a_token_is_lost_or_won() {
    // 3 tokens in 7 ms, asked for at each nanosecond that is not a multiple of anything.
    let mut bucket = bucket(3, 0, 7);
    bucket.take(3);
    let (mut now, mut taken) = (0, 0_u64);
    while now < 700_000 * MS {
        now += 1_999_993;
        while attempt(&mut bucket, now, 1) == 0 {
            taken += 1;
        }
    }
    assert_eq!(taken, now * 3 / (7 * MS));
}

#[test]
fn a_clock_that_goes_back_brings_nothing() {
    let mut bucket = bucket(10, 0, 10);
    assert_eq!(attempt(&mut bucket, 50 * MS, 10), 0);
    assert_eq!(attempt(&mut bucket, 20 * MS, 1), MS);
    assert_eq!(attempt(&mut bucket, 50 * MS, 1), MS);
    assert_eq!(attempt(&mut bucket, 51 * MS, 1), 0);
}

#[test]
fn the_largest_numbers_neither_wrap_nor_panic() {
    for refill in [1, DAY_MS, u32::MAX] {
        for size in [1, 2, u64::MAX - 1, u64::MAX] {
            for burst in [0, 1, u64::MAX] {
                let mut bucket = bucket(size, burst, refill);
                for tokens in [0, 1, u64::MAX, u64::MAX] {
                    bucket.take(tokens);
                    assert!(bucket.level <= bucket.grains(size));
                }
                let wait = bucket.wait(0, u64::MAX);
                assert!(wait > 0, "all of it was taken");
                if wait < u64::MAX {
                    assert_eq!(bucket.wait(wait - 1, u64::MAX), 1);
                    assert_eq!(bucket.wait(wait, u64::MAX), 0);
                }
                (0..5_000).for_each(|_| bucket.take(u64::MAX));
                assert!(bucket.wait(0, 1) > 0 && bucket.level < 0);
                bucket.wait(u64::MAX, 1);
                assert!(bucket.level <= bucket.grains(size));
            }
        }
    }
    let mut slow = bucket(1, 0, u32::MAX);
    slow.take(u64::MAX);
    assert_eq!(slow.wait(0, 1), u64::MAX, "longer than can be said is the longest that can be");
}

/// The same bucket by the definition: every grant on record, nothing computed in steps.
struct Model {
    size: u128,
    refill: u128,
    burst: u128,
    /// When the bucket was last full, and what was taken since, in tokens.
    full: u128,
    taken: u128,
}

impl Model {
    fn new(size: u64, burst: u64, refill_ms: u32) -> Self {
        let refill = u128::from(refill_ms) * u128::from(MS);
        Self { size: size.into(), refill, burst: burst.into(), full: 0, taken: 0 }
    }

    /// Whether the bucket is full at `now`: what came is not less than what was taken.
    fn is_full(&self, now: u64) -> bool {
        (u128::from(now) - self.full) * self.size >= self.taken * self.refill
    }

    /// Whether `tokens` may be taken at `now`: then what was taken is not more than what was there and came.
    fn admits(&self, now: u64, tokens: u64) -> bool {
        let wanted = u128::from(tokens).saturating_sub(self.burst).min(self.size);
        let come = (u128::from(now) - self.full) * self.size;
        self.is_full(now) || (self.taken + wanted) * self.refill <= self.size * self.refill + come
    }

    fn take(&mut self, now: u64, tokens: u64) {
        if self.is_full(now) {
            (self.full, self.taken) = (now.into(), 0);
        }
        let once = self.burst.min(tokens.into());
        self.burst -= once;
        self.taken += u128::from(tokens) - once;
    }
}

/// A generator of numbers that look random and are the same in each run (xorshift).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % most
    }

    /// Of any order of magnitude up to 2^`bits`.
    fn any(&mut self, bits: u64) -> u64 {
        let bits = self.below(bits) + 1;
        self.below(1 << bits)
    }
}

#[test]
fn any_course_of_events_agrees_with_the_definition() {
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    let (mut granted, mut refused) = (0, 0);
    for _ in 0..2_000 {
        let (size, burst) = (numbers.any(40) + 1, numbers.any(20));
        let refill = u32::try_from(numbers.any(26) + 1).unwrap();
        let (mut bucket, mut model) = (bucket(size, burst, refill), Model::new(size, burst, refill));
        let mut now = 0;
        for _ in 0..200 {
            now += numbers.any(36);
            let tokens = match numbers.below(4) {
                0 => numbers.any(41),
                _ => numbers.below(size + 2),
            };
            let wait = bucket.wait(now, tokens);
            assert_eq!(wait == 0, model.admits(now, tokens), "{bucket:?} {tokens}");
            if wait == 0 {
                granted += 1;
            } else {
                refused += 1;
                // A debt that time itself cannot pay ends the course.
                let Some(then) = now.checked_add(wait).filter(|then| *then < 1 << 62) else { break };
                assert!(!model.admits(then - 1, tokens), "{bucket:?}: {wait} is too long for {tokens}");
                assert!(model.admits(then, tokens), "{bucket:?}: {wait} is too short for {tokens}");
                // Often the wait is waited, else something else comes first.
                if numbers.below(3) > 0 {
                    continue;
                }
                now = then;
                assert_eq!(bucket.wait(now, tokens), 0);
            }
            bucket.take(tokens);
            model.take(now, tokens);
        }
    }
    assert!(granted > 10_000 && refused > 10_000, "{granted} {refused}");
}

#[test]
fn a_limiter_waits_for_both_and_takes_from_both() {
    let mut limiter = RateLimiter::new(Some(bucket(1000, 0, 100)), Some(bucket(2, 0, 10)));
    assert_eq!(limiter.wait(0, 900), 0);
    limiter.take(900);
    assert_eq!(limiter.wait(0, 100), 0);
    assert_eq!(limiter.wait(0, 200), 10 * MS, "the bytes are missing");
    limiter.take(0);
    assert_eq!(limiter.wait(0, 0), 5 * MS, "the operation is missing");
    assert_eq!(limiter.wait(0, 200), 10 * MS, "the longer wait counts");
    assert_eq!(limiter.wait(5 * MS, 0), 0);
    let mut nothing = RateLimiter::new(None, None);
    nothing.take(u64::MAX);
    assert_eq!(nothing.wait(0, u64::MAX), 0);
    let mut bytes = RateLimiter::new(Some(bucket(10, 0, 10)), None);
    bytes.take(11);
    assert_eq!(bytes.wait(0, 0), MS);
}
