//! Quantities as people write them: sizes, durations, CPU lists, signals.
//!
//! Pure. Refuses what has no unit where the unit matters, and what does not fit. Every error names the value and what
//! is allowed.

use std::time::Duration;

/// Longest time limit that is accepted: 366 days.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

/// Why a quantity is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UnitError {
    /// Not a size.
    #[error("a size is a whole number and a unit, K, M or G, as in 128M; not {0:?}")]
    Size(String),
    /// A size that is not whole MiB.
    #[error("{0} is not a whole number of MiB")]
    Fraction(String),
    /// Not a number, or none at all.
    #[error("a number a second is a whole one, and at least 1; not {0:?}")]
    Count(String),
    /// Not a duration.
    #[error("a duration is a number and a unit, ms, s, m or h, as in 30s; not {0:?}")]
    Duration(String),
    /// A duration out of bounds.
    #[error("{0} is out of range; from 1ms to 366 days are allowed")]
    DurationRange(String),
    /// Not a CPU list.
    #[error("a CPU list is numbers and ranges, as in 0,2-3; not {0:?}")]
    Cpus(String),
    /// No signal.
    #[error("{0:?} is no signal; names as in TERM or SIGTERM and numbers from 1 to 64 are allowed")]
    Signal(String),
}

/// A memory size in MiB, from `128M`, `1G`, `131072K`.
///
/// # Errors
/// No unit, not a number, or not whole MiB.
pub(crate) fn memory_mib(text: &str) -> Result<u64, UnitError> {
    let total = kib(text).ok_or_else(|| UnitError::Size(text.to_owned()))?;
    if total % 1024 == 0 { Ok(total / 1024) } else { Err(UnitError::Fraction(text.to_owned())) }
}

/// Bytes, at least one, from `64K`, `10M`, `1G`.
///
/// # Errors
/// No unit, not a number, none at all, or more than a `u64`.
pub(crate) fn bytes(text: &str) -> Result<u64, UnitError> {
    let bytes = kib(text).filter(|&kib| kib > 0).and_then(|kib| kib.checked_mul(1024));
    bytes.ok_or_else(|| UnitError::Size(text.to_owned()))
}

/// A number of things, at least one.
///
/// # Errors
/// Not a number, 0, or more than a `u64`.
pub(crate) fn count(text: &str) -> Result<u64, UnitError> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse().ok().filter(|&number| digits && number > 0);
    number.ok_or_else(|| UnitError::Count(text.to_owned()))
}

/// The KiB of a size.
fn kib(text: &str) -> Option<u64> {
    let plain = text.strip_suffix("iB").or_else(|| text.strip_suffix('B')).unwrap_or(text);
    let (digits, unit) = plain.split_at_checked(plain.len().saturating_sub(1))?;
    let kib: u64 = match unit {
        "K" | "k" => 1,
        "M" | "m" => 1 << 10,
        "G" | "g" => 1 << 20,
        _ => return None,
    };
    let number = digits.parse::<u64>().ok().filter(|_| digits.bytes().all(|b| b.is_ascii_digit()));
    number?.checked_mul(kib)
}

/// A duration, from `30s`, `500ms`, `1.5m`, `2h`; a bare number is seconds.
///
/// # Errors
/// Not a number, an unknown unit, or out of range.
pub(crate) fn duration(text: &str) -> Result<Duration, UnitError> {
    let wrong = || UnitError::Duration(text.to_owned());
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let scale = match unit {
        "ms" => 0.001,
        "s" | "" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return Err(wrong()),
    };
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let out_of_range = || UnitError::DurationRange(text.to_owned());
    let duration = Duration::try_from_secs_f64(number * scale).map_err(|_| out_of_range())?;
    if duration < Duration::from_millis(1) || duration > LONGEST { Err(out_of_range()) } else { Ok(duration) }
}

/// CPU numbers in the order given, from `0,2-3`; at most 1024 of them.
///
/// # Errors
/// Not a list, a backward range, or too many.
pub(crate) fn cpu_list(text: &str) -> Result<Vec<u32>, UnitError> {
    let wrong = || UnitError::Cpus(text.to_owned());
    let number = |part: &str| {
        let digits = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        part.parse::<u32>().ok().filter(|&n| digits && n < 8192).ok_or_else(wrong)
    };
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let (first, last) = match part.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(part)?, number(part)?),
        };
        if first > last || cpus.len() > 1024 {
            return Err(wrong());
        }
        cpus.extend(first..=last);
    }
    if cpus.len() > 1024 { Err(wrong()) } else { Ok(cpus) }
}

