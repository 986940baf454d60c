//! Kernels boot by each way in, and the console speaks when asked.

use husk_tests::husk::{Husk, libexec};
use husk_tests::scratch::Scratch;

fn boots_by(protocol: &str) {
    let scratch = Scratch::new();
    let kernel = libexec().join("vmlinux");
    let json = format!(
        r#"{{"boot-source": {{"kernel_image_path": "{}", "boot_protocol": "{protocol}"}}}}"#,
        kernel.display()
    );
    let config = scratch.file("machine.json", json.as_bytes());
    let outcome = Husk::run(&["--config", &config, "--vcpus", "2"], &["nproc"]).output().expect_status(0);
    assert_eq!(outcome.text(), "2\n");
}

#[test]
fn an_elf_by_the_64_bit_protocol() {
    boots_by("linux64");
}

#[test]
fn an_elf_by_pvh() {
    boots_by("pvh");
}

#[test]
fn a_bzimage() {
    let bzimage = libexec().join("bzImage");
    let kernel = bzimage.to_string_lossy().into_owned();
    let outcome = Husk::run(&["--kernel", &kernel], &["echo", "unpacked"]).output().expect_status(0);
    assert_eq!(outcome.text(), "unpacked\n");
}

#[test]
fn the_console_is_silent_unless_asked_for() {
    let outcome = Husk::run(&[], &["true"]).output().expect_status(0);
    assert_eq!(outcome.stderr, "");
    let outcome = Husk::run(&["--console", "--boot-timeout", "50s"], &["true"]).output().expect_status(0);
    assert!(outcome.stderr.contains("Linux version 6.12"), "{}", outcome.stderr);
}

#[test]
fn the_console_has_each_line_once_the_early_ones_and_the_commands_too() {
    // What is of the lowest level, 7, goes to no console.
    let script = "dmesg -r | grep -vc '^<7>'; echo written by a program > /dev/hvc0";
    let outcome = Husk::run(&["--console"], &["sh", "-c", script]).output().expect_status(0);
    let once =
        ["Linux version", "Memory: ", "legacy console [hvc0] enabled", "Run /init", "written by a program"];
    let mut last = 0;
    for words in once {
        let places: Vec<_> = outcome.stderr.match_indices(words).map(|(place, _)| place).collect();
        assert!(places.len() == 1 && places[0] >= last, "{words:?} at {places:?}: {}", outcome.stderr);
        last = places[0];
    }
    let logged: usize = outcome.text().trim().parse().unwrap();
    let printed = outcome.stderr.lines().count();
    assert!((logged..=logged + 3).contains(&printed), "{printed} lines of {logged}: {}", outcome.stderr);
}

#[test]
fn without_the_console_there_is_no_device_for_it() {
    let outcome = Husk::sh("test -c /dev/hvc0 || echo none").output().expect_status(0);
    assert_eq!(outcome.text(), "none\n");
}

#[test]
fn item_32_a_flood_on_the_console_neither_stops_the_guest_nor_ends_it() {
    let script = "head -c 512k /dev/zero | tr '\\0' x > /dev/hvc0; echo still here";
    let outcome = Husk::run(&["--console"], &["sh", "-c", script]).output().expect_status(0);
    assert_eq!(outcome.text(), "still here\n");
}

#[test]
fn the_guest_kernel_is_our_own_with_what_containers_need() {
    let script = r"
        for fs in overlay erofs ext4 tmpfs cgroup2 proc devpts; do
            grep -qw $fs /proc/filesystems || echo missing $fs
        done
        for ns in cgroup ipc mnt net pid user uts; do test -e /proc/self/ns/$ns || echo missing $ns; done
        mkdir /cg && mount -t cgroup2 none /cg
        for c in cpu memory pids; do grep -qw $c /cg/cgroup.controllers || echo missing $c; done
        test -e /proc/net/if_inet6 || echo missing ipv6
        test -e /sys/kernel/mm/transparent_hugepage || echo missing thp
        test -e /proc/modules && echo modules
        for there in /sys/bus/pci/devices/* /sys/firmware/acpi; do test -e $there && echo $there; done
        grep -q Seccomp /proc/self/status || echo missing seccomp
        echo checked";
    let outcome = Husk::sh(script).output().expect_status(0);
    assert_eq!(outcome.text(), "checked\n");
}
