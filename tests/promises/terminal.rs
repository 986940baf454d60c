//! With `-t` the command has a terminal, and ours is as it was afterwards.

use husk_tests::husk::binary;
use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcgetattr, tcsetwinsize};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// husk on a terminal of its own: what it prints comes line-wise from `printed`, keys go to `keys`.
struct OnTerminal {
    child: Child,
    keys: File,
    slave: OwnedFd,
    printed: Receiver<Vec<u8>>,
    seen: String,
}

impl OnTerminal {
    fn start(rows: u16, cols: u16, args: &[&str]) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let slave =
            open(name.as_c_str(), OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        tcsetwinsize(&slave, Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
        let stream = || Stdio::from(slave.try_clone().unwrap());
        let mut command = Command::new("setsid");
        command.args(["--wait", "--ctty"]).arg(binary()).args(args);
        command.stdin(stream()).stdout(stream()).stderr(stream()).process_group(0);
        let child = command.spawn().unwrap();
        let keys = File::from(master);
        let mut reader = keys.try_clone().unwrap();
        let (sender, printed) = channel();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut bytes) {
                if sender.send(bytes[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self { child, keys, slave, printed, seen: String::new() }
    }

    #[track_caller]
    fn wait_for(&mut self, text: &str) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !self.seen.contains(text) {
            match self.printed.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(error) => panic!("no {text:?} ({error}): {:?}", self.seen),
            }
        }
    }

    fn press(&mut self, keys: &[u8]) {
        self.keys.write_all(keys).unwrap();
    }

    #[track_caller]
    fn finish(mut self) -> (i32, String) {
        let deadline = Instant::now() + Duration::from_secs(40);
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > deadline {
                self.child.kill().unwrap();
                panic!("husk does not end: {:?}", self.seen);
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        while let Ok(bytes) = self.printed.recv_timeout(Duration::from_millis(200)) {
            self.seen.push_str(&String::from_utf8_lossy(&bytes));
        }
        (status.code().unwrap_or(-1), self.seen)
    }
}

#[test]
fn it_is_a_terminal_of_our_size() {
    let terminal = OnTerminal::start(
        33,
        101,
        &["run", "-it", "--", "sh", "-c", "tty; stty size; test -t 0 -a -t 1 -a -t 2 && echo all"],
    );
    let (status, seen) = terminal.finish();
    assert_eq!(status, 0, "{seen}");
    assert!(seen.contains("/dev/pts/0") && seen.contains("33 101") && seen.contains("all"), "{seen}");
}

#[test]
fn a_new_size_reaches_the_command() {
    let script = "trap 'stty size' WINCH; echo ready; while :; do sleep 0.1; done";
    let mut terminal = OnTerminal::start(20, 80, &["run", "-i", "-t", "--", "sh", "-c", script]);
    terminal.wait_for("ready");
    let size = Winsize { ws_row: 44, ws_col: 132, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&terminal.slave, size).unwrap();
    terminal.wait_for("44 132");
    terminal.press(b"\x03");
    let (status, seen) = terminal.finish();
    assert_eq!(status, 130, "{seen}");
}

#[test]
fn keys_go_to_the_command_and_the_terminal_is_restored() {
    let script = "read line; echo got $line; trap 'echo interrupted; exit 5' INT; echo ready; while :; do sleep 0.1; done";
    let mut terminal = OnTerminal::start(24, 80, &["run", "-it", "--", "sh", "-c", script]);
    let before = tcgetattr(&terminal.slave).unwrap();
    std::thread::sleep(Duration::from_secs(3));
    terminal.press(b"some text\r");
    terminal.wait_for("got some text");
    terminal.wait_for("ready");
    // Interrupt is a key like others: husk's own terminal is raw.
    terminal.press(b"\x03");
    terminal.wait_for("interrupted");
    let slave = terminal.slave.try_clone().unwrap();
    let (status, seen) = terminal.finish();
    assert_eq!(status, 5, "{seen}");
    let after = tcgetattr(&slave).unwrap();
    assert_eq!(after.local_modes, before.local_modes);
    assert_eq!(after.input_modes, before.input_modes);
    assert_eq!(after.output_modes, before.output_modes);
}

#[test]
fn end_of_file_is_a_key_too() {
    let mut terminal =
        OnTerminal::start(24, 80, &["run", "-it", "--", "sh", "-c", "echo ready; cat; echo after"]);
    terminal.wait_for("ready");
    terminal.press(b"abc\r\x04");
    terminal.wait_for("after");
    let (status, seen) = terminal.finish();
    assert_eq!(status, 0, "{seen}");
}

#[test]
fn a_killed_husk_restores_the_terminal() {
    let mut terminal = OnTerminal::start(
        24,
        80,
        &["run", "-it", "--", "sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done"],
    );
    let before = tcgetattr(&terminal.slave).unwrap();
    terminal.wait_for("ready");
    for _ in 0..2 {
        for pid in husk_tests::processes::named("husk") {
            let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    let slave = terminal.slave.try_clone().unwrap();
    let (status, seen) = terminal.finish();
    assert_ne!(status, 0, "{seen}");
    assert_eq!(tcgetattr(&slave).unwrap().local_modes, before.local_modes);
}

#[test]
fn t_without_a_terminal_is_refused() {
    let outcome = husk_tests::husk::Husk::run(&["-t"], &["true"]).output().expect_status(125);
    assert!(outcome.stderr.contains("terminal"), "{}", outcome.stderr);
}
