//! The list of tests that may be skipped: checked in, a reason each.

use crate::one::Verdict;
use std::collections::BTreeMap;
use std::path::Path;

/// Names and reasons.
pub(crate) struct Skips {
    reasons: BTreeMap<String, String>,
    none_allowed: bool,
}

impl Skips {
    /// Reads the list; without one no skip is expected.
    pub(crate) fn read(path: Option<&Path>) -> Result<Self, String> {
        let text = match path {
            Some(path) => {
                std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?
            }
            None => String::new(),
        };
        Ok(Self::parse(&text, std::env::var_os("HUSK_TESTS_NO_SKIPS").is_some()))
    }

    fn parse(text: &str, none_allowed: bool) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let pairs = lines.filter_map(|line| line.split_once('\t'));
        Self { reasons: pairs.map(|(name, why)| (name.into(), why.into())).collect(), none_allowed }
    }

    /// What a verdict comes to: a skip that is not on the list, or not allowed on this machine, is a failure.
    pub(crate) fn judge(&self, name: &str, verdict: Verdict) -> Verdict {
        match verdict {
            Verdict::Skipped(reason) if self.none_allowed => {
                Verdict::Failed(format!("skipped ({reason}), but this machine was said to run every test"))
            }
            Verdict::Skipped(reason) if !self.reasons.contains_key(name) => {
                Verdict::Failed(format!("skipped ({reason}), but it is not on the list of skips"))
            }
            verdict => verdict,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listed_skips_are_skips() {
        let skips = Skips::parse("# comment\na::b\tno such hardware\n", false);
        assert!(matches!(skips.judge("a::b", Verdict::Skipped("x".into())), Verdict::Skipped(_)));
        assert!(matches!(skips.judge("a::c", Verdict::Skipped("x".into())), Verdict::Failed(_)));
        assert!(matches!(skips.judge("a::c", Verdict::Passed), Verdict::Passed));
        let strict = Skips::parse("a::b\twhy\n", true);
        assert!(matches!(strict.judge("a::b", Verdict::Skipped("x".into())), Verdict::Failed(_)));
    }
}
