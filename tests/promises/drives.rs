//! What a command writes to a drive is there when husk has ended, always, and the file system is clean.

use husk_tests::husk::{Husk, binary};
use husk_tests::loops::{Freezable, LoopDevice};
use husk_tests::processes;
use husk_tests::rootfs::{assert_clean, ext4};
use husk_tests::scratch::Scratch;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

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

/// Whether the thread of the second drive (the first after the root) waits in the kernel for its disk.
fn waits_for_its_disk() -> bool {
    processes::named("husk-control").into_iter().any(|pid| {
        processes::threads(pid).into_iter().any(|(thread, name)| {
            let state = processes::status(&format!("/proc/{pid}/task/{thread}"), "State");
            name == "husk-blk1" && state.starts_with('D')
        })
    })
}

/// husk with these arguments, its standard input, and the lines of its standard output.
pub(crate) fn talking(args: &[&str]) -> (Child, ChildStdin, Receiver<String>) {
    let mut command = Command::new(binary());
    let mut child = command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let stdin = child.stdin.take().unwrap();
    let (say, lines) = std::sync::mpsc::channel();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| say.send(line)));
    (child, stdin, lines)
}

/// The id of the one sandbox that runs.
pub(crate) fn sandbox() -> String {
    let listed = Husk::new(["ps", "--json"]).output().expect_status(0);
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!(listed.as_array().map(Vec::len), Some(1), "{listed}");
    listed[0]["id"].as_str().unwrap().to_owned()
}

#[test]
fn item_32_a_hung_disk_stops_its_drive_alone() {
    const SCRIPT: &str = "echo up; read go; \
        (dd if=/dev/zero of=/data/x bs=64k count=1 conv=fsync 2>/dev/null && echo written) & \
        while read line; do echo $line | dd of=/other/x conv=fsync 2>/dev/null; echo heard $line; \
        test $line != last || break; done; wait; cat /other/x; echo end";
    let scratch = Scratch::new();
    let (image, other) = (scratch.name("host.ext4"), scratch.name("other.ext4"));
    ext4(&image, 64);
    ext4(&other, 16);
    let host = Freezable::mount(&image, &scratch.path().join("host"));
    let disk = host.name("disk.ext4");
    ext4(&disk, 16);
    let new = scratch.file("new.img", &[0; 4096]);
    let (hung, good) = (format!("{disk}:/data:rw"), format!("{other}:/other:rw"));
    let (mut child, mut stdin, lines) =
        talking(&["run", "-i", "--drive", &hung, "--drive", &good, "--", "sh", "-c", SCRIPT]);
    let next = || lines.recv_timeout(Duration::from_secs(30)).unwrap();
    assert_eq!(next(), "up");
    host.freeze();
    stdin.write_all(b"go\n").unwrap();
    let started = Instant::now();
    while !waits_for_its_disk() {
        assert!(started.elapsed() < Duration::from_secs(30), "the drive's thread never waited for its disk");
        std::thread::sleep(Duration::from_millis(20));
    }
    for round in 0..20 {
        writeln!(stdin, "{round}").unwrap();
        assert_eq!(next(), format!("heard {round}"), "streams flow, and the other drive is written to");
    }
    assert!(waits_for_its_disk(), "the disk hung all the while");
    let refused = Husk::new(["update", &sandbox(), "--drive", &format!("husk-drive0={new}")]);
    let refused = refused.output().expect_status(125).stderr;
    assert!(refused.contains("did not let go within 5 s; nothing was changed"), "{refused}");
    host.thaw();
    writeln!(stdin, "last").unwrap();
    let mut rest: Vec<String> = (0..4).map(|_| next()).collect();
    // The writer and the reader end in any order.
    rest[..2].sort();
    assert_eq!(rest, ["heard last", "written", "last", "end"]);
    assert!(child.wait().unwrap().success());
    assert_clean(&disk);
    assert_clean(&other);
}

