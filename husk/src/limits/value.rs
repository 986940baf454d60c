//! The values of limits as people write them, and as the kernel does.
//!
//! Pure. Refuses what is out of bounds; the caller says what is allowed. Invariant: a quota is at least the kernel's least in its
//! period, and no number is one that the kernel's arithmetic could wrap.

use super::{Device, IoDevice, LimitName, LimitValue, RATES};
use crate::units;

/// Bounds of `cpu.weight` and `io.weight`.
const WEIGHTS: std::ops::RangeInclusive<u64> = 1..=10_000;
/// The kernel's bounds of a period of `cpu.max`, in microseconds.
const PERIODS_US: std::ops::RangeInclusive<u64> = 1_000..=1_000_000;
/// Where nothing else is said.
const PERIOD_US: u64 = 100_000;
/// Least quota in a period that the kernel takes, in microseconds.
const LEAST_QUOTA_US: u64 = 1_000;
/// Most CPUs that Linux knows of.
const MOST_CPUS: u64 = 8_192;
/// The kernel's bound of process ids.
const MOST_PIDS: u64 = 1 << 22;
/// Least `memory.max` and `memory.high` in bytes: jailer and runtime do not start in less.
const LEAST_MEMORY: u64 = 16 << 20;
/// Most bytes of a limit: a PiB.
const MOST_BYTES: u64 = 1 << 50;
/// The value of `name` that `text` is, if it is one.
pub(super) fn value(name: LimitName, text: &str) -> Option<LimitValue> {
    let number = |least: u64, parsed: Option<u64>, most: u64| {
        parsed.filter(|number| (least..=most).contains(number)).map(|number| LimitValue::Number(Some(number)))
    };
    match name {
        LimitName::CpuMax => cpu_max(text),
        LimitName::CpuWeight | LimitName::IoWeight => {
            number(*WEIGHTS.start(), units::count(text).ok(), *WEIGHTS.end())
        }
        LimitName::Cpus | LimitName::Mems => {
            units::cpu_list(text).ok().map(|_| LimitValue::List(text.to_owned()))
        }
        LimitName::IoMax => io_max(text),
        _ if text == "max" => Some(LimitValue::Number(None)),
        LimitName::PidsMax => number(1, units::count(text).ok(), MOST_PIDS),
        LimitName::MemoryMax | LimitName::MemoryHigh => number(LEAST_MEMORY, bytes(text), MOST_BYTES),
        _ => number(0, bytes(text), MOST_BYTES),
    }
}

/// With a unit, or plain digits, as the kernel and [`Limit`]'s own text have them.
fn bytes(text: &str) -> Option<u64> {
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if plain { text.parse().ok() } else { units::bytes(text).ok() }
}

/// `50%`, `1.5`, `max`, each also with `/20ms`, or the kernel's `50000 100000`.
fn cpu_max(text: &str) -> Option<LimitValue> {
    let us = |text: &str| text.parse::<u64>().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()));
    let (quota_us, period_us) = if let Some((quota, period)) = text.split_once(' ') {
        (if quota == "max" { None } else { Some(us(quota)?) }, us(period)?)
    } else {
        let (share, period) = text.split_once('/').unwrap_or((text, ""));
        let period_us = if period.is_empty() && !text.contains('/') {
            PERIOD_US
        } else {
            u64::try_from(units::duration(period).ok().filter(|_| period.ends_with('s'))?.as_micros()).ok()?
        };
        (
            if share == "max" { None } else { Some(hundredths(share)?.checked_mul(period_us)? / 10_000) },
            period_us,
        )
    };
    let quota = quota_us.is_none_or(|quota| (LEAST_QUOTA_US..=MOST_CPUS * period_us).contains(&quota));
    (quota && PERIODS_US.contains(&period_us)).then_some(LimitValue::Cpu { quota_us, period_us })
}

/// Hundredths of a percent of a CPU, from `50%`, `12.5%` or `1.5`.
fn hundredths(text: &str) -> Option<u64> {
    let (digits, unit) = match text.strip_suffix('%') {
        Some(digits) => (digits, 100),
        None => (text, 10_000),
    };
    let (whole, part) = digits.split_once('.').unwrap_or((digits, "0"));
    let plain = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !plain(whole) || !plain(part) || part.len() > 4 {
        return None;
    }
    let scale = 10_u64.checked_pow(u32::try_from(part.len()).ok()?)?;
    let part = part.parse::<u64>().ok()? * unit / scale;
    whole.parse::<u64>().ok()?.checked_mul(unit)?.checked_add(part)
}

fn io_max(text: &str) -> Option<LimitValue> {
    let (of, words) = text.rsplit_once(':')?;
    let mut rates = [None; 4];
    for word in words.split(',') {
        let (name, amount) = word.split_once('=')?;
        let slot = RATES.iter().position(|one| *one == name).and_then(|index| rates.get_mut(index))?;
        let amount = match amount {
            "max" => None,
            _ => Some(bytes(amount).filter(|amount| (1..=MOST_BYTES).contains(amount))?),
        };
        if slot.replace(amount).is_some() {
            return None;
        }
    }
    let device = of
        .split_once(':')
        .and_then(|(major, minor)| Some(Device { major: major.parse().ok()?, minor: minor.parse().ok()? }));
    let of = match device {
        Some(device) => IoDevice::Device(device),
        None if of.starts_with('/') => IoDevice::Path(of.into()),
        None if of.is_empty() => return None,
        None => IoDevice::Drive(of.to_owned()),
    };
    Some(LimitValue::Io { of, rates })
}
