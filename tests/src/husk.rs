//! husk as a user would start it: a process with arguments, standard streams and a status.
//!
//! Owns the deadline: no test hangs, whatever husk does.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long one husk may take in a software-emulated lab, unless a test says otherwise.
const DEADLINE: Duration = Duration::from_secs(60);

/// The husk under test: `$HUSK_BIN`, else the first on PATH.
#[must_use]
pub fn binary() -> PathBuf {
    std::env::var_os("HUSK_BIN").map_or_else(|| PathBuf::from("husk"), PathBuf::from)
}

/// The directory that husk and its parts are staged in.
///
/// # Panics
/// husk is not on PATH.
#[must_use]
pub fn libexec() -> PathBuf {
    let husk = binary();
    if husk.is_absolute() {
        return husk.parent().map(PathBuf::from).unwrap_or_default();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .find(|dir| dir.join(&husk).is_file())
        .unwrap_or_else(|| panic!("{} is not on PATH {path:?}", husk.display()))
}

/// A husk about to be started.
pub struct Husk {
    command: Command,
    stdin: Option<Vec<u8>>,
    deadline: Duration,
}

/// How a husk ended.
#[derive(Debug)]
pub struct Outcome {
    /// Exit status; 1000 + signal if a signal ended husk itself.
    pub status: i32,
    /// All of standard output.
    pub stdout: Vec<u8>,
    /// All of standard error, lossily.
    pub stderr: String,
    /// From start to end.
    pub took: Duration,
}

impl Outcome {
    /// Standard output as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Asserts the status and shows both streams if it is another one.
    ///
    /// # Panics
    /// The status differs.
    #[track_caller]
    pub fn expect_status(self, status: i32) -> Self {
        assert_eq!(self.status, status, "stdout: {}\nstderr: {}", self.text(), self.stderr);
        self
    }

    /// The result object that `--json` prints: the last line of standard error.
    ///
    /// # Panics
    /// The line is not a JSON object.
    #[track_caller]
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        let line = self.stderr.lines().last().unwrap_or_default();
        match serde_json::from_str(line) {
            Ok(value @ serde_json::Value::Object(_)) => value,
            other => panic!("no JSON object on the last line of stderr ({other:?}): {}", self.stderr),
        }
    }
}

impl Husk {
    /// `husk ARGS…`.
    pub fn new<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Self {
        let mut command = Command::new(binary());
        command.args(args);
        Self::from_command(command)
    }

    /// A husk that is started otherwise.
    #[must_use]
    pub fn from_command(command: Command) -> Self {
        Self { command, stdin: None, deadline: DEADLINE }
    }

    /// `husk run OPTIONS… -- COMMAND…`.
    #[must_use]
    pub fn run(options: &[&str], command: &[&str]) -> Self {
        let args: Vec<OsString> =
            [&["run"], options, &["--"], command].concat().iter().map(OsString::from).collect();
        Self::new(args)
    }

    /// `husk run -- sh -c SCRIPT`.
    #[must_use]
    pub fn sh(script: &str) -> Self {
        Self::run(&[], &["sh", "-c", script])
    }

    /// What husk reads on standard input; without it: nothing, at once at its end.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(bytes.into());
        self
    }

    /// Another deadline.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// A variable of husk's environment.
    #[must_use]
    pub fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    /// Runs to the end.
    #[track_caller]
    #[must_use]
    pub fn output(self) -> Outcome {
        self.spawn().finish()
    }

    /// Starts it.
    ///
    /// # Panics
    /// husk cannot be started.
    #[track_caller]
    #[must_use]
    pub fn spawn(mut self) -> Running {
        self.command.stdout(Stdio::piped()).stderr(Stdio::piped());
        self.command.stdin(if self.stdin.is_some() { Stdio::piped() } else { Stdio::null() });
        let started = Instant::now();
        let mut child = self.command.spawn().unwrap_or_else(|error| panic!("{:?}: {error}", self.command));
        let feeder = self.stdin.zip(child.stdin.take()).map(|(bytes, mut pipe)| {
            // A husk that ends early closes the pipe: that is for the test to judge, not for the feeder.
            std::thread::spawn(move || drop(pipe.write_all(&bytes)))
        });
        let spoke = Arc::new(AtomicBool::new(false));
        let stdout = child.stdout.take().map(|pipe| collect(pipe, Arc::clone(&spoke)));
        let stderr = child.stderr.take().map(|pipe| collect(pipe, Arc::default()));
        Running { child, feeder, stdout, stderr, spoke, started, deadline: self.deadline }
    }
}

