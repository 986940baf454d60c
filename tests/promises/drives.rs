//! What a command writes to a drive is there when husk has ended, always, and the file system is clean.

use husk_tests::husk::Husk;
use husk_tests::rootfs::{assert_clean, ext4};
use husk_tests::scratch::Scratch;

#[test]
fn written_left_checked_and_read_back_two_hundred_times() {
    let scratch = Scratch::new();
    let disk = scratch.name("disk.ext4");
    ext4(&disk, 32);
    let drive = format!("{disk}:/data:rw");
    for round in 0..200 {
        // Written and left at once: nothing in the command syncs.
        let script = format!(
            "test {round} = 0 || test \"$(cat /data/round)\" = {} || exit 9; \
             echo {round} > /data/round; head -c 300000 /dev/urandom > /data/noise; md5sum /data/noise",
            round - 1
        );
        let outcome = Husk::run(&["--drive", &drive], &["sh", "-c", &script]).output().expect_status(0);
        assert_clean(&disk);
        if round % 20 == 0 {
            let again = Husk::run(&["--drive", &drive], &["md5sum", "/data/noise"]).output().expect_status(0);
            assert_eq!(again.text(), outcome.text());
        }
    }
}

#[test]
fn a_drive_is_read_only_unless_rw() {
    let scratch = Scratch::new();
    let disk = scratch.name("disk.ext4");
    ext4(&disk, 16);
    let before = std::fs::read(&disk).unwrap();
    let script =
        "echo x > /data/x; echo status $?; dd if=/dev/zero of=/dev/vdb bs=512 count=1 2>/dev/null; echo $?";
    let outcome = Husk::run(&["--drive", &format!("{disk}:/data")], &["sh", "-c", script]).output();
    let outcome = outcome.expect_status(0);
    assert!(outcome.text().contains("status 1\n1\n"), "{}", outcome.text());
    assert!(before == std::fs::read(&disk).unwrap(), "a read-only drive was changed");
}

#[test]
fn the_root_is_writable_and_forgotten() {
    let script = "test ! -e /etc/written && echo x > /etc/written && cat /etc/written";
    for _ in 0..2 {
        let outcome = Husk::sh(script).output().expect_status(0);
        assert_eq!(outcome.text(), "x\n");
    }
}

#[test]
fn a_command_killed_by_its_timeout_leaves_a_clean_drive() {
    let scratch = Scratch::new();
    let disk = scratch.name("disk.ext4");
    ext4(&disk, 32);
    let script = "i=0; while :; do i=$((i+1)); echo $i > /data/$((i % 50)); done";
    let drive = format!("{disk}:/data:rw");
    Husk::run(&["--drive", &drive, "--timeout", "3s"], &["sh", "-c", script]).output().expect_status(124);
    assert_clean(&disk);
}

#[test]
fn a_background_writer_is_ended_before_the_drive_is_unmounted() {
    let scratch = Scratch::new();
    let disk = scratch.name("disk.ext4");
    ext4(&disk, 32);
    let script = "(trap '' TERM HUP; cd /data; while :; do echo x >> log; done) & sleep 1; exit 4";
    let drive = format!("{disk}:/data:rw");
    Husk::run(&["--drive", &drive], &["sh", "-c", script]).output().expect_status(4);
    assert_clean(&disk);
}

#[test]
fn a_directory_is_packed_and_a_change_in_it_is_noticed() {
    let scratch = Scratch::new();
    let root = husk_tests::rootfs::busybox_and_tool(scratch.path());
    let cache = scratch.name("cache");
    let root_name = root.to_string_lossy().into_owned();
    let cat = |expected: &str| {
        let outcome = Husk::run(&["--rootfs", &root_name], &["cat", "/etc/note"])
            .env("XDG_CACHE_HOME", &cache)
            .output()
            .expect_status(0);
        assert_eq!(outcome.text(), expected);
    };
    std::fs::write(root.join("etc/note"), "one\n").unwrap();
    cat("one\n");
    cat("one\n");
    std::fs::write(root.join("etc/note"), "two\n").unwrap();
    cat("two\n");
}

#[test]
fn a_disk_that_is_not_whole_sectors_is_named() {
    let scratch = Scratch::new();
    let disk = scratch.name("disk.ext4");
    ext4(&disk, 16);
    let file = std::fs::OpenOptions::new().append(true).open(&disk).unwrap();
    file.set_len((16 << 20) + 100).unwrap();
    let outcome = Husk::run(&["--drive", &format!("{disk}:/data")], &["true"]).output().expect_status(125);
    assert!(outcome.stderr.contains("disk.ext4") && outcome.stderr.contains("512"), "{}", outcome.stderr);
}
