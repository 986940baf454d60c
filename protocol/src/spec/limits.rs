//! The key `limits`, Husk's own: what the sandbox's cgroup holds it to, whichever version of cgroups the host has.
//!
//! Raw: a limit is named as the file of cgroup v2 that it goes to, and its value is text or a whole number, as `--limit` of
//! `husk run` takes it; what the values mean husk says, and the runtime never hears of them. Source of the names: the kernel's
//! Documentation/admin-guide/cgroup-v2.rst.

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;

/// Limits of a sandbox; one that is absent is husk's to choose.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawLimits {
    /// Processor time: `50%` of a CPU, `1.5` CPUs or `max`, and `/20ms` for another period.
    #[serde(rename = "cpu.max", skip_serializing_if = "Option::is_none")]
    pub cpu_max: Option<RawLimit>,
    /// Share of the processor beside others that want it, 1 to 10000.
    #[serde(rename = "cpu.weight", skip_serializing_if = "Option::is_none")]
    pub cpu_weight: Option<RawLimit>,
    /// CPUs, as in `0,2-3`.
    #[serde(rename = "cpuset.cpus", skip_serializing_if = "Option::is_none")]
    pub cpuset_cpus: Option<RawLimit>,
    /// NUMA nodes, as in `0`.
    #[serde(rename = "cpuset.mems", skip_serializing_if = "Option::is_none")]
    pub cpuset_mems: Option<RawLimit>,
    /// Most memory of guest and runtime.
    #[serde(rename = "memory.max", skip_serializing_if = "Option::is_none")]
    pub memory_max: Option<RawLimit>,
    /// Memory above which the sandbox is slowed down and reclaimed from.
    #[serde(rename = "memory.high", skip_serializing_if = "Option::is_none")]
    pub memory_high: Option<RawLimit>,
    /// Memory that is reclaimed only when nothing else is to be had.
    #[serde(rename = "memory.low", skip_serializing_if = "Option::is_none")]
    pub memory_low: Option<RawLimit>,
    /// Memory that is never reclaimed.
    #[serde(rename = "memory.min", skip_serializing_if = "Option::is_none")]
    pub memory_min: Option<RawLimit>,
    /// Most swap.
    #[serde(rename = "memory.swap.max", skip_serializing_if = "Option::is_none")]
    pub memory_swap_max: Option<RawLimit>,
    /// Most processes and threads on the host.
    #[serde(rename = "pids.max", skip_serializing_if = "Option::is_none")]
    pub pids_max: Option<RawLimit>,
    /// Rates of block devices, each `DRIVE:rbps=10M,wiops=100`.
    #[serde(rename = "io.max", skip_serializing_if = "Vec::is_empty")]
    pub io_max: Vec<String>,
    /// Share of block devices beside others that want them, 1 to 10000.
    #[serde(rename = "io.weight", skip_serializing_if = "Option::is_none")]
    pub io_weight: Option<RawLimit>,
    /// Most memory of huge pages of 2 MiB.
    #[serde(rename = "hugetlb.2MB.max", skip_serializing_if = "Option::is_none")]
    pub hugetlb_2mb_max: Option<RawLimit>,
}

impl RawLimits {
    /// Each limit as its name and its value.
    #[must_use]
    pub fn words(&self) -> Vec<(&'static str, &str)> {
        let single = [
            ("cpu.max", &self.cpu_max),
            ("cpu.weight", &self.cpu_weight),
            ("cpuset.cpus", &self.cpuset_cpus),
            ("cpuset.mems", &self.cpuset_mems),
            ("memory.max", &self.memory_max),
            ("memory.high", &self.memory_high),
            ("memory.low", &self.memory_low),
            ("memory.min", &self.memory_min),
            ("memory.swap.max", &self.memory_swap_max),
            ("pids.max", &self.pids_max),
            ("io.weight", &self.io_weight),
            ("hugetlb.2MB.max", &self.hugetlb_2mb_max),
        ];
        let single = single.into_iter().filter_map(|(name, value)| Some((name, value.as_ref()?.0.as_str())));
        single.chain(self.io_max.iter().map(|text| ("io.max", text.as_str()))).collect()
    }
}

/// A limit's value: text, or a whole number, which is taken as its digits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RawLimit(pub String);

impl<'de> Deserialize<'de> for RawLimit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Word;
        impl Visitor<'_> for Word {
            type Value = RawLimit;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a limit: a string or a whole number")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<RawLimit, E> {
                Ok(RawLimit(text.to_owned()))
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<RawLimit, E> {
                Ok(RawLimit(number.to_string()))
            }
        }
        deserializer.deserialize_any(Word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_named_as_files_of_cgroup_v2() {
        let read = |text: &str| serde_json::from_str::<RawLimits>(text).map_err(|error| error.to_string());
        let text = r#"{"cpu.max":"50%","pids.max":"64","io.max":["data:rbps=1M","x:wiops=9"]}"#;
        let limits = read(text).unwrap();
        let words =
            [("cpu.max", "50%"), ("pids.max", "64"), ("io.max", "data:rbps=1M"), ("io.max", "x:wiops=9")];
        assert_eq!(limits.words(), words);
        assert_eq!(serde_json::to_string(&limits).unwrap(), text);
        assert_eq!(read(r#"{"pids.max": 64}"#).unwrap().pids_max, Some(RawLimit("64".into())));
        for (wrong, word) in [
            (r#"{"cpu.mox": 1}"#, "unknown field `cpu.mox`"),
            (r#"{"pids.max": 1, "pids.max": 2}"#, "duplicate field `pids.max`"),
            (r#"{"pids.max": -1}"#, "a string or a whole number"),
            (r#"{"pids.max": 1.5}"#, "a string or a whole number"),
            (r#"{"io.max": "x"}"#, "expected a sequence"),
        ] {
            let error = read(wrong).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }
}
