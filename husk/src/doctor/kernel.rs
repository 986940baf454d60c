//! The kernel: what it denies cells, what it tells strangers, and who may build a cell.
//!
//! Refuses nothing. Invariant: a setting's verdict depends on its value alone, by one row of [`SETTINGS`].

use super::files::{Reading, Root};
use super::{Check, Verdict};
use crate::sys::probe;
use husk_protocol::control::{LANDLOCK_ABI, Landlock};
use std::io;

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct User {
    pub(super) uid: u32,
}

impl User {
    pub(super) fn current() -> Self {
        Self { uid: rustix::process::geteuid().as_raw() }
    }

    pub(super) fn is_root(self) -> bool {
        self.uid == 0
    }
}

/// A number below /proc/sys, and what its values mean.
struct Setting {
    name: &'static str,
    path: &'static str,
    /// The lowest value of each verdict, the highest first.
    verdicts: &'static [(i64, Verdict)],
    why: &'static str,
    mend: &'static str,
}

const LOWEST: i64 = i64::MIN;

const SETTINGS: &[Setting] = &[
    Setting {
        name: "aslr",
        path: "proc/sys/kernel/randomize_va_space",
        verdicts: &[(2, Verdict::Ok), (1, Verdict::Degraded), (LOWEST, Verdict::Unsafe)],
        why: "a runtime at addresses that a guest can guess is easier to take over",
        mend: "sysctl -w kernel.randomize_va_space=2",
    },
    Setting {
        name: "unprivileged bpf",
        path: "proc/sys/kernel/unprivileged_bpf_disabled",
        verdicts: &[(1, Verdict::Ok), (LOWEST, Verdict::Degraded)],
        why: "programs that any user may put into the kernel help to read its memory; cells cannot (their filters)",
        mend: "sysctl -w kernel.unprivileged_bpf_disabled=1",
    },
    Setting {
        name: "perf events",
        path: "proc/sys/kernel/perf_event_paranoid",
        verdicts: &[(2, Verdict::Ok), (0, Verdict::Note), (LOWEST, Verdict::Degraded)],
        why: "counters that any user may read tell what guests on the same processor do; cells cannot (their filters)",
        mend: "sysctl -w kernel.perf_event_paranoid=2",
    },
    Setting {
        name: "io_uring",
        path: "proc/sys/kernel/io_uring_disabled",
        verdicts: &[(1, Verdict::Ok), (LOWEST, Verdict::Note)],
        why: "a part of the kernel with a long list of holes is open to every user of the host",
        mend: "sysctl -w kernel.io_uring_disabled=1",
    },
    Setting {
        name: "ptrace",
        path: "proc/sys/kernel/yama/ptrace_scope",
        verdicts: &[(1, Verdict::Ok), (LOWEST, Verdict::Note)],
        why: "a process may look into another of the same user; a runtime forbids it for itself and has a user of its own",
        mend: "sysctl -w kernel.yama.ptrace_scope=1",
    },
    Setting {
        name: "kernel addresses",
        path: "proc/sys/kernel/kptr_restrict",
        verdicts: &[(1, Verdict::Ok), (LOWEST, Verdict::Note)],
        why: "where the kernel lies in memory helps who attacks it; cells have no /proc",
        mend: "sysctl -w kernel.kptr_restrict=1",
    },
    Setting {
        name: "kernel log",
        path: "proc/sys/kernel/dmesg_restrict",
        verdicts: &[(1, Verdict::Ok), (LOWEST, Verdict::Note)],
        why: "the kernel's log tells every user of the host about guests' faults and the kernel's addresses",
        mend: "sysctl -w kernel.dmesg_restrict=1",
    },
];

impl Setting {
    fn judge(&self, reading: &Reading) -> Check {
        let found = reading.shown();
        let Some(value) = reading.number() else {
            return Check::new(self.name, Verdict::Note, found, self.why);
        };
        let verdict = self
            .verdicts
            .iter()
            .find(|(from, _)| value >= *from)
            .map_or(Verdict::Note, |(_, verdict)| *verdict);
        let key = self.path.strip_prefix("proc/sys/").unwrap_or(self.path).replace('/', ".");
        Check::new(self.name, verdict, format!("{key} = {found}"), self.why).mend_unless_ok(self.mend)
    }
}

/// What files say.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    release: Reading,
    seccomp: Reading,
    core_pattern: Reading,
    /// `user.max_user_namespaces`, Debian's switch, AppArmor's.
    namespaces: [Reading; 3],
    settings: Vec<Reading>,
}

impl Facts {
    pub(super) fn collect(root: &Root) -> Self {
        Self {
            release: root.read("proc/sys/kernel/osrelease"),
            seccomp: root.read("proc/sys/kernel/seccomp/actions_avail"),
            core_pattern: root.read("proc/sys/kernel/core_pattern"),
            namespaces: [
                root.read("proc/sys/user/max_user_namespaces"),
                root.read("proc/sys/kernel/unprivileged_userns_clone"),
                root.read("proc/sys/kernel/apparmor_restrict_unprivileged_userns"),
            ],
            settings: SETTINGS.iter().map(|setting| root.read(setting.path)).collect(),
        }
    }

    pub(super) fn judge(&self, user: &User) -> Vec<Check> {
        let mut checks = vec![
            self.release(),
            privileges(*user),
            self.user_namespaces(user),
            self.seccomp(),
            self.core_dumps(),
        ];
        checks.extend(SETTINGS.iter().zip(&self.settings).map(|(setting, reading)| setting.judge(reading)));
        checks
    }

