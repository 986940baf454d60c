//! What each wall denies, as tables: every attempt outside, in Husk's cell, behind Husk's filters, and the same of Firecracker's.
//!
//! `husk-probe-table [--jailer FILE [--filters FILE] [--firecracker FILE]]`, as root, with husk's parts beside the husk on PATH
//!
//! Without the peer's files its columns are not there, and standard error says so. `--filters` is what its seccompiler wrote (in
//! its build, `seccomp_filter.bpf`); with `--firecracker` it is an error if the program does not hold these very bytes. Markdown
//! on standard output: the counts by group, then each attempt.

use husk_seccomp::Role;
use husk_tests::alive::Alive;
use husk_tests::attempts::{Attempt, GROUPS, all};
use husk_tests::cell::{Ending, inside, outside};
use husk_tests::jailed_peer::{Cell, Peer, THREADS};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

#[derive(Default)]
struct Options {
    jailer: Option<PathBuf>,
    filters: Option<PathBuf>,
    firecracker: Option<PathBuf>,
}

fn options() -> Result<Options, String> {
    let mut options = Options::default();
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = Some(words.next().ok_or(format!("{word} needs a value"))?.into());
        match word.as_str() {
            "--jailer" => options.jailer = value,
            "--filters" => options.filters = value,
            "--firecracker" => options.firecracker = value,
            _ => return Err(format!("{word}: no such option")),
        }
    }
    Ok(options)
}

/// Makes an attempt under a thread's name.
type Make<'a> = Box<dyn Fn(&Attempt, Option<&str>) -> Ending + 'a>;

/// One column: its head, and under which names an attempt is made there.
struct Column<'a> {
    head: &'static str,
    threads: Vec<Option<&'static str>>,
    make: Make<'a>,
}

/// What came of an attempt in a column: who reached what, and what the others were told.
struct Outcome {
    reached: Vec<&'static str>,
    denied: Option<Ending>,
}

impl Outcome {
    fn of(attempt: &Attempt, column: &Column) -> Self {
        let mut outcome = Self { reached: Vec::new(), denied: None };
        for thread in &column.threads {
            match (column.make)(attempt, *thread) {
                Ending::Reached => outcome.reached.push(thread.unwrap_or("")),
                // An error is the older wall's word, and says more than a trap.
                denied if outcome.denied.is_none() || denied != Ending::Trapped => {
                    outcome.denied = Some(denied)
                }
                _ => {}
            }
        }
        outcome
    }

    fn is_denied(&self) -> bool {
        self.reached.is_empty()
    }

    fn text(&self) -> String {
        match (&self.reached[..], &self.denied) {
            ([], Some(Ending::Trapped)) => "trapped".to_owned(),
            ([], Some(Ending::Denied(error))) => {
                error.split(" (os").next().unwrap_or(error).to_lowercase().replace('|', "/")
            }
            ([""], _) => "**reached**".to_owned(),
            (some, _) => format!("**reached** ({})", some.join(", ")),
        }
    }
}

fn columns<'a>(world: &'a Alive, peer: Option<&'a Peer>) -> Vec<Column<'a>> {
    let roles = Role::RUNTIME.iter().map(|role| Some(role.name())).collect();
    let mut columns = vec![
        Column { head: "outside, root", threads: vec![None], make: Box::new(|a, _| outside(world, a.name)) },
        Column {
            head: "Husk: cell alone",
            threads: vec![None],
            make: Box::new(|a, _| inside(world, a.name, None)),
        },
        Column {
            head: "Husk: cell, filters",
            threads: roles,
            make: Box::new(|a, role| inside(world, a.name, role)),
        },
    ];
    let Some(peer) = peer else { return columns };
    let cells = [("Firecracker: jailer", Cell::Plain), ("Firecracker: jailer, namespaces", Cell::Full)];
    for (head, cell) in cells {
        let make = Box::new(move |a: &Attempt, _: Option<&str>| peer.inside(world, a.name, cell, None));
        columns.push(Column { head, threads: vec![None], make });
    }
    if peer.has_filters() {
        let make =
            Box::new(|a: &Attempt, thread: Option<&str>| peer.inside(world, a.name, Cell::Full, thread));
        let head = "Firecracker: jailer, namespaces, filters";
        columns.push(Column { head, threads: THREADS.map(Some).to_vec(), make });
    }
    columns
}

