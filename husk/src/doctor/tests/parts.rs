//! Husk's own files, in good hands and in others.

use super::super::parts::{Facts, doubt};
use super::*;
use std::os::unix::fs::symlink;

#[test]
fn a_part_that_others_can_change_is_unsafe() {
    let tree = Tree::empty();
    let user = User::current();
    let names = ["husk-jailer", "husk-runtime", "husk-init", "vmlinux"];
    for name in names {
        tree.write(name, "x");
        tree.mode(name, 0o755);
    }
    tree.mode("", 0o755);
    let examine = || Facts::collect(&Assets::at(&tree.0), &State::at(&tree.0.join("state")), &user).judge();
    for name in names.into_iter().chain(["state"]) {
        assert_eq!(named(examine(), name).verdict, Verdict::Ok);
    }
    assert_eq!(named(examine(), "husk-fs").verdict, Verdict::Degraded);
    tree.mode("husk-runtime", 0o757);
    let check = named(examine(), "husk-runtime");
    assert!(
        check.verdict == Verdict::Unsafe && check.mend.unwrap().contains("chmod go-w"),
        "{}",
        check.found
    );
    tree.mode("husk-runtime", 0o755);
    // Who may write to the directory replaces what is in it, and what will be.
    tree.mode("", 0o777);
    for name in names.into_iter().chain(["state"]) {
        assert_eq!(named(examine(), name).verdict, Verdict::Unsafe, "{name}");
    }
    tree.mode("", 0o755);
    std::fs::remove_file(tree.0.join("vmlinux")).unwrap();
    assert_eq!(named(examine(), "vmlinux").verdict, Verdict::Unusable);
    symlink("/proc/self/nothing", tree.0.join("vmlinux")).unwrap();
    assert_eq!(named(examine(), "vmlinux").verdict, Verdict::Unusable);
}

#[test]
fn a_part_of_another_users_is_doubted() {
    let tree = Tree::empty();
    tree.write("file", "x");
    tree.mode("", 0o755);
    tree.mode("file", 0o644);
    let path = tree.0.join("file");
    assert_eq!(doubt(&path, User::current()), None);
    if User::current().is_root() {
        std::os::unix::fs::chown(&path, Some(ALICE.uid), None).unwrap();
        assert_eq!(doubt(&path, ROOT_USER), Some((path.clone(), "belongs to user 1000".into())));
        assert_eq!(doubt(&path, ALICE), None);
    } else {
        assert!(doubt(&path, User { uid: User::current().uid + 1 }).is_some());
    }
}

#[test]
fn a_directorys_name_does_not_become_a_command() {
    let tree = Tree::empty();
    tree.mode("", 0o755);
    tree.write("it's; reboot/husk-jailer", "x");
    tree.mode("it's; reboot", 0o777);
    let assets = Assets::at(&tree.0.join("it's; reboot"));
    let check = named(Facts::collect(&assets, &State::at(&tree.0), &User::current()).judge(), "husk-jailer");
    let mend = check.mend.unwrap();
    assert!(mend.ends_with(r"it'\''s; reboot'"), "{mend}");
}
