//! Control groups: which version, which controllers, and which of them the caller may hand out.
//!
//! Refuses nothing. Invariant: groups are looked at where /proc/self/mountinfo has them, never made.

use super::files::{Reading, Root};
use super::kernel::User;
use super::parts::quoted;
use super::{Check, Verdict};
use std::os::unix::fs::MetadataExt;

/// Bytes of /proc/self/mountinfo that are looked at.
const MOUNTS: u64 = 1 << 20;
/// What every sandbox is limited by.
const NEEDED: [&str; 2] = ["memory", "pids"];
/// What options need: `--pin`.
const USEFUL: [&str; 2] = ["cpuset", "cpu"];

/// What gives an ordinary user a group.
const DELEGATE: &str = "systemd-run --user --scope -p Delegate=yes husk … (as the user)";

/// A controller that nothing but limits needs.
struct Optional {
    /// Its name, and how version 1 calls it.
    names: [&'static str; 2],
    why: &'static str,
    /// What a kernel that has it was built with.
    built: &'static str,
}

const OPTIONAL: [Optional; 2] = [
    Optional {
        names: ["io", "blkio"],
        why: "--limit io.max and io.weight, which hold a sandbox to its share of disks, are refused without it",
        built: "CONFIG_BLK_CGROUP",
    },
    Optional {
        names: ["hugetlb", "hugetlb"],
        why: "it holds a sandbox with --hugepages 2M to as many pages as its guest has; without it the pool alone is the \
              limit, and --limit hugetlb.2MB.max is refused",
        built: "CONFIG_CGROUP_HUGETLB",
    },
];

/// What there is.
#[derive(Debug, Clone, Default)]
pub(super) struct Facts {
    /// The v2 hierarchy: its place and whether it is read-only.
    unified: Option<(String, bool)>,
    /// Controllers of v1 hierarchies.
    legacy: Vec<String>,
    /// Controllers of the v2 hierarchy.
    controllers: Vec<String>,
    /// Those that it hands to its groups.
    handed_down: Vec<String>,
    /// The caller's own group: its name, its owner, its controllers.
    pub(super) own: Option<(String, u32, Vec<String>)>,
}

fn is_known(name: &str) -> bool {
    NEEDED.iter().chain(&USEFUL).chain(OPTIONAL.iter().map(|it| &it.names[0])).any(|known| *known == name)
}

fn words(reading: &Reading) -> Vec<String> {
    reading.text().unwrap_or_default().split_ascii_whitespace().map(str::to_owned).collect()
}

impl Facts {
    pub(super) fn collect(root: &Root) -> Self {
        let mut found = Self::default();
        let mounts = root.read_up_to("proc/self/mountinfo", MOUNTS);
        for line in mounts.text().unwrap_or_default().lines() {
            found.mount(line);
        }
        let Some((mount, _)) = found.unified.clone() else { return found };
        found.controllers = words(&root.read(format!("{mount}/cgroup.controllers")));
        found.handed_down = words(&root.read(format!("{mount}/cgroup.subtree_control")));
        let own = root.read("proc/self/cgroup");
        let own = own.text().unwrap_or_default().lines().find_map(|line| line.strip_prefix("0::"));
        found.own = own.and_then(|name| {
            let place = format!("{mount}{name}");
            let owner = root.join(&place).metadata().ok()?.uid();
            Some((name.to_owned(), owner, words(&root.read(format!("{place}/cgroup.controllers")))))
        });
        found
    }

    fn mount(&mut self, line: &str) {
        let Some((left, right)) = line.split_once(" - ") else { return };
        let mut left = left.split(' ').skip(4);
        let (Some(place), options) = (left.next(), left.next().unwrap_or_default()) else { return };
        let mut right = right.split(' ');
        let (kind, of) = (right.next(), right.nth(1).unwrap_or_default());
        match kind {
            Some("cgroup2") if self.unified.is_none() => {
                let read_only = [options, of].iter().any(|list| list.split(',').any(|word| word == "ro"));
                self.unified = Some((place.to_owned(), read_only));
            }
            Some("cgroup") => self.legacy.extend(
                of.split(',')
                    .map(|name| if name == "blkio" { "io" } else { name })
                    .filter(|name| is_known(name))
                    .map(str::to_owned),
            ),
            _ => {}
        }
    }

    pub(super) fn judge(&self, user: &User) -> Vec<Check> {
        let mut checks = vec![self.version(), self.offered(), self.delegated(user)];
        checks.extend(OPTIONAL.iter().map(|controller| self.optional(controller, user)));
        checks
    }

    /// One that only limits need: whether the caller's sandboxes can have it.
    fn optional(&self, controller: &Optional, user: &User) -> Check {
        let Optional { names: [name, old], why, built } = *controller;
        let check = |verdict, found| Check::new(format!("cgroup {name}"), verdict, found, why);
        let is_in = |list: &[String]| list.iter().any(|other| other == name);
        if is_in(&self.legacy) {
            return match user.is_root() {
                true => check(Verdict::Ok, format!("v1's {old}")),
                false => check(Verdict::Note, format!("v1's {old}, which is root's alone"))
                    .mend("boot with systemd.unified_cgroup_hierarchy=1"),
            };
        }
        if !is_in(&self.controllers) {
            return check(Verdict::Note, "this kernel offers none".into())
                .mend(format!("run a kernel with {built}, without cgroup_disable={old}"));
        }
        if user.is_root() {
            let down =
                if is_in(&self.handed_down) { "handed to groups" } else { "handed to groups when asked for" };
            return check(Verdict::Ok, down.into());
        }
        match &self.own {
            Some((group, owner, controllers)) if *owner == user.uid && is_in(controllers) => {
                check(Verdict::Ok, format!("delegated: {group} has it"))
            }
            Some((group, owner, _)) if *owner == user.uid => {
                check(Verdict::Note, format!("not delegated: {group} is yours, without {name}"))
                    .mend(self.hand_down(name, group))
            }
            _ => check(Verdict::Note, "not delegated: this process is in no group of yours".into())
                .mend(DELEGATE),
        }
    }

