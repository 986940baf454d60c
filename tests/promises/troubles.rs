//! Items 29, 30 and 32: the host's troubles while a guest runs, or about to, are that device's, or have a name.

use crate::drives::talking;
use husk_tests::footprint::Footprint;
use husk_tests::husk::{Husk, Outcome, binary};
use husk_tests::loops::LoopDevice;
use husk_tests::processes;
use husk_tests::rootfs::{assert_clean, ext4};
use husk_tests::scratch::Scratch;
use husk_tests::tap::Tap;
use std::io::Write;
use std::process::Command;
use std::time::Duration;

/// A small file system on the host that is there as long as the value.
struct Full(String);

impl Full {
    #[track_caller]
    fn mount(dir: String, size: &str) -> Self {
        std::fs::create_dir(&dir).unwrap();
        let options = format!("size={size}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "none", &dir]).status();
        assert!(mounted.unwrap().success());
        Self(dir)
    }
}

impl Drop for Full {
    fn drop(&mut self) {
        drop(Command::new("umount").args(["--lazy", &self.0]).status());
    }
}

#[test]
fn item_29_a_full_file_system_below_a_drive_is_that_drives_error_alone() {
    let scratch = Scratch::new();
    let host = Full::mount(scratch.name("host"), "4m");
    let (small, other) = (format!("{}/disk.ext4", host.0), scratch.name("other.ext4"));
    ext4(&small, 32);
    ext4(&other, 16);
    // More than the host has room for: the disk promises 32 MiB.
    let script = "dd if=/dev/urandom of=/data/x bs=64k count=256 conv=fsync 2>/dev/null; echo full $?; \
                  dd if=/dev/urandom of=/other/x bs=64k count=32 conv=fsync 2>/dev/null; echo other $?; \
                  head -c 4 /data/x | wc -c";
    let (small, good) = (format!("{small}:/data:rw"), format!("{other}:/other:rw"));
    let outcome = Husk::run(&["--drive", &small, "--drive", &good], &["sh", "-c", script]).output();
    let text = outcome.expect_status(0).text();
    assert!(text.starts_with("full 1\nother 0\n"), "{text}");
    assert_clean(&other);
}

#[test]
fn item_29_output_to_a_full_file_system_is_told_and_ends_the_sandbox() {
    let before = Footprint::now();
    let scratch = Scratch::new();
    let host = Full::mount(scratch.name("host"), "64k");
    let file = std::fs::File::create(format!("{}/log", host.0)).unwrap();
    let mut command = Command::new(binary());
    command.args(["run", "--", "sh", "-c", "head -c 1000000 /dev/zero; sleep 1000"]);
    let output = command.stdin(std::process::Stdio::null()).stdout(file).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(125), "{said}");
    assert!(said.starts_with("husk: ") && said.contains("No space left"), "{said}");
    drop(host);
    before.assert_restored();
}

#[test]
fn item_32_a_disk_that_fails_or_is_cut_short_fails_alone() {
    const SCRIPT: &str = "look() { dd if=/dev/$1 of=/dev/null bs=4k skip=$2 count=1 iflag=direct 2>/dev/null; echo $1 $?; }; \
        for d in vdb vdc vdd; do look $d 100; done; while read what; do for d in vdb vdc vdd; do look $d 101; done; done; echo end";
    let scratch = Scratch::new();
    let image = |name: &str| scratch.file(name, &vec![7; 1 << 20]);
    let [short, behind, good] = ["short", "behind", "good"].map(image);
    let device = LoopDevice::of(&behind);
    let drive = |id: &str, file: &str| serde_json::json!({"drive_id": id, "path_on_host": file, "is_root_device": false});
    let drives = [drive("short", &short), drive("failing", device.node()), drive("good", &good)];
    let config = scratch.file("machine.json", serde_json::json!({"drives": drives}).to_string().as_bytes());
    let (mut child, mut stdin, lines) =
        talking(&["run", "-i", "--config", &config, "--", "sh", "-c", SCRIPT]);
    let next = || lines.recv_timeout(Duration::from_secs(30)).unwrap();
    assert_eq!([next(), next(), next()], ["vdb 0", "vdc 0", "vdd 0"]);
    // The file of the first ends before what is read; what is behind the second does, which is an I/O error of a block device.
    for file in [&short, &behind] {
        std::fs::OpenOptions::new().write(true).open(file).unwrap().set_len(4096).unwrap();
    }
    writeln!(stdin, "again").unwrap();
    assert_eq!([next(), next(), next()], ["vdb 1", "vdc 1", "vdd 0"], "the streams and the third go on");
    drop(stdin);
    assert_eq!(next(), "end");
    assert!(child.wait().unwrap().success());
}

#[test]
fn item_32_a_tap_that_is_deleted_is_a_network_that_is_gone() {
    let tap = Tap::new("husk-gone", &["10.77.21.1/24"]);
    let net = tap.option();
    let script =
        "echo up; read go; ping -c 1 -W 1 10.77.21.1 >/dev/null 2>&1; echo ping $?; read go; echo end";
    let options = ["run", "-i", "--net", &net, "--guest-ip", "10.77.21.2/24", "--allow", "10.77.21.1:*"];
    let (mut child, mut stdin, lines) = talking(&[&options[..], &["--", "sh", "-c", script]].concat());
    let next = || lines.recv_timeout(Duration::from_secs(30)).unwrap();
    assert_eq!(next(), "up");
    let deleted = Command::new("/bin/busybox").args(["ip", "link", "del", "husk-gone"]).status().unwrap();
    assert!(deleted.success() && !std::path::Path::new("/sys/class/net/husk-gone").exists());
    writeln!(stdin, "go").unwrap();
    assert_eq!(next(), "ping 1");
    // Whoever waits for a descriptor that is always ready and never read from waits at full speed.
    let pid = processes::named("husk-control")[0];
    let ticks = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<u64> = stat
            .rsplit_once(')')
            .unwrap()
            .1
            .split_whitespace()
            .skip(11)
            .take(2)
            .map(|it| it.parse().unwrap())
            .collect();
        fields[0] + fields[1]
    };
    let before = ticks();
    std::thread::sleep(Duration::from_secs(2));
    let used = ticks() - before;
    assert!(used < 100, "{used} of 200 ticks went to a tap that is gone");
    writeln!(stdin, "go").unwrap();
    assert_eq!(next(), "end");
    assert!(child.wait().unwrap().success());
}

/// husk in a mount namespace in which `prepare` was run.
fn where_first(prepare: &str) -> Outcome {
    let mut command = Command::new("unshare");
    let script = format!("mount --make-rprivate / && {prepare} && exec \"$@\"");
    command.args(["--mount", "sh", "-c", &script, "sh"]).arg(binary()).args(["run", "--", "true"]);
    Husk::from_command(command).output().expect_status(125)
}

#[test]
fn item_30_a_kvm_that_is_missing_or_another_device_is_named() {
    let before = Footprint::now();
    for (prepare, words) in [
        ("mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3", "/dev/kvm"),
        ("mount --bind /dev/null /dev/kvm", "not /dev/kvm"),
    ] {
        let outcome = where_first(prepare);
        assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
        assert!(outcome.stderr.starts_with("husk: ") && outcome.stderr.contains(words), "{}", outcome.stderr);
    }
    before.assert_restored();
}
