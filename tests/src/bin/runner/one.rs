//! One test: a process of its own, a deadline, its output.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Most bytes of a failed test's output that are shown: its end.
const SHOWN: usize = 16 * 1024;

/// How a test ended.
pub(crate) enum Verdict {
    /// It held.
    Passed,
    /// It could not run here; why.
    Skipped(String),
    /// It did not hold; what it printed.
    Failed(String),
}

/// The names of an executable's tests.
pub(crate) fn tests_of(executable: &Path) -> Result<Vec<String>, String> {
    let output = Command::new(executable)
        .args(["--list", "--format", "terse"])
        .output()
        .map_err(|error| format!("{}: {error}", executable.display()))?;
    if !output.status.success() {
        return Err(format!("{} --list: {}", executable.display(), output.status));
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
}

/// Runs one test to its end or its deadline.
pub(crate) fn run(executable: &Path, name: &str, deadline: Duration) -> Verdict {
    let child = Command::new(executable)
        .args(["--exact", name, "--nocapture"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => return Verdict::Failed(format!("{}: {error}", executable.display())),
    };
    let output = child.stdout.take().map(collect);
    let errors = child.stderr.take().map(collect);
    let ended = wait(&mut child, deadline);
    let text = |thread: Option<std::thread::JoinHandle<String>>| {
        thread.and_then(|thread| thread.join().ok()).unwrap_or_default()
    };
    let (output, errors) = (text(output), text(errors));
    match ended {
        None => Verdict::Failed(tail(&format!("{output}{errors}\nnot ended after {deadline:?}: killed"))),
        Some(true) => {
            match output.lines().chain(errors.lines()).find_map(|line| line.split_once("HUSK-SKIP ")) {
                Some((_, reason)) => Verdict::Skipped(reason.to_owned()),
                None => Verdict::Passed,
            }
        }
        Some(false) => Verdict::Failed(tail(&format!("{output}{errors}"))),
    }
}

/// Whether the test ended well; `None` if it had to be killed, with the process group that it leads.
fn wait(child: &mut Child, deadline: Duration) -> Option<bool> {
    let until = Instant::now() + deadline;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status.success()),
            Ok(None) if Instant::now() < until => std::thread::sleep(Duration::from_millis(5)),
            _ => {
                let group = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
                if let Some(group) = group {
                    let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
                }
                drop(child.wait());
                return None;
            }
        }
    }
}

fn collect(mut pipe: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        drop(pipe.read_to_end(&mut bytes));
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn tail(text: &str) -> String {
    let mut start = text.len().saturating_sub(SHOWN);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    text[start..].to_owned()
}
