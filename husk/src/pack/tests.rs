use super::*;

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("husk-pack-{}-{name}", std::process::id()));
        std::fs::create_dir_all(path.join("tree/etc")).unwrap();
        std::fs::write(path.join("tree/etc/hostname"), "one\n").unwrap();
        Self(path)
    }

    fn pack(&self) -> Result<Image, PackError> {
        let packer = Packer { cache: Some(self.0.join("cache")), signals: None, talkative: false };
        packer.image_of(&self.0.join("tree"))
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(self.0.join("cache"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

#[test]
fn a_tree_is_packed_once_and_again_after_a_change() {
    let scratch = Scratch::new("once");
    let first = scratch.pack().unwrap();
    assert_eq!(first.check_file_system().unwrap(), "erofs");
    let names = scratch.names();
    assert_eq!(names.len(), 1, "{names:?}");
    let again = scratch.pack().unwrap();
    assert_eq!(first.file.metadata().unwrap().ino(), again.file.metadata().unwrap().ino());
    std::fs::write(scratch.0.join("tree/etc/hostname"), "two\n").unwrap();
    let changed = scratch.pack().unwrap();
    assert_ne!(first.file.metadata().unwrap().ino(), changed.file.metadata().unwrap().ino());
    assert_eq!(scratch.names().len(), 2);
}

#[test]
fn a_damaged_image_is_made_again() {
    let scratch = Scratch::new("damaged");
    scratch.pack().unwrap();
    let names = scratch.names();
    let image = scratch.0.join("cache").join(&names[0]);
    File::options().write(true).open(&image).unwrap().set_len(100).unwrap();
    assert_eq!(scratch.pack().unwrap().check_file_system().unwrap(), "erofs");
    assert_eq!(scratch.names(), names);
}

#[test]
fn many_at_once_make_one_image() {
    let scratch = Scratch::new("many");
    std::thread::scope(|scope| {
        let packs: Vec<_> = (0..4).map(|_| scope.spawn(|| scratch.pack().unwrap())).collect();
        let inodes: std::collections::HashSet<_> =
            packs.into_iter().map(|pack| pack.join().unwrap().file.metadata().unwrap().ino()).collect();
        assert_eq!(inodes.len(), 1);
    });
    assert_eq!(scratch.names().len(), 1);
}

#[test]
fn a_cache_that_cannot_be_written_is_named() {
    let scratch = Scratch::new("blocked");
    std::fs::write(scratch.0.join("cache"), "a file").unwrap();
    let error = scratch.pack().unwrap_err();
    assert!(matches!(error, PackError::Cache { .. }) && error.to_string().contains("/cache"), "{error}");
    std::fs::remove_file(scratch.0.join("cache")).unwrap();
}

#[test]
fn a_missing_directory_is_named() {
    let packer = Packer { cache: Some("/no/such/cache".into()), signals: None, talkative: false };
    let error = packer.image_of(Path::new("/no/such/tree")).unwrap_err().to_string();
    assert!(error.contains("/no/such/tree"), "{error}");
}

#[test]
fn old_images_and_dead_packings_are_collected() {
    let scratch = Scratch::new("gc");
    let cache = scratch.0.join("cache");
    std::fs::create_dir_all(&cache).unwrap();
    for index in 0..MOST_IMAGES + 2 {
        let file = File::create(cache.join(format!("{index:02}.erofs"))).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_900_000_000 + index as u64))
            .unwrap();
    }
    let old = File::create(cache.join("old.erofs")).unwrap();
    old.set_modified(SystemTime::now() - 2 * KEPT_UNUSED).unwrap();
    std::fs::write(cache.join("dead.lock"), "").unwrap();
    std::fs::write(cache.join("dead.unfinished"), "").unwrap();
    let live = File::create(cache.join("live.lock")).unwrap();
    flock(&live, FlockOperation::LockExclusive).unwrap();
    let removed: Vec<_> =
        collect(&cache).iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect();
    assert_eq!(removed, ["01.erofs", "00.erofs", "old.erofs", "dead.unfinished", "dead.lock"]);
    assert!(cache.join("live.lock").exists());
}
