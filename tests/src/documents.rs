//! What the documents say of tests is true: each promise's test exists, so that the list cannot rot.

use std::collections::BTreeSet;
use std::path::Path;

/// `path/to/file.rs::name` wherever it stands in backticks.
fn named(document: &str) -> BTreeSet<(String, String)> {
    let quoted = document.split('`').skip(1).step_by(2);
    quoted
        .filter_map(|text| text.split_once(".rs::"))
        .map(|(file, test)| (format!("{file}.rs"), test.to_owned()))
        .collect()
}

/// Whether `source` has a test of that name, or a macro that makes one of it.
fn has_test(source: &str, name: &str) -> bool {
    let head = format!("fn {name}(");
    source.match_indices(&head).any(|(place, _)| {
        let before: Vec<&str> = source[..place].lines().rev().take(4).collect();
        before.iter().any(|line| line.trim() == "#[test]")
    })
}

#[test]
fn a_test_is_found_and_a_function_is_none() {
    assert!(has_test("#[test]\nfn works() {}", "works"));
    assert!(has_test("    #[test]\n    #[cfg(unix)]\n    fn works() {}", "works"));
    assert!(!has_test("fn works() {}", "works"));
    assert!(!has_test("#[test]\nfn works_well() {}", "works"));
}

#[test]
fn every_test_that_the_threat_model_names_exists() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let document = std::fs::read_to_string(top.join("docs/threat-model.md")).unwrap();
    let tests = named(&document);
    assert!(tests.len() > 60, "only {} tests are named", tests.len());
    for (file, test) in &tests {
        let source =
            std::fs::read_to_string(top.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        assert!(has_test(&source, test), "docs/threat-model.md names {file}::{test}, which does not exist");
    }
}

#[test]
fn every_promise_has_a_test_or_says_that_it_has_none() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let document = std::fs::read_to_string(top.join("docs/threat-model.md")).unwrap();
    let promises = document.split("\n## ").find(|part| part.starts_with("Promises")).unwrap();
    let rows = promises.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| promise |"));
    let mut count = 0;
    for row in rows.filter(|line| !line.starts_with("| ---")) {
        let told = row.contains(".rs::")
            || row.contains("| not held by a test yet")
            || row.contains("| not promised");
        assert!(told, "no test, and no word that there is none: {row}");
        count += 1;
    }
    assert!(count > 30, "only {count} promises were found");
}
