//! What this machine offers and lacks for sandboxes of strangers' code, and what to do about it.
//!
//! Owns the verdicts and what they mean. Each area collects its facts (bounded reads below a root, and a few questions to
//! the kernel) and judges them apart from that: a judgement is a pure function, tried on trees of files that tests make.
//! Refuses nothing: what cannot be read is a check that says so. Invariant: nothing here changes the machine.

mod cgroups;
mod comfort;
mod files;
mod kernel;
mod kvm;
mod memory;
mod parts;
mod print;
mod processor;
mod vulnerabilities;

pub(crate) use print::{Style, json, table};

use crate::assets::Assets;
use crate::state::State;
use files::Root;
use serde::Serialize;

/// What a check comes to for a machine that runs code of several parties that do not trust each other. In order: the
/// worst is the machine's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    /// As it should be.
    Ok,
    /// Worth knowing; nobody is less safe for it.
    Note,
    /// Sandboxes run and are kept in, but one of the walls is thinner than it could be, or something is slow.
    Degraded,
    /// A known way for one party to another's secrets, or out of a sandbox, is open.
    Unsafe,
    /// `husk run` cannot work here.
    Unusable,
}

impl Verdict {
    /// The exit status of `husk doctor` when this is the worst.
    pub(crate) const fn status(self) -> u8 {
        match self {
            Self::Ok | Self::Note => 0,
            Self::Degraded => 1,
            Self::Unsafe => 2,
            Self::Unusable => 3,
        }
    }

    /// The word for people, the same as in JSON.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Degraded => "degraded",
            Self::Unsafe => "unsafe",
            Self::Unusable => "unusable",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Check {
    /// Stays the same from version to version.
    pub(crate) name: String,
    /// What is there; one printable line.
    pub(crate) found: String,
    /// What that means.
    pub(crate) verdict: Verdict,
    /// In one sentence, why.
    pub(crate) why: &'static str,
    /// The command, to be run as root, or the action that makes it better.
    pub(crate) mend: Option<String>,
}

impl Check {
    fn new(name: impl Into<String>, verdict: Verdict, found: impl AsRef<str>, why: &'static str) -> Self {
        Self { name: name.into(), found: crate::text::line(found.as_ref()), verdict, why, mend: None }
    }

    fn mend(self, how: impl Into<String>) -> Self {
        Self { mend: Some(how.into()), ..self }
    }

    /// With a mend, if it is not fine as it is.
    fn mend_unless_ok(self, how: impl Into<String>) -> Self {
        if self.verdict == Verdict::Ok { self } else { self.mend(how) }
    }
}

/// How far to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// At everything.
    All,
    /// At what can be unsafe; conveniences are left out.
    Safety,
}

/// Looks at the running machine.
pub(crate) fn examine(extent: Extent) -> Vec<Check> {
    let (root, user) = (Root::of_this_machine(), kernel::User::current());
    let mut checks = host(&root, &user);
    checks.extend(kernel::Probes::ask().judge());
    checks.extend(parts::Facts::collect(&Assets::usual(), &State::usual(), &user).judge());
    if extent == Extent::All {
        checks.extend(comfort::Facts::collect(&root).judge());
    }
    checks
}

/// What the files below `root` say.
fn host(root: &Root, user: &kernel::User) -> Vec<Check> {
    let processor = processor::Facts::collect(root);
    let mut checks = kvm::Facts::collect(root).judge(&processor);
    checks.extend(processor.judge());
    checks.extend(vulnerabilities::Facts::collect(root).judge());
    checks.extend(memory::Facts::collect(root).judge());
    checks.extend(cgroups::Facts::collect(root).judge(user));
    checks.extend(kernel::Facts::collect(root).judge(user));
    checks
}

/// The machine's verdict: that of its worst check.
pub(crate) fn worst(checks: &[Check]) -> Verdict {
    checks.iter().map(|check| check.verdict).max().unwrap_or(Verdict::Ok)
}

/// This machine is unsafe, and `--strict` was asked for.
#[derive(Debug, thiserror::Error)]
#[error("--strict: this host is unsafe for code of strangers: {}; husk doctor says more", reasons(.0))]
pub(crate) struct Refusal(Vec<Check>);

fn reasons(checks: &[Check]) -> String {
    let reason = |check: &Check| {
        let mend = check.mend.as_ref().map(|how| format!("; mend: {how}")).unwrap_or_default();
        format!("{} ({}{mend})", check.name, check.found)
    };
    checks.iter().map(reason).collect::<Vec<_>>().join(", ")
}

/// Refuses an unsafe machine. Whether husk can run at all is not asked: a run finds out by itself, and says it better.
///
/// # Errors
/// [`Refusal`], with every unsafe check and its mend.
pub(crate) fn refuse_if_unsafe() -> Result<(), Refusal> {
    refusal(examine(Extent::Safety))
}

fn refusal(mut checks: Vec<Check>) -> Result<(), Refusal> {
    checks.retain(|check| check.verdict == Verdict::Unsafe);
    if checks.is_empty() { Ok(()) } else { Err(Refusal(checks)) }
}

#[cfg(test)]
mod tests;
