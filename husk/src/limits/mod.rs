//! What the sandbox's cgroup holds it to, as it is asked for: named by the files of cgroup v2, whichever version the host has.
//!
//! Pure. Owns the names, the bounds of their values, and the rule that an option stands over the configuration. Refuses values
//! by name, value and what is allowed. Invariant: a [`Limits`] has each name once, `io.max` once a device.

mod device;
mod files;
mod live;
mod order;
mod value;

pub use device::Device;
pub(crate) use device::{DeviceError, Places, device_of, device_of_path, resolve};
pub(crate) use files::{File, Target, Version, files, legacy_name};
pub(crate) use live::Live;
pub(crate) use order::{Asked, OrderError, Ordered, order};

use crate::units;
use husk_protocol::spec::RawLimits;
use std::fmt;
use std::path::PathBuf;

/// What a rate of `io.max` may be.
const RATES: [&str; 4] = ["rbps", "wbps", "riops", "wiops"];

/// Which limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LimitName {
    /// `cpu.max`.
    CpuMax,
    /// `cpu.weight`.
    CpuWeight,
    /// `cpuset.cpus`.
    Cpus,
    /// `cpuset.mems`.
    Mems,
    /// `memory.max`.
    MemoryMax,
    /// `memory.high`.
    MemoryHigh,
    /// `memory.low`.
    MemoryLow,
    /// `memory.min`.
    MemoryMin,
    /// `memory.swap.max`.
    SwapMax,
    /// `pids.max`.
    PidsMax,
    /// `io.max`.
    IoMax,
    /// `io.weight`.
    IoWeight,
    /// `hugetlb.2MB.max`.
    HugetlbMax,
}

impl LimitName {
    const ALL: [Self; 13] = [
        Self::CpuMax,
        Self::CpuWeight,
        Self::Cpus,
        Self::Mems,
        Self::MemoryMax,
        Self::MemoryHigh,
        Self::MemoryLow,
        Self::MemoryMin,
        Self::SwapMax,
        Self::PidsMax,
        Self::IoMax,
        Self::IoWeight,
        Self::HugetlbMax,
    ];

    /// The file of cgroup v2.
    pub(crate) fn file(self) -> &'static str {
        match self {
            Self::CpuMax => "cpu.max",
            Self::CpuWeight => "cpu.weight",
            Self::Cpus => "cpuset.cpus",
            Self::Mems => "cpuset.mems",
            Self::MemoryMax => "memory.max",
            Self::MemoryHigh => "memory.high",
            Self::MemoryLow => "memory.low",
            Self::MemoryMin => "memory.min",
            Self::SwapMax => "memory.swap.max",
            Self::PidsMax => "pids.max",
            Self::IoMax => "io.max",
            Self::IoWeight => "io.weight",
            Self::HugetlbMax => "hugetlb.2MB.max",
        }
    }

    /// What a value may be.
    fn allowed(self) -> &'static str {
        match self {
            Self::CpuMax => {
                "a share of a CPU as 50%, CPUs as 1.5 (up to 8192) or max, with /PERIOD of 1ms to 1s (default 100ms) of which it is \
                 at least 1ms"
            }
            Self::CpuWeight | Self::IoWeight => "a whole number from 1 to 10000",
            Self::Cpus | Self::Mems => "numbers and ranges, as in 0,2-3",
            Self::MemoryMax | Self::MemoryHigh => "a size of 16M to 1048576G, with a unit, or max",
            Self::MemoryLow | Self::MemoryMin | Self::SwapMax | Self::HugetlbMax => {
                "0, a size of up to 1048576G, with a unit, or max"
            }
            Self::PidsMax => "a whole number from 1 to 4194304, or max",
            Self::IoMax => {
                "DRIVE:RATE,… with a drive's id or an absolute path, and rates of rbps=10M, wbps=10M, riops=500, wiops=500 or max"
            }
        }
    }
}

impl fmt::Display for LimitName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.file())
    }
}

/// What it is limited to. Where a number may be absent, that is no limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LimitValue {
    /// Microseconds of processor time in a period of so many.
    Cpu {
        /// Time in it.
        quota_us: Option<u64>,
        /// The period.
        period_us: u64,
    },
    /// A number, of bytes where it is memory.
    Number(Option<u64>),
    /// CPUs or nodes, as the kernel takes them.
    List(String),
    /// Rates of a device, in the order of [`RATES`]; one that is absent stays as it is.
    Io {
        /// Of what.
        of: IoDevice,
        /// How much.
        rates: [Option<Option<u64>>; 4],
    },
}

/// A device whose rates are limited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IoDevice {
    /// The one that a drive of the sandbox is on.
    Drive(String),
    /// The one that a file is on, or is.
    Path(PathBuf),
    /// Itself.
    Device(Device),
}

/// One limit, as `--limit` takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    /// Which.
    pub name: LimitName,
    /// How much.
    pub value: LimitValue,
}

/// Words that are no limit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// Not `NAME=VALUE`.
    #[error("{0:?} is not NAME=VALUE, as in cpu.max=50%")]
    Form(String),
    /// Not a name.
    #[error("{0:?} is no limit; {known} are", known = names())]
    Name(String),
    /// Not a value.
    #[error("{name} {value:?} is not allowed; {} is", name.allowed())]
    Value {
        /// Of which.
        name: LimitName,
        /// As given.
        value: String,
    },
    /// Given twice.
    #[error("{0} is given twice")]
    Twice(String),
    /// A vCPU has its place elsewhere.
    #[error("cpuset.cpus {cpus:?} is not allowed; a list with CPU {pinned}, to which a vCPU is pinned, is")]
    Pinned {
        /// As given.
        cpus: String,
        /// The vCPU's.
        pinned: u32,
    },
}

