//! `--net user`: a network without a tap, through a passt of the sandbox's own, which is jailed as everything else is.

use crate::net::{BODY_BYTES, Server, assert_unreached, echoed, fetch};
use husk_tests::footprint::Footprint;
use husk_tests::husk::{Husk, Outcome, binary};
use husk_tests::processes;
use husk_tests::rootfs;
use husk_tests::scratch::Scratch;
use husk_tests::tap::Tap;
use rustix::process::{Pid, Signal, kill_process};
use std::net::{TcpListener, UdpSocket};
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// A way out of this machine, as passt needs one: nobody is at its other end, but its own addresses are reached.
pub(crate) struct Uplink(#[expect(dead_code, reason = "the route goes with the interface")] Tap);

impl Uplink {
    pub(crate) fn new(name: &str, network: &str) -> Self {
        let tap = Tap::new(name, &[&format!("{network}.1/24")]);
        let route = ["ip", "route", "add", "default", "via", &format!("{network}.2")];
        let added = Command::new("/bin/busybox").args(route).status().unwrap();
        assert!(added.success(), "{route:?}");
        Self(tap)
    }
}

fn guest(options: &[&str], line: &str) -> Outcome {
    let scratch = Scratch::new();
    let root = rootfs::busybox_and_tool(scratch.path()).to_string_lossy().into_owned();
    Husk::run(&[&["--rootfs", &root, "--net", "user"], options].concat(), &["sh", "-c", line]).output()
}

/// The passt of the one sandbox that runs.
fn passt() -> u32 {
    let all: Vec<u32> =
        ["passt", "passt.avx2"].into_iter().flat_map(|name| processes::named(name).into_iter()).collect();
    assert_eq!(all.len(), 1, "one passt, not {all:?}");
    all[0]
}

fn kill(pid: u32) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
}

#[test]
fn what_a_rule_allows_is_reached_and_the_hosts_loopback_is_not() {
    let (_uplink, server) = (Uplink::new("husk-user", "10.77.6"), Server::new());
    let rules = [format!("10.77.6.1:{}", server.port), format!("10.0.2.2:{}", server.port)];
    let options = ["--allow", &rules[0], "--allow", &rules[1]];
    let outcome = guest(&options, &fetch("10.77.6.1", server.port)).expect_status(0);
    assert_eq!(outcome.text().trim(), BODY_BYTES.to_string(), "{}", outcome.stderr);
    assert_eq!(server.asked.load(Ordering::SeqCst), 1);
    // The router's address, which passt would take for the host's own loopback.
    assert_eq!(guest(&options, &fetch("10.0.2.2", server.port)).status, 1);
    assert_eq!(server.asked.load(Ordering::SeqCst), 1);
}

#[test]
fn without_a_rule_nothing_is_reached() {
    let (_uplink, server) = (Uplink::new("husk-user", "10.77.7"), Server::new());
    let other = format!("10.77.7.1:{}", server.port ^ 1);
    assert_unreached(&guest(&["--allow", &other], &fetch("10.77.7.1", server.port)));
    assert_eq!(server.asked.load(Ordering::SeqCst), 0);
}

