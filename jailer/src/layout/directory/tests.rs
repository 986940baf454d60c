use super::*;
use crate::jail::tests::Scratch;
use rustix::fs::{CWD, FileType, RenameFlags, mknodat, renameat_with};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Somebody else's directory with a file in it, both of which must stay as they are.
struct Victim(PathBuf);

impl Victim {
    fn in_(scratch: &Scratch) -> Self {
        let path = scratch.0.join("victim");
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(path.join("file"), "precious").unwrap();
        fs::set_permissions(path.join("file"), fs::Permissions::from_mode(0o640)).unwrap();
        Self(path)
    }

    fn file(&self) -> PathBuf {
        self.0.join("file")
    }

    #[track_caller]
    fn is_untouched(&self) {
        assert_eq!(fs::metadata(&self.0).unwrap().mode() & 0o777, 0o755);
        assert_eq!(fs::read_dir(&self.0).unwrap().count(), 1);
        assert_eq!(fs::read(self.file()).unwrap(), b"precious");
        assert_eq!(fs::metadata(self.file()).unwrap().mode() & 0o777, 0o640);
    }
}

/// Puts something other than a directory at `path`.
fn obstruct(path: &Path, what: &str, victim: &Victim) {
    drop(fs::remove_file(path));
    match what {
        "link to a directory" => symlink(&victim.0, path).unwrap(),
        "link to a file" => symlink(victim.file(), path).unwrap(),
        "dangling link" => symlink(victim.0.join("new"), path).unwrap(),
        "hard link" => fs::hard_link(victim.file(), path).unwrap(),
        "FIFO" => mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o666), 0).unwrap(),
        _ => fs::write(path, "").unwrap(),
    }
}

const OBSTACLES: [&str; 6] =
    ["link to a directory", "link to a file", "dangling link", "hard link", "FIFO", "file"];

fn prepared(scratch: &Scratch) -> Result<Directory, JailError> {
    prepare(&scratch.0.join("base"), "prog", "one", Caller::current())
}

fn root_of(scratch: &Scratch) -> PathBuf {
    scratch.0.join("base/prog/one/root")
}

fn a_program() -> OwnedFd {
    fs::File::open(std::env::current_exe().unwrap()).unwrap().into()
}

#[test]
fn a_directory_is_made_and_taken_back() {
    let scratch = Scratch::new("layout-made");
    let root = root_of(&scratch);
    let mut directory = prepared(&scratch).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    assert_eq!((mode(&root), mode(&root.join("run"))), (0o700, 0o700));
    assert_eq!(mode(root.parent().unwrap()), 0o755);
    drop(directory.create("prog.pid", 0o644).unwrap());
    drop(directory.copy("prog", &a_program()).unwrap());
    assert_eq!((mode(&root.join("prog.pid")), mode(&root.join("prog"))), (0o644, 0o555));
    assert_eq!(
        fs::read(root.join("prog")).unwrap(),
        fs::read(std::env::current_exe().unwrap()).unwrap(),
        "a copy"
    );
    directory.remove();
    assert!(!root.parent().unwrap().exists() && scratch.0.join("base/prog").exists());
}

#[test]
fn what_the_operator_put_there_stays() {
    let scratch = Scratch::new("layout-kept");
    let root = root_of(&scratch);
    fs::create_dir_all(root.join("run")).unwrap();
    fs::write(root.join("vmlinux"), "kernel").unwrap();
    let mut directory = prepared(&scratch).unwrap();
    drop(directory.create("prog.pid", 0o644).unwrap());
    directory.remove();
    let mut left: Vec<_> = fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["run", "vmlinux"]);
    // Once more, over what the last one left.
    assert!(prepared(&scratch).is_ok());
}

#[test]
fn item_25_what_lies_in_a_files_place_is_refused_whatever_it_is() {
    let scratch = Scratch::new("layout-files");
    let victim = Victim::in_(&scratch);
    let root = root_of(&scratch);
    for what in OBSTACLES {
        for name in ["prog.pid", "prog"] {
            let mut directory = prepared(&scratch).unwrap();
            obstruct(&root.join(name), what, &victim);
            let before = fs::symlink_metadata(root.join(name)).unwrap();
            let result = if name == "prog" {
                directory.copy(name, &a_program())
            } else {
                directory.create(name, 0o644)
            };
            let error = result.unwrap_err();
            assert!(matches!(error, JailError::Exists(_)), "{what}: {error}");
            assert!(error.to_string().contains(name), "{error}");
            directory.remove();
            let after = fs::symlink_metadata(root.join(name)).unwrap();
            assert_eq!(
                (before.ino(), before.mode()),
                (after.ino(), after.mode()),
                "{what} is not ours to remove"
            );
            fs::remove_file(root.join(name)).unwrap();
            victim.is_untouched();
        }
    }
    fs::create_dir_all(root.join("prog.pid")).unwrap();
    assert!(matches!(prepared(&scratch).unwrap().create("prog.pid", 0o644), Err(JailError::Exists(_))));
}

