use super::*;
use std::os::unix::fs::{PermissionsExt, symlink};

fn scratch(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("husk-pool-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir(&path).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o700)).unwrap();
    path
}

fn refusal(path: &Path) -> String {
    let error = Place::open(path).unwrap_err();
    assert!(matches!(error, PoolError::Refused { .. }) && error.fault() == Fault::Operator, "{error}");
    error.to_string()
}

#[test]
fn a_place_that_others_could_change_is_refused_by_name() {
    let base = scratch("others");
    Place::open(&base.join("ns")).unwrap();
    assert_eq!(std::fs::metadata(base.join("ns")).unwrap().permissions().mode() & 0o777, 0o700);
    for open_to_others in ["ns", ""] {
        let path = base.join(open_to_others);
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o770)).unwrap();
        let said = refusal(&base.join("ns"));
        assert!(said.contains("writable by nobody else") && said.contains(base.to_str().unwrap()), "{said}");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o700)).unwrap();
    }
    std::fs::remove_dir_all(base).unwrap();
}

#[test]
fn no_symbolic_link_is_followed() {
    let base = scratch("links");
    let elsewhere = scratch("elsewhere");
    symlink(&elsewhere, base.join("ns")).unwrap();
    assert!(refusal(&base.join("ns")).contains("symbolic link"));
    symlink(&elsewhere, base.join("way")).unwrap();
    assert!(refusal(&base.join("way/ns")).contains("symbolic link"));
    assert_eq!(std::fs::read_dir(&elsewhere).unwrap().count(), 0);
    std::fs::write(base.join("file"), "").unwrap();
    assert!(refusal(&base.join("file")).contains("no directory"));
    std::fs::remove_dir_all(base).unwrap();
    std::fs::remove_dir_all(elsewhere).unwrap();
}

#[test]
fn only_what_is_the_pools_own_is_taken_away() {
    let base = scratch("own");
    let somebody = Caller { uid: geteuid().as_raw().max(1), gid: 1 };
    let path = base.join("ns");
    let place = Place::open(&path).unwrap();
    for name in [NET, FREE] {
        std::fs::create_dir(path.join(name)).unwrap();
        std::fs::write(path.join(name).join("4026532001"), "").unwrap();
    }
    [POOL, STUB, HOLDER].iter().for_each(|name| std::fs::write(path.join(name), "").unwrap());
    assert_eq!(names(&place.dir, FREE).unwrap(), [c"4026532001".to_owned()]);
    std::fs::write(path.join("precious"), "").unwrap();
    let error = build::clear(&place, somebody).unwrap_err().to_string();
    assert!(error.contains("\"precious\"") && error.contains("nothing of Husk's"), "{error}");
    assert!(path.join("precious").exists());
    std::fs::remove_file(path.join("precious")).unwrap();
    build::clear(&place, somebody).unwrap();
    assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0);
    std::fs::remove_dir_all(base).unwrap();
}

#[test]
fn a_number_in_a_name_is_all_that_counts() {
    let base = scratch("names");
    std::fs::create_dir(base.join(NET)).unwrap();
    for name in ["17", "x", "-1", "17x", ".17"] {
        std::fs::write(base.join(NET).join(name), "").unwrap();
    }
    let directory = open_strictly(CWD, base.as_path(), ResolveFlags::empty()).unwrap();
    assert_eq!(names(&directory, NET).unwrap(), [c"17".to_owned()]);
    for number in 100..100 + 2 * MOST_NAMES {
        std::fs::write(base.join(NET).join(number.to_string()), "").unwrap();
    }
    assert_eq!(names(&directory, NET).unwrap().len(), MOST_NAMES, "however many there are");
    std::fs::remove_dir_all(base).unwrap();
}
