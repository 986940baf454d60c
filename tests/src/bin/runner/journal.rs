//! What has been run, on disk, so that a run whose machine died goes on where it was.
//!
//! The lab's machine is emulated, and its emulator now and then breaks the machine's own kernel. Invariant: a test that
//! ended is not run again, and one during which the machine died three times has failed.

use crate::one::Verdict;
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

/// Times that a test may have been begun without an end.
const MOST_BEGINNINGS: u32 = 3;

/// The journal; without a file nothing is remembered.
#[derive(Default)]
pub(crate) struct Journal {
    file: Option<File>,
    ended: HashMap<String, Verdict>,
    begun: HashMap<String, u32>,
}

impl Journal {
    /// Reads what was run before, and goes on writing there.
    pub(crate) fn open(path: Option<&Path>) -> Result<Self, String> {
        let Some(path) = path else { return Ok(Self::default()) };
        let fail = |error| format!("{}: {error}", path.display());
        let mut journal = Self::parse(&std::fs::read_to_string(path).unwrap_or_default());
        journal.file = Some(OpenOptions::new().create(true).append(true).open(path).map_err(fail)?);
        Ok(journal)
    }

    fn parse(text: &str) -> Self {
        let mut journal = Self::default();
        for line in text.lines() {
            let mut words = line.splitn(3, '\t');
            let (Some(what), Some(name)) = (words.next(), words.next()) else { continue };
            let rest = words.next().unwrap_or_default().to_owned();
            let verdict = match what {
                "begun" => {
                    *journal.begun.entry(name.to_owned()).or_default() += 1;
                    continue;
                }
                "ok" => Verdict::Passed,
                "skipped" => Verdict::Skipped(rest),
                _ => Verdict::Failed("(see above: it was run before the machine died)".into()),
            };
            journal.ended.insert(name.to_owned(), verdict);
        }
        journal
    }

    /// The verdict on a test that needs no run: it has ended, or the machine dies of it.
    pub(crate) fn known(&mut self, name: &str) -> Option<Verdict> {
        if let Some(verdict) = self.ended.remove(name) {
            return Some(verdict);
        }
        let begun = self.begun.get(name).copied().unwrap_or_default();
        (begun >= MOST_BEGINNINGS)
            .then(|| Verdict::Failed(format!("the machine died during it, {begun} times")))
    }

    /// Whether this runner has begun the test, now or before its machine died.
    pub(crate) fn has_begun(&self, name: &str) -> bool {
        self.begun.contains_key(name)
    }

    /// The test is about to be run.
    pub(crate) fn begin(&mut self, name: &str) {
        self.write(&format!("begun\t{name}\n"));
    }

    /// The test has ended.
    pub(crate) fn end(&mut self, name: &str, verdict: &Verdict) {
        self.write(&match verdict {
            Verdict::Passed => format!("ok\t{name}\n"),
            Verdict::Skipped(reason) => format!("skipped\t{name}\t{}\n", reason.replace('\n', " ")),
            Verdict::Failed(_) => format!("FAILED\t{name}\n"),
        });
    }

    fn write(&mut self, line: &str) {
        // A journal that cannot be written costs a repetition, not a verdict.
        if let Some(file) = &mut self.file {
            drop(file.write_all(line.as_bytes()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ended_is_not_run_again_and_what_kills_the_machine_fails() {
        let text = "begun\ta\nok\ta\nbegun\tb\nskipped\tb\twhy\nbegun\tc\nFAILED\tc\nbegun\td\nbegun\te\nbegun\te\nbegun\te\n";
        let mut journal = Journal::parse(text);
        assert!(matches!(journal.known("a"), Some(Verdict::Passed)));
        assert!(matches!(journal.known("b"), Some(Verdict::Skipped(why)) if why == "why"));
        assert!(matches!(journal.known("c"), Some(Verdict::Failed(_))));
        assert!(journal.known("d").is_none(), "begun once: it is run again");
        assert!(matches!(journal.known("e"), Some(Verdict::Failed(_))));
        assert!(journal.known("f").is_none());
        assert!(journal.has_begun("d") && !journal.has_begun("f"));
    }
}
