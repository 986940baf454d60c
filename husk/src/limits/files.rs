//! From limits to the files of a host's hierarchies.
//!
//! Pure. Owns the translation to cgroup v1: names, units, and the shares that the OCI runtime specification's implementations
//! make of a weight. Refuses, by name, what v1 has no file for. Invariant: the files of one limit stand together, in the order
//! in which the kernel takes them.

use super::{IoDevice, Limit, LimitName, LimitValue, Limits, RATES};

/// Of cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    /// A hierarchy a controller.
    One,
    /// One for all.
    Two,
}

/// A file of the sandbox's cgroup and what is written into it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct File {
    /// In whose hierarchy, if the controllers have one each.
    pub(crate) target: Target,
    /// Its name.
    pub(crate) name: String,
    /// What is written.
    pub(crate) value: String,
}

/// A controller, in the words of one version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) version: Version,
    pub(crate) controller: &'static str,
}

/// The names that version 1 has for a controller: block devices' is another.
pub(crate) fn legacy_name(controller: &'static str) -> &'static str {
    if controller == "io" { "blkio" } else { controller }
}

/// The controller of a limit, as version 2 calls it.
fn controller(name: LimitName) -> &'static str {
    name.file().split_once('.').map_or(name.file(), |(controller, _)| controller)
}

/// The files of one of `all` limits, where `version` says what has a controller; the error is why there are none.
pub(crate) fn files(
    limit: &Limit,
    all: &Limits,
    version: impl Fn(&'static str) -> Version,
) -> Result<Vec<File>, &'static str> {
    let controller = controller(limit.name);
    match version(controller) {
        Version::Two => {
            let target = Target { version: Version::Two, controller };
            Ok(vec![File { target, name: limit.name.file().to_owned(), value: unified(&limit.value) }])
        }
        Version::One => {
            let target = Target { version: Version::One, controller: legacy_name(controller) };
            let file = |(name, value): (&str, String)| File { target, name: name.to_owned(), value };
            Ok(legacy(limit, all)?.into_iter().map(file).collect())
        }
    }
}

fn unified(value: &LimitValue) -> String {
    let number = |number: Option<u64>| number.map_or_else(|| "max".to_owned(), |n| n.to_string());
    match value {
        LimitValue::Cpu { quota_us, period_us } => format!("{} {period_us}", number(*quota_us)),
        LimitValue::Number(value) => number(*value),
        LimitValue::List(list) => list.clone(),
        LimitValue::Io { of, rates } => {
            let set = RATES.iter().zip(rates).filter_map(|(name, rate)| Some((name, (*rate)?)));
            set.fold(device(of), |line, (name, rate)| format!("{line} {name}={}", number(rate)))
        }
    }
}

fn device(of: &IoDevice) -> String {
    match of {
        IoDevice::Device(device) => device.to_string(),
        // Resolved before: a line without a device is refused by the kernel.
        IoDevice::Drive(_) | IoDevice::Path(_) => String::new(),
    }
}

