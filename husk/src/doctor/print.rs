//! The checks as a table for people, and as one JSON object for programs.
//!
//! Owns the form of both. Refuses nothing. Invariant: what is found on the machine went through [`crate::text`], so that no
//! file's content drives a terminal.

use super::{Check, Verdict, worst};
use serde_json::{Value, json};

/// Version of the object's form: it grows when a key changes its meaning or goes.
const SCHEMA: u32 = 1;
/// Columns where nobody says how wide it is.
const USUAL_WIDTH: usize = 100;
/// Below this a table is no longer one.
const LEAST_WIDTH: usize = 60;

/// How a table looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Style {
    /// In columns.
    pub(crate) width: usize,
    /// With colours.
    pub(crate) colour: bool,
}

impl Style {
    /// For a terminal of `columns`, or for something that is none; `plain`: no colours are wanted.
    pub(crate) fn new(columns: Option<u16>, plain: bool) -> Self {
        let width = columns.map_or(USUAL_WIDTH, usize::from).max(LEAST_WIDTH);
        Self { width, colour: columns.is_some() && !plain }
    }

    fn paint(self, verdict: Verdict, text: &str) -> String {
        let code = match verdict {
            Verdict::Ok => "32",
            Verdict::Note => "36",
            Verdict::Degraded => "33",
            Verdict::Unsafe | Verdict::Unusable => "31;1",
        };
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// One line a check; below those that are not fine, why, and what mends it.
pub(crate) fn table(checks: &[Check], style: Style) -> String {
    let names = checks.iter().map(|check| check.name.chars().count()).max().unwrap_or(0);
    // The verdict's column and two gaps.
    let indent = 10 + names + 2;
    let mut text = String::new();
    for check in checks {
        let verdict = style.paint(check.verdict, &format!("{:8}", check.verdict.name()));
        let lines = wrapped(&check.found, style.width.saturating_sub(indent));
        for (place, line) in lines.iter().enumerate() {
            if place == 0 {
                text.push_str(&format!("{verdict}  {:names$}  {line}\n", check.name));
            } else {
                text.push_str(&format!("{:indent$}{line}\n", ""));
            }
        }
        if check.verdict == Verdict::Ok {
            continue;
        }
        let mend = check.mend.iter().map(|how| format!("mend: {how}"));
        for explanation in std::iter::once(check.why.to_owned()).chain(mend) {
            for line in wrapped(&explanation, style.width.saturating_sub(indent)) {
                text.push_str(&format!("{:indent$}{line}\n", ""));
            }
        }
    }
    let worst = worst(checks);
    text.push_str(&format!("{}: {}\n", style.paint(worst, worst.name()), counted(checks)));
    text
}

/// `2 degraded, 3 notes, 40 ok`.
fn counted(checks: &[Check]) -> String {
    let all = [Verdict::Unusable, Verdict::Unsafe, Verdict::Degraded, Verdict::Note, Verdict::Ok];
    let count = |verdict: Verdict| checks.iter().filter(|check| check.verdict == verdict).count();
    let some = all.into_iter().filter(|verdict| count(*verdict) > 0);
    some.map(|verdict| format!("{} {}", count(verdict), verdict.name())).collect::<Vec<_>>().join(", ")
}

/// `text` in lines of at most `width` columns, broken at spaces; a longer word stays whole, so that it can be copied.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut used = 0;
    for word in text.split(' ') {
        let length = word.chars().count();
        if used > 0 && used + 1 + length > width {
            lines.push(String::new());
            used = 0;
        }
        if let Some(line) = lines.last_mut() {
            if used > 0 {
                line.push(' ');
                used += 1;
            }
            line.push_str(word);
            used += length;
        }
    }
    lines
}

/// The object of `husk doctor --json`.
pub(crate) fn json(checks: &[Check]) -> Value {
    let worst = worst(checks);
    json!({"schema": SCHEMA, "verdict": worst, "status": worst.status(), "checks": checks})
}
