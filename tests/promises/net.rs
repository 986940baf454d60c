//! A network through a tap: what a rule allows is reached, everything else is not.

use husk_tests::husk::{Husk, Outcome};
use husk_tests::rootfs;
use husk_tests::scratch::Scratch;
use husk_tests::tap::Tap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

pub(crate) const BODY_BYTES: usize = 1 << 20;

/// Answers every request on a port of this machine with the same bytes, and counts them.
pub(crate) struct Server {
    pub(crate) port: u16,
    pub(crate) asked: Arc<AtomicUsize>,
}

impl Server {
    pub(crate) fn new() -> Self {
        let listener = TcpListener::bind("[::]:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                count.fetch_add(1, Ordering::SeqCst);
                // A guest that hangs up early is the test's business.
                let _ = answer(stream);
            }
        });
        Self { port, asked }
    }
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        request.push(byte[0]);
    }
    write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {BODY_BYTES}\r\n\r\n")?;
    stream.write_all(&vec![b'x'; BODY_BYTES])
}

/// Runs a shell line in a guest whose card is on `tap`.
fn guest(tap: &Tap, options: &[&str], line: &str) -> Outcome {
    let scratch = Scratch::new();
    let root = rootfs::busybox_and_tool(scratch.path()).to_string_lossy().into_owned();
    let net = tap.option();
    let all = [&["--rootfs", &root, "--net", &net], options].concat();
    Husk::run(&all, &["sh", "-c", line]).output()
}

pub(crate) fn fetch(host: &str, port: u16) -> String {
    format!("guest-tool http-get {host}:{port}")
}

/// The tool ran and nobody answered it.
#[track_caller]
pub(crate) fn assert_unreached(outcome: &Outcome) {
    let silent = outcome.stderr.contains("guest-tool: ")
        && ["timed out", "unreachable"].iter().any(|word| outcome.stderr.contains(word));
    assert!(outcome.status == 1 && silent, "{} {}: {}", outcome.status, outcome.text(), outcome.stderr);
}

#[test]
fn what_a_rule_allows_is_reached_over_ip4() {
    let (tap, server) = (Tap::new("husk-four", &["10.77.1.1/24"]), Server::new());
    let rule = format!("10.77.1.1:{}", server.port);
    let options = ["--guest-ip", "10.77.1.2/24", "--allow", &rule];
    let outcome = guest(&tap, &options, &fetch("10.77.1.1", server.port)).expect_status(0);
    assert_eq!(outcome.text().trim(), BODY_BYTES.to_string(), "{}", outcome.stderr);
}

#[test]
fn what_a_rule_allows_is_reached_over_ip6() {
    let (tap, server) = (Tap::new("husk-six", &["fd77:1::1/64"]), Server::new());
    let rule = format!("[fd77:1::1]:{}", server.port);
    let options = ["--guest-ip", "fd77:1::2/64", "--allow", &rule];
    let outcome = guest(&tap, &options, &fetch("[fd77:1::1]", server.port)).expect_status(0);
    assert_eq!(outcome.text().trim(), BODY_BYTES.to_string(), "{}", outcome.stderr);
}

/// Takes one connection on `listener`, sends 4 MiB over it and checks that they come back.
pub(crate) fn echoed(listener: TcpListener) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let bytes: Vec<u8> = (0..4_u32 << 20).map(|i| u8::try_from(i % 251).unwrap()).collect();
        let (mut writer, sent) = (stream.try_clone().unwrap(), bytes.clone());
        let feeder = std::thread::spawn(move || {
            writer.write_all(&sent).unwrap();
            writer.shutdown(std::net::Shutdown::Write).unwrap();
        });
        let mut back = Vec::new();
        stream.read_to_end(&mut back).unwrap();
        feeder.join().unwrap();
        assert!(back == bytes, "{} of {} bytes came back, or others", back.len(), bytes.len());
    })
}

