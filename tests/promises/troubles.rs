//! Items 29, 30 and 32: the host's troubles while a guest runs, or about to, are that device's, or have a name.

use crate::drives::talking;
use crate::placement::Pool;
use husk_tests::footprint::Footprint;
use husk_tests::husk::{Husk, Outcome, binary};
use husk_tests::loops::LoopDevice;
use husk_tests::processes;
use husk_tests::rootfs::{assert_clean, ext4};
use husk_tests::scratch::Scratch;
use husk_tests::tap::Tap;
use std::io::{Read, Write};
use std::process::Command;
use std::time::Duration;

/// A small file system on the host that is there as long as the value.
struct Full(String);

impl Full {
    #[track_caller]
    fn mount(dir: String, size: &str) -> Self {
        Self::of(dir, "tmpfs", &format!("size={size}"))
    }

    #[track_caller]
    fn of(dir: String, kind: &str, options: &str) -> Self {
        std::fs::create_dir(&dir).unwrap();
        let mounted = Command::new("mount").args(["-t", kind, "-o", options, "none", &dir]).status();
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
fn item_29_a_console_that_goes_to_a_full_file_system_is_lost_and_the_command_goes_on() {
    let before = Footprint::now();
    let scratch = Scratch::new();
    let host = Full::mount(scratch.name("host"), "16k");
    let path = format!("{}/log", host.0);
    let mut command = Command::new(binary());
    let script = "head -c 262144 /dev/zero | tr '\\0' x > /dev/hvc0; echo still here; exit 7";
    command.args(["run", "--console", "--", "sh", "-c", script]).stdin(std::process::Stdio::null());
    let output = command.stderr(std::fs::File::create(&path).unwrap()).output().unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(7), &b"still here\n"[..]));
    let log = std::fs::read(&path).unwrap();
    assert_eq!(log.len(), 16 << 10, "what there was room for is there, and the log is full");
    assert!(String::from_utf8_lossy(&log).contains("Linux version"));
    drop(host);
    before.assert_restored();
}

#[test]
fn item_29_a_socket_that_there_is_no_room_for_is_named() {
    let before = Footprint::now();
    let scratch = Scratch::new();
    // One inode, which its own root has.
    let host = Full::of(scratch.name("host"), "tmpfs", "nr_inodes=1");
    let socket = format!("{}/vsock", host.0);
    let outcome = Husk::run(&["--vsock", &socket], &["true"]).output().expect_status(125);
    assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
    assert!(
        outcome.stderr.contains(&socket) && outcome.stderr.contains("No space left"),
        "{}",
        outcome.stderr
    );
    drop(host);
    before.assert_restored();
}

#[test]
fn item_32_a_console_that_nobody_reads_and_one_without_a_reader_hold_up_no_command() {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut command = Command::new(binary());
    // More than the pipe, husk and the runtime hold together.
    let script = "head -c 524288 /dev/zero | tr '\\0' x > /dev/hvc0; echo still here; read x; exit 7";
    command.args(["run", "-i", "--console", "--", "sh", "-c", script]);
    command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).stderr(writer);
    let mut child = command.spawn().unwrap();
    drop(command);
    let mut said = [0; 11];
    child.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
    assert_eq!(&said, b"still here\n");
    drop(reader);
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(7));
}

#[test]
fn item_30_huge_pages_that_run_out_when_they_are_first_touched_are_named() {
    let Some(_pool) = Pool::of(72) else { husk_tests::skip!("no 72 huge pages of 2 MiB to be had") };
    let before = Footprint::now();
    // All are there to be reserved, and half of them to be touched, which is when they are charged.
    let options = ["--json", "--hugepages", "2M", "--limit", "hugetlb.2MB.max=64M"];
    let outcome = Husk::run(&options, &["true"]).output().expect_status(125);
    let result = outcome.json();
    assert_eq!(result["fault"], "host", "{result}");
    let error = result["error"].as_str().unwrap_or_default();
    assert!(error.contains("128 MiB") && error.contains("no huge page left, a cgroup's limit"), "{result}");
    before.assert_restored();
}

#[test]
fn item_30_huge_pages_that_run_out_while_the_guest_runs_end_it_by_name_and_no_neighbour() {
    let Some(_pool) = Pool::of(4) else { husk_tests::skip!("no 4 huge pages of 2 MiB to be had") };
    let (mut neighbour, stdin, lines) =
        talking(&["run", "-i", "--", "sh", "-c", "echo up; read x; echo alive"]);
    let next = || lines.recv_timeout(Duration::from_secs(30)).unwrap();
    assert_eq!(next(), "up");
    let before = Footprint::now();
    let scratch = Scratch::new();
    let host = Full::of(scratch.name("huge"), "hugetlbfs", "pagesize=2M");
    // Without content: each page is made when the guest first reads it. Three are reserved, and one may be had.
    let image = format!("{}/image", host.0);
    std::fs::File::create(&image).unwrap().set_len(6 << 20).unwrap();
    let json = serde_json::json!({"pmem": [{"id": "huge", "path_on_host": image, "read_only": true}]});
    let config = scratch.file("machine.json", json.to_string().as_bytes());
    let script = "read_at() { dd if=/dev/pmem0 of=/dev/null bs=4k skip=$1 count=1 2>/dev/null; }; \
                  read_at 3 && echo first; read_at 700; read_at 1200; echo all";
    let options = ["--json", "--config", &config, "--limit", "hugetlb.2MB.max=2M"];
    let outcome = Husk::run(&options, &["sh", "-c", script]).output();
    drop(host);
    let outcome = outcome.expect_status(125);
    let result = outcome.json();
    assert_eq!((&result["fault"], outcome.text().as_str()), (&"host".into(), "first\n"), "{result}");
    assert!(result["error"].as_str().unwrap_or_default().contains("no huge page left"), "{result}");
    drop(scratch);
    before.assert_restored();
    drop(stdin);
    assert_eq!(next(), "alive");
    assert!(neighbour.wait().unwrap().success());
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
