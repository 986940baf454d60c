//! An image in the guest's memory is read in place, shared by all sandboxes of it, and never written.

use husk_tests::husk::{Husk, Outcome, libexec};
use husk_tests::processes;
use husk_tests::rootfs::{busybox_and_tool, erofs_of, ext4_of};
use husk_tests::scratch::Scratch;
use std::fs::{File, read};
use std::io::Read;

/// Bytes of the file in the image.
const NOISE: usize = 24 << 20;

fn noise(bytes: usize) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    File::open("/dev/urandom").unwrap().read_exact(&mut noise).unwrap();
    noise
}

/// An ext4 image of 32 MiB with a file `noise`.
fn image(scratch: &Scratch) -> String {
    let content = scratch.path().join("content");
    std::fs::create_dir(&content).unwrap();
    std::fs::write(content.join("noise"), noise(NOISE)).unwrap();
    let image = scratch.name("image.ext4");
    ext4_of(&content, &image, 32);
    image
}

fn md5_of(path: &std::path::Path) -> String {
    let output = std::process::Command::new("md5sum").arg(path).output().unwrap();
    String::from_utf8_lossy(&output.stdout).split(' ').next().unwrap_or_default().to_owned()
}

#[test]
fn its_files_are_read_in_place_and_nobody_writes_to_it() {
    let scratch = Scratch::new();
    let image = image(&scratch);
    let before = read(&image).unwrap();
    // First as it is found, then by a guest that takes the protection away which it can take away.
    let script = "grep ' /data ' /proc/mounts; md5sum < /data/noise; \
        echo x > /data/x || echo no file; \
        mount -o remount,rw /data || echo no remount; \
        dd if=/dev/zero of=/dev/pmem0 bs=4096 count=1 conv=fsync || echo no write; \
        umount /data; echo 0 > /sys/block/pmem0/device/../read_only; \
        dd if=/dev/zero of=/dev/pmem0 bs=4096 count=4 conv=fsync && echo written; \
        echo 3 > /proc/sys/vm/drop_caches; md5sum < /dev/pmem0";
    let outcome = Husk::run(&["--pmem", &format!("{image}:/data")], &["sh", "-c", script]).output();
    let outcome = outcome.expect_status(0);
    let text = outcome.text();
    let mut lines = text.lines();
    let mounted = lines.next().unwrap();
    assert!(mounted.starts_with("/dev/pmem0 /data ext4 ro,") && mounted.contains("dax"), "{outcome:?}");
    let noise = md5_of(&scratch.path().join("content/noise"));
    assert_eq!(lines.next().unwrap().split(' ').next(), Some(noise.as_str()));
    assert_eq!(lines.by_ref().take(4).collect::<Vec<_>>(), ["no file", "no remount", "no write", "written"]);
    // As long as the image is in whole places of huge pages, it is all of it; 32 MiB is.
    assert_eq!(lines.next().unwrap().split(' ').next(), Some(md5_of(image.as_ref()).as_str()), "as before");
    assert!(before == read(&image).unwrap(), "the image was changed");
}

/// Rss and Pss, in KiB, of all that `pid` has mapped of `file`, and whether any of it may be written.
fn mapped(pid: u32, file: &str) -> (u64, u64, bool) {
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let (mut rss, mut pss, mut writable, mut inside) = (0, 0, false, false);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        let value = |text: Option<&str>| text.and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        match first {
            "Rss:" if inside => rss += value(words.next()),
            "Pss:" if inside => pss += value(words.next()),
            _ if !first.ends_with(':') => {
                inside = line.ends_with(file);
                writable |= inside && words.next().is_some_and(|permissions| permissions.contains('w'));
            }
            _ => {}
        }
    }
    (rss, pss, writable)
}

#[test]
fn two_sandboxes_of_an_image_share_its_pages() {
    let scratch = Scratch::new();
    let image = image(&scratch);
    let start = || {
        let script = "cat /data/noise > /dev/null && echo up && sleep 1000";
        Husk::run(&["--pmem", &format!("{image}:/data")], &["sh", "-c", script]).spawn()
    };
    let both = [start(), start()].map(husk_tests::husk::Running::up);
    let pids = processes::named("husk-control");
    assert_eq!(pids.len(), 2, "two runtimes, not {pids:?}");
    for pid in pids {
        let (rss, pss, writable) = mapped(pid, "image.ext4");
        assert!(rss >= (NOISE >> 10) as u64, "{rss} KiB of the image are there");
        assert!(pss <= rss * 11 / 20 && pss >= rss * 9 / 20, "of {rss} KiB, {pss} are its own");
        assert!(!writable, "a writable mapping of the image");
    }
    both.into_iter().for_each(husk_tests::husk::Running::terminate);
}

