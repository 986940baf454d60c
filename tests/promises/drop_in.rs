//! husk-jailer does what Firecracker's jailer does for those who call it: the benchmark's peer was written for the latter,
//! and the program in the cell is Firecracker itself. `PEER_FIRECRACKER` names it; without it these tests are skipped.

use husk_tests::bench::peer::{Confinement, Files, Peer, Shape, Start, initrd};
use husk_tests::cell::USER;
use husk_tests::husk::libexec;
use husk_tests::rootfs::sibling;
use husk_tests::scratch::Scratch;
use husk_tests::skip;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);

fn firecracker() -> Option<PathBuf> {
    std::env::var_os("PEER_FIRECRACKER").filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// What the answer to a GET of the API's root holds, once there is somebody to ask.
fn ask(socket: &Path, jailer: &mut Child) -> String {
    let begun = Instant::now();
    loop {
        if let Ok(mut stream) = UnixStream::connect(socket) {
            stream.set_read_timeout(Some(LIMIT)).unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
            let mut answer = Vec::new();
            let mut part = [0; 512];
            while !answer.ends_with(b"}") {
                let count = stream.read(&mut part).unwrap();
                assert!(count > 0, "the connection ended after {}", String::from_utf8_lossy(&answer));
                answer.extend_from_slice(&part[..count]);
            }
            return String::from_utf8(answer).unwrap();
        }
        let ended = jailer.try_wait().unwrap();
        assert!(ended.is_none() && begun.elapsed() < LIMIT, "no API socket; the process: {ended:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn firecracker_starts_as_in_its_own_jail_and_is_confined() {
    let Some(firecracker) = firecracker() else { skip!("PEER_FIRECRACKER names no Firecracker") };
    let scratch = Scratch::new();
    let id = format!("drop-in-{}", std::process::id());
    let user = USER.to_string();
    let mut command = Command::new(libexec().join("husk-jailer"));
    command.args(["--layout", "firecracker", "--id", &id, "--uid", &user, "--gid", &user, "--exec-file"]);
    command.arg(&firecracker).arg("--chroot-base-dir").arg(scratch.path());
    let mut jailer = command.args(["--", "--level", "Error"]).stdin(Stdio::null()).spawn().unwrap();
    let name = std::fs::canonicalize(&firecracker).unwrap();
    let name = name.file_name().unwrap().to_str().unwrap();
    let root = scratch.path().join(name).join(&id).join("root");
    let answer = ask(&root.join("run/firecracker.socket"), &mut jailer);
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(&format!("\"id\":\"{id}\"")), "{answer}");
    assert!(answer.contains("\"app_name\":\"Firecracker\""), "{answer}");
    let pid = jailer.id();
    assert_eq!(std::fs::read_to_string(root.join(format!("{name}.pid"))).unwrap(), pid.to_string());
    let of = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
    let status = of("status");
    for line in [
        format!("Uid:\t{user}\t{user}\t{user}\t{user}"),
        "CapPrm:\t0000000000000000".into(),
        "CapBnd:\t0000000000000000".into(),
        "NoNewPrivs:\t1".into(),
    ] {
        assert!(status.lines().any(|other| *other == line), "{line} is not in {status}");
    }
    let mounts = of("mountinfo");
    let places: Vec<_> = mounts.lines().filter_map(|line| line.split(' ').nth(4)).collect();
    assert_eq!(places, ["/", "/dev"], "{mounts}");
    jailer.kill().unwrap();
    jailer.wait().unwrap();
    remove_cgroup(name, &id);
}

/// What the operator of Firecracker's jailer removes.
fn remove_cgroup(name: &str, id: &str) {
    for hierarchy in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
        drop(std::fs::remove_dir(Path::new(hierarchy).join(name).join(id)));
    }
}

/// A guest runs a command and ends, in a cell that was made and called as Firecracker's.
fn boots(shape: Shape) {
    let Some(firecracker) = firecracker() else { skip!("PEER_FIRECRACKER names no Firecracker") };
    let processor = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    if !processor.split_whitespace().any(|flag| flag == "xsave") {
        skip!("this processor has no XSAVE, for which Firecracker asks");
    }
    let scratch = Scratch::new();
    let image = scratch.path().join("initrd.cpio");
    let init = std::fs::read(sibling("husk-peer-init")).unwrap();
    let busybox = std::fs::read("/bin/busybox").unwrap();
    std::fs::write(&image, initrd(&init, &[("busybox", &busybox)])).unwrap();
    let files = Files {
        firecracker,
        // The peer calls it jailer, and so it is one.
        jailer: libexec().join("husk-jailer"),
        kernel: libexec().join("vmlinux"),
        initrd: image,
        rootfs: None,
        data: None,
        tap: None,
    };
    let peer = Peer::stage(&files, scratch.path()).unwrap();
    let stages = peer.run(shape, None).unwrap_or_else(|error| panic!("{error}"));
    assert!(stages.spawn < stages.init && stages.init <= stages.first_byte, "{stages:?}");
}

#[test]
fn firecracker_boots_a_guest_from_a_file_in_its_root() {
    boots(Shape::default());
}

#[test]
fn firecracker_boots_a_guest_over_its_socket_with_a_pid_namespace_and_limits() {
    boots(Shape { start: Start::Api, confinement: Confinement::Full, ..Shape::default() });
}
