//! Whatever lies in a file's place is judged, and what is told of it is fit for a terminal and a program.

use super::super::files::Reading;
use super::*;
use std::os::unix::fs::symlink;

#[test]
fn a_machine_without_any_file_is_told_about() {
    let tree = Tree::empty();
    let checks = host(&tree.root(), &ROOT_USER);
    assert!(checks.len() > 25, "{}", checks.len());
    assert_eq!(worst(&checks), Verdict::Unusable);
    for check in checks {
        assert!(!check.found.is_empty() && !check.why.is_empty(), "{check:?}");
    }
}

/// Whatever a file holds, it is judged: random bytes, much, nothing, a directory, a FIFO, a link to itself.
#[test]
fn nothing_that_lies_in_a_files_place_stops_the_examination() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let place = |tree: &Tree, path: &str| {
        let target = tree.0.join(path);
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        target
    };
    let all = || FINE.iter().map(|(path, _)| *path).chain(["dev/kvm", "etc/group"]);
    let tree = Tree::empty();
    for round in 0..12 {
        for path in all() {
            let length = [0, 1, 7, 64, 5000, 20_000][round % 6];
            let bytes: Vec<u8> = std::iter::repeat_with(&mut random).flatten().take(length).collect();
            tree.write(path, bytes);
        }
        told(&tree);
    }
    for kind in ["directory", "fifo", "loop"] {
        let tree = Tree::empty();
        for path in all() {
            let target = place(&tree, path);
            match kind {
                "directory" => std::fs::create_dir(target).unwrap(),
                "fifo" => rustix::fs::mknodat(
                    rustix::fs::CWD,
                    &target,
                    rustix::fs::FileType::Fifo,
                    rustix::fs::Mode::from_raw_mode(0o600),
                    0,
                )
                .unwrap(),
                _ => symlink(&target, &target).unwrap(),
            }
        }
        told(&tree);
    }
}

/// Every check of the tree can be printed, and drives no terminal.
fn told(tree: &Tree) {
    let checks = host(&tree.root(), &ALICE);
    let text = table(&checks, Style::new(None, false));
    assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text:?}");
    serde_json::to_string(&json(&checks)).unwrap();
}

#[test]
fn a_read_has_a_bound() {
    let tree = Tree::empty();
    tree.write("long", vec![b'x'; 100_000]);
    let Reading::Text(text) = tree.root().read("long") else { panic!() };
    assert_eq!(text.len(), 4096);
    assert_eq!(tree.root().read("missing"), Reading::Missing);
    assert!(matches!(tree.root().read(Path::new("")), Reading::Unreadable(_)));
}

fn check(name: &str, verdict: Verdict) -> Check {
    Check::new(name, verdict, "found", "why").mend_unless_ok("a command")
}

#[test]
fn the_worst_check_is_the_status() {
    for (verdicts, status) in [
        (&[][..], 0),
        (&[Verdict::Ok, Verdict::Note], 0),
        (&[Verdict::Degraded, Verdict::Note], 1),
        (&[Verdict::Unsafe, Verdict::Degraded], 2),
        (&[Verdict::Ok, Verdict::Unusable, Verdict::Unsafe], 3),
    ] {
        let checks: Vec<Check> = verdicts.iter().map(|verdict| check("x", *verdict)).collect();
        assert_eq!(worst(&checks).status(), status);
        let json = json(&checks);
        assert_eq!((json["status"].as_u64(), json["schema"].as_u64()), (Some(status.into()), Some(1)));
        assert_eq!(json["verdict"], worst(&checks).name());
    }
}

#[test]
fn strict_refuses_what_is_unsafe_and_names_it_with_its_mend() {
    assert!(refusal(vec![check("a", Verdict::Degraded), check("b", Verdict::Unusable)]).is_ok());
    let error =
        refusal(vec![check("a", Verdict::Unsafe), check("b", Verdict::Ok), check("c", Verdict::Unsafe)])
            .unwrap_err()
            .to_string();
    assert!(error.contains("a (found; mend: a command), c (found; mend: a command)"), "{error}");
    assert!(!error.contains("b (") && !error.contains('\n'), "{error}");
}

#[test]
fn a_table_fits_its_width_and_is_coloured_on_terminals_alone() {
    let checks = vec![check("short", Verdict::Ok), check("a longer name", Verdict::Unsafe)];
    let plain = table(&checks, Style::new(None, false));
    assert_eq!(
        plain,
        "ok        short          found\n\
         unsafe    a longer name  found\n                         why\n                         mend: a command\n\
         unsafe: 1 unsafe, 1 ok\n"
    );
    assert!(table(&checks, Style::new(Some(80), false)).contains("\x1b[31;1munsafe"));
    assert!(!table(&checks, Style::new(Some(80), true)).contains('\x1b'));
    let tree = Tree::empty();
    for columns in [60, 80, 200] {
        let text = table(&host(&tree.root(), &ALICE), Style::new(Some(columns), true));
        for line in text.lines().filter(|line| line.trim().contains(' ')) {
            assert!(line.chars().count() <= usize::from(columns), "{columns}: {line}");
        }
    }
}
