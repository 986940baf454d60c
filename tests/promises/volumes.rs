//! A directory of the host is in the guest as far as it was given, and no further.

use husk_seccomp::Role;
use husk_tests::footprint::Footprint;
use husk_tests::husk::Husk;
use husk_tests::processes;
use husk_tests::ptrace::Traced;
use husk_tests::scratch::Scratch;
use rustix::process::{Pid, Signal, kill_process};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

/// A directory with a file in it, below `scratch`.
fn directory(scratch: &Scratch) -> PathBuf {
    let path = scratch.path().join("shared");
    std::fs::create_dir(&path).unwrap();
    std::fs::write(path.join("file"), "what the host wrote\n").unwrap();
    path
}

/// The one server of a volume, by the name that it has if the volume is read-only (`husk-fs`) or writable (`husk-fs-rw`).
fn server(name: &str) -> u32 {
    let servers = processes::named(name);
    assert_eq!(servers.len(), 1, "one server, not {servers:?}");
    servers[0]
}

#[test]
fn a_volume_is_read_and_not_written_whatever_the_guest_does_to_its_mount() {
    let scratch = Scratch::new();
    let shared = directory(&scratch);
    let script = "cat /data/file; echo x > /data/new; echo $?; mount -o remount,rw /data; \
                  for change in 'touch /data/new' 'rm /data/file' 'chmod 0 /data/file' 'mkdir /data/d' \
                  'mv /data/file /data/f' 'ln -s x /data/l' 'truncate -s 0 /data/file'; do \
                  $change 2>&1 | grep -c 'Read-only file system'; done";
    let volume = format!("{}:/data", shared.display());
    let outcome = Husk::run(&["--volume", &volume], &["sh", "-c", script]).output().expect_status(0);
    assert_eq!(outcome.text(), format!("what the host wrote\n1\n{}", "1\n".repeat(7)), "{}", outcome.stderr);
    let names: Vec<_> = std::fs::read_dir(&shared).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["file"]);
    assert_eq!(std::fs::read(shared.join("file")).unwrap(), b"what the host wrote\n");
}

#[test]
fn a_writable_volume_is_written_and_seen_from_both_sides() {
    let scratch = Scratch::new();
    let shared = directory(&scratch);
    // The guest's second half waits for what the host does after the first.
    let script = "echo from the guest > /data/new && mkdir /data/dir && mv /data/file /data/dir/moved && \
                  chown 5:6 /data/new && chmod 640 /data/new && head -c 3000000 /dev/urandom > /data/big && \
                  md5sum < /data/big; \
                  until test -e /data/answer; do sleep 0.1; done; cat /data/answer /data/dir/moved";
    let volume = format!("{}:/data:rw", shared.display());
    let husk = Husk::run(&["--volume", &volume], &["sh", "-c", script]).spawn().up();
    assert_eq!(std::fs::read(shared.join("new")).unwrap(), b"from the guest\n");
    let metadata = std::fs::metadata(shared.join("new")).unwrap();
    assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o7777), (5, 6, 0o640));
    let big = std::fs::File::open(shared.join("big")).unwrap();
    let expected = Command::new("md5sum").stdin(big).output().unwrap().stdout;
    std::fs::write(shared.join("dir/moved"), "changed by the host\n").unwrap();
    std::fs::write(shared.join("answer.new"), "from the host\n").unwrap();
    std::fs::rename(shared.join("answer.new"), shared.join("answer")).unwrap();
    let outcome = husk.finish().expect_status(0);
    let expected = format!("{}from the host\nchanged by the host\n", String::from_utf8_lossy(&expected));
    assert_eq!(outcome.text(), expected);
}