#[test]
fn a_block_device_is_a_drive() {
    let scratch = Scratch::new();
    let image = scratch.name("image.ext4");
    ext4(&image, 32);
    let script = "cat /sys/block/vdb/size; grep -q ' /data ext4 rw' /proc/mounts && echo kept > /data/x && \
        dd if=/dev/zero of=/data/y bs=1M count=8 2>/dev/null && sync && rm /data/y && fstrim /data && cat /data/x";
    let device = LoopDevice::of(&image);
    let drive = format!("{}:/data:rw", device.node());
    let outcome = Husk::run(&["--drive", &drive], &["sh", "-c", script]).output().expect_status(0);
    assert_eq!(outcome.text(), "65536\nkept\n");
    let drive = format!("{}:/data", device.node());
    let outcome = Husk::run(&["--drive", &drive], &["cat", "/data/x"]).output().expect_status(0);
    assert_eq!(outcome.text(), "kept\n");
    drop(device);
    assert_clean(&image);
}

/// What the one runtime's descriptors lead to.
fn descriptors() -> Vec<String> {
    let pids = processes::named("husk-control");
    assert_eq!(pids.len(), 1, "{pids:?}");
    let entries = std::fs::read_dir(format!("/proc/{}/fd", pids[0])).unwrap().flatten();
    let links = entries.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    links.map(|link| link.to_string_lossy().into_owned()).collect()
}

fn has_ring() -> bool {
    descriptors().iter().any(|link| link == "anon_inode:[io_uring]")
}

#[test]
fn a_drive_with_a_ring_keeps_what_is_written() {
    let scratch = Scratch::new();
    let disk = scratch.name("disk.ext4");
    ext4(&disk, 32);
    let drive = format!("{disk}:/data:rw,async");
    let script = "echo up; head -c 3000000 /dev/urandom > /data/noise; sync; echo 3 > /proc/sys/vm/drop_caches; \
                  dd if=/dev/zero of=/data/y bs=1M count=8 2>/dev/null && sync && rm /data/y && fstrim /data; \
                  md5sum /data/noise; sleep 2";
    let husk = Husk::run(&["--json", "--drive", &drive], &["sh", "-c", script]).spawn().up();
    assert!(has_ring());
    let outcome = husk.finish().expect_status(0);
    assert_eq!(outcome.json()["degraded"], serde_json::json!([]));
    assert_clean(&disk);
    let drive = format!("{disk}:/data:async");
    let again = Husk::run(&["--drive", &drive], &["md5sum", "/data/noise"]).output().expect_status(0);
    assert_eq!(format!("up\n{}", again.text()), outcome.text());
}

/// The host's io_uring turned off for processes without privilege, such as a runtime, until this is dropped.
struct NoRings(String);

impl NoRings {
    const SETTING: &str = "/proc/sys/kernel/io_uring_disabled";

    /// `None` where the kernel has no such setting.
    fn new() -> Option<Self> {
        let before = std::fs::read_to_string(Self::SETTING).ok()?;
        std::fs::write(Self::SETTING, "1").unwrap();
        Some(Self(before))
    }
}

impl Drop for NoRings {
    fn drop(&mut self) {
        std::fs::write(Self::SETTING, self.0.trim()).unwrap();
    }
}

#[test]
fn where_the_host_gives_no_io_uring_a_drive_does_without_and_it_is_told() {
    let scratch = Scratch::new();
    let disk = scratch.name("disk.ext4");
    ext4(&disk, 16);
    let Some(_off) = NoRings::new() else { husk_tests::skip!("no kernel.io_uring_disabled here") };
    let drive = format!("{disk}:/data:rw,async");
    let command = ["sh", "-c", "echo up; echo kept > /data/x; cat /data/x; sleep 2"];
    let husk = Husk::run(&["--json", "--drive", &drive], &command).spawn().up();
    assert!(!has_ring());
    let outcome = husk.finish().expect_status(0);
    assert_eq!(outcome.text(), "up\nkept\n");
    let degraded = outcome.json()["degraded"].clone();
    assert!(
        degraded[0].as_str().is_some_and(|line| line.contains("drive \"husk-drive0\": no io_uring")),
        "{degraded}"
    );
    assert_clean(&disk);
}

