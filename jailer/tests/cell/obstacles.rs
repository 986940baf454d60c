//! What lies in the way of `--layout firecracker`, or is swapped while it is made: refused, and never followed.

use crate::layout::instead;
use crate::start::{World, cgroups};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(20);

/// Starts, which must fail with one line that has all of `words`, and leaves no cgroup.
#[track_caller]
pub(crate) fn refuses(world: &World, id: &str, flags: &[&str], words: &[&str]) {
    let output = world.drop_in(id, flags).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(words.iter().all(|word| said.contains(word)), "{words:?}: {said}");
    assert!(cgroups(id).is_empty(), "cgroups are left: {:?}", cgroups(id));
}

#[test]
fn item_25_what_lies_in_the_way_of_a_layout_is_refused_and_not_followed() {
    let Some(world) =
        World::new("obstacles::item_25_what_lies_in_the_way_of_a_layout_is_refused_and_not_followed")
    else {
        return;
    };
    let victim = world.base.join("victim");
    fs::write(&victim, "precious").unwrap();
    fs::set_permissions(&victim, fs::Permissions::from_mode(0o640)).unwrap();
    let fifo = |path: &Path| {
        let mode = rustix::fs::Mode::from_raw_mode(0o666);
        rustix::fs::mknodat(CWD, path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    };
    for (name, flags) in [("witness.pid", &[][..]), ("witness", &["--copy-binary"])] {
        for what in ["link", "dangling link", "hard link", "FIFO", "directory", "file"] {
            let path = world.root("way").join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            match what {
                "link" => symlink(&victim, &path).unwrap(),
                "dangling link" => symlink(world.base.join("new"), &path).unwrap(),
                "hard link" => fs::hard_link(&victim, &path).unwrap(),
                "FIFO" => fifo(&path),
                "directory" => fs::create_dir(&path).unwrap(),
                _ => fs::write(&path, "").unwrap(),
            }
            refuses(&world, "way", flags, &[name, "exists already"]);
            assert_eq!(fs::read(&victim).unwrap(), b"precious");
            let status = fs::metadata(&victim).unwrap();
            assert_eq!((status.mode() & 0o7777, status.uid()), (0o640, 0));
            assert!(!world.base.join("new").exists());
            fs::remove_dir_all(world.jail("way")).unwrap();
        }
    }
    for bad in ["", ".", "..", "a/b", "a_b", &"x".repeat(65)] {
        let output = world.drop_in(bad, &[]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("--id") && said.contains("1 to 64"), "{bad:?}: {said}");
    }
    assert!(!world.base.join("witness").join("root").exists(), "a root of nobody's");
    let output = instead(world.drop_in("way", &[]), "--uid", "0").output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("never 0"), "{output:?}");
    assert!(!world.jail("way").exists());
}

/// Stops what goes on beside a test, also where the test has failed.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn item_25_a_name_that_is_swapped_in_a_loop_is_not_followed() {
    let Some(world) = World::new("obstacles::item_25_a_name_that_is_swapped_in_a_loop_is_not_followed")
    else {
        return;
    };
    let victim = world.base.join("victim");
    fs::create_dir(&victim).unwrap();
    fs::write(victim.join("file"), "precious").unwrap();
    let whole = || {
        let (directory, file) = (fs::metadata(&victim).unwrap(), fs::read(victim.join("file")).unwrap());
        (directory.mode(), directory.uid(), fs::read_dir(&victim).unwrap().count(), file)
    };
    let before = whole();
    // The root, a directory in it, and the file of the process id, against a link to the victim.
    for name in ["root", "root/run", "root/witness.pid"] {
        let (place, decoy) = (world.jail("swapped").join(name), world.jail("swapped").join("decoy"));
        fs::create_dir_all(world.root("swapped").join("run")).unwrap();
        symlink(&victim, &decoy).unwrap();
        let (stop, begun) = (AtomicBool::new(false), Instant::now());
        let (mut made, mut refused) = (0, 0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    if name != "root/witness.pid" {
                        renameat_with(CWD, &place, CWD, &decoy, RenameFlags::EXCHANGE).unwrap();
                    } else {
                        // There is nothing to swap it for but the jailer's own file.
                        drop(symlink(victim.join("file"), &place));
                        drop(fs::remove_file(&place));
                    }
                }
            });
            let _stop = Stop(&stop);
            while (made < 3 || refused < 3) && begun.elapsed() < LIMIT {
                let output = world.drop_in("swapped", &[]).output().unwrap();
                let said = String::from_utf8_lossy(&output.stderr);
                match output.status.code() {
                    Some(0) => made += 1,
                    _ => refused += 1,
                }
                assert!(output.status.success() || said.contains("jail"), "{output:?}");
                assert_eq!(whole(), before, "{name}");
                for cgroup in cgroups("swapped") {
                    drop(fs::remove_dir(cgroup));
                }
                drop(fs::remove_file(world.root("swapped").join("witness.pid")));
            }
        });
        assert!(refused >= 3, "{name}: {made} made, {refused} refused");
        fs::remove_dir_all(world.jail("swapped")).unwrap();
    }
    assert!(world.remove("swapped"));
}
