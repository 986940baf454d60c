//! What cannot be is refused in one clear line, with status 125, and leaves nothing.

use husk_tests::footprint::Footprint;
use husk_tests::husk::Husk;
use husk_tests::rootfs::ext4;
use husk_tests::scratch::Scratch;
use std::os::unix::fs::FileExt;

/// husk with these options refuses to run `true`: one line that has all of `words`.
#[track_caller]
fn refused(options: &[&str], words: &[&str]) {
    let before = Footprint::now();
    let outcome = Husk::run(options, &["true"]).output().expect_status(125);
    assert_eq!(outcome.stdout, b"");
    assert_eq!(outcome.stderr.trim_end().lines().count(), 1, "more than one line: {}", outcome.stderr);
    assert!(outcome.stderr.starts_with("husk: "), "{}", outcome.stderr);
    for word in words {
        let said = outcome.stderr.to_lowercase();
        assert!(said.contains(&word.to_lowercase()), "{options:?} does not say {word:?}: {}", outcome.stderr);
    }
    before.assert_restored();
}

/// The same bad file for each option that takes one.
#[track_caller]
fn refused_as(option: &str, path: &str, words: &[&str]) {
    let all: Vec<&str> = [path].iter().chain(words).copied().collect();
    refused(&[option, path], &all);
}

#[test]
fn a_missing_file_is_named() {
    refused_as("--kernel", "/no/such/vmlinux", &["no such file"]);
    refused_as("--rootfs", "/no/such/root", &["no such file"]);
    refused_as("--initrd", "/no/such/initrd", &["no such file"]);
}

#[test]
fn an_empty_file_is_named() {
    let scratch = Scratch::new();
    let empty = scratch.file("empty", b"");
    refused_as("--kernel", &empty, &["empty"]);
    refused_as("--rootfs", &empty, &["empty"]);
    refused_as("--initrd", &empty, &["empty"]);
}

#[test]
fn a_directory_is_no_kernel_and_a_fifo_no_file_at_all() {
    let scratch = Scratch::new();
    let dir = scratch.name("");
    refused(&["--kernel", &dir], &["kernel", "directory"]);
    refused(&["--initrd", &dir], &["initrd", "directory"]);
    let fifo = scratch.name("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    refused_as("--kernel", &fifo, &["fifo"]);
    refused_as("--rootfs", &fifo, &["fifo"]);
}

#[test]
fn a_truncated_kernel_is_named() {
    let scratch = Scratch::new();
    let whole = std::fs::read(husk_tests::husk::libexec().join("vmlinux")).unwrap();
    for bytes in [4, 63, 64, 500, 4096, whole.len() / 2, whole.len() * 9 / 10] {
        let cut = scratch.file("cut", &whole[..bytes]);
        refused_as("--kernel", &cut, &["kernel"]);
    }
}

#[test]
fn a_text_is_no_kernel() {
    let scratch = Scratch::new();
    let text = scratch.file("text", b"#!/bin/sh\necho I am no kernel\n".repeat(100).as_slice());
    refused_as("--kernel", &text, &["elf", "bzimage"]);
}

#[test]
fn a_root_image_without_a_file_system_is_named() {
    let scratch = Scratch::new();
    let noise = scratch.file("noise", &vec![0x5a; 1 << 20]);
    let outcome = Husk::run(&["--rootfs", &noise], &["true"]).output().expect_status(125);
    assert!(outcome.stderr.contains("erofs"), "{}", outcome.stderr);
}

#[test]
fn a_truncated_root_image_is_named() {
    let scratch = Scratch::new();
    let root = husk_tests::rootfs::busybox_and_tool(scratch.path());
    let image = scratch.name("image");
    let made =
        std::process::Command::new("mkfs.erofs").arg("--quiet").arg(&image).arg(&root).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let whole = std::fs::read(&image).unwrap();
    let cut = scratch.file("cut", &whole[..(whole.len() / 3) & !511]);
    let outcome = Husk::run(&["--rootfs", &cut], &["sh", "-c", "true"]).output().expect_status(125);
    assert!(outcome.stderr.contains("cut") || outcome.stderr.contains("root"), "{}", outcome.stderr);
}

#[test]
fn memory_is_bounded_and_its_unit_understood() {
    refused(&["--memory", "1M"], &["--memory", "1M"]);
    refused(&["--memory", "0"], &["--memory"]);
    refused(&["--memory", "lots"], &["--memory", "lots"]);
    refused(&["--memory", "99999999999999999999G"], &["--memory"]);
    refused(&["--memory", "17592186044416M"], &["--memory"]);
    refused(&["--memory", "-5M"], &["--memory"]);
}

#[test]
fn a_kernel_that_does_not_fit_its_memory_is_refused() {
    // The kernel alone does not fit the least memory that is allowed.
    let outcome = Husk::run(&["--memory", "16M"], &["true"]).output();
    if outcome.status != 0 {
        assert_eq!(outcome.status, 125, "{}", outcome.stderr);
        assert!(outcome.stderr.to_lowercase().contains("memory"), "{}", outcome.stderr);
    }
}

#[test]
fn vcpus_are_bounded() {
    refused(&["--vcpus", "0"], &["0"]);
    refused(&["--vcpus", "33"], &["33", "32"]);
    refused(&["--vcpus", "two"], &["two"]);
    refused(&["--vcpus", "18446744073709551616"], &["18446744073709551616"]);
}

#[test]
fn times_and_lists_are_understood_or_named() {
    refused(&["--timeout", "soon"], &["--timeout", "soon"]);
    refused(&["--timeout", "-1s"], &["--timeout"]);
    refused(&["--boot-timeout", "0s"], &["--boot-timeout"]);
    refused(&["--pin", "0,x"], &["--pin", "x"]);
    refused(&["--pin", "0,1"], &["--pin", "vcpus"]);
    refused(&["--pin", "4095"], &["--pin", "4095"]);
    refused(&["--hugepages", "3M"], &["--hugepages", "3M", "2M"]);
    refused(&["--env", "=x"], &["--env"]);
    refused(&["--workdir", "relative"], &["--workdir", "relative"]);
}

#[test]
fn an_unknown_option_is_named_with_a_hint() {
    refused(&["--frobnicate"], &["--frobnicate", "--help"]);
    let outcome = Husk::new(["frobnicate"]).output().expect_status(125);
    assert!(outcome.stderr.contains("frobnicate"), "{}", outcome.stderr);
}

#[test]
fn help_suffices_and_is_no_error() {
    let outcome = Husk::new(["run", "--help"]).output().expect_status(0);
    let text = outcome.text();
    let options = [
        "--rootfs",
        "--kernel",
        "--vcpus",
        "--memory",
        "--env",
        "--workdir",
        "--user",
        "--timeout",
        "--boot-timeout",
        "--hugepages",
        "--prefault",
        "--pin",
        "--console",
        "--json",
        "125",
        "124",
    ];
    for option in options {
        assert!(text.contains(option), "--help does not speak of {option}");
    }
    Husk::new(["--help"]).output().expect_status(0);
}

#[test]
fn without_dev_kvm_husk_says_so() {
    // devtmpfs is one for all mount namespaces; a tmpfs over /dev, in a namespace of its own, hides the node from this
    // husk alone.
    let script = r#"
        set -e
        mkdir -p /run/devices
        mount --bind /dev /run/devices
        mount -t tmpfs none /dev
        for name in null zero urandom; do : > /dev/$name; mount --bind /run/devices/$name /dev/$name; done
        exec "$0" run -- true"#;
    let husk = husk_tests::husk::binary();
    let output =
        std::process::Command::new("unshare").args(["-m", "sh", "-c", script]).arg(husk).output().unwrap();
    drop(std::fs::remove_dir("/run/devices"));
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(125), "{stderr}");
    assert!(stderr.contains("/dev/kvm"), "{stderr}");
}