#[test]
fn four_mib_each_way_at_once_arrive_as_they_were() {
    let tap = Tap::new("husk-bulk", &["10.77.5.1/24"]);
    let listener = TcpListener::bind("10.77.5.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let host = echoed(listener);
    let options = ["--guest-ip", "10.77.5.2/24", "--allow", &address];
    guest(&tap, &options, &format!("guest-tool tcp-echo {address}")).expect_status(0);
    host.join().unwrap();
}

#[test]
fn two_vcpus_have_two_queues_and_both_carry_frames() {
    let (tap, server) = (Tap::with_queues("husk-pair", &["10.77.13.1/24"]), Server::new());
    let scratch = Scratch::new();
    let root = rootfs::busybox_and_tool(scratch.path()).to_string_lossy().into_owned();
    let (net, rule) = (format!("{},queues=2", tap.option()), format!("10.77.13.1:{}", server.port));
    let options = [
        &["--rootfs", &root, "--vcpus", "2", "--net", &net][..],
        &["--guest-ip", "10.77.13.2/24", "--allow", &rule],
    ];
    // The driver gives each CPU the queue of its number: what one sends comes back to the same pair.
    let line = format!(
        "cd /sys/class/net/eth0/queues; echo *; cat tx-?/xps_cpus; for cpu in 1 2; do busybox taskset $cpu {}; done; sleep 1",
        fetch("10.77.13.1", server.port)
    );
    let husk = Husk::run(&options.concat(), &["sh", "-c", &line]).spawn().up();
    // Both queues are somebody's: a second sandbox is not let in, though the kernel would.
    let refused = Husk::run(&options.concat(), &["true"]).output().expect_status(125).stderr;
    assert!(refused.contains("tap husk-pair is in use"), "{refused}");
    let outcome = husk.finish().expect_status(0);
    let text = outcome.text();
    let lines: Vec<_> = text.lines().map(|line| line.trim_start_matches('0')).collect();
    let bytes = BODY_BYTES.to_string();
    assert_eq!(lines, ["rx-0 rx-1 tx-0 tx-1", "1", "2", &bytes, &bytes], "{}", outcome.stderr);
    assert_eq!(server.asked.load(Ordering::SeqCst), 2);
}

#[test]
fn without_a_rule_nothing_is_reached() {
    let (tap, server) = (Tap::new("husk-deny", &["10.77.2.1/24"]), Server::new());
    let other = format!("10.77.2.1:{}", server.port ^ 1);
    let address = ["--guest-ip", "10.77.2.2/24"];
    for rules in [&[][..], &["--allow", &other][..]] {
        let outcome = guest(&tap, &[&address, rules].concat(), &fetch("10.77.2.1", server.port));
        assert_unreached(&outcome);
    }
    assert_eq!(server.asked.load(Ordering::SeqCst), 0);
}

#[test]
fn link_local_addresses_are_not_reached_whatever_the_rules() {
    let (tap, server) = (Tap::new("husk-meta", &["10.77.3.1/24", "169.254.169.254/32"]), Server::new());
    let options = ["--guest-ip", "10.77.3.2/24", "--gateway", "10.77.3.1", "--allow", "0.0.0.0/0:*"];
    let outcome = guest(&tap, &options, &fetch("169.254.169.254", server.port));
    assert_unreached(&outcome);
    let outcome = guest(&tap, &options, &fetch("10.77.3.1", server.port)).expect_status(0);
    assert_eq!(outcome.text().trim(), BODY_BYTES.to_string(), "{}", outcome.stderr);
    assert_eq!(server.asked.load(Ordering::SeqCst), 1);
}

#[test]
fn the_guest_is_configured_as_asked() {
    let tap = Tap::new("husk-conf", &["10.77.4.1/24"]);
    let options = [
        "--guest-ip",
        "10.77.4.2/24",
        "--guest-ip",
        "fd77:4::2/64",
        "--gateway",
        "10.77.4.1",
        "--dns",
        "10.77.4.1",
    ];
    let line = "busybox ip addr; busybox ip route; cat /etc/resolv.conf";
    let text = guest(&tap, &options, line).expect_status(0).text();
    for word in [
        "inet 10.77.4.2/24",
        "inet6 fd77:4::2/64",
        "default via 10.77.4.1",
        "nameserver 10.77.4.1",
        "mtu 1500",
    ] {
        assert!(text.contains(word), "{word} is missing: {text}");
    }
}

#[test]
fn without_net_there_is_no_card() {
    let outcome = Husk::sh("ls /sys/class/net").output().expect_status(0);
    assert_eq!(outcome.text().trim(), "lo");
}

#[test]
fn a_tap_that_cannot_be_had_is_named() {
    let refused = |net: &str| Husk::run(&["--net", net], &["true"]).output().expect_status(125).stderr;
    let text = refused("tap=husk-absent");
    assert!(text.contains("tap husk-absent does not exist"), "{text}");
    assert!(!std::path::Path::new("/sys/class/net/husk-absent").exists(), "it was made");
    let several = Tap::new("husk-single", &[]);
    let text = Husk::run(&["--vcpus", "2", "--net", &format!("{},queues=2", several.option())], &["true"]);
    let text = text.output().expect_status(125).stderr;
    assert!(text.contains("husk-single is no tap with several queues"), "{text}");
    let text = refused("tap=lo");
    assert!(text.contains("lo is no tap"), "{text}");
    let tap = Tap::new("husk-busy", &[]);
    let held = tap.occupy().unwrap();
    let text = refused(&tap.option());
    assert!(text.contains("tap husk-busy is in use"), "{text}");
    drop(held);
    let outcome = Husk::run(&["--allow", "10.0.0.1:1"], &["true"]).output().expect_status(125);
    assert!(outcome.stderr.contains("--net user or --net tap=NAME"), "{}", outcome.stderr);
}