#[test]
fn the_root_may_be_an_image_and_disks_are_written_from_its_pages() {
    const BYTES: usize = 256 << 10;
    let scratch = Scratch::new();
    let content = busybox_and_tool(scratch.path());
    let noise = noise(BYTES);
    std::fs::write(content.join("etc/noise"), &noise).unwrap();
    let (image, disk) = (scratch.name("root.erofs"), scratch.file("disk", &vec![0; 1 << 20]));
    erofs_of(&content, &image);
    let before = read(&image).unwrap();
    let json = format!(
        r#"{{"boot-source": {{"kernel_image_path": "{}"}},
            "drives": [{{"drive_id": "scratch", "path_on_host": "{disk}", "is_root_device": false}}],
            "pmem": [{{"id": "root", "path_on_host": "{image}", "root_device": true, "read_only": true}}]}}"#,
        libexec().join("vmlinux").display()
    );
    let config = scratch.file("machine.json", json.as_bytes());
    let script =
        "ls /sys/block; guest-tool direct-write /etc/noise /dev/vda; echo new > /etc/noise; cat /etc/noise";
    let outcome = Husk::run(&["--config", &config], &["sh", "-c", script]).output().expect_status(0);
    assert_eq!(outcome.text(), format!("pmem0\nvda\n{BYTES}\nnew\n"));
    assert!(read(&disk).unwrap()[..BYTES] == noise[..], "the disk has not what the image has");
    assert!(before == read(&image).unwrap(), "the image was changed");
}

#[test]
fn an_image_that_is_cut_short_ends_its_sandbox_by_name() {
    let scratch = Scratch::new();
    let image = image(&scratch);
    let script = "cat /data/noise > /dev/null; echo up; while :; do cat /data/noise > /dev/null; done";
    let options = ["--json", "--pmem", &format!("{image}:/data")];
    let husk = Husk::run(&options, &["sh", "-c", script]).spawn().up();
    File::options().write(true).open(&image).unwrap().set_len(1 << 20).unwrap();
    let outcome = husk.finish().expect_status(125);
    let json = outcome.json();
    assert_eq!(json["fault"], "host", "{json}");
    assert!(json["error"].as_str().unwrap_or_default().contains("pmem image cut short"), "{json}");
}

#[track_caller]
fn refused(outcome: Outcome, words: &[&str]) {
    let outcome = outcome.expect_status(125);
    for word in words {
        assert!(outcome.stderr.contains(word), "no {word:?} in {}", outcome.stderr);
    }
    assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
}

#[test]
fn what_is_no_image_is_named() {
    let scratch = Scratch::new();
    let with = |file: &str| Husk::run(&["--pmem", &format!("{file}:/data")], &["true"]).output();
    refused(with("/no/such.erofs"), &["pmem /no/such.erofs"]);
    refused(with(&scratch.path().to_string_lossy()), &["is a directory", "a plain file is needed"]);
    refused(with(&scratch.file("empty", b"")), &["empty is empty"]);
    refused(with(&scratch.file("noise", &noise(8192))), &["noise is not a raw erofs or ext4 image"]);
    let image = scratch.name("small.ext4");
    let content = scratch.path().join("nothing");
    std::fs::create_dir(&content).unwrap();
    ext4_of(&content, &image, 16);
    refused(
        Husk::run(&["--pmem", &format!("{image}:/data:rw")], &["true"]).output(),
        &["--pmem", "a pmem image is never written"],
    );
    let json = format!(
        r#"{{"boot-source": {{"kernel_image_path": "{}"}},
            "pmem": [{{"id": "a", "path_on_host": "{image}", "read_only": false}}]}}"#,
        libexec().join("vmlinux").display()
    );
    let config = scratch.file("machine.json", json.as_bytes());
    refused(
        Husk::run(&["--config", &config], &["true"]).output(),
        &["pmem \"a\"", "read_only false", "never written"],
    );
}