#[test]
fn whatever_one_does_with_files_is_served_and_by_a_read_only_server_what_reads() {
    let scratch = Scratch::new();
    let shared = directory(&scratch);
    std::fs::set_permissions(&shared, std::fs::Permissions::from_mode(0o777)).unwrap();
    let reading = "cd /data; ls; df . | tail -n 1 | grep -c /data; dd if=file bs=6 skip=1 2>/dev/null; sync file; sync -d file";
    let script = format!(
        "{reading}; set -e; echo one:x:1000:1000::/:/bin/sh >> /etc/passwd; mkdir d; chmod 777 d; mkfifo d/pipe; ln -s ../file d/link; readlink d/link; cat d/link; \
         ln file d/hard; touch -d '2020-01-01 00:00:00' d/hard; truncate -s 10000 d/new; fallocate -l 65536 d/room; \
         dd if=file of=d/synced conv=fsync 2>/dev/null; start-stop-daemon -S -c 1000:1000 -x /bin/touch -- d/his; \
         stat -c %u:%g d/his; mv d/new d/newer; rm d/hard; ls d"
    );
    let volume = format!("{}:/data:rw", shared.display());
    let outcome = Husk::run(&["--volume", &volume], &["sh", "-c", &script]).output().expect_status(0);
    let read = "file\n1\nhe host wrote\n";
    let expected = "../file\nwhat the host wrote\n1000:1000\nhis\nlink\nnewer\npipe\nroom\nsynced\n";
    assert_eq!(outcome.text(), format!("{read}{expected}"), "{}", outcome.stderr);
    assert_eq!(std::fs::metadata(shared.join("d/room")).unwrap().len(), 65536);
    assert_eq!(std::fs::metadata(shared.join("d/his")).unwrap().uid(), 1000);
    std::fs::remove_dir_all(shared.join("d")).unwrap();
    let volume = format!("{}:/data", shared.display());
    let outcome = Husk::run(&["--volume", &volume], &["sh", "-c", reading]).output().expect_status(0);
    assert_eq!(outcome.text(), read, "{}", outcome.stderr);
}

#[test]
fn no_link_leads_out_of_a_volume() {
    let scratch = Scratch::new();
    let shared = directory(&scratch);
    let secret = scratch.file("secret", b"the host's own\n");
    symlink(&secret, shared.join("absolute")).unwrap();
    symlink("../secret", shared.join("up")).unwrap();
    symlink("../../../../../../../../etc/hostname", shared.join("far")).unwrap();
    let script = "cat /data/absolute /data/up; cat /data/far; hostname; ls /data/.. | grep -c secret";
    for access in ["", ":rw"] {
        let volume = format!("{}:/data{access}", shared.display());
        let outcome = Husk::run(&["--id", "linked", "--volume", &volume], &["sh", "-c", script]).output();
        assert!(!outcome.text().contains("the host's own"), "{}", outcome.text());
        // Links are the guest's to follow, from the guest's own root.
        assert!(outcome.text().ends_with("linked\n0\n"), "{outcome:?}");
    }
}

