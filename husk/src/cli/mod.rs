//! The command line: what is typed in, what is printed, and the status.
//!
//! Owns the wording of usage errors and the table of `husk ps`. Refuses in one line with status 125. Invariant: standard
//! output carries the command's bytes, or what was asked for (help, lists), and nothing else.

mod args;
mod normal;

use crate::assets::Assets;
use crate::cgroup::Hierarchies;
use crate::change::ask;
use crate::doctor;
use crate::gc::{self, Collected};
use crate::outcome::Outcome;
use crate::pack;
use crate::pool::Pool;
use crate::report::Report;
use crate::sandbox::Sandbox;
use crate::session::Stdio;
use crate::signals::{END_AT_ONCE, Signals};
use crate::state::{Record, State};
use crate::timeline::{Timeline, realtime_ns};
use crate::{sys, terminal, text};
use argh::FromArgs;
use args::{Doctor, Gc, Husk, Kill, Ps, Run, Subcommand, Telling, Update};
use husk_protocol::control::Fault;
use husk_protocol::exit::HUSK_FAILED;
use normal::{Normal, normalise};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::ffi::OsString;
use std::io::Write;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// A killed sandbox may take this long to be gone.
const KILL_PATIENCE: Duration = Duration::from_secs(12);

/// Runs the command line `arguments` (without the program's name), begun at `start_ns` (`CLOCK_MONOTONIC`); returns the
/// exit status.
#[must_use]
pub fn main(arguments: Vec<OsString>, start_ns: u64) -> u8 {
    let wants_json =
        arguments.iter().take_while(|argument| *argument != "--").any(|argument| argument == "--json");
    match parse(arguments) {
        Ok(Parsed::Print(text)) => print(&text),
        Ok(Parsed::Do(command, rest)) => execute(command, rest, start_ns),
        Err(line) if wants_json => {
            let mut report = Report::new(Timeline::starting_at(start_ns));
            report.outcome = Outcome::failure(Fault::Operator, line);
            finish(&report, Telling { json: true, timings: false })
        }
        Err(line) => fail(&line),
    }
}

enum Parsed {
    /// Help was asked for.
    Print(String),
    /// A command, and what stood after `--`.
    Do(Subcommand, Option<Vec<OsString>>),
}

fn parse(arguments: Vec<OsString>) -> Result<Parsed, String> {
    let subcommand =
        arguments.iter().filter_map(|argument| argument.to_str()).find(|word| !word.starts_with('-'));
    let program = match subcommand {
        Some(name @ ("run" | "ps" | "kill" | "update" | "gc" | "doctor" | "version")) => {
            format!("husk {name}")
        }
        _ => "husk".to_owned(),
    };
    let Normal { args, command } = normalise(arguments).map_err(|line| hint(&line, &program))?;
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match Husk::from_args(&["husk"], &words) {
        Ok(Husk { version: true, .. }) => Ok(Parsed::Do(Subcommand::Version(args::Version {}), None)),
        Ok(Husk { command: Some(subcommand), .. }) => Ok(Parsed::Do(subcommand, command)),
        Ok(Husk { command: None, .. }) => Err(hint(
            "no subcommand is given; run, ps, kill, update, gc, doctor and version are known",
            "husk",
        )),
        Err(exit) if exit.status.is_ok() => Ok(Parsed::Print(exit.output)),
        Err(exit) => Err(hint(&explain(&exit.output, command.is_none() && program == "husk run"), &program)),
    }
}

/// argh's complaint in one line.
fn explain(output: &str, without_command: bool) -> String {
    let line = output.split_whitespace().collect::<Vec<_>>().join(" ");
    if without_command && line.starts_with("Unrecognized argument") {
        return format!("{}; the command comes after --", crate::text::line(&line));
    }
    crate::text::line(&line)
}

fn hint(line: &str, program: &str) -> String {
    format!("{line} (see {program} --help)")
}

fn execute(command: Subcommand, rest: Option<Vec<OsString>>, start_ns: u64) -> u8 {
    let rest_is_wrong = rest.is_some() && !matches!(command, Subcommand::Run(_));
    if rest_is_wrong {
        return fail(&hint("only run takes a command after --", "husk"));
    }
    match command {
        Subcommand::Run(options) => run(*options, rest.unwrap_or_default(), start_ns),
        Subcommand::Ps(options) => ps(&options),
        Subcommand::Kill(options) => kill(&options),
        Subcommand::Update(options) => update(&options),
        Subcommand::Gc(options) => collect(&options),
        Subcommand::Doctor(options) => examine(&options),
        Subcommand::Version(_) => print(concat!("husk ", env!("CARGO_PKG_VERSION"))),
    }
}

