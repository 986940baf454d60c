//! The host's side for tests: husk-init as the first process of a PID namespace, on a socket pair. Owns that process
//! and ends it; refuses nothing. Invariant: frames of one session are handed out in the order in which they came.

#![allow(dead_code, reason = "each test program uses its part")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test's way to fail")]

use husk_protocol::exec::{
    Decoder, Disk, Exec, Exit, Frame, GuestReport, Hello, Identity, Mounts, RootMount, Stream, User, VERSION,
};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command};
use std::time::Duration;

/// How long a test waits for a frame.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Guest {
    pub(crate) socket: UnixStream,
    decoder: Decoder,
    process: Child,
}

/// How a session went.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Ran {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) exit: Option<Exit>,
    pub(crate) report: GuestReport,
}

impl Guest {
    /// Starts husk-init and greets it.
    pub(crate) fn start() -> Self {
        let mut guest = Self::start_silent();
        guest.say(&Frame::Hello(Hello { version: VERSION, features: 0 }));
        let root = RootMount { disk: Disk::Drive("root".into()), fs_type: String::new() };
        guest.say(&Frame::Mounts(Mounts { root, drives: Vec::new() }));
        guest.say(&Frame::Identity(Identity { hostname: "t".into(), realtime_ns: 1, entropy: [0; 32] }));
        assert!(matches!(guest.hear(), Some(Frame::GuestHello(hello)) if hello.init_ticks > 0));
        assert_eq!(guest.hear(), Some(Frame::Ready));
        guest
    }

    /// Starts husk-init and says nothing.
    pub(crate) fn start_silent() -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut unshare = Command::new("unshare");
        if !rustix::process::geteuid().is_root() {
            unshare.args(["--user", "--map-root-user"]);
        }
        unshare.args(["--pid", "--fork", "--kill-child", "--mount-proc", env!("CARGO_BIN_EXE_husk-init")]);
        unshare.args(["--channel-fd", "0"]);
        let process = unshare.stdin(OwnedFd::from(theirs)).spawn().expect("unshare (util-linux) is needed");
        Self { socket: ours, decoder: Decoder::new(), process }
    }

    pub(crate) fn say(&mut self, frame: &Frame) {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes).unwrap();
        self.socket.write_all(&bytes).unwrap();
    }

    /// The next frame; `None` at the end.
    pub(crate) fn hear(&mut self) -> Option<Frame> {
        let mut bytes = vec![0; 64 * 1024];
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return Some(frame);
            }
            let count = self.socket.read(&mut bytes).expect("the guest says nothing any more");
            if count == 0 {
                return None;
            }
            self.decoder.push(&bytes[..count]);
        }
    }

    /// Follows one session to its end, returning credit at once.
    pub(crate) fn follow(&mut self, session: u32) -> Ran {
        let mut ran = Ran::default();
        loop {
            match self.hear().expect("the guest hung up") {
                Frame::Started(id) => assert_eq!(id, session),
                Frame::Data(id, stream, bytes) => {
                    assert_eq!(id, session);
                    let credit = u32::try_from(bytes.len()).unwrap();
                    self.say(&Frame::Credit(id, stream, credit));
                    let sink = if stream == Stream::Stdout { &mut ran.stdout } else { &mut ran.stderr };
                    sink.extend(bytes);
                }
                Frame::Close(..) | Frame::Credit(..) => {}
                Frame::Report(report) => ran.report = report,
                Frame::Exit(id, exit) => {
                    assert_eq!(id, session);
                    ran.exit = Some(exit);
                    return ran;
                }
                other => panic!("unexpected: {other:?}"),
            }
        }
    }

    /// Hears up to and with the first frame that `wanted` accepts.
    pub(crate) fn hear_until(&mut self, wanted: impl Fn(&Frame) -> bool) -> Vec<Frame> {
        let mut heard = Vec::new();
        loop {
            let frame = self.hear().unwrap_or_else(|| panic!("the guest hung up after {heard:?}"));
            let found = wanted(&frame);
            heard.push(frame);
            if found {
                return heard;
            }
        }
    }

    /// Waits for husk-init to be gone; the status of `unshare` is its own.
    pub(crate) fn wait(mut self) -> Option<i32> {
        drop(self.socket.shutdown(std::net::Shutdown::Both));
        self.process.wait().unwrap().code()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Descriptors above 2 that this process was started with and hands on.
pub(crate) fn inherited() -> Vec<i32> {
    let entries = std::fs::read_dir("/proc/self/fd").unwrap();
    let numbers = entries.map(|entry| entry.unwrap().file_name().to_str().unwrap().parse::<i32>().unwrap());
    let handed_on = |fd: &i32| {
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap_or_default();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap_or("2000000").trim();
        // O_CLOEXEC
        *fd > 2 && i64::from_str_radix(flags, 8).unwrap() & 0o2_000_000 == 0
    };
    numbers.filter(handed_on).collect()
}

/// A command that ends the sandbox.
pub(crate) fn last(argv: &[&str]) -> Exec {
    Exec { last: true, ..side(argv) }
}

/// A command beside others.
pub(crate) fn side(argv: &[&str]) -> Exec {
    Exec {
        argv: argv.iter().map(|it| it.as_bytes().to_vec()).collect(),
        env: Vec::new(),
        cwd: Vec::new(),
        user: User::Root,
        terminal: None,
        stdin: false,
        last: false,
    }
}

/// A shell script that ends the sandbox.
pub(crate) fn last_sh(script: &str) -> Exec {
    last(&["/bin/sh", "-c", script])
}

/// Runs one command in a sandbox of its own.
pub(crate) fn run(exec: Exec) -> Ran {
    let mut guest = Guest::start();
    guest.say(&Frame::Exec(1, exec));
    guest.follow(1)
}
