use super::*;

fn scratch(name: &str) -> (State, PathBuf) {
    let base = std::env::temp_dir().join(format!("husk-state-{}-{name}", std::process::id()));
    (State::at(&base), base)
}

pub(crate) fn record(id: &str, started_ms: u64) -> Record {
    Record {
        id: id.into(),
        pid: 1,
        uid: 2,
        started_ms,
        vcpus: 1,
        memory_mib: 128,
        booted_mib: 128,
        command: vec!["x".into()],
        drives: Vec::new(),
        cgroup: None,
        vsock: None,
        limits: Vec::new(),
    }
}

#[test]
fn a_sandbox_is_listed_while_its_lock_is_held() {
    let (state, base) = scratch("list");
    assert_eq!(state.living().unwrap(), []);
    let first = state.register("one").unwrap();
    let second = state.register("other").unwrap();
    assert_ne!(first.uid, second.uid);
    first.publish(&record("one", 2)).unwrap();
    second.publish(&record("other", 1)).unwrap();
    let ids: Vec<_> = state.living().unwrap().into_iter().map(|record| record.id).collect();
    assert_eq!(ids, ["other", "one"]);
    assert!(matches!(state.register("one"), Err(StateError::Taken(_))));
    assert_eq!(state.find("one").unwrap().id, "one");
    assert_eq!(state.find("on").unwrap().id, "one");
    assert!(matches!(state.find("o"), Err(StateError::Ambiguous(..))));
    assert!(matches!(state.find("x"), Err(StateError::Unknown(_))));
    assert!(matches!(state.find(""), Err(StateError::Unknown(_))));
    first.remove().unwrap();
    assert!(!state.lives("one") && state.lives("other"));
    second.remove().unwrap();
    assert_eq!(std::fs::read_dir(state.sandboxes()).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(state.slots()).unwrap().count(), 0);
    std::fs::remove_dir_all(base).unwrap();
}

#[test]
fn each_state_has_a_cgroup_of_its_own() {
    let of = |path: &str| State::at(Path::new(path)).cgroup_parent();
    assert_eq!((of("/run/husk").as_str(), of("/run/husk/").as_str()), ("husk", "husk"));
    assert!(of("/tmp/a").starts_with("husk-") && of("/tmp/a").len() == 13);
    assert!(of("/tmp/a") == of("/tmp//a/") && of("/tmp/a") != of("/tmp/b"));
}

#[test]
fn ids_are_bounded() {
    for right in ["a", "A-1", &"x".repeat(64), &random_id().unwrap()] {
        check_id(right).unwrap();
    }
    for wrong in ["", "..", "a/b", "-a", "a_b", "a b", "ä", &"x".repeat(65)] {
        assert!(check_id(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn a_directory_that_others_could_change_is_refused() {
    let (state, base) = scratch("shared");
    std::fs::create_dir(&base).unwrap();
    std::fs::set_permissions(&base, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    assert!(matches!(state.register("one"), Err(StateError::Shared { .. })));
    let link = base.join("link");
    std::os::unix::fs::symlink("/", &link).unwrap();
    let error = State::at(&link).register("one").unwrap_err().to_string();
    assert!(error.contains("/link: must be a directory of user"), "{error}");
    std::fs::remove_dir_all(base).unwrap();
}
