//! Says which rules of the seccomp filters no test needed.
//!
//! `husk-rules --list FILE --summary FILE CALLS…`
//!
//! The files of calls are what `husk-test-runner --calls` has written: a line a call, or one that begins with `#` and says
//! why nothing could be recorded. `--list` names the rules that may be unused: rule, tab, why. A rule that no test
//! needed and that is not on the list is a failure, and so is a line of the list that names no rule.

use husk_tests::calls::{Judgement, Seen, judge};
use std::collections::BTreeSet;
use std::process::ExitCode;

/// The name under which it is counted.
const NAME: &str = "rules::each_is_needed_by_a_test";

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("husk-rules: {error}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<bool, String> {
    let (mut list, mut summary, mut seen, mut why) = (String::new(), None, BTreeSet::new(), String::new());
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value"));
        match word.as_str() {
            "--list" => list = read(&value()?)?,
            "--summary" => summary = Some(value()?),
            path => {
                // A line without an end is one during which the machine died.
                for line in read(path)?.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
                    match line.strip_prefix("# ") {
                        Some(reason) => why = reason.to_owned(),
                        None => seen.extend(Seen::parse(line)),
                    }
                }
            }
        }
    }
    let (good, counts) = if seen.is_empty() {
        let none_allowed = std::env::var_os("HUSK_TESTS_NO_SKIPS").is_some();
        println!("{} {NAME}: nothing was recorded: {why}", if none_allowed { "FAILED " } else { "skipped" });
        (!none_allowed, if none_allowed { [0, 1, 0] } else { [0, 0, 1] })
    } else {
        let good = tell(&judge(&seen, &list), seen.len());
        (good, [u8::from(good), u8::from(!good), 0])
    };
    if !good {
        println!("failed: {NAME}");
    }
    let [passed, failed, skipped] = counts;
    let line = format!("{passed} passed, {failed} failed, {skipped} skipped\n");
    summary.map_or(Ok(()), |path| std::fs::write(&path, line).map_err(|error| format!("{path}: {error}")))?;
    Ok(good)
}

fn read(path: &str) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))
}

fn tell(judgement: &Judgement, calls: usize) -> bool {
    let Judgement { unused, excused, needed, unknown, rules } = judgement;
    for rule in excused {
        println!("a rule that no test used, as listed: {rule}");
    }
    for rule in needed {
        println!("a rule that is listed as unused was used by a test: {rule}");
    }
    for rule in unused {
        println!("a rule that no test used: {rule}");
    }
    for rule in unknown {
        println!("listed as unused, but not a rule: {rule}");
    }
    let good = unused.is_empty() && unknown.is_empty();
    println!(
        "{} {NAME}: {rules} rules, {} that no test used ({} of them listed), by {calls} different calls",
        if good { "ok     " } else { "FAILED " },
        unused.len() + excused.len(),
        excused.len(),
    );
    good
}
