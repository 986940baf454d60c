//! The loop against a cell that is played: its processes are real children, its words come from a thread.

use super::*;
use crate::control::pair;
use crate::outcome::{Outcome, judge};
use crate::session::{SESSION, Stdio};
use crate::sys::ChildExit;
use crate::timeline::now_ns;
use husk_protocol::control::{
    BalloonReport, BalloonStatistics, CONSOLE_TAIL_LINES, EndReason, Ended, FromCell, Landlock,
};
use husk_protocol::exec::{Decoder, Exit, Frame, GuestHello, GuestReport, Stream, VERSION};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio as ChildStdio};
use std::time::Instant;

/// The other side of everything.
struct Played {
    control: OwnedFd,
    exec: UnixStream,
    decoder: Decoder,
    runtime: i32,
}

impl Played {
    fn tell(&self, message: &FromCell) {
        let text = serde_json::to_vec(message).unwrap();
        rustix::net::send(&self.control, &text, rustix::net::SendFlags::NOSIGNAL).unwrap();
    }

    fn say(&mut self, frame: &Frame) {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes).unwrap();
        self.exec.write_all(&bytes).unwrap();
    }

    /// The guest is up and its command runs.
    fn boot(&mut self) {
        self.tell(&FromCell::Cloned { pid: self.runtime });
        self.say(&Frame::GuestHello(GuestHello { version: VERSION, features: 0, init_ticks: 0 }));
        self.say(&Frame::Ready);
        self.say(&Frame::Started(SESSION));
    }

    fn hear(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return Some(frame);
            }
            let mut bytes = [0; 4096];
            let count = self.exec.read(&mut bytes).unwrap_or(0);
            if count == 0 {
                return None;
            }
            self.decoder.push(&bytes[..count]);
        }
    }
}

const LONG: Limits = Limits { boot: Duration::from_secs(20), total: None, unmounts: false };

struct Played2End {
    outcome: Outcome,
    evidence: Evidence,
    took: Duration,
    output: Vec<u8>,
}

/// Runs a sandbox whose jailer is the shell script `jailer` and whose guest is `play`.
fn run(limits: Limits, jailer: &str, play: impl FnOnce(Played) + Send + 'static) -> Played2End {
    let (control, theirs) = pair().unwrap();
    let (ours, exec) =
        socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
    let child = |script: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(ChildStdio::null()).stderr(ChildStdio::null());
        #[expect(clippy::zombie_processes, reason = "the pump reaps it")]
        let child = command.spawn().unwrap();
        i32::try_from(child.id()).unwrap()
    };
    let runtime = child("exec sleep 100");
    let jailer = Process::child(child(jailer)).unwrap();
    let (back, stdout) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let null = File::options().write(true).open("/dev/null").unwrap();
    let stdio = Stdio { stdin: None, stdout: stdout.as_fd(), stderr: null.as_fd() };
    let session = Session::new(ours, &stdio, false).unwrap();
    let cell = Cell { jailer, jailer_stderr: None, runtime: None };
    let mut pump = Pump::new(session, control, cell, limits, Timeline::starting_at(now_ns()));
    let played = Played { control: theirs, exec: exec.into(), decoder: Decoder::new(), runtime };
    let thread = std::thread::spawn(move || play(played));
    let began = Instant::now();
    pump.run();
    let took = began.elapsed();
    let evidence = std::mem::take(&mut pump.evidence);
    drop(pump);
    // What the pump never heard of is this test's to end.
    drop(Process::child(runtime));
    thread.join().unwrap();
    drop(stdout);
    let mut output = Vec::new();
    File::from(back).read_to_end(&mut output).unwrap();
    Played2End { outcome: judge(&evidence), evidence, took, output }
}

#[test]
fn the_last_that_the_guest_said_of_its_memory_counts() {
    let end = run(LONG, "exit 0", |mut played| {
        played.boot();
        for actual_mib in [1, 2] {
            let statistics = BalloonStatistics::default();
            played.tell(&FromCell::Balloon(Box::new(BalloonReport { at_ns: 1, actual_mib, statistics })));
        }
        played.say(&Frame::Exit(SESSION, Exit::Status(0)));
    });
    assert_eq!(end.evidence.balloon.unwrap().actual_mib, 2);
}

#[test]
fn how_well_the_runtime_is_confined_is_passed_on() {
    let end = run(LONG, "exit 0", |mut played| {
        played.tell(&FromCell::Confined { landlock: Landlock::Partial });
        played.boot();
        played.say(&Frame::Exit(SESSION, Exit::Status(0)));
    });
    assert_eq!(end.evidence.landlock, Some(Landlock::Partial));
}

#[test]
fn the_commands_end_is_the_end_and_all_output_is_out() {
    let end = run(LONG, "exit 0", |mut played| {
        played.boot();
        played.say(&Frame::Data(SESSION, Stream::Stdout, b"all of it".to_vec()));
        played.say(&Frame::Exit(SESSION, Exit::Status(3)));
        // A runtime that is killed takes its ends along; here the thread does.
    });
    assert_eq!((end.outcome.status, end.outcome.error), (3, None));
    assert_eq!(end.output, b"all of it");
    assert_eq!(end.evidence.runtime, Some(ChildExit::Signal(9)));
    assert!(end.took < Duration::from_secs(3), "{:?}", end.took);
}