fn names() -> String {
    LimitName::ALL.map(LimitName::file).join(", ")
}

impl std::str::FromStr for Limit {
    type Err = LimitError;

    fn from_str(text: &str) -> Result<Self, LimitError> {
        let (name, value) = text.split_once('=').ok_or_else(|| LimitError::Form(crate::text::line(text)))?;
        Self::parse(name, value)
    }
}

impl Limit {
    /// The limit `name` with `text` as its value.
    pub(crate) fn parse(name: &str, text: &str) -> Result<Self, LimitError> {
        let found = LimitName::ALL.into_iter().find(|one| one.file() == name);
        let name = found.ok_or_else(|| LimitError::Name(crate::text::line(name)))?;
        let value = value::value(name, text)
            .ok_or_else(|| LimitError::Value { name, value: crate::text::line(text) })?;
        Ok(Self { name, value })
    }

    /// Whether both cannot stand side by side.
    fn is_same(&self, other: &Self) -> bool {
        let device = |limit: &Self| match &limit.value {
            LimitValue::Io { of, .. } => Some(of.clone()),
            _ => None,
        };
        self.name == other.name && device(self) == device(other)
    }
}

/// As it reads on a command line.
impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}=", self.name)?;
        let number = |number: Option<u64>| number.map_or_else(|| "max".to_owned(), |n| n.to_string());
        match &self.value {
            LimitValue::Cpu { quota_us, period_us } => write!(f, "{} {period_us}", number(*quota_us)),
            LimitValue::Number(value) => f.write_str(&number(*value)),
            LimitValue::List(list) => f.write_str(list),
            LimitValue::Io { of, rates } => {
                match of {
                    IoDevice::Drive(id) => f.write_str(id)?,
                    IoDevice::Path(path) => write!(f, "{}", path.display())?,
                    IoDevice::Device(device) => write!(f, "{device}")?,
                }
                let set = RATES.iter().zip(rates).filter_map(|(name, rate)| Some((name, (*rate)?)));
                for (index, (name, rate)) in set.enumerate() {
                    write!(f, "{}{name}={}", if index == 0 { ":" } else { "," }, number(rate))?;
                }
                Ok(())
            }
        }
    }
}

/// Limits, each once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Limits(Vec<Limit>);

impl Limits {
    /// What the configuration says.
    pub(crate) fn of(raw: &RawLimits) -> Result<Self, LimitError> {
        let all: Result<Vec<_>, _> =
            raw.words().into_iter().map(|(name, text)| Limit::parse(name, text)).collect();
        Self::once(all?)
    }

    /// `all`, if each stands there once.
    pub(crate) fn once(all: impl IntoIterator<Item = Limit>) -> Result<Self, LimitError> {
        let mut limits = Self::default();
        for limit in all {
            if limits.0.iter().any(|other| other.is_same(&limit)) {
                return Err(LimitError::Twice(limit.to_string()));
            }
            limits.0.push(limit);
        }
        Ok(limits)
    }

    /// These with `others` above them.
    pub(crate) fn under(mut self, others: &Self) -> Self {
        for limit in &others.0 {
            match self.0.iter_mut().find(|one| one.is_same(limit)) {
                Some(one) => replace(one, limit),
                None => self.0.push(limit.clone()),
            }
        }
        self
    }

    /// The cpuset of vCPUs that are pinned: their CPUs.
    pub(crate) fn of_pins(pinned: &[u32]) -> Self {
        let cpus: std::collections::BTreeSet<u32> = pinned.iter().copied().collect();
        let list: Vec<String> = cpus.iter().map(ToString::to_string).collect();
        let limit = Limit { name: LimitName::Cpus, value: LimitValue::List(list.join(",")) };
        Self((!pinned.is_empty()).then_some(limit).into_iter().collect())
    }

    /// Whether the CPUs, if they are limited, have those of `pinned` among them.
    pub(crate) fn check_pins(&self, pinned: &[u32]) -> Result<(), LimitError> {
        let Some(LimitValue::List(cpus)) = self.get(LimitName::Cpus) else { return Ok(()) };
        let list = units::cpu_list(cpus).unwrap_or_default();
        match pinned.iter().find(|cpu| !list.contains(cpu)) {
            Some(&pinned) => Err(LimitError::Pinned { cpus: cpus.clone(), pinned }),
            None => Ok(()),
        }
    }

    /// Without those that `keep` does not want.
    pub(crate) fn retain(&mut self, keep: impl FnMut(&Limit) -> bool) {
        self.0.retain(keep);
    }

    /// Each as it reads on a command line.
    pub(crate) fn texts(&self) -> Vec<String> {
        self.0.iter().map(ToString::to_string).collect()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Limit> {
        self.0.iter()
    }

    /// The value of `name`, if it is limited.
    pub(crate) fn get(&self, name: LimitName) -> Option<&LimitValue> {
        self.0.iter().find(|limit| limit.name == name).map(|limit| &limit.value)
    }

    /// The number of `name`, if it is limited to one.
    pub(crate) fn number(&self, name: LimitName) -> Option<u64> {
        match self.get(name) {
            Some(LimitValue::Number(number)) => *number,
            _ => None,
        }
    }
}

/// What `new` does not say of a device's rates stays.
fn replace(old: &mut Limit, new: &Limit) {
    match (&mut old.value, &new.value) {
        (LimitValue::Io { rates: old, .. }, LimitValue::Io { rates: new, .. }) => {
            for (old, new) in old.iter_mut().zip(new) {
                *old = new.or(*old);
            }
        }
        (old, new) => old.clone_from(new),
    }
}

#[cfg(test)]
mod tests;