fn run(run: Run, command: Vec<OsString>, start_ns: u64) -> u8 {
    let telling = run.telling();
    let refuse = |fault, line: String| {
        let mut report = Report::new(Timeline::starting_at(start_ns));
        report.outcome = Outcome::failure(fault, line);
        finish(&report, telling)
    };
    let options = match run.into_options(command) {
        Ok(options) => options,
        Err(line) => return refuse(Fault::Operator, hint(&line, "husk run")),
    };
    if options.command.is_empty() {
        let line = hint("no command is given; write it after --, as in: husk run -- echo hi", "husk run");
        return refuse(Fault::Operator, line);
    }
    sys::keep_children();
    let signals = match Signals::take() {
        Ok(signals) => signals,
        Err(error) => return refuse(Fault::Host, format!("signals cannot be waited for: {error}")),
    };
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let stdio =
        Stdio { stdin: options.stdin.then(|| stdin.as_fd()), stdout: stdout.as_fd(), stderr: stderr.as_fd() };
    let sandbox = Sandbox::from(options).signals(&signals).talkative(!telling.json).requested_at(start_ns);
    finish(&sandbox.run(&stdio), telling)
}

/// Tells how it went; the status.
fn finish(report: &Report, telling: Telling) -> u8 {
    let mut stderr = std::io::stderr().lock();
    // Whoever closed standard error does not want to know.
    let told = if telling.json {
        format!("{}\n", report.json()).into_bytes()
    } else {
        let mut lines = Vec::new();
        let _ = report.tell(&mut lines, telling.timings);
        lines
    };
    if report.mid_line && !told.is_empty() {
        let _ = stderr.write_all(b"\n");
    }
    let _ = stderr.write_all(&told);
    report.outcome.status
}

fn ps(options: &Ps) -> u8 {
    let records = match State::usual().living() {
        Ok(records) => records,
        Err(error) => return fail(&error.to_string()),
    };
    let now_ms = realtime_ns() / 1_000_000;
    if options.json {
        let list: Vec<_> = records.iter().map(|record| listed(record, now_ms)).collect();
        return print(&serde_json::Value::from(list).to_string());
    }
    print(table(&records, now_ms).trim_end())
}

fn listed(record: &Record, now_ms: u64) -> serde_json::Value {
    serde_json::json!({
        "id": record.id,
        "pid": record.pid,
        "uid": record.uid,
        "started_ms": record.started_ms,
        "age_ms": now_ms.saturating_sub(record.started_ms),
        "vcpus": record.vcpus,
        "memory_mib": record.memory_mib,
        "command": record.command,
        "limits": record.limits,
    })
}

fn table(records: &[Record], now_ms: u64) -> String {
    let width = records.iter().map(|record| record.id.len()).max().unwrap_or(0).max(12);
    let mut text =
        format!("{:width$}  {:>7}  {:>7}  {:>5}  {:>6}  COMMAND\n", "ID", "PID", "AGE", "VCPUS", "MEMORY");
    for record in records {
        let age = now_ms.saturating_sub(record.started_ms) / 1000;
        let age = match age {
            0..120 => format!("{age}s"),
            120..7200 => format!("{}m", age / 60),
            _ => format!("{}h", age / 3600),
        };
        let memory = format!("{}M", record.memory_mib);
        let command = crate::text::line(&record.command.join(" "));
        text.push_str(&format!(
            "{:width$}  {:>7}  {age:>7}  {:>5}  {memory:>6}  {command}\n",
            record.id, record.pid, record.vcpus
        ));
    }
    text
}