#[test]
fn a_timeout_lets_the_guest_end_in_order() {
    let limits = Limits { total: Some(Duration::from_millis(200)), ..LONG };
    let end = run(limits, "exit 0", |mut played| {
        played.boot();
        assert_eq!(played.hear(), Some(Frame::Shutdown));
        played.say(&Frame::Report(GuestReport { leftovers_killed: 7, ..GuestReport::default() }));
        assert_eq!(played.hear(), None);
    });
    assert_eq!((end.outcome.status, end.outcome.timed_out), (124, true));
    assert_eq!(end.evidence.heard.report.unwrap().leftovers_killed, 7);
    assert!(end.took < Duration::from_millis(1500), "{:?}", end.took);
}

#[test]
fn a_guest_that_ignores_its_timeout_is_killed() {
    let limits = Limits { total: Some(Duration::from_millis(100)), ..LONG };
    let end = run(limits, "exit 0", |mut played| {
        played.boot();
        while played.hear().is_some() {}
    });
    assert_eq!(end.outcome.status, 124);
    assert!(end.took > Duration::from_secs(2) && end.took < Duration::from_secs(6), "{:?}", end.took);
}

#[test]
fn a_guest_that_cannot_go_on_is_hung_up_on_and_ends_by_itself() {
    // A jailer ends only after it has announced its clone.
    let end = run(LONG, "sleep 1", |mut played| {
        played.boot();
        played.say(&Frame::Fatal("no memory".into()));
        assert_eq!(played.hear(), None);
        played.exec.shutdown(std::net::Shutdown::Both).unwrap();
        // It unmounts: longer than a silence is borne with.
        std::thread::sleep(Duration::from_millis(3500));
        let console_tail = Vec::new();
        played.tell(&FromCell::Ended(Ended { reason: EndReason::GuestReset, console_tail }));
    });
    assert_eq!(end.outcome.error.unwrap(), "guest-init cannot go on: no memory");
    assert!(end.evidence.ended.is_some() && end.took < Duration::from_secs(6), "{:?}", end.took);
}

#[test]
fn a_guest_that_does_not_boot_is_ended_with_its_console() {
    let limits = Limits { boot: Duration::from_millis(100), ..LONG };
    let end = run(limits, "exit 0", |played| {
        played.tell(&FromCell::Cloned { pid: played.runtime });
        let mut bytes = [0; 100];
        let (count, _) =
            rustix::net::recv(&played.control, &mut bytes[..], rustix::net::RecvFlags::empty()).unwrap();
        assert_eq!(&bytes[..count], b"\"stop\"");
        let console_tail = vec!["stuck here\x07".to_owned(); 40];
        played.tell(&FromCell::Ended(Ended { reason: EndReason::Requested, console_tail }));
    });
    assert_eq!(end.outcome.status, 125);
    assert!(end.outcome.error.unwrap().contains("not ready within 100ms"));
    let tail = end.evidence.ended.unwrap().console_tail;
    assert_eq!((tail.len(), tail[0].as_str()), (CONSOLE_TAIL_LINES, "stuck here?"));
    assert!(end.took < Duration::from_secs(2), "{:?}", end.took);
}

#[test]
fn a_jailer_that_fails_is_believed() {
    let end = run(LONG, "exit 1", |played| {
        let message = "cgroup /x: exists already".to_owned();
        played.tell(&FromCell::Failed { fault: Fault::Operator, message });
    });
    assert_eq!(end.outcome.error.unwrap(), "cgroup /x: exists already");
    assert_eq!(end.outcome.fault, Some(Fault::Operator));
    let end = run(LONG, "kill -9 $$", drop);
    assert!(end.outcome.error.unwrap().contains("the jailer was killed by SIGKILL"));
}

#[test]
fn a_killed_runtime_is_named() {
    let end = run(LONG, "exit 0", |mut played| {
        played.boot();
        let pid = rustix::process::Pid::from_raw(played.runtime).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    });
    assert!(end.outcome.error.unwrap().contains("the runtime was killed by SIGKILL"));
}

#[test]
fn a_guest_that_falls_silent_is_not_waited_for() {
    let end = run(LONG, "exit 0", |mut played| {
        played.boot();
        played.exec.shutdown(std::net::Shutdown::Both).unwrap();
        // The runtime lives on and says nothing.
        let mut byte = [0];
        let _ = rustix::net::recv(&played.control, &mut byte[..], rustix::net::RecvFlags::empty());
    });
    assert!(end.outcome.error.unwrap().contains("fell silent"));
    assert_eq!(end.outcome.fault, Some(Fault::Guest));
    assert!(end.took < Duration::from_secs(8), "{:?}", end.took);
}

#[test]
fn a_cell_that_lies_about_its_process_gets_nobody_killed() {
    let end = run(LONG, "exit 0", |mut played| {
        for pid in [-1, 0, 1, i32::MAX] {
            played.tell(&FromCell::Cloned { pid });
        }
        played.boot();
        played.say(&Frame::Exit(SESSION, Exit::Status(0)));
    });
    assert_eq!(end.outcome.status, 0);
}

#[test]
fn a_guest_that_breaks_the_protocol_is_ended() {
    let end = run(LONG, "exit 0", |mut played| {
        played.boot();
        played.say(&Frame::Shutdown);
        let _ = played.hear();
    });
    assert_eq!(end.outcome.fault, Some(Fault::Guest));
    assert!(end.outcome.error.unwrap().contains("exec protocol"));
}