fn row(cells: impl IntoIterator<Item = String>) -> String {
    format!("| {} |\n", cells.into_iter().collect::<Vec<_>>().join(" | "))
}

/// Both tables.
fn tables(columns: &[Column]) -> String {
    let (mut counts, mut each) = (String::new(), String::new());
    let heads = |first: &str| {
        let names = columns.iter().map(|column| column.head.to_owned());
        row([first.to_owned()].into_iter().chain(names)) + &row((0..=columns.len()).map(|_| "---".to_owned()))
    };
    counts += &heads("denied of");
    let mut sums = vec![0; columns.len()];
    for (group, attempts) in GROUPS {
        eprintln!("husk-probe-table: {group}");
        // Writing to a string does not fail.
        let _ = write!(each, "\n### {group}\n\n{}", heads("attempt"));
        let mut denied = vec![0; columns.len()];
        for attempt in *attempts {
            let outcomes: Vec<_> = columns.iter().map(|column| Outcome::of(attempt, column)).collect();
            for (sum, outcome) in denied.iter_mut().zip(&outcomes) {
                *sum += usize::from(outcome.is_denied());
            }
            each += &row([attempt.name.to_owned()].into_iter().chain(outcomes.iter().map(Outcome::text)));
        }
        for (sum, denied) in sums.iter_mut().zip(&denied) {
            *sum += denied;
        }
        let head = format!("{group}: {}", attempts.len());
        counts += &row([head].into_iter().chain(denied.iter().map(ToString::to_string)));
    }
    let head = format!("**all: {}**", all().count());
    counts += &row([head].into_iter().chain(sums.iter().map(|sum| format!("**{sum}**"))));
    format!("{counts}\n## Each attempt\n{each}")
}

/// Which Firecracker it is, by its jailer's own word.
fn version(jailer: &Path) -> Result<String, String> {
    let output = Command::new(jailer).arg("--version").output();
    let output = output.map_err(|error| format!("{}: {error}", jailer.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// Whether these filters are what the program puts on.
fn same_filters(options: &Options) -> Result<(), String> {
    let (Some(filters), Some(program)) = (&options.filters, &options.firecracker) else { return Ok(()) };
    let read = |path: &Path| std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()));
    let (filters, program) = (read(filters)?, read(program)?);
    if !filters.is_empty() && program.windows(filters.len()).any(|window| window == filters) {
        return Ok(());
    }
    Err("--filters: the program of --firecracker was built with others".to_owned())
}

fn compare() -> Result<String, String> {
    let options = options()?;
    same_filters(&options)?;
    let peer =
        options.jailer.as_deref().map(|jailer| Peer::new(jailer, options.filters.as_deref())).transpose()?;
    let mut world = Alive::new();
    let columns = columns(&world, peer.as_ref());
    for column in &columns {
        let nothing = Attempt::nothing();
        for thread in &column.threads {
            let ending = (column.make)(&nothing, *thread);
            if ending != Ending::Reached {
                return Err(format!("{}: {thread:?}: nothing at all is denied ({ending:?})", column.head));
            }
        }
    }
    let tables = tables(&columns);
    drop(columns);
    if !world.is_unharmed().map_err(|error| error.to_string())? {
        return Err("the process that attempts aimed at has ended".to_owned());
    }
    let name = rustix::system::uname();
    let mut head = format!("Husk {}", env!("CARGO_PKG_VERSION"));
    match &options.jailer {
        Some(jailer) => {
            let _ = write!(head, ", {}", version(jailer)?);
        }
        None => eprintln!("husk-probe-table: no peer: --jailer names none; its columns are not there"),
    }
    let _ = write!(head, ", Linux {}", name.release().to_string_lossy());
    Ok(format!("{head}\n\n{tables}"))
}

fn main() -> ExitCode {
    match compare() {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("husk-probe-table: {error}");
            ExitCode::FAILURE
        }
    }
}