#[test]
fn four_mib_each_way_at_once_arrive_as_they_were() {
    let _uplink = Uplink::new("husk-user", "10.77.8");
    let listener = TcpListener::bind("10.77.8.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let host = echoed(listener);
    guest(&["--allow", &address], &format!("guest-tool tcp-echo {address}")).expect_status(0);
    host.join().unwrap();
}

#[test]
fn names_are_asked_of_the_hosts_server() {
    let _uplink = Uplink::new("husk-user", "10.77.9");
    let socket = UdpSocket::bind("10.77.9.1:53").unwrap();
    std::thread::spawn(move || {
        let mut question = [0; 512];
        while let Ok((count, from)) = socket.recv_from(&mut question) {
            // The same question with one answer: an address, 192.0.2.7, of the name at its beginning.
            let mut answer = question[..count].to_vec();
            answer[2..4].copy_from_slice(&[0x81, 0x80]);
            answer[6..8].copy_from_slice(&[0, 1]);
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 7]);
            let _ = socket.send_to(&answer, from);
        }
    });
    let scratch = Scratch::new();
    let root = rootfs::busybox_and_tool(scratch.path());
    let resolvers = scratch.file("resolv.conf", b"nameserver 10.77.9.1\n");
    // A husk that finds another /etc/resolv.conf than the rest of this machine.
    let script = "mount --bind \"$1\" /etc/resolv.conf && exec \"$2\" run --rootfs \"$3\" --net user \
                  --allow 0.0.0.0/0:443 -- busybox nslookup -type=a husk.test";
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", script, "sh", &resolvers])
        .arg(binary())
        .arg(root)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("192.0.2.7"), "{text}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn passt_is_jailed_and_gone_with_the_sandbox() {
    let _uplink = Uplink::new("husk-user", "10.77.10");
    let before = Footprint::now();
    let husk =
        Husk::run(&["--id", "user-net", "--net", "user"], &["sh", "-c", "echo up; sleep 1000"]).spawn().up();
    let pid = passt();
    let path = format!("/proc/{pid}");
    for set in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
        assert_eq!(processes::status(&path, set), "0000000000000000", "{set}");
    }
    assert_eq!(processes::status(&path, "NoNewPrivs"), "1");
    assert_eq!(processes::status(&path, "Seccomp"), "2");
    let uid = processes::status(&path, "Uid");
    assert!(uid.starts_with("19000"), "the sandbox's user, not {uid}");
    let link = |process: &str, file: &str| std::fs::read_link(format!("/proc/{process}/{file}")).unwrap();
    for namespace in ["mnt", "pid", "ipc", "uts", "user"] {
        let file = format!("ns/{namespace}");
        assert_ne!(link(&pid.to_string(), &file), link("self", &file), "{namespace}");
    }
    assert_eq!(link(&pid.to_string(), "ns/net"), link("self", "ns/net"));
    assert_eq!(std::fs::read_dir(format!("{path}/root")).unwrap().count(), 0, "its root is empty");
    let mounts = std::fs::read_to_string(format!("{path}/mountinfo")).unwrap();
    let flags = mounts.split(' ').nth(5).unwrap_or_default();
    assert!(mounts.lines().count() == 1 && flags.starts_with("ro,nosuid,nodev,noexec"), "{mounts}");
    let cgroups = std::fs::read_to_string(format!("{path}/cgroup")).unwrap();
    assert!(cgroups.lines().any(|line| line.ends_with("/husk/user-net")), "{cgroups}");
    assert!(std::fs::read(format!("{path}/environ")).unwrap_or_default().is_empty());
    husk.terminate();
    before.assert_restored();
}

#[test]
fn a_passt_that_dies_is_a_link_that_is_down_and_a_line_of_husks() {
    let _uplink = Uplink::new("husk-user", "10.77.11");
    let script = "echo up; until [ $(cat /sys/class/net/eth0/carrier) = 0 ]; do sleep 0.1; done; exit 7";
    let husk = Husk::run(&["--net", "user", "--timeout", "60s"], &["sh", "-c", script]).spawn().up();
    kill(passt());
    let outcome = husk.finish().expect_status(7);
    assert!(outcome.stderr.contains("--net user: passt was killed by SIGKILL"), "{}", outcome.stderr);
}

#[test]
fn a_passt_that_cannot_go_on_says_why() {
    // This machine has no way out.
    let outcome = Husk::run(&["--net", "user"], &["cat", "/sys/class/net/eth0/carrier"]).output();
    let outcome = outcome.expect_status(0);
    assert_eq!(outcome.text(), "0\n");
    let line = "--net user: passt ended with status 1: External interface not usable";
    assert!(outcome.stderr.contains(line), "{}", outcome.stderr);
}

#[test]
fn a_passt_dies_with_a_husk_that_is_killed() {
    let _uplink = Uplink::new("husk-user", "10.77.12");
    let before = Footprint::now();
    let husk = Husk::run(&["--net", "user"], &["sh", "-c", "echo up; sleep 1000"]).spawn().up();
    let path = format!("/proc/{}", passt());
    husk.signal(Signal::KILL);
    husk.finish();
    let deadline = Instant::now() + Duration::from_secs(5);
    while std::path::Path::new(&path).exists() {
        assert!(Instant::now() < deadline, "passt outlives husk");
        std::thread::sleep(Duration::from_millis(10));
    }
    Husk::new(["gc"]).output().expect_status(0);
    before.assert_restored();
}

#[test]
fn a_host_without_passt_is_told_how_to_get_it() {
    let script = "mount --bind /dev/null /usr/bin/passt && exec \"$1\" run --net user -- true";
    let output =
        Command::new("unshare").args(["-m", "sh", "-c", script, "sh"]).arg(binary()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{text}");
    assert!(
        text.starts_with("husk: --net user needs passt") && text.contains("apt-get install passt"),
        "{text}"
    );
}
