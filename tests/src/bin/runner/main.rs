//! Runs test executables, one process a test, and counts: passed, failed, skipped.
//!
//! `husk-test-runner [--skips FILE] [--summary FILE] [--journal FILE] [--deadline SECONDS] [--filter TEXT] EXECUTABLE…`
//!
//! With `--claims DIR` several runners share the work: a test is run by the one that makes the file of its name there.
//! `--first FILE` names the tests that take minutes, a line each: begun first, so that the runners end at about one time.
//! With `--calls FILE` the system calls of sandboxes' threads are recorded there, for `husk-rules`.
//! `--only FILE` and `--without FILE` name the tests that are, or are not, this machine's.
//!
//! A test that prints `HUSK-SKIP reason` and ends well is skipped; it must stand on the list of skips (a line each:
//! name, tab, reason), else it has failed. `HUSK_TESTS_NO_SKIPS=1`, set where the machine can run everything, makes
//! each skip a failure. A test past its deadline (1200 s; `--deadline`, or `HUSK_TESTS_DEADLINE`) is killed with all that it started, and has failed.

mod calls;
mod journal;
mod list;
mod one;

use calls::Calls;
use journal::Journal;
use list::Skips;
use one::Verdict;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

struct Options {
    skips: Option<PathBuf>,
    summary: Option<PathBuf>,
    journal: Option<PathBuf>,
    claims: Option<PathBuf>,
    calls: Option<PathBuf>,
    first: Option<PathBuf>,
    only: Option<PathBuf>,
    without: Option<PathBuf>,
    deadline: Duration,
    filter: String,
    executables: Vec<PathBuf>,
}

fn options() -> Result<Options, String> {
    let deadline = std::env::var("HUSK_TESTS_DEADLINE").ok().and_then(|text| text.parse().ok());
    let mut options = Options {
        skips: None,
        summary: None,
        journal: None,
        claims: None,
        calls: None,
        first: None,
        only: None,
        without: None,
        deadline: Duration::from_secs(deadline.unwrap_or(1200)),
        filter: std::env::var("HUSK_TESTS_FILTER").unwrap_or_default(),
        executables: Vec::new(),
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value"));
        match word.as_str() {
            "--skips" => options.skips = Some(value()?.into()),
            "--summary" => options.summary = Some(value()?.into()),
            "--journal" => options.journal = Some(value()?.into()),
            "--claims" => options.claims = Some(value()?.into()),
            "--calls" => options.calls = Some(value()?.into()),
            "--first" => options.first = Some(value()?.into()),
            "--only" => options.only = Some(value()?.into()),
            "--without" => options.without = Some(value()?.into()),
            "--filter" => options.filter = value()?,
            "--deadline" => {
                let text = value()?;
                let seconds =
                    text.parse().map_err(|_| format!("--deadline {text}: not a number of seconds"))?;
                options.deadline = Duration::from_secs(seconds);
            }
            _ if word.starts_with('-') => return Err(format!("{word}: no such option")),
            _ => options.executables.push(word.into()),
        }
    }
    if options.executables.is_empty() { Err("no test executable was named".into()) } else { Ok(options) }
}

impl Options {
    /// The tests that the filter and the lists take, with their executables, those of `--first` before the others.
    fn tests(&self) -> Result<Vec<(&PathBuf, String)>, String> {
        let [first, only, without] =
            [&self.first, &self.only, &self.without].map(|path| path.as_deref().map(lines).transpose());
        let (first, only, without) = (first?.unwrap_or_default(), only?, without?.unwrap_or_default());
        let wanted = |name: &String| {
            let listed = only.as_ref().is_none_or(|only| only.contains(name));
            listed && !without.contains(name) && name.contains(&self.filter)
        };
        let mut tests = Vec::new();
        for executable in &self.executables {
            let names = one::tests_of(executable)?;
            tests.extend(names.into_iter().filter(wanted).map(|name| (executable, name)));
        }
        tests.sort_by_key(|(_, name)| first.iter().position(|it| it == name).unwrap_or(first.len()));
        Ok(tests)
    }

    /// Whether this runner is to run the test; the directory's file system decides between several.
    fn claim(&self, name: &str) -> Result<bool, String> {
        let Some(dir) = &self.claims else { return Ok(true) };
        match std::fs::File::create_new(dir.join(name)) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(format!("{}: {error}", dir.join(name).display())),
        }
    }
}

/// The names in a list, without what is said about it.
fn lines(path: &Path) -> Result<Vec<String>, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect())
}

fn main() -> ExitCode {
    match options().and_then(|options| run(&options)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("husk-test-runner: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(options: &Options) -> Result<bool, String> {
    let skips = Skips::read(options.skips.as_deref())?;
    let mut journal = Journal::open(options.journal.as_deref())?;
    let mut calls = Calls::record(options.calls.as_deref())?;
    let (mut passed, mut failed, mut skipped) = (0, Vec::new(), 0);
    for (executable, name) in options.tests()? {
        // Two executables may have tests of one name.
        let file = executable.file_name().unwrap_or_default().to_string_lossy();
        let key = format!("{file}.{name}");
        if !(journal.has_begun(&key) || options.claim(&key)?) {
            continue;
        }
        let started = Instant::now();
        let verdict = journal.known(&key).unwrap_or_else(|| {
            journal.begin(&key);
            skips.judge(&name, one::run(executable, &name, options.deadline))
        });
        journal.end(&key, &verdict);
        calls.note()?;
        let took = started.elapsed().as_secs_f64();
        match &verdict {
            Verdict::Passed => {
                passed += 1;
                println!("ok      {name} ({took:.1} s)");
            }
            Verdict::Skipped(reason) => {
                skipped += 1;
                println!("skipped {name}: {reason}");
            }
            Verdict::Failed(output) => {
                println!("FAILED  {name} ({took:.1} s)\n{output}");
                failed.push(name);
            }
        }
        drop(std::io::stdout().flush());
    }
    for name in &failed {
        println!("failed: {name}");
    }
    let line = format!("{passed} passed, {} failed, {skipped} skipped", failed.len());
    println!("{line}");
    if let Some(path) = &options.summary {
        std::fs::write(path, format!("{line}\n")).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(failed.is_empty() && (passed > 0 || options.claims.is_some()))
}