fn kill(options: &Kill) -> u8 {
    let state = State::usual();
    let record = match state.find(&options.id) {
        Ok(record) => record,
        Err(error) => return fail(&error.to_string()),
    };
    let at_once = options.signal == libc::SIGKILL;
    let number = if at_once { END_AT_ONCE } else { options.signal };
    let gone = || fail(&format!("sandbox {} has just ended", record.id));
    let pid = Some(record.pid).filter(|&pid| pid > 1).and_then(Pid::from_raw);
    let pidfd = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    // While the lock is held its holder lives, so the number is still his.
    let Some(pidfd) = pidfd.filter(|_| state.lives(&record.id)) else { return gone() };
    if let Err(error) = sys::send_signal(pidfd.as_fd(), number) {
        return fail(&format!("sandbox {}: husk's process {}: {error}", record.id, record.pid));
    }
    let deadline = Instant::now() + KILL_PATIENCE;
    while at_once && state.lives(&record.id) {
        if Instant::now() > deadline {
            return fail(&format!("sandbox {} was killed but is still there", record.id));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    0
}

fn update(options: &Update) -> u8 {
    let asked = match options.ask() {
        Ok(asked) => asked,
        Err(line) if options.json => {
            return updated(None, Some((Fault::Operator, hint(&line, "husk update"))));
        }
        Err(line) => return fail(&hint(&line, "husk update")),
    };
    match ask(&State::usual(), &options.id, &asked) {
        Ok(id) if options.json => updated(Some(&id), None),
        Ok(_) => 0,
        Err(error) if options.json => updated(None, Some((error.fault(), text::message(&error.to_string())))),
        Err(error) => fail(&text::message(&error.to_string())),
    }
}

/// The result of an update for a program: the sandbox's whole id, or who is at fault, and why.
fn updated(id: Option<&str>, error: Option<(Fault, String)>) -> u8 {
    let (fault, line) = error.unzip();
    let status = if fault.is_some() { HUSK_FAILED } else { 0 };
    let printed = print(&serde_json::json!({"id": id, "fault": fault, "error": line}).to_string());
    status.max(printed)
}

fn collect(options: &Gc) -> u8 {
    let state = State::usual();
    let mut collected = match Hierarchies::of(&state) {
        Ok(hierarchies) => gc::collect(&state, &hierarchies, true),
        Err(error) => Collected { failed: vec![text::message(&error.to_string())], ..Collected::default() },
    };
    if options.all {
        let pool = Pool::of(&state);
        let removed = Assets::usual().jailer().map_err(|error| error.to_string());
        match removed.and_then(|jailer| pool.remove(&jailer)) {
            Ok(true) => collected.removed.push(pool.directory().to_owned()),
            Ok(false) => {}
            Err(line) => collected.failed.push(line),
        }
    }
    collected.removed.extend(pack::usual_cache().map(|cache| pack::collect(&cache)).unwrap_or_default());
    let status = if collected.failed.is_empty() { 0 } else { HUSK_FAILED };
    if options.json {
        return status.max(print(&collected.json().to_string()));
    }
    let lines: Vec<String> =
        collected.removed.iter().map(|path| format!("removed {}", path.display())).collect();
    let printed = if lines.is_empty() { 0 } else { print(&lines.join("\n")) };
    for line in &collected.failed {
        fail(&format!("not removed: {line}"));
    }
    status.max(printed)
}

/// `husk doctor`: the status is that of the worst check.
fn examine(options: &Doctor) -> u8 {
    if options.filters {
        if options.json {
            return fail(&hint("--filters is a list of lines and has no JSON", "husk doctor"));
        }
        return print(&husk_seccomp::listing());
    }
    let checks = doctor::examine(doctor::Extent::All);
    let printed = if options.json {
        print(&doctor::json(&checks).to_string())
    } else {
        let columns = terminal::size(std::io::stdout().as_fd()).ok().map(|size| size.cols);
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        print(&doctor::table(&checks, doctor::Style::new(columns, plain)))
    };
    if printed == 0 { doctor::worst(&checks).status() } else { printed }
}

/// Prints what was asked for on standard output.
fn print(text: &str) -> u8 {
    match writeln!(std::io::stdout().lock(), "{}", text.trim_end_matches('\n')) {
        Ok(()) => 0,
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => 0,
        Err(error) => fail(&format!("standard output: {error}")),
    }
}

fn fail(line: &str) -> u8 {
    let _ = writeln!(std::io::stderr().lock(), "husk: {line}");
    HUSK_FAILED
}

/// A bug says so in one line, with the terminal in order.
pub fn install_panic_hook() {
    sys::exit_on_abort(HUSK_FAILED);
    std::panic::set_hook(Box::new(|panic| {
        terminal::restore_now();
        let place =
            panic.location().map_or_else(String::new, |at| format!(" at {}:{}", at.file(), at.line()));
        let _ =
            writeln!(std::io::stderr().lock(), "husk: bug{place}: {}", panic.payload_as_str().unwrap_or("?"));
        std::process::exit(i32::from(HUSK_FAILED));
    }));
}

#[cfg(test)]
mod tests;
