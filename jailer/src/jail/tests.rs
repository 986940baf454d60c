use super::*;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

/// A directory that goes away with the test.
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    pub(crate) fn new(name: &str) -> Self {
        let path = fs::canonicalize(std::env::temp_dir())
            .unwrap()
            .join(format!("jail-{name}-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

#[test]
fn a_jail_is_made_and_taken_back() {
    let scratch = Scratch::new("made");
    let base = scratch.0.join("a/b");
    let jail = make(&base, "prog", "one").unwrap();
    assert!(base.join("prog/one/root").is_dir());
    assert_eq!(fs::metadata(base.join("prog/one")).unwrap().permissions().mode() & 0o777, 0o700);
    jail.remove();
    assert!(!base.join("prog/one").exists() && base.join("prog").exists());
}

#[test]
fn item_25_what_exists_is_refused_whatever_it_is() {
    let scratch = Scratch::new("exists");
    let program = scratch.0.join("prog");
    fs::create_dir(&program).unwrap();
    fs::create_dir(program.join("directory")).unwrap();
    fs::write(program.join("file"), b"").unwrap();
    symlink("/etc", program.join("link")).unwrap();
    symlink(scratch.0.join("nowhere"), program.join("dangling")).unwrap();
    fs::hard_link(program.join("file"), program.join("hardlink")).unwrap();
    rustix::fs::mknodat(CWD, program.join("fifo"), rustix::fs::FileType::Fifo, Mode::from_raw_mode(0o600), 0)
        .unwrap();
    for id in ["directory", "file", "link", "dangling", "hardlink", "fifo"] {
        let error = make(&scratch.0, "prog", id).unwrap_err();
        assert!(matches!(error, JailError::Exists(_)), "{id}: {error}");
        assert!(error.to_string().contains(id));
    }
    assert!(!scratch.0.join("nowhere").exists());
    assert!(!PathBuf::from("/etc/root").exists());
}

#[test]
fn item_25_a_symbolic_link_on_the_way_is_refused() {
    let scratch = Scratch::new("link");
    fs::create_dir(scratch.0.join("real")).unwrap();
    symlink(scratch.0.join("real"), scratch.0.join("alias")).unwrap();
    for base in ["alias", "alias/deeper"] {
        assert!(matches!(make(&scratch.0.join(base), "prog", "x"), Err(JailError::Link(_))), "{base}");
    }
    assert!(matches!(make(&scratch.0, "alias", "x"), Err(JailError::Link(_))));
    assert_eq!(fs::read_dir(scratch.0.join("real")).unwrap().count(), 0);
}

#[test]
fn item_25_a_base_that_others_can_write_is_refused() {
    let scratch = Scratch::new("shared");
    fs::set_permissions(&scratch.0, fs::Permissions::from_mode(0o777)).unwrap();
    assert!(matches!(make(&scratch.0, "prog", "x"), Err(JailError::Shared(_))));
    assert_eq!(fs::read_dir(&scratch.0).unwrap().count(), 0);
}

#[test]
fn a_file_in_the_way_is_named() {
    let scratch = Scratch::new("file");
    fs::write(scratch.0.join("base"), b"").unwrap();
    let error = make(&scratch.0.join("base"), "prog", "x").unwrap_err().to_string();
    assert!(error.contains("base") && error.contains("Not a directory"), "{error}");
}