    fn release(&self) -> Check {
        const WHY: &str = "from 5.14 on the kernel has all that a cell uses (clone3 into a group, landlock, populated memory)";
        let text = self.release.shown();
        let mut numbers = text.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
        match (numbers.next(), numbers.next()) {
            (Some(major), Some(minor)) if (major, minor) >= (5, 14) => {
                Check::new("kernel", Verdict::Ok, text, WHY)
            }
            (Some(_), Some(_)) => Check::new("kernel", Verdict::Degraded, text, WHY)
                .mend("run a newer kernel (Debian 12's is 6.1)"),
            _ => Check::new("kernel", Verdict::Note, text, WHY),
        }
    }

    /// What cells of ordinary users are made of.
    fn user_namespaces(&self, user: &User) -> Check {
        const WHY: &str = "every cell has one; without root it is what makes the others, and any user who may make one reaches \
                           more of the kernel";
        let name = "user namespaces";
        let [most, debian, apparmor] = &self.namespaces;
        let others = if user.is_root() { Verdict::Note } else { Verdict::Unusable };
        let no = |verdict, found: &str, mend: &str| Check::new(name, verdict, found, WHY).mend(mend);
        match (most.number(), debian.number(), apparmor.number()) {
            (None, ..) => Check::new(name, Verdict::Note, most.shown(), WHY),
            (Some(0), ..) => no(
                Verdict::Unusable,
                "none (user.max_user_namespaces = 0)",
                "sysctl -w user.max_user_namespaces=15000, or husk run --isolation best-effort",
            ),
            (_, Some(0), _) => no(
                others,
                "root's only (kernel.unprivileged_userns_clone = 0)",
                "sysctl -w kernel.unprivileged_userns_clone=1",
            ),
            (_, _, Some(1..)) => no(
                others,
                "without rights in them (kernel.apparmor_restrict_unprivileged_userns = 1)",
                "an AppArmor profile for husk-jailer with: userns,",
            ),
            (Some(count), ..) => Check::new(name, Verdict::Ok, format!("up to {count}, for every user"), WHY),
        }
    }

    fn seccomp(&self) -> Check {
        const WHY: &str = "every thread of a runtime runs behind a filter, and does not start without";
        let Some(text) = self.seccomp.text() else {
            return Check::new("seccomp", Verdict::Unusable, self.seccomp.shown(), WHY)
                .mend("run a kernel with CONFIG_SECCOMP_FILTER");
        };
        let lacks: Vec<&str> = ["trap", "kill_process", "allow"]
            .into_iter()
            .filter(|action| !text.split_ascii_whitespace().any(|word| word == *action))
            .collect();
        if lacks.is_empty() {
            return Check::new("seccomp", Verdict::Ok, text, WHY);
        }
        Check::new("seccomp", Verdict::Unusable, format!("without {}", lacks.join(" ")), WHY)
            .mend("run a kernel of 4.14 or later")
    }

    fn core_dumps(&self) -> Check {
        const WHY: &str =
            "runtimes may not dump core (limit 0, not dumpable), so no guest's memory takes this way";
        let verdict = if self.core_pattern.text().is_some() { Verdict::Ok } else { Verdict::Note };
        let found = match self.core_pattern.text() {
            Some(pattern) if pattern.starts_with('|') => format!("to a program ({pattern})"),
            _ => format!("to a file ({})", self.core_pattern.shown()),
        };
        Check::new("core dumps", verdict, found, WHY)
    }
}

/// What the caller may do.
fn privileges(user: User) -> Check {
    const ROOT: &str = "as root each sandbox has a user id of its own, and what takes over one runtime is nobody to the next";
    const OTHER: &str = "cells of an ordinary user share that user's id, for husk has no set-user-id helper: namespaces, landlock \
                         and filters alone keep them apart";
    if user.is_root() {
        return Check::new("user", Verdict::Ok, "root", ROOT);
    }
    Check::new("user", Verdict::Note, format!("user id {}", user.uid), OTHER)
        .mend("sudo husk …, with which each sandbox has an id of its own")
}

/// What the kernel answers.
#[derive(Debug)]
pub(super) struct Probes {
    pub(super) landlock: io::Result<i64>,
}

impl Probes {
    pub(super) fn ask() -> Self {
        Self { landlock: probe::landlock_abi() }
    }

    pub(super) fn judge(&self) -> Vec<Check> {
        const WHY: &str = "landlock denies a runtime files, ports and signals a second time; the empty root and the filters do so \
                           first";
        const NEWER: &str = "run a newer kernel (6.12 has all but paths of sockets, 7.1 those as well)";
        let newest = i64::from(LANDLOCK_ABI);
        let check = |verdict, level: Landlock, found: String| {
            Check::new("landlock", verdict, format!("{}: {found}", level.name()), WHY)
        };
        let check = match &self.landlock {
            Ok(version) if *version >= newest => {
                check(Verdict::Ok, Landlock::Full, format!("interface {version}"))
            }
            Ok(version) => {
                let found = format!("interface {version}; husk uses up to {newest}");
                check(Verdict::Note, Landlock::Partial, found).mend(NEWER)
            }
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                check(Verdict::Degraded, Landlock::Absent, "off since boot".into()).mend(
                    "boot with lsm=landlock,… on the kernel's command line (cat /sys/kernel/security/lsm)",
                )
            }
            Err(error) => check(Verdict::Degraded, Landlock::Absent, error.to_string()).mend(NEWER),
        };
        vec![check]
    }
}