#[test]
fn a_server_that_dies_is_an_error_in_the_guest_and_the_sandbox_ends_as_ever() {
    let before = Footprint::now();
    let scratch = Scratch::new();
    let shared = directory(&scratch);
    let script = "echo up; while cat /data/file > /dev/null; do sleep 0.1; done; cat /data/file; \
                  ls /data; touch /data/x; exit 7";
    let volume = format!("{}:/data:rw", shared.display());
    let husk = Husk::run(&["--volume", &volume], &["sh", "-c", script]).spawn().up();
    let pid = Pid::from_raw(server("husk-fs-rw").cast_signed()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    let outcome = husk.finish().expect_status(7);
    let errors =
        outcome.stderr.matches("I/O error").count() + outcome.stderr.matches("Input/output error").count();
    assert!(errors >= 3, "{}", outcome.stderr);
    drop(scratch);
    before.assert_restored();
}

#[test]
fn a_server_that_its_filter_stops_is_told_and_is_an_error_in_the_guest() {
    let before = Footprint::now();
    let scratch = Scratch::new();
    let shared = directory(&scratch);
    let script = "echo up; while cat /data/file > /dev/null; do sleep 0.1; done; exit 7";
    let volume = format!("{}:/data", shared.display());
    let husk = Husk::run(&["--json", "--volume", &volume], &["sh", "-c", script]).spawn().up();
    // The kernel's signal for a denied call. What it says of the call is nobody's here; which those are is a unit test's matter.
    kill_process(Pid::from_raw(server("husk-fs").cast_signed()).unwrap(), Signal::SYS).unwrap();
    let outcome = husk.finish().expect_status(7);
    let degraded = outcome.json()["degraded"].to_string();
    let words = [
        &format!("--volume {}: volume server: ", shared.display()),
        "(role volume)",
        "which its filter denies",
    ];
    assert!(words.iter().all(|word| degraded.contains(*word)), "{degraded}");
    drop(scratch);
    before.assert_restored();
}

#[test]
fn a_server_dies_with_a_husk_that_is_killed() {
    let scratch = Scratch::new();
    let volume = format!("{}:/data", directory(&scratch).display());
    let husk = Husk::run(&["--volume", &volume], &["sh", "-c", "echo up; sleep 1000"]).spawn().up();
    server("husk-fs");
    husk.signal(Signal::KILL);
    husk.finish();
    let deadline = Instant::now() + Duration::from_secs(5);
    while !processes::named("husk-fs").is_empty() {
        assert!(Instant::now() < deadline, "the server outlives husk");
        std::thread::sleep(Duration::from_millis(10));
    }
    Husk::new(["gc"]).output().expect_status(0);
}

#[test]
fn a_server_has_its_directory_its_filter_and_no_privilege_beside_reading() {
    let scratch = Scratch::new();
    let shared = directory(&scratch);
    let volume = format!("{}:/data", shared.display());
    let husk = Husk::run(&["--volume", &volume], &["sh", "-c", "echo up; sleep 1000"]).spawn().up();
    let pid = server("husk-fs");
    let path = format!("/proc/{pid}");
    let traced = Traced::attach(pid);
    let loaded = traced.filter(0).unwrap();
    let compiled: Vec<_> =
        husk_seccomp::program(Role::Volume).iter().map(|op| (op.code, op.jt, op.jf, op.k)).collect();
    assert!(loaded == compiled && traced.filter(1).is_none());
    drop(traced);
    // CAP_DAC_READ_SEARCH.
    for (set, value) in [("CapEff", 4), ("CapPrm", 4), ("CapInh", 0), ("CapAmb", 0)] {
        assert_eq!(processes::status(&path, set), format!("{value:016x}"), "{set}");
    }
    assert_eq!(processes::status(&path, "NoNewPrivs"), "1");
    let mounts = std::fs::read_to_string(format!("{path}/mountinfo")).unwrap();
    let flags = mounts.split(' ').nth(5).unwrap_or_default();
    assert!(mounts.lines().count() == 1 && flags.starts_with("ro,nosuid,nodev,noexec"), "{mounts}");
    let names = std::fs::read_dir(format!("{path}/root")).unwrap();
    assert_eq!(names.map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>(), ["file"]);
    for namespace in ["mnt", "pid", "net", "ipc", "uts"] {
        let of = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/{namespace}")).unwrap();
        assert_ne!(of(&pid.to_string()), of("self"), "{namespace}");
    }
    husk.terminate();
}

#[test]
fn what_is_no_directory_is_refused_by_name() {
    let scratch = Scratch::new();
    let file = scratch.file("file", b"x");
    for (name, why) in [(file, "is not a directory"), (scratch.name("none"), "No such file or directory")] {
        let outcome =
            Husk::run(&["--volume", &format!("{name}:/data")], &["true"]).output().expect_status(125);
        assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
        let start = format!("husk: --volume {name}: {why}");
        assert!(outcome.stderr.starts_with(&start), "{}", outcome.stderr);
    }
}
