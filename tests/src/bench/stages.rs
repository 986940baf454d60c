//! The stages of one cold run of husk, read from its result object.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

/// When each stage was passed, in nanoseconds since the process was started.
pub type Stamps = BTreeMap<String, u64>;

/// `CLOCK_MONOTONIC` in nanoseconds.
#[must_use]
pub fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or_default() * 1_000_000_000
        + u64::try_from(now.tv_nsec).unwrap_or_default()
}

/// Runs husk once and reads its stages.
///
/// # Errors
/// husk fails or prints no result object: one line.
pub fn cold_run(husk: &str, options: &[&str], command: &[&str]) -> Result<Stamps, String> {
    let started = now_ns();
    let output = Command::new(husk)
        .args(["run", "--json"])
        .args(options)
        .arg("--")
        .args(command)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{husk}: {error}"))?;
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        return Err(format!("{husk} run {options:?}: {}: {stderr}", output.status));
    }
    let line = stderr.lines().last().unwrap_or_default();
    let result: serde_json::Value =
        serde_json::from_str(line).map_err(|error| format!("no result object ({error}): {stderr}"))?;
    let base = result["started_ns"].as_u64().ok_or(format!("no started_ns in {line}"))?;
    let mut stamps = Stamps::from([("process".to_owned(), 0)]);
    for stage in result["stages"].as_array().into_iter().flatten() {
        if let (Some(name), Some(at)) = (stage["stage"].as_str(), stage["at_ns"].as_u64()) {
            stamps.insert(name.to_owned(), (base + at).saturating_sub(started));
        }
    }
    Ok(stamps)
}

/// What lies between two stages, in the median of several runs.
#[must_use]
pub fn between(runs: &[Stamps], from: &str, to: &str) -> Option<u64> {
    let mut spans: Vec<u64> =
        runs.iter().filter_map(|run| Some(run.get(to)?.saturating_sub(*run.get(from)?))).collect();
    spans.sort_unstable();
    spans.get(spans.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_a_span_is_taken_run_by_run() {
        let run = |a: u64, b: u64| Stamps::from([("a".to_owned(), a), ("b".to_owned(), b)]);
        let runs = [run(0, 10), run(5, 7), run(100, 105)];
        assert_eq!(between(&runs, "a", "b"), Some(5));
        assert_eq!(between(&runs, "a", "c"), None);
    }
}