#[test]
fn another_file_takes_a_drives_place_while_the_guest_runs() {
    // Of each disk its sectors and its first four bytes; then, where it says so, something is written to both.
    const SCRIPT: &str = "echo up; while read what; do for d in vdb vdc; do \
        test $what = look || dd if=/etc/passwd of=/dev/$d bs=512 count=1 seek=1 oflag=direct conv=sync 2>/dev/null; \
        echo $d $(cat /sys/block/$d/size) $(dd if=/dev/$d bs=512 count=1 iflag=direct 2>/dev/null | head -c 4); done; done";
    let scratch = Scratch::new();
    let image = |name: &str, sectors: usize| {
        let mut bytes = vec![b'.'; sectors * 512];
        bytes[..4].copy_from_slice(name.as_bytes());
        scratch.file(name, &bytes)
    };
    let (old, new) = ([image("old1", 2048), image("old2", 4096)], [image("new1", 8192), image("new2", 1024)]);
    let drive = |id: &str, file: &str, engine: &str| serde_json::json!({"drive_id": id, "path_on_host": file, "is_root_device": false, "io_engine": engine});
    let drives = [drive("one", &old[0], "Sync"), drive("two", &old[1], "Async")];
    let config = scratch.file("machine.json", serde_json::json!({"drives": drives}).to_string().as_bytes());
    let (mut child, mut stdin, lines) =
        talking(&["run", "-i", "--config", &config, "--", "sh", "-c", SCRIPT]);
    let next = || lines.recv_timeout(Duration::from_secs(30)).unwrap();
    assert_eq!(next(), "up");
    let mut look = |what: &str| {
        writeln!(stdin, "{what}").unwrap();
        [next(), next()]
    };
    assert_eq!(look("look"), ["vdb 2048 old1", "vdc 4096 old2"]);
    let id = sandbox();
    assert!(has_ring());
    for (drive, file) in [("one", &new[0]), ("two", &new[1])] {
        Husk::new(["update", &id, "--drive", &format!("{drive}={file}")]).output().expect_status(0);
    }
    let started = Instant::now();
    while look("look") != ["vdb 8192 new1", "vdc 1024 new2"] {
        assert!(started.elapsed() < Duration::from_secs(30), "the guest never heard of it");
    }
    let before = old.clone().map(|file| std::fs::read(file).unwrap());
    assert_eq!(look("write"), ["vdb 8192 new1", "vdc 1024 new2"]);
    assert_eq!(old.clone().map(|file| std::fs::read(file).unwrap()), before, "an old file was written to");
    assert!(new.iter().all(|file| std::fs::read(file).unwrap()[512..].starts_with(b"root:")));
    let links = descriptors();
    assert!(!has_ring() && !links.iter().any(|link| old.contains(link)), "{links:?}");
    // The old files are free again; the new ones are not.
    let taken = Husk::run(&["--drive", &format!("{}:/x:rw", new[0])], &["true"]).output().expect_status(125);
    assert!(taken.stderr.contains("in use"), "{}", taken.stderr);
    let refused = |drive: &str, words: &str| {
        let outcome = Husk::new(["update", "--json", &id, "--drive", drive]).output().expect_status(125);
        let result: serde_json::Value = serde_json::from_slice(&outcome.stdout).unwrap();
        assert!(result["error"].as_str().is_some_and(|line| line.contains(words)), "{result}");
        assert_eq!((&result["fault"], &result["id"]), (&"operator".into(), &serde_json::Value::Null));
    };
    refused(&format!("three={}", old[0]), "it has husk-root, one, two");
    refused(&format!("husk-root={}", old[0]), "part of a file");
    refused("one=/dev/null", "character device");
    refused("one", "not DRIVE=FILE");
    assert_eq!(look("look"), ["vdb 8192 new1", "vdc 1024 new2"]);
    drop(stdin);
    assert!(child.wait().unwrap().success());
}