    /// What has `group` get the controller from those above it. systemd does it where it knows the controller.
    fn hand_down(&self, name: &str, group: &str) -> String {
        if name != "hugetlb" {
            return format!("systemctl edit user@.service: [Service] Delegate=cpu cpuset {name} memory pids");
        }
        let mount = self.unified.as_ref().map_or("/sys/fs/cgroup", |(mount, _)| mount);
        let levels = group.match_indices('/').map(|(at, _)| format!("{mount}{}", &group[..at]));
        let files: Vec<_> = levels
            .map(|level| quoted(&crate::text::line(&format!("{level}/cgroup.subtree_control"))))
            .collect();
        format!("for file in {}; do echo +{name} > \"$file\"; done", files.join(" "))
    }

    fn version(&self) -> Check {
        const WHY: &str = "the limits on a sandbox's memory and processes are those of its control group";
        const OLD: &str = "limits hold under v1 too; but a process enters its groups after its birth, and memory is counted \
                           less exactly";
        const V2: &str = "boot with systemd.unified_cgroup_hierarchy=1";
        let version = |verdict, found, why| Check::new("cgroup", verdict, found, why);
        match (&self.unified, self.legacy.is_empty()) {
            (Some((mount, true)), true) => {
                version(Verdict::Unusable, format!("v2 at {mount}, read-only"), WHY)
                    .mend(format!("mount -o remount,rw {mount}"))
            }
            (Some((mount, false)), true) => version(Verdict::Ok, format!("v2 at {mount}"), WHY),
            (Some(_), false) => {
                version(Verdict::Note, "hybrid: v1 controllers beside v2".into(), OLD).mend(V2)
            }
            (None, false) => version(Verdict::Note, "v1".into(), OLD).mend(V2),
            (None, true) => version(Verdict::Unusable, "none is mounted".into(), WHY)
                .mend("mount -t cgroup2 cgroup2 /sys/fs/cgroup"),
        }
    }

    fn offered(&self) -> Check {
        const WHY: &str = "memory and pids limit every sandbox, cpuset is for --pin";
        let name = "cgroup controllers";
        let has = |wanted: &&str| self.controllers.iter().chain(&self.legacy).any(|found| found == wanted);
        let lacks = |list: &[&'static str]| {
            list.iter().filter(|wanted| !has(wanted)).copied().collect::<Vec<_>>().join(" ")
        };
        let (needed, useful) = (lacks(&NEEDED), lacks(&USEFUL));
        if !needed.is_empty() {
            return Check::new(name, Verdict::Unusable, format!("missing: {needed}"), WHY).mend(
                "boot without cgroup_disable= and with cgroup_enable=memory on the kernel's command line",
            );
        }
        if !useful.is_empty() {
            return Check::new(name, Verdict::Note, format!("missing: {useful}"), WHY)
                .mend("run a kernel with CONFIG_CPUSETS and CONFIG_CGROUP_SCHED");
        }
        let all = "memory pids cpuset cpu";
        if self.controllers.is_empty() {
            return Check::new(name, Verdict::Ok, format!("{all} (v1)"), WHY);
        }
        let wanted = NEEDED.iter().chain(&USEFUL).copied();
        let down: Vec<&str> =
            wanted.filter(|name| self.handed_down.iter().any(|other| other == name)).collect();
        let down = if down.is_empty() { "none".into() } else { down.join(" ") };
        Check::new(name, Verdict::Ok, format!("{all}; handed to groups so far: {down}"), WHY)
    }

    /// Root makes groups where it likes; others only below one that is theirs.
    fn delegated(&self, user: &User) -> Check {
        const WHY: &str =
            "limits on a cell that an ordinary user builds need a control group that is the user's own";
        let name = "cgroup delegation";
        if user.is_root() {
            return Check::new(name, Verdict::Ok, "not needed: root", WHY);
        }
        let Some((group, owner, controllers)) = &self.own else {
            return Check::new(
                name,
                Verdict::Unusable,
                "unknown: this process is in no v2 group that can be seen",
                WHY,
            );
        };
        let lacks: Vec<&str> =
            NEEDED.into_iter().filter(|name| !controllers.iter().any(|other| other == name)).collect();
        if *owner != user.uid {
            let found = format!("{group} is user {owner}'s, not yours");
            return Check::new(name, Verdict::Unusable, found, WHY).mend(DELEGATE);
        }
        if !lacks.is_empty() {
            let found = format!("{group} is yours, without {}", lacks.join(" "));
            return Check::new(name, Verdict::Unusable, found, WHY)
                .mend("systemctl edit user@.service: [Service] Delegate=cpu cpuset memory pids");
        }
        Check::new(name, Verdict::Ok, format!("{group} is yours, with memory and pids"), WHY)
    }
}
