//! Tidies a command line so that argh understands what people write: `--opt=value`, `-it`, and a command after `--`.
//!
//! Pure. Refuses options that are not UTF-8 (the command may be any bytes) and values for switches. Invariant: what
//! stands after the first `--` leaves here byte for byte as it came.

use std::ffi::OsString;

/// Long options that take a value. A test holds this against argh's own opinion.
const VALUED: [&str; 28] = [
    "--rootfs",
    "--kernel",
    "--initrd",
    "--vcpus",
    "--memory",
    "--memory-max",
    "--env",
    "--workdir",
    "--user",
    "--timeout",
    "--boot-timeout",
    "--hugepages",
    "--pin",
    "--drive",
    "--pmem",
    "--volume",
    "--config",
    "--vsock",
    "--net",
    "--allow",
    "--guest-ip",
    "--gateway",
    "--dns",
    "--isolation",
    "--limit",
    "--id",
    "--name",
    "--signal",
];

/// A command line in two parts.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Normal {
    /// For argh.
    pub(super) args: Vec<String>,
    /// What stood after the first `--`; `None`: there was none.
    pub(super) command: Option<Vec<OsString>>,
}

/// Tidies `raw`, the arguments after the program's name.
pub(super) fn normalise(raw: impl IntoIterator<Item = OsString>) -> Result<Normal, String> {
    let mut raw = raw.into_iter();
    let mut args = Vec::new();
    let mut value_follows = false;
    while let Some(argument) = raw.next() {
        if argument == "-h" && !value_follows {
            args.push("--help".to_owned());
            continue;
        }
        if argument == "--" {
            if value_follows {
                return Err(needs_a_value(&args));
            }
            return Ok(Normal { args, command: Some(raw.collect()) });
        }
        let text = argument.into_string().map_err(|bytes| {
            format!("the argument {bytes:?} is not UTF-8; only the command after -- may be other bytes")
        })?;
        if value_follows {
            value_follows = false;
            args.push(text);
        } else if let Some((option, value)) =
            text.split_once('=').filter(|(option, _)| option.starts_with("--"))
        {
            if !VALUED.contains(&option) {
                return Err(format!("{option} takes no value, or is no option"));
            }
            args.extend([option.to_owned(), value.to_owned()]);
        } else if is_cluster(&text) {
            args.extend(text.chars().skip(1).map(|short| format!("-{short}")));
        } else {
            value_follows = VALUED.contains(&text.as_str());
            args.push(text);
        }
    }
    if value_follows {
        return Err(needs_a_value(&args));
    }
    Ok(Normal { args, command: None })
}

/// No option takes `--`, or the end of the line, for its value.
fn needs_a_value(args: &[String]) -> String {
    format!("{} needs a value", args.last().map_or("", String::as_str))
}

/// Several short switches in one argument, as in `-it`.
fn is_cluster(text: &str) -> bool {
    text.len() > 2 && text.strip_prefix('-').is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_alphabetic()))
}

#[cfg(test)]
mod tests {
    use super::super::args::Husk;
    use super::*;
    use argh::FromArgs;
    use std::os::unix::ffi::OsStringExt;

    fn of(raw: &[&str]) -> Result<Normal, String> {
        normalise(raw.iter().map(OsString::from))
    }

    #[test]
    fn equals_signs_and_clusters_are_taken_apart() {
        let normal = of(&["run", "--memory=1G", "-it", "--env=A=B=C", "--", "-it", "--x=y", "--"]).unwrap();
        assert_eq!(normal.args, ["run", "--memory", "1G", "-i", "-t", "--env", "A=B=C"]);
        assert_eq!(normal.command.unwrap(), ["-it", "--x=y", "--"]);
        assert_eq!(of(&["run", "-h"]).unwrap().args, ["run", "--help"]);
    }

    #[test]
    fn a_value_is_left_alone() {
        let normal = of(&["run", "--env", "--x", "--workdir", "-it"]).unwrap();
        assert_eq!(normal.args, ["run", "--env", "--x", "--workdir", "-it"]);
        assert_eq!(normal.command, None);
    }

    #[test]
    fn a_command_may_be_any_bytes() {
        let bytes = OsString::from_vec(vec![0xff, 0xfe]);
        let normal = normalise(["run".into(), "--".into(), bytes.clone()]).unwrap();
        assert_eq!(normal.command, Some(vec![bytes.clone()]));
        assert!(normalise(["run".into(), bytes]).unwrap_err().contains("not UTF-8"));
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        assert!(of(&["run", "--json=1"]).unwrap_err().contains("--json"));
        assert!(of(&["run", "--memory"]).unwrap_err().contains("--memory needs a value"));
    }

    #[test]
    fn argh_agrees_on_what_takes_a_value() {
        for option in VALUED.iter().filter(|&&option| option != "--signal") {
            let error = Husk::from_args(&["husk"], &["run", option]).unwrap_err().output;
            assert!(error.contains("No value provided"), "{option}: {error}");
        }
        for switch in
            ["--prefault", "--console", "--entropy", "--pci", "--strict", "--json", "--timings", "-i", "-t"]
        {
            Husk::from_args(&["husk"], &["run", switch]).unwrap();
        }
        let help = Husk::from_args(&["husk"], &["run", "--help"]).unwrap_err().output;
        for option in
            help.lines().filter_map(|line| line.trim().split(' ').find(|word| word.starts_with("--")))
        {
            let known = VALUED.contains(&option)
                || [
                    "--prefault",
                    "--interactive",
                    "--tty",
                    "--console",
                    "--entropy",
                    "--pci",
                    "--strict",
                    "--json",
                    "--timings",
                ]
                .contains(&option)
                || ["--help,", "--help", "--"].contains(&option);
            assert!(known, "{option} is in the help but not in the table");
        }
    }
}
