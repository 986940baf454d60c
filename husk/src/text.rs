//! Foreign text made fit for a terminal and a log: one line, printable, bounded.
//!
//! Pure. Refuses nothing; replaces. Invariant: what leaves here has no control characters, so that a guest cannot
//! drive the operator's terminal.

/// Longest line in characters.
const LONGEST: usize = 512;

/// `text` as one printable line, cut at [`LONGEST`] characters.
#[must_use]
pub(crate) fn line(text: &str) -> String {
    let clean = |c: char| if c.is_control() { '?' } else { c };
    let trimmed = text.trim_end();
    let mut line: String = trimmed.chars().take(LONGEST).map(clean).collect();
    if trimmed.chars().nth(LONGEST).is_some() {
        line.push_str("...");
    }
    line
}

/// A message of our own, in which foreign text such as a file's name may stand, as one printable line; longer than
/// [`LONGEST`] when it has to be, never longer than a path and its explanation.
#[must_use]
pub(crate) fn message(text: &str) -> String {
    const LONGEST: usize = 8192;
    text.trim_end().chars().take(LONGEST).map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// The last line of `bytes` that is not empty, as [`line()`].
#[must_use]
pub(crate) fn last_line(bytes: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(bytes);
    text.lines().rev().map(str::trim).find(|candidate| !candidate.is_empty()).map(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_and_length_are_tamed() {
        assert_eq!(line("a\x1b[2Jb\nc\n"), "a?[2Jb?c");
        let long = line(&"x".repeat(5000));
        assert_eq!(long.len(), LONGEST + 3);
    }

    #[test]
    fn a_message_is_one_line_whatever_a_file_is_called() {
        assert_eq!(message("kernel /a\nb\x1b[2J: not there\n"), "kernel /a?b?[2J: not there");
        assert_eq!(message(&"x".repeat(5000)).len(), 5000);
    }

    #[test]
    fn the_last_line_counts() {
        assert_eq!(last_line(b"one\ntwo\n\n \n"), Some("two".into()));
        assert_eq!(last_line(b"\n"), None);
    }
}