fn legacy(limit: &Limit, all: &Limits) -> Result<Vec<(&'static str, String)>, &'static str> {
    // What has no limit is -1 there.
    let number = |number: Option<u64>| number.map_or_else(|| "-1".to_owned(), |n| n.to_string());
    let plain = |file, value: &LimitValue| match value {
        LimitValue::Number(value) => vec![(file, number(*value))],
        other => vec![(file, unified(other))],
    };
    Ok(match (limit.name, &limit.value) {
        (_, LimitValue::Cpu { quota_us, period_us }) => {
            vec![("cpu.cfs_period_us", period_us.to_string()), ("cpu.cfs_quota_us", number(*quota_us))]
        }
        (LimitName::CpuWeight, LimitValue::Number(weight)) => {
            vec![("cpu.shares", shares(weight.unwrap_or(100)).to_string())]
        }
        (LimitName::Cpus, value) => plain("cpuset.cpus", value),
        (LimitName::Mems, value) => plain("cpuset.mems", value),
        (LimitName::MemoryMax, value) => plain("memory.limit_in_bytes", value),
        (LimitName::MemoryLow, value) => plain("memory.soft_limit_in_bytes", value),
        (LimitName::SwapMax, LimitValue::Number(swap)) => {
            let both =
                all.number(LimitName::MemoryMax).zip(*swap).map(|(memory, swap)| memory.saturating_add(swap));
            vec![("memory.memsw.limit_in_bytes", number(both))]
        }
        (LimitName::PidsMax, value) => vec![("pids.max", unified(value))],
        (LimitName::HugetlbMax, value) => plain("hugetlb.2MB.limit_in_bytes", value),
        (LimitName::IoMax, LimitValue::Io { of, rates }) => throttle(&device(of), rates),
        (LimitName::MemoryHigh, _) => {
            return Err("cgroup v1 slows nobody down at a limit of memory; memory.max holds there");
        }
        (LimitName::MemoryMin, _) => {
            return Err(
                "cgroup v1 keeps memory for nobody; memory.low (memory.soft_limit_in_bytes) comes nearest",
            );
        }
        (LimitName::IoWeight, _) => {
            return Err("cgroup v1 has weights with some I/O schedulers only; io.max holds there");
        }
        (LimitName::CpuMax | LimitName::CpuWeight | LimitName::SwapMax | LimitName::IoMax, _) => {
            return Err("its value is of another limit");
        }
    })
}

/// No limit is 0 there.
fn throttle(device: &str, rates: &[Option<Option<u64>>; 4]) -> Vec<(&'static str, String)> {
    const FILES: [&str; 4] = [
        "blkio.throttle.read_bps_device",
        "blkio.throttle.write_bps_device",
        "blkio.throttle.read_iops_device",
        "blkio.throttle.write_iops_device",
    ];
    let set = FILES.into_iter().zip(rates).filter_map(|(file, rate)| Some((file, (*rate)?)));
    set.map(|(file, rate)| (file, format!("{device} {}", rate.unwrap_or(0)))).collect()
}

/// `cpu.shares` (2 to 262144) of a weight (1 to 10000): the inverse of the line by which runc and crun make weights of shares,
/// weight = 1 + (shares - 2) * 9999 / 262142.
fn shares(weight: u64) -> u64 {
    2 + weight.saturating_sub(1).saturating_mul(262_142) / 9_999
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(words: &[&str]) -> Limits {
        Limits::once(words.iter().map(|word| word.parse().unwrap())).unwrap()
    }

    fn lines(words: &[&str], version: Version) -> Vec<String> {
        let limits = all(words);
        let found = limits.iter().flat_map(|limit| files(limit, &limits, |_| version).unwrap());
        found.map(|file| format!("{}:{}={}", file.target.controller, file.name, file.value)).collect()
    }

    const ASKED: [&str; 10] = [
        "cpu.max=50%/20ms",
        "cpu.weight=10000",
        "cpuset.cpus=0,2-3",
        "memory.max=64M",
        "memory.low=32M",
        "memory.swap.max=16M",
        "pids.max=max",
        "io.max=7:0:rbps=1M,wiops=max",
        "hugetlb.2MB.max=4M",
        "cpuset.mems=0",
    ];

    #[test]
    fn version_two_has_a_file_for_each() {
        let expected = [
            "cpu:cpu.max=10000 20000",
            "cpu:cpu.weight=10000",
            "cpuset:cpuset.cpus=0,2-3",
            "memory:memory.max=67108864",
            "memory:memory.low=33554432",
            "memory:memory.swap.max=16777216",
            "pids:pids.max=max",
            "io:io.max=7:0 rbps=1048576 wiops=max",
            "hugetlb:hugetlb.2MB.max=4194304",
            "cpuset:cpuset.mems=0",
        ];
        assert_eq!(lines(&ASKED, Version::Two), expected);
        assert_eq!(lines(&["memory.high=16M", "memory.min=0", "io.weight=5"], Version::Two).len(), 3);
    }

    #[test]
    fn version_one_has_other_names_and_units() {
        let expected = [
            "cpu:cpu.cfs_period_us=20000",
            "cpu:cpu.cfs_quota_us=10000",
            "cpu:cpu.shares=262144",
            "cpuset:cpuset.cpus=0,2-3",
            "memory:memory.limit_in_bytes=67108864",
            "memory:memory.soft_limit_in_bytes=33554432",
            "memory:memory.memsw.limit_in_bytes=83886080",
            "pids:pids.max=max",
            "blkio:blkio.throttle.read_bps_device=7:0 1048576",
            "blkio:blkio.throttle.write_iops_device=7:0 0",
            "hugetlb:hugetlb.2MB.limit_in_bytes=4194304",
            "cpuset:cpuset.mems=0",
        ];
        assert_eq!(lines(&ASKED, Version::One), expected);
        let open = ["cpu.max=max", "cpu.weight=1", "memory.max=max", "memory.swap.max=0"];
        let expected = [
            "cpu:cpu.cfs_period_us=100000",
            "cpu:cpu.cfs_quota_us=-1",
            "cpu:cpu.shares=2",
            "memory:memory.limit_in_bytes=-1",
            "memory:memory.memsw.limit_in_bytes=-1",
        ];
        assert_eq!(lines(&open, Version::One), expected);
    }

    #[test]
    fn what_version_one_cannot_do_has_a_reason() {
        let limits = all(&["memory.high=16M", "memory.min=1M", "io.weight=5"]);
        for limit in limits.iter() {
            let why = files(limit, &limits, |_| Version::One).unwrap_err();
            assert!(why.starts_with("cgroup v1 "), "{why}");
        }
    }
}
