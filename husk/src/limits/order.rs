//! The limits of a sandbox that starts: what is asked for over what every sandbox has, in the words of the jailer.
//!
//! Pure but for a look at the drives' files. Refuses, strictly, what this host's cgroups do not have. Invariant: what is told of
//! the sandbox's limits is what the jailer was told.

use super::{DeviceError, Limit, LimitError, LimitName, Limits, Places, device_of, files, resolve};
use crate::cgroup::Hierarchies;
use crate::options::Options;
use husk_protocol::control::Fault;
use husk_protocol::spec::{FileRef, RawSpec};
use std::os::fd::OwnedFd;

/// What is asked for cannot be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OrderError {
    /// An option.
    #[error("--limit {0}")]
    Option(LimitError),
    /// A key.
    #[error("config: limits: {0}")]
    Config(LimitError),
    /// A device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Not with this host's cgroups.
    #[error("limit {name}: {why} (or --isolation best-effort: without it)")]
    Never {
        /// Which.
        name: LimitName,
        /// Why not.
        why: &'static str,
    },
}

impl OrderError {
    /// Who is at fault.
    #[must_use]
    pub(crate) fn fault(&self) -> Fault {
        Fault::Operator
    }
}

/// What a sandbox is asked to be held to, and where its drives are.
#[derive(Debug)]
pub(crate) struct Asked {
    /// The options' limits over the configuration's, of devices.
    pub(crate) limits: Limits,
    /// The drives' devices.
    pub(crate) drives: Places,
    /// CPUs that the vCPUs are pinned to.
    pub(crate) pinned: Vec<u32>,
}

impl Asked {
    /// Of the machine `spec`, whose files are `files`; `base` is the configuration.
    pub(crate) fn of(
        options: &Options,
        base: &RawSpec,
        spec: &RawSpec,
        files: &[OwnedFd],
    ) -> Result<Self, OrderError> {
        let configured = base.limits.as_ref().map(Limits::of).transpose().map_err(OrderError::Config)?;
        let given = Limits::once(options.limits.iter().cloned()).map_err(OrderError::Option)?;
        let drives = places(spec, files);
        let limits = resolve(&configured.unwrap_or_default().under(&given), &drives)?;
        let pinned = spec.placement.as_ref().map(|placement| placement.pin.clone()).unwrap_or_default();
        limits.check_pins(&pinned).map_err(OrderError::Option)?;
        Ok(Self { limits, drives, pinned })
    }
}

/// The devices of the machine's drives, whose files are among `files`.
fn places(spec: &RawSpec, files: &[OwnedFd]) -> Places {
    let device = |file: &FileRef| match file {
        FileRef::Fd(place) => {
            let file = files.get(usize::try_from(*place).ok()?)?;
            device_of(&rustix::fs::fstat(file).ok()?)
        }
        FileRef::Path(_) => None,
    };
    spec.drives.iter().map(|drive| (drive.drive_id.clone(), device(&drive.path_on_host))).collect()
}

/// Limits in the jailer's words.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Ordered {
    /// As they will stand.
    pub(crate) limits: Limits,
    /// `FILE=VALUE`, or `FILE?=VALUE` for what the host may not offer.
    pub(crate) words: Vec<String>,
    /// What this host's cgroups do not have, and why.
    pub(crate) without: Vec<(LimitName, &'static str)>,
}

/// `asked` over `defaults`, on a host with `hierarchies`.
pub(crate) fn order(hierarchies: &Hierarchies, defaults: Limits, asked: &Limits) -> Ordered {
    let mut ordered = Ordered { limits: defaults.under(asked), ..Ordered::default() };
    let all = ordered.limits.clone();
    ordered.limits.retain(|limit| match files(limit, &all, |name| hierarchies.version_of(name)) {
        Ok(found) => {
            let sign = if may_be_left_out(limit, asked) { "?=" } else { "=" };
            ordered.words.extend(found.into_iter().map(|file| format!("{}{sign}{}", file.name, file.value)));
            true
        }
        Err(why) => {
            ordered.without.push((limit.name, why));
            false
        }
    });
    ordered
}

fn may_be_left_out(limit: &Limit, asked: &Limits) -> bool {
    asked.get(limit.name).is_none() && Hierarchies::may_do_without(limit.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_stands_over_the_defaults_and_must_be_there() {
        let hierarchies = Hierarchies::default();
        let asked = |words: &[&str]| Limits::once(words.iter().map(|word| word.parse().unwrap())).unwrap();
        let defaults = || Hierarchies::defaults(128, true, 1, [1, 0, 0]);
        let plain = order(&hierarchies, defaults(), &Limits::default());
        assert_eq!(plain.words[1..], ["memory.swap.max?=0", "pids.max=18", "hugetlb.2MB.max?=134217728"]);
        let ordered =
            order(&hierarchies, defaults(), &asked(&["memory.swap.max=0", "memory.max=64M", "cpu.max=1"]));
        let expected = [
            "memory.max=67108864",
            "memory.swap.max=0",
            "pids.max=18",
            "hugetlb.2MB.max?=134217728",
            "cpu.max=100000 100000",
        ];
        assert_eq!((ordered.words, ordered.without), (expected.map(str::to_owned).into(), vec![]));
    }

    #[test]
    fn what_version_one_has_not_is_named() {
        let line = "34 23 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let hierarchies = Hierarchies::parse(line, "husk".into());
        let asked = Limits::once(["memory.high=64M".parse().unwrap()]).unwrap();
        let ordered = order(&hierarchies, Limits::default(), &asked);
        assert_eq!((ordered.words.len(), ordered.limits.texts().len()), (0, 0));
        assert_eq!(ordered.without[0].0, LimitName::MemoryHigh);
    }
}