/// Names of the signals that have the same number on every architecture that Husk runs on.
const SIGNALS: [(&str, i32); 22] = [
    ("HUP", libc::SIGHUP),
    ("INT", libc::SIGINT),
    ("QUIT", libc::SIGQUIT),
    ("ILL", libc::SIGILL),
    ("TRAP", libc::SIGTRAP),
    ("ABRT", libc::SIGABRT),
    ("BUS", libc::SIGBUS),
    ("FPE", libc::SIGFPE),
    ("KILL", libc::SIGKILL),
    ("USR1", libc::SIGUSR1),
    ("SEGV", libc::SIGSEGV),
    ("USR2", libc::SIGUSR2),
    ("PIPE", libc::SIGPIPE),
    ("ALRM", libc::SIGALRM),
    ("TERM", libc::SIGTERM),
    ("CHLD", libc::SIGCHLD),
    ("CONT", libc::SIGCONT),
    ("STOP", libc::SIGSTOP),
    ("TSTP", libc::SIGTSTP),
    ("XCPU", libc::SIGXCPU),
    ("WINCH", libc::SIGWINCH),
    ("SYS", libc::SIGSYS),
];

/// A signal's number, from `TERM`, `SIGTERM`, `15`.
///
/// # Errors
/// No such signal.
pub(crate) fn signal(text: &str) -> Result<i32, UnitError> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    SIGNALS
        .iter()
        .find(|(known, _)| *known == name)
        .map(|&(_, number)| number)
        .or_else(|| text.parse().ok().filter(|number| (1..=64).contains(number)))
        .ok_or_else(|| UnitError::Signal(text.to_owned()))
}

/// What a signal is called, as in `SIGTERM`; `signal 42` if it has no name here.
#[must_use]
pub(crate) fn signal_name(number: i32) -> String {
    SIGNALS
        .iter()
        .find(|&&(_, known)| known == number)
        .map_or_else(|| format!("signal {number}"), |(name, _)| format!("SIG{name}"))
}

/// Nanoseconds for people: three significant digits and a unit.
#[must_use]
pub(crate) fn human_ns(ns: u64) -> String {
    let (unit, name) = match ns {
        0..1_000 => return format!("{ns} ns"),
        1_000..1_000_000 => (1_000, "µs"),
        1_000_000..1_000_000_000 => (1_000_000, "ms"),
        _ => (1_000_000_000, "s"),
    };
    let (whole, thousandths) = (ns / unit, ns % unit * 1000 / unit);
    match whole {
        0..10 => format!("{whole}.{:02} {name}", thousandths / 10),
        10..100 => format!("{whole}.{} {name}", thousandths / 100),
        _ => format!("{whole} {name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_need_a_unit_and_whole_mib() {
        assert_eq!(memory_mib("128M"), Ok(128));
        assert_eq!(memory_mib("2G"), Ok(2048));
        assert_eq!(memory_mib("2GiB"), Ok(2048));
        assert_eq!(memory_mib("131072K"), Ok(128));
        assert_eq!(memory_mib("1500K"), Err(UnitError::Fraction("1500K".into())));
        for wrong in
            ["", "M", "128", "-1M", "1.5G", "x", "99999999999999999999G", "18446744073709551615G", "1 M", "ä"]
        {
            assert_eq!(memory_mib(wrong), Err(UnitError::Size(wrong.into())), "{wrong}");
        }
    }

    #[test]
    fn durations_have_units_and_bounds() {
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("30"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("1.5m"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("2h"), Ok(Duration::from_secs(7200)));
        for wrong in ["", "s", "5x", "-1s", "1..2s", "inf", "NaN"] {
            assert_eq!(duration(wrong), Err(UnitError::Duration(wrong.into())), "{wrong}");
        }
        for far in ["0", "0s", "99999999999h"] {
            assert_eq!(duration(far), Err(UnitError::DurationRange(far.into())), "{far}");
        }
    }

    #[test]
    fn cpu_lists_are_numbers_and_ranges() {
        assert_eq!(cpu_list("0,2-4"), Ok(vec![0, 2, 3, 4]));
        for wrong in ["", ",", "1,", "3-1", "a", "-1", "1-", "0-9999999", "+1"] {
            assert_eq!(cpu_list(wrong), Err(UnitError::Cpus(wrong.into())), "{wrong}");
        }
    }

    #[test]
    fn signals_have_names_and_numbers() {
        assert_eq!(signal("TERM"), Ok(15));
        assert_eq!(signal("sigint"), Ok(2));
        assert_eq!(signal("9"), Ok(9));
        assert_eq!(signal_name(9), "SIGKILL");
        for wrong in ["", "0", "65", "NOPE", "-9"] {
            assert_eq!(signal(wrong), Err(UnitError::Signal(wrong.into())), "{wrong}");
        }
    }

    #[test]
    fn times_are_printed_with_three_digits() {
        assert_eq!(human_ns(999), "999 ns");
        assert_eq!(human_ns(1_234_567), "1.23 ms");
        assert_eq!(human_ns(45_678_000_000), "45.6 s");
        assert_eq!(human_ns(456_789), "456 µs");
    }
}
