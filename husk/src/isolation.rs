//! Which walls a sandbox has, as far as they are not always the same: whose user it runs as, and what it does without.
//!
//! Owns the list of what is missing. Refuses nothing. Invariant: the list is bounded and printable, though the cell may add
//! to it for as long as it lives.

use serde_json::{Value, json};

/// Most parts that can be missing.
const MOST: usize = 16;

/// What is to be done about a wall that the host does not permit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Isolation {
    /// There is no sandbox.
    #[default]
    Strict,
    /// It is reported and left out.
    BestEffort,
}

/// What became of the walls of one sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Walls {
    /// Whether it runs as the caller, who is not root.
    pub rootless: bool,
    /// What it is without, and why.
    missing: Vec<(String, String)>,
}

impl Walls {
    /// It is without `part`. The first reason counts.
    pub(crate) fn miss(&mut self, part: &str, why: &str) {
        if self.missing.len() < MOST && self.missing.iter().all(|(known, _)| known != part) {
            self.missing.push((crate::text::line(part), crate::text::line(why)));
        }
    }

    /// The object in the result object.
    pub(crate) fn json(&self) -> Value {
        let missing: Vec<_> =
            self.missing.iter().map(|(part, why)| json!({"part": part, "why": why})).collect();
        json!({"user": if self.rootless { "caller" } else { "own" }, "missing": missing})
    }

    /// One line for a person, if something is missing.
    pub(crate) fn line(&self) -> Option<String> {
        let parts: Vec<_> = self.missing.iter().map(|(part, why)| format!("{part} ({why})")).collect();
        (!parts.is_empty()).then(|| format!("the sandbox is without {}", parts.join("; ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_told_once_and_bounded() {
        let mut walls = Walls::default();
        assert_eq!((walls.line(), walls.json()), (None, json!({"user": "own", "missing": []})));
        walls.miss("cgroup", "not delegated");
        walls.miss("cgroup", "denied\n");
        assert_eq!(walls.line().unwrap(), "the sandbox is without cgroup (not delegated)");
        for number in 0..100 {
            walls.miss(&format!("part\n{number}"), "x");
        }
        assert_eq!(walls.missing.len(), MOST);
        assert_eq!(walls.line().unwrap().lines().count(), 1);
        walls.rootless = true;
        assert_eq!(walls.json()["user"], "caller");
        assert_eq!(walls.json()["missing"][0], json!({"part": "cgroup", "why": "not delegated"}));
    }
}