/// Reads to the end, and says when there is something.
fn collect(mut pipe: impl Read + Send + 'static, spoke: Arc<AtomicBool>) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = vec![0];
        if pipe.read_exact(&mut bytes).is_err() {
            return Vec::new();
        }
        spoke.store(true, Ordering::Release);
        drop(pipe.read_to_end(&mut bytes));
        bytes
    })
}

/// A husk that runs.
pub struct Running {
    child: Child,
    feeder: Option<JoinHandle<()>>,
    stdout: Option<JoinHandle<Vec<u8>>>,
    stderr: Option<JoinHandle<Vec<u8>>>,
    spoke: Arc<AtomicBool>,
    started: Instant,
    deadline: Duration,
}

impl Running {
    /// husk's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends husk a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    /// Waits until the command has written something to its standard output: then it runs, however slow the machine is.
    ///
    /// # Panics
    /// husk ended first, or the deadline passed.
    #[track_caller]
    #[must_use]
    pub fn up(mut self) -> Self {
        while !self.spoke.load(Ordering::Acquire) {
            let ended = self.child.try_wait();
            // What it wrote last may not have been read yet.
            if !matches!(ended, Ok(None)) || self.started.elapsed() > self.deadline {
                let outcome = self.finish();
                assert!(!outcome.stdout.is_empty(), "the command never spoke: {outcome:?}");
                panic!("the command ended before it was looked at: {outcome:?}");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self
    }

    /// Ends a command that only waits: SIGTERM, which kills it.
    ///
    /// # Panics
    /// It ended otherwise.
    #[track_caller]
    pub fn terminate(self) {
        self.signal(rustix::process::Signal::TERM);
        self.finish().expect_status(143);
    }

    /// Waits for the end; past the deadline husk is killed and the test fails.
    ///
    /// # Panics
    /// The deadline passed.
    #[track_caller]
    pub fn finish(mut self) -> Outcome {
        let status = loop {
            match self.child.try_wait() {
                Ok(Some(status)) => break status,
                Ok(None) if self.started.elapsed() > self.deadline => {
                    drop(self.child.kill());
                    drop(self.child.wait());
                    let (stdout, stderr) = self.streams();
                    panic!(
                        "husk did not end within {:?}\nstdout: {}\nstderr: {}",
                        self.deadline,
                        String::from_utf8_lossy(&stdout[..stdout.len().min(2000)]),
                        String::from_utf8_lossy(&stderr)
                    );
                }
                Ok(None) => std::thread::sleep(Duration::from_millis(5)),
                Err(error) => panic!("waiting for husk: {error}"),
            }
        };
        let took = self.started.elapsed();
        let (stdout, stderr) = self.streams();
        Outcome { status: code(status), stdout, stderr: String::from_utf8_lossy(&stderr).into_owned(), took }
    }

    fn streams(&mut self) -> (Vec<u8>, Vec<u8>) {
        if let Some(feeder) = self.feeder.take() {
            drop(feeder.join());
        }
        let take = |stream: Option<JoinHandle<Vec<u8>>>| {
            stream.and_then(|thread| thread.join().ok()).unwrap_or_default()
        };
        (take(self.stdout.take()), take(self.stderr.take()))
    }
}

fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 1000 + status.signal().unwrap_or_default())
}