#[test]
fn item_25_what_lies_in_a_directorys_place_is_refused_whatever_it_is() {
    let scratch = Scratch::new("layout-directories");
    let victim = Victim::in_(&scratch);
    let own = root_of(&scratch).parent().unwrap().to_owned();
    for what in OBSTACLES {
        for place in ["", "root", "root/run", "root/dev"] {
            let path = if place.is_empty() { own.clone() } else { own.join(place) };
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            obstruct(&path, what, &victim);
            let error = prepared(&scratch).unwrap_err();
            let link = what.contains("link") && what != "hard link";
            assert_eq!(matches!(error, JailError::Link(_)), link, "{what} at {place:?}: {error}");
            assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
            fs::remove_file(&path).unwrap();
            fs::remove_dir_all(scratch.0.join("base")).unwrap();
            victim.is_untouched();
        }
    }
}

#[test]
fn item_25_a_directory_that_others_may_have_put_there_is_refused() {
    let scratch = Scratch::new("layout-others");
    let somebody = Caller { uid: Caller::current().uid.wrapping_add(1), gid: 0 };
    for place in ["", "root", "root/run"] {
        let path = root_of(&scratch).parent().unwrap().join(place);
        fs::create_dir_all(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        let base = scratch.0.join("base");
        // Without root the chown of the root itself would be refused, which comes first only for `run`.
        let user =
            if place == "root/run" { Caller { uid: Caller::current().uid, ..somebody } } else { somebody };
        let result = prepare(&base, "prog", "one", user);
        if place == "root/run" {
            // The user's own: he may have it as he likes, and it becomes private.
            assert!(result.is_ok(), "{result:?}");
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        } else {
            assert!(matches!(result, Err(JailError::Shared(_))), "{place}: {result:?}");
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o777);
        }
        fs::remove_dir_all(base).unwrap();
    }
}

#[test]
fn nodes_hide_nothing() {
    let scratch = Scratch::new("layout-filled");
    fs::create_dir_all(root_of(&scratch).join("dev")).unwrap();
    assert!(prepared(&scratch).is_ok());
    fs::write(root_of(&scratch).join("dev/disk"), "").unwrap();
    let error = prepared(&scratch).unwrap_err();
    assert!(matches!(error, JailError::Filled(_)), "{error}");
    assert!(root_of(&scratch).join("dev/disk").exists());
}

/// Stops what goes on beside a test, also where the test has failed.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Swaps two names for each other until it is told to stop.
fn swap_until(stop: &AtomicBool, one: &Path, other: &Path) {
    while !stop.load(Ordering::Relaxed) {
        renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).unwrap();
    }
}

#[test]
fn item_25_names_that_are_swapped_in_a_loop_are_not_followed() {
    let scratch = Scratch::new("layout-swapped");
    let victim = Victim::in_(&scratch);
    let root = root_of(&scratch);
    let own = root.parent().unwrap();
    for name in ["root", "root/run", "root/dev"] {
        fs::create_dir_all(root.join("run")).unwrap();
        let link = own.join("decoy");
        symlink(&victim.0, &link).unwrap();
        fs::create_dir_all(own.join(name)).unwrap();
        let (stop, begun) = (AtomicBool::new(false), Instant::now());
        let (mut made, mut refused) = (0, 0);
        std::thread::scope(|scope| {
            scope.spawn(|| swap_until(&stop, &own.join(name), &link));
            let _stop = Stop(&stop);
            while (made < 20 || refused < 20) && begun.elapsed() < Duration::from_secs(20) {
                match prepared(&scratch) {
                    Ok(mut directory) => {
                        made += 1;
                        drop(directory.create("prog.pid", 0o644).unwrap());
                        drop(directory.copy("prog", &a_program()).unwrap());
                        directory.remove();
                    }
                    Err(JailError::Link(_)) => refused += 1,
                    Err(error) => panic!("{error}"),
                }
                victim.is_untouched();
            }
        });
        assert!(made >= 20 && refused >= 20, "{name}: {made} made, {refused} refused");
        fs::remove_dir_all(scratch.0.join("base")).unwrap();
    }
}
