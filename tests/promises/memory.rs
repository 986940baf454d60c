//! A guest's memory grows while it runs, and shrinks again.

use crate::drives::{sandbox, talking};
use husk_tests::bench::cpio::Cpio;
use husk_tests::husk::{Husk, libexec};
use husk_tests::processes;
use rustix::fs::MemfdFlags;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, sendmsg,
    socketpair,
};
use std::fs::File;
use std::io::{BufRead, BufReader, IoSlice, PipeReader, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// Prints how much memory there is in KiB.
const TOTAL: &str = "sed -n 's/MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo";

#[test]
fn memory_grows_once_the_guest_is_ready() {
    let script = format!(
        "for i in $(seq $0); do t=$({TOTAL}); [ $t -gt 370000 ] && break; sleep 0.1; done; echo $t; \
         dd if=/dev/zero of=/dev/null bs=200M count=1 2>/dev/null || exit 9"
    );
    let total = |options: &[&str], (tries, status): (&str, i32)| {
        let outcome = Husk::run(options, &["sh", "-c", &script, tries]).output().expect_status(status);
        outcome.text().trim().parse::<u64>().unwrap()
    };
    // Kernel, initramfs and the books of the pages that came take some.
    let grown = total(&["--memory-max", "400M"], ("100", 0));
    assert!((370_000..400 << 10).contains(&grown), "{grown} KiB");
    let plain = total(&[], ("1", 9));
    assert!(plain < 128 << 10, "{plain} KiB");
}

/// A runtime whose guest prints, again and again, how much memory it has, after it once had a lot of it in use.
struct Machine {
    runtime: Child,
    control: OwnedFd,
    console: BufReader<PipeReader>,
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ended = self.runtime.kill();
        let _ended = self.runtime.wait();
    }
}

const SPEC: &str = r#"{"boot-source": {"kernel_image_path": {"fd": 1}, "initrd_path": {"fd": 2}},
    "machine-config": {"mem_size_mib": 128}, "console": {"output": {"fd": 3}},
    "memory-hotplug": {"total_size_mib": 256}}"#;

impl Machine {
    fn start() -> Self {
        let init = format!(
            "#!/bin/busybox sh\n/bin/busybox mount -t proc proc /proc\n\
             while :; do t=$(/bin/busybox {TOTAL}); [ $t -gt 350000 ] && break; echo $t; /bin/busybox sleep 0.1; done\n\
             /bin/busybox dd if=/dev/zero of=/dev/null bs=200M count=1\n\
             while :; do /bin/busybox {TOTAL}; /bin/busybox sleep 0.1; done\n"
        );
        let busybox = std::fs::read("/bin/busybox").unwrap();
        let archive = Cpio::default().directory("bin").directory("proc").directory("dev");
        let archive = archive
            .device("dev/console", 5, 1)
            .device("dev/null", 1, 3)
            .device("dev/zero", 1, 5)
            .program("bin/busybox", &busybox);
        let archive = archive.program("init", init.as_bytes()).finish();
        let initrd = rustix::fs::memfd_create("initrd", MemfdFlags::CLOEXEC).unwrap();
        File::from(initrd.try_clone().unwrap()).write_all(&archive).unwrap();
        let kernel = File::open(libexec().join("vmlinux")).unwrap();
        let kvm = File::options().read(true).write(true).open("/dev/kvm").unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        let (control, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let message = format!(r#"{{"start": {{"spec": {SPEC}}}}}"#);
        let files = [kvm.as_fd(), kernel.as_fd(), initrd.as_fd(), writer.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&files)));
        sendmsg(&control, &[IoSlice::new(message.as_bytes())], &mut ancillary, SendFlags::empty()).unwrap();
        // The runtime's copy has no close-on-exec; it stays open here until the runtime has its own.
        let inherited = rustix::io::dup(&theirs).unwrap();
        let number = inherited.as_raw_fd().to_string();
        let runtime =
            Command::new(libexec().join("husk-runtime")).args(["--control-fd", &number]).spawn().unwrap();
        Self { runtime, control, console: BufReader::new(reader) }
    }

    fn ask_for(&self, mib: u64) {
        let message = format!(
            r#"{{"change": {{"request": 0, "change": {{"memory": {{"requested_size_mib": {mib}}}}}}}}}"#
        );
        rustix::net::send(&self.control, message.as_bytes(), SendFlags::empty()).unwrap();
    }

    /// Waits until the guest has so many KiB of memory; the runner's deadline bounds it.
    #[track_caller]
    fn wait_for(&mut self, right: impl Fn(u64) -> bool) {
        let mut line = String::new();
        while self.console.read_line(&mut line).unwrap() > 0 {
            if line.trim().parse().is_ok_and(&right) {
                return;
            }
            line.clear();
        }
        panic!("the guest ended");
    }

    /// What the host has for it, in KiB.
    fn resident(&self) -> u64 {
        let text = processes::status(&format!("/proc/{}", self.runtime.id()), "VmRSS");
        text.trim_end_matches(" kB").parse().unwrap()
    }
}

#[test]
fn memory_that_is_taken_back_is_the_hosts_again() {
    let mut machine = Machine::start();
    machine.wait_for(|total| total < 128 << 10);
    machine.ask_for(256);
    machine.wait_for(|total| total > 350_000);
    let grown = machine.resident();
    assert!(grown > 200 << 10, "{grown} KiB after 200 MiB were in use");
    machine.ask_for(0);
    machine.wait_for(|total| total < 128 << 10);
    // The guest's answer came before the last block went.
    machine.wait_for(|_| true);
    let left = machine.resident();
    assert!(left < grown - (150 << 10), "{grown} KiB became {left}");
}

#[test]
fn an_operator_gives_memory_and_takes_it_back() {
    let script = format!("while read what; do {TOTAL}; done");
    let args = ["run", "-i", "--memory-max", "640M", "--", "sh", "-c", &script];
    let (mut child, mut stdin, lines) = talking(&args);
    let mut total = || {
        writeln!(stdin).unwrap();
        let line = lines.recv_timeout(Duration::from_secs(30)).unwrap();
        line.parse::<u64>().unwrap()
    };
    let mut comes_to = |least: u64, most: u64| {
        let started = Instant::now();
        while !(least..most).contains(&(total() >> 10)) {
            assert!(started.elapsed() < Duration::from_secs(40), "{} MiB", total() >> 10);
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    comes_to(600, 640);
    let id = sandbox();
    let update = |size: &str| Husk::new(["update", &id, "--memory", size]).output();
    update("256M").expect_status(0);
    // At least what booted, and a part of what was in use when it was asked for.
    comes_to(100, 500);
    update("640M").expect_status(0);
    comes_to(600, 640);
    for size in ["126M", "641M", "129M", "1024G"] {
        let outcome = update(size).expect_status(125);
        assert!(outcome.stderr.contains("128M, which the sandbox booted in, to 640M"), "{}", outcome.stderr);
    }
    drop(stdin);
    assert!(child.wait().unwrap().success());
}