#[test]
fn an_initrd_that_is_none_or_cut_is_named() {
    let scratch = Scratch::new();
    let noise = scratch.file("noise", &[b'x'; 5000]);
    refused_as("--initrd", &noise, &["cpio"]);
    let header = b"0707010000000100008180000000000000000000000001000000000000ffff0000000000000000000000000000000000000005000000\
        00init\0";
    let cut = scratch.file("cut", header);
    refused_as("--initrd", &cut, &["truncated"]);
}

#[test]
fn a_program_is_no_kernel() {
    refused(&["--kernel", "/bin/ls"], &["/bin/ls", "kernel"]);
}

#[test]
fn what_only_the_guest_finds_wrong_is_named_by_its_file() {
    let scratch = Scratch::new();
    let image = scratch.name("damaged.img");
    ext4(&image, 8);
    // The super block stays, the group descriptors after it go.
    let file = std::fs::OpenOptions::new().write(true).open(&image).unwrap();
    file.write_all_at(&[0xa5; 200 << 10], 2048).unwrap();
    refused_as("--rootfs", &image, &["husk-root", "fsck"]);
    refused(&["--drive", &format!("{image}:/data")], &[&image, "husk-drive0", "fsck"]);
    // It loads, for it is a static program, and does at its entry what no kernel would.
    let outcome = Husk::run(&["--kernel", "/bin/busybox"], &["true"]).output().expect_status(125);
    assert!(outcome.stderr.contains("the kernel is /bin/busybox"), "{}", outcome.stderr);
}

#[test]
fn a_file_with_a_newline_in_its_name_is_still_one_line() {
    refused(&["--kernel", "/no/such\nkernel\x1b[2J"], &["/no/such?kernel?"]);
}

#[test]
fn a_drive_cannot_cover_what_the_guest_mounts_itself() {
    let scratch = Scratch::new();
    let disk = scratch.name("disk.ext4");
    husk_tests::rootfs::ext4(&disk, 16);
    for target in ["/dev", "/proc/", "/", "/a/../sys", "//sys/."] {
        refused(&["--drive", &format!("{disk}:{target}")], &["--drive", target]);
    }
}
