//! Firecracker's host side of vsock: `CONNECT <port>` on a unix socket, and `<path>_<port>` for the other way.

use husk_tests::husk::{Husk, Running};
use husk_tests::rootfs;
use husk_tests::scratch::Scratch;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

struct Guest {
    scratch: Scratch,
    socket: String,
    husk: Running,
}

fn guest(tool: &[&str]) -> Guest {
    let scratch = Scratch::new();
    let root = rootfs::busybox_and_tool(scratch.path()).to_string_lossy().into_owned();
    let socket = scratch.name("v.sock");
    let command: Vec<&str> = ["guest-tool"].iter().chain(tool).copied().collect();
    let husk = Husk::run(&["--rootfs", &root, "--vsock", &socket], &command).spawn();
    Guest { scratch, socket, husk }
}

/// Connects to the guest's port as soon as somebody listens there.
#[track_caller]
fn connect(socket: &str, port: u32) -> BufReader<UnixStream> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Ok(mut stream) = UnixStream::connect(socket) {
            stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            stream.write_all(format!("CONNECT {port}\n").as_bytes()).unwrap();
            let mut stream = BufReader::new(stream);
            let mut answer = String::new();
            if stream.read_line(&mut answer).is_ok() && answer.starts_with("OK ") {
                return stream;
            }
        }
        assert!(Instant::now() < deadline, "no connection to port {port}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn the_host_connects_to_the_guest() {
    let Guest { scratch, socket, husk } = guest(&["vsock-echo", "5000", "2"]);
    for round in 0..2 {
        let mut stream = connect(&socket, 5000);
        let bytes: Vec<u8> = (0..1_000_000_u32).map(|i| u8::try_from((i + round) % 251).unwrap()).collect();
        let mut writer = stream.get_ref().try_clone().unwrap();
        let sent = bytes.clone();
        let feeder = std::thread::spawn(move || {
            writer.write_all(&sent).unwrap();
            writer.shutdown(std::net::Shutdown::Write).unwrap();
        });
        let mut back = Vec::new();
        stream.read_to_end(&mut back).unwrap();
        feeder.join().unwrap();
        assert!(back == bytes, "{} bytes came back", back.len());
    }
    husk.finish().expect_status(0);
    drop(scratch);
}

#[test]
fn a_web_server_in_the_guest_answers_many_at_once() {
    const CLIENTS: usize = 32;
    let scratch = Scratch::new();
    let root = rootfs::busybox_and_tool(scratch.path());
    std::fs::create_dir(root.join("www")).unwrap();
    let page: Vec<u8> = (0..100_000_u32).map(|i| u8::try_from(i % 241).unwrap()).collect();
    std::fs::write(root.join("www/page"), &page).unwrap();
    let (root, socket) = (root.to_string_lossy().into_owned(), scratch.name("v.sock"));
    let line = format!(
        "busybox ip link set lo up && busybox httpd -p 127.0.0.1:80 -h /www && \
         guest-tool vsock-forward 80 127.0.0.1:80 {CLIENTS}"
    );
    let husk = Husk::run(&["--rootfs", &root, "--vsock", &socket], &["sh", "-c", &line]).spawn();
    // All are connected before the first one asks.
    let clients: Vec<_> = (0..CLIENTS).map(|_| connect(&socket, 80)).collect();
    let asking = clients.into_iter().map(|mut client| {
        std::thread::spawn(move || {
            client.get_mut().write_all(b"GET /page HTTP/1.0\r\n\r\n").unwrap();
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).unwrap();
            answer
        })
    });
    for client in asking.collect::<Vec<_>>() {
        let answer = client.join().unwrap();
        let head = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap();
        let said = String::from_utf8_lossy(&answer[..head]);
        assert!(said.lines().next().is_some_and(|line| line.contains(" 200 ")), "{said}");
        assert!(answer[head + 4..] == page, "{} bytes", answer.len());
    }
    husk.finish().expect_status(0);
}

#[test]
fn the_guest_connects_to_the_host() {
    let scratch = Scratch::new();
    let root = rootfs::busybox_and_tool(scratch.path()).to_string_lossy().into_owned();
    let socket = scratch.name("v.sock");
    let listener = UnixListener::bind(format!("{socket}_6000")).unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        stream.write_all(text.to_uppercase().as_bytes()).unwrap();
    });
    let command = ["guest-tool", "vsock-send", "6000", "hello host"];
    let outcome = Husk::run(&["--rootfs", &root, "--vsock", &socket], &command).output().expect_status(0);
    assert_eq!(outcome.text(), "HELLO HOST");
    server.join().unwrap();
}

#[test]
fn a_port_nobody_listens_on_is_refused_both_ways() {
    let scratch = Scratch::new();
    let root = rootfs::busybox_and_tool(scratch.path()).to_string_lossy().into_owned();
    let socket = scratch.name("v.sock");
    let command = ["guest-tool", "vsock-send", "6001", "x"];
    let outcome = Husk::run(&["--rootfs", &root, "--vsock", &socket], &command).output();
    assert_ne!(outcome.status, 0);
    assert!(outcome.stderr.contains("reset") || outcome.stderr.contains("refused"), "{}", outcome.stderr);
    // Without --vsock the exec port is the only one.
    let outcome = Husk::run(&["--rootfs", &root], &command).output();
    assert_ne!(outcome.status, 0);
}

#[test]
fn a_command_cannot_take_over_the_exec_channel() {
    let scratch = Scratch::new();
    let root = rootfs::busybox_and_tool(scratch.path()).to_string_lossy().into_owned();
    let port = husk_protocol::exec::PORT.to_string();
    let command = ["guest-tool", "vsock-send", &port, "x"];
    let outcome = Husk::run(&["--rootfs", &root], &command).output();
    assert_ne!(outcome.status, 0);
    assert_ne!(outcome.status, 125, "{}", outcome.stderr);
}

#[test]
fn the_socket_goes_with_the_sandbox_and_one_that_is_there_is_refused() {
    let scratch = Scratch::new();
    let socket = scratch.name("v.sock");
    Husk::run(&["--vsock", &socket], &["true"]).output().expect_status(0);
    assert!(!std::path::Path::new(&socket).exists());
    let taken = scratch.file("taken", b"not a socket");
    let outcome = Husk::run(&["--vsock", &taken], &["true"]).output().expect_status(125);
    assert!(outcome.stderr.contains("taken"), "{}", outcome.stderr);
    assert_eq!(std::fs::read(&taken).unwrap(), b"not a socket");
}
