//! What may have been meant by a flag that there is not.
//!
//! Names one flag, and none if none is near.

/// All flags, and two that Firecracker's jailer once had.
const FLAGS: [(&str, &str); 24] = [
    ("--id", ""),
    ("--uid", ""),
    ("--gid", ""),
    ("--exec-file", ""),
    ("--layout", ""),
    ("--copy-binary", ""),
    ("--chroot-base-dir", ""),
    ("--netns", ""),
    ("--cgroup-version", ""),
    ("--cgroup", ""),
    ("--parent-cgroup", ""),
    ("--resource-limit", ""),
    ("--new-pid-ns", ""),
    ("--daemonize", ""),
    ("--volume-fd", ""),
    ("--volume-socket-fd", ""),
    ("--volume-writable", ""),
    ("--network-socket-fd", ""),
    ("--control-fd", ""),
    ("--cpus", ""),
    ("--isolation", ""),
    ("--version", ""),
    ("--node", "--cgroup cpuset.mems=N"),
    ("--seccomp-level", "-- --no-seccomp, which Firecracker itself takes"),
];

/// argh's message, with what may have been meant, if it is about a flag.
pub(super) fn with(message: String) -> String {
    let Some(unknown) = message.strip_prefix("Unrecognized argument: ") else { return message };
    let begun = FLAGS.iter().find(|(flag, _)| unknown.len() > 5 && flag.starts_with(unknown));
    if let Some((flag, "")) = begun {
        return format!("{message}; did you mean {flag}?");
    }
    let nearest = FLAGS.iter().map(|entry| (distance(unknown, entry.0), entry)).min_by_key(|(far, _)| *far);
    match nearest {
        Some((_, (flag, ""))) if is_within(unknown, flag) => format!("{message}; did you mean {flag}?"),
        Some((0, (_, instead))) => format!("{message}; there is {instead}"),
        _ if FIRECRACKERS.contains(&unknown) => {
            format!("{message}; what is for the program goes behind --: -- {unknown}")
        }
        _ => message,
    }
}

/// Firecracker's own flags that are most often given to its jailer.
const FIRECRACKERS: [&str; 5] = ["--api-sock", "--config-file", "--no-api", "--log-path", "--metrics-path"];

/// Longest flag that is compared, in bytes.
const MAX_FLAG: usize = 32;

fn is_within(unknown: &str, flag: &str) -> bool {
    distance(unknown, flag) <= 1 + flag.len() / 6
}

/// Least number of bytes added, removed or replaced that makes one of the other.
fn distance(one: &str, other: &str) -> usize {
    if one.len() > MAX_FLAG {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (at, byte) in one.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], at + 1);
        for (place, wanted) in other.bytes().enumerate() {
            let kept = diagonal + usize::from(byte != wanted);
            diagonal = row[place + 1];
            row[place + 1] = kept.min(diagonal + 1).min(row[place] + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_near_is_named_and_what_is_far_is_not() {
        let said = |flag: &str| with(format!("Unrecognized argument: {flag}"));
        for (given, meant) in [
            ("--exec-fiel", "--exec-file"),
            ("--chroot-base", "--chroot-base-dir"),
            ("--deamonize", "--daemonize"),
            ("--cgroups", "--cgroup"),
            ("--new-pid-namespace", ""),
            ("--netn", "--netns"),
        ] {
            let text = said(given);
            assert_eq!(text.contains("did you mean"), !meant.is_empty(), "{text}");
            assert!(text.contains(&format!("did you mean {meant}?")) || meant.is_empty(), "{text}");
        }
        assert!(said("--node").ends_with("there is --cgroup cpuset.mems=N"));
        assert!(said("--api-sock").ends_with("-- --api-sock"));
        assert!(!said(&"-".repeat(100)).contains(';'));
        assert_eq!(with("Required options".into()), "Required options");
    }

    #[test]
    fn a_distance_counts_changes() {
        assert_eq!((distance("ab", "ab"), distance("ab", "b"), distance("", "abc")), (0, 1, 3));
        assert_eq!((distance("kitten", "sitting"), distance("flaw", "lawn")), (3, 2));
    }
}
