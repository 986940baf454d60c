//! Resource limits of the runtime's process: which can be asked for by name, and what is set anyway.
//!
//! Refuses unknown names, doubles and values that are no numbers. Names are Firecracker's (`fsize`, `no-file`), the
//! others those of setrlimit(2). Core dumps are off whatever is asked: guest memory does not go to disk.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors that the runtime may have unless told otherwise: one for each of 8192 connections of the socket device, and
/// what 19 devices need.
pub(crate) const FILES: u64 = 10_240;

/// The names, in the order of the message that lists them.
const NAMES: [(&str, Resource); 10] = [
    ("as", Resource::As),
    ("cpu", Resource::Cpu),
    ("data", Resource::Data),
    ("fsize", Resource::Fsize),
    ("memlock", Resource::Memlock),
    ("msgqueue", Resource::Msgqueue),
    ("no-file", Resource::Nofile),
    ("nproc", Resource::Nproc),
    ("sigpending", Resource::Sigpending),
    ("stack", Resource::Stack),
];

/// One limit, soft and hard alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    name: &'static str,
    resource: Resource,
    value: u64,
    /// Whether it was asked for by name.
    asked: bool,
}

/// A limit that cannot be asked for.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// Not `NAME=VALUE`.
    #[error("--resource-limit {0:?}: NAME=VALUE is expected")]
    Form(String),
    /// No such limit.
    #[error("--resource-limit {0}: no such limit; there are {list}", list = names())]
    Name(String),
    /// Not a number.
    #[error("--resource-limit {0}={1:?}: a number from 0 to 18446744073709551614 is expected")]
    Value(&'static str, String),
    /// Asked for twice.
    #[error("--resource-limit {0}: given twice")]
    Twice(&'static str),
}

impl Limit {
    /// What `setrlimit` calls it, for messages.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// The value, in the resource's own unit.
    #[must_use]
    pub const fn value(&self) -> u64 {
        self.value
    }

    /// Sets the limit on this process. One that nobody asked for is no higher than what the process may have.
    pub(crate) fn set(&self) -> rustix::io::Result<()> {
        let most = getrlimit(self.resource).maximum.filter(|_| !self.asked).unwrap_or(u64::MAX);
        let value = Some(self.value.min(most));
        setrlimit(self.resource, Rlimit { current: value, maximum: value })
    }

    /// Lets this process have as much, if it may not yet; takes root.
    pub(crate) fn raise(&self) -> rustix::io::Result<()> {
        let now = getrlimit(self.resource);
        match now.maximum {
            Some(maximum) if maximum < self.value => {
                setrlimit(self.resource, Rlimit { current: now.current, maximum: Some(self.value) })
            }
            _ => Ok(()),
        }
    }
}

/// The limits that `words` (`NAME=VALUE`) ask for, and those that are always set; `files`: descriptors unless asked for.
pub(crate) fn parse(words: &[String], files: u64) -> Result<Vec<Limit>, LimitError> {
    let mut limits = vec![Limit { name: "core", resource: Resource::Core, value: 0, asked: false }];
    for word in words {
        let (name, value) = word.split_once('=').ok_or_else(|| LimitError::Form(word.clone()))?;
        let found = NAMES.iter().find(|(known, _)| *known == name);
        let &(name, resource) = found.ok_or_else(|| LimitError::Name(name.to_owned()))?;
        let number = value.parse().ok().filter(|number| *number != u64::MAX);
        let value = number.ok_or_else(|| LimitError::Value(name, value.to_owned()))?;
        if limits.iter().any(|limit| limit.resource == resource) {
            return Err(LimitError::Twice(name));
        }
        limits.push(Limit { name, resource, value, asked: true });
    }
    if limits.iter().all(|limit| limit.resource != Resource::Nofile) {
        limits.push(Limit { name: "no-file", resource: Resource::Nofile, value: files, asked: false });
    }
    Ok(limits)
}

fn names() -> String {
    NAMES.map(|(name, _)| name).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(words: &[&str]) -> String {
        parse(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>(), FILES)
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn core_dumps_are_off_and_files_bounded_unasked() {
        let limits: Vec<_> =
            parse(&[], FILES).unwrap().iter().map(|limit| (limit.name(), limit.value())).collect();
        assert_eq!(limits, [("core", 0), ("no-file", FILES)]);
        assert!(error(&["core=1"]).contains("no such limit"));
    }

    #[test]
    fn what_is_asked_for_is_set() {
        let limits = parse(&["no-file=64".into(), "fsize=250000000".into()], FILES).unwrap();
        assert_eq!(limits.len(), 3);
        assert_eq!((limits[1].name(), limits[1].value()), ("no-file", 64));
    }

    #[test]
    fn each_mistake_is_named() {
        assert!(error(&["files=3"]).contains("there are as, cpu, data, fsize"), "{}", error(&["files=3"]));
        assert!(error(&["fsize"]).contains("NAME=VALUE"));
        assert!(error(&["fsize=-1"]).contains("fsize=\"-1\""));
        assert!(error(&["fsize=18446744073709551615"]).contains("a number"));
        assert!(error(&["fsize=1", "fsize=2"]).contains("twice"));
    }
}
