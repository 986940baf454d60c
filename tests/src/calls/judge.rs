//! What was seen against the tables: a rule is needed if some call is allowed by it alone.

use super::Seen;
use husk_seccomp::{Role, Rule, Width};
use std::collections::{BTreeMap, BTreeSet};

/// What a run of the tests says of the rules.
#[derive(Debug, Default)]
pub struct Judgement {
    /// Rules that no call needed and the list does not name: `ROLE CALL(TESTS)`.
    pub unused: Vec<String>,
    /// Those that the list names, with its reason.
    pub excused: Vec<String>,
    /// Lines of the list whose rule was needed after all.
    pub needed: Vec<String>,
    /// Lines of the list that name no rule.
    pub unknown: Vec<String>,
    /// How many rules there are.
    pub rules: usize,
}

/// The filter that a thread is behind when it has put on so many since it took its name.
fn role(seen: &Seen) -> Option<Role> {
    let thread = seen.thread.trim_end_matches(|letter: char| letter.is_ascii_digit());
    match (thread, seen.filters) {
        ("husk-control", 1) => Some(Role::Shell),
        // A thread that has no name of its own yet is called as the one that made it. The main thread is so called before its
        // first filter, too, and then does nothing that building does not.
        ("husk-control", 0 | 2) | ("husk-device" | "husk-vcpu" | "husk-blk" | "husk-ring", 0) => {
            Some(Role::Build)
        }
        ("husk-control", 3) => Some(Role::Control),
        ("husk-device", 1) => Some(Role::Device),
        ("husk-vcpu", 1) => Some(Role::Vcpu),
        ("husk-blk", 1) => Some(Role::Block),
        ("husk-ring", 1) => Some(Role::BlockRing),
        ("husk-fs", 1) => Some(Role::Volume),
        ("husk-fs-rw", 1) => Some(Role::VolumeWritable),
        _ => None,
    }
}

fn allows(rule: &Rule, seen: &Seen) -> bool {
    husk_seccomp::call_number(rule.call) == Some(seen.number)
        && rule.args.iter().all(|arg| {
            let width = if arg.width == Width::Low32 { u64::from(u32::MAX) } else { u64::MAX };
            seen.args[usize::from(arg.index)] & width & arg.mask == arg.value & width
        })
}

/// A rule without its reason, which may change.
fn text(role: Role, rule: &Rule) -> String {
    let line = rule.to_string();
    let rule = line.strip_suffix(&format!(": {}", rule.reason)).unwrap_or(&line);
    format!("{} {rule}", role.name())
}

/// Compares `seen` with the tables, and with `list`: lines of a rule, a tab, and why no test needs it. In a line whose role is
/// `every` it is those roles' in which no test does.
#[must_use]
pub fn judge(seen: &BTreeSet<Seen>, list: &str) -> Judgement {
    let lines = list.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('\t'));
    let mut excuses: BTreeMap<&str, &str> = lines.collect();
    let wide = excuses.clone();
    let mut judgement = Judgement::default();
    for of in Role::ALL {
        // A call has to get past each filter of its thread.
        let calls: Vec<&Seen> =
            seen.iter().filter(|call| role(call).is_some_and(|role| role.stack().contains(&of))).collect();
        let table = husk_seccomp::table(of);
        for rule in table {
            let alone = |call: &&&Seen| table.iter().filter(|rule| allows(rule, call)).count() == 1;
            let needed = calls.iter().filter(|call| allows(rule, call)).any(|call| alone(&call));
            let name = text(of, rule);
            judgement.rules += 1;
            let anywhere = format!("every {}", name.split_once(' ').map_or("", |(_, rule)| rule));
            let why = excuses.remove(name.as_str()).or_else(|| {
                let why = wide.get(anywhere.as_str()).copied();
                excuses.remove(anywhere.as_str());
                why.filter(|_| !needed)
            });
            match (needed, why) {
                (true, None) => {}
                (true, Some(_)) => judgement.needed.push(name),
                (false, Some(why)) => judgement.excused.push(format!("{name}: {why}")),
                (false, None) => judgement.unused.push(name),
            }
        }
    }
    judgement.unknown = excuses.into_keys().map(str::to_owned).collect();
    judgement
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(thread: &str, filters: u32, call: &str, request: u64) -> Seen {
        let number = husk_seccomp::call_number(call).unwrap();
        Seen { thread: thread.into(), filters, number, args: [0, request, 0, 0, 0, 0] }
    }

    #[test]
    fn a_rule_that_a_call_needs_is_used_in_its_role_and_in_the_phases_below() {
        const KVM_RUN: u64 = 0xae80;
        let nothing = judge(&BTreeSet::new(), "");
        assert_eq!(nothing.unused.len(), nothing.rules);
        let list = "# why\nvolume umask(...)\tonce\nevery umask(...)\ttwice\nvcpu ioctl(int arg1 == KVM_RUN)\tnever\nvcpu mount(...)\tgone\n";
        let judgement = judge(&BTreeSet::from([seen("husk-vcpu3", 1, "ioctl", KVM_RUN)]), list);
        let unused = |role| judgement.unused.contains(&format!("{role} ioctl(int arg1 == KVM_RUN)"));
        assert!(!unused("vcpu") && !unused("build") && !unused("shell"));
        assert_eq!(judgement.unused.len(), judgement.rules - 5);
        assert_eq!(judgement.needed, ["vcpu ioctl(int arg1 == KVM_RUN)"]);
        assert_eq!(judgement.excused, ["volume umask(...): once", "volume_writable umask(...): twice"]);
        assert_eq!(judgement.unknown, ["vcpu mount(...)"]);
    }

    #[test]
    fn a_call_before_its_threads_filter_is_the_building_phases() {
        let judgement = judge(&BTreeSet::from([seen("husk-blk0", 0, "sched_setaffinity", 0)]), "");
        assert_eq!(judgement.unused.len(), judgement.rules - 2);
        let judgement = judge(&BTreeSet::from([seen("husk-init", 1, "sched_setaffinity", 0)]), "");
        assert_eq!(judgement.unused.len(), judgement.rules);
    }
}
