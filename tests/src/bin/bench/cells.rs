//! The tables of what one more cell costs, by how many there are and how many mounts the host has; and of sixteen at once.

mod beside;

use crate::Options;
use husk_tests::bench::cells::{Living, Maker, Mounts, Whose};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Cells that live already.
const EXISTING: [usize; 4] = [1, 10, 100, 500];
/// Mounts of the host's, in the last row.
const MOUNTS: usize = 500;
/// Cells made at once.
const AT_ONCE: usize = 16;
/// Alternating runs of those.
const TIMED_RUNS: usize = 5;
/// What is left of the cell before is the kernel's to clean up, which is not this cell's cost.
const SETTLE: Duration = Duration::from_millis(300);
const NAME: usize = 30;
const WIDTH: usize = 20;

/// A candidate: the jailer with the bare program, and with one that is as large as its monitor.
struct Candidate {
    name: &'static str,
    bare: Maker,
    sized: Maker,
}

impl Candidate {
    fn bare(&self) -> &Maker {
        &self.bare
    }

    fn sized(&self) -> &Maker {
        &self.sized
    }
}

/// Runs the table for the clock that there is.
pub(crate) fn bench(options: &Options, stub: &str) -> Result<(), String> {
    let scratch = PathBuf::from(std::env::var("HUSK_SCRATCH").unwrap_or_else(|_| "/run/scratch".into()));
    let scratch = scratch.join("cells");
    std::fs::create_dir_all(scratch.join("jails"))
        .map_err(|error| format!("{}: {error}", scratch.display()))?;
    let candidates = candidates(options, Path::new(stub), &scratch)?;
    println!();
    if options.instructions { count(&candidates, options, &scratch) } else { race(&candidates) }
}

fn candidates(options: &Options, stub: &Path, scratch: &Path) -> Result<Vec<Candidate>, String> {
    let libexec = Path::new(&options.husk).parent().unwrap_or(Path::new("/")).to_owned();
    let mut all = vec![candidate(
        "husk",
        Whose::Husk,
        [&libexec.join("husk-jailer"), &libexec.join("husk-runtime")],
        stub,
        scratch,
    )?];
    match (&options.jailer, &options.firecracker) {
        (Some(jailer), Some(firecracker)) => {
            let files = [Path::new(jailer), Path::new(firecracker)];
            all.push(candidate("firecracker", Whose::Firecracker, files, stub, scratch)?);
        }
        _ => eprintln!("husk-bench: no column for firecracker's jailer: PEER_JAILER names none"),
    }
    Ok(all)
}

fn candidate(
    name: &'static str,
    whose: Whose,
    [jailer, monitor]: [&Path; 2],
    stub: &Path,
    scratch: &Path,
) -> Result<Candidate, String> {
    let failed = |error: std::io::Error| format!("{name}: {error}");
    let program = scratch.join(format!("{name}-stub"));
    std::fs::copy(stub, &program).map_err(failed)?;
    let size = std::fs::metadata(monitor).map_err(failed)?.len();
    let mut bytes = std::fs::read(&program).map_err(failed)?;
    let size = usize::try_from(size).unwrap_or(bytes.len()).max(bytes.len());
    // Written out: a hole would be cheaper to copy than a program.
    bytes.resize(size, 0xcc);
    std::fs::write(&program, bytes).map_err(failed)?;
    let base = scratch.join("jails");
    let (bare, sized) = (Maker::new(whose, jailer, stub, &base), Maker::new(whose, jailer, &program, &base));
    Ok(Candidate { name, bare, sized })
}

/// What a figure is taken beside.
#[derive(Clone, Copy)]
enum Row {
    /// So many cells.
    Cells(usize),
    /// As many mounts of the host's.
    Mounts(usize),
    /// Nothing, but the program is as large as the monitor.
    Sized,
}

impl Row {
    fn all() -> impl Iterator<Item = Self> {
        EXISTING.into_iter().map(Self::Cells).chain([Self::Mounts(MOUNTS), Self::Sized])
    }

    fn name(self) -> String {
        match self {
            Self::Cells(1) => "1 cell there".to_owned(),
            Self::Cells(count) => format!("{count} cells there"),
            Self::Mounts(count) => format!("{count} mounts of the host's"),
            Self::Sized => "program of the monitor's size".to_owned(),
        }
    }
}

/// A row a number of cells, then one with many mounts.
fn count(candidates: &[Candidate], options: &Options, scratch: &Path) -> Result<(), String> {
    let rows: Vec<Row> = Row::all().filter(|row| row.name().contains(&options.only)).collect();
    println!(
        "One more cell, from the spawn of the jailer to its program's first instruction, in million instructions; median of {}",
        options.runs
    );
    head(candidates);
    let mut columns: Vec<Vec<u64>> = Vec::new();
    for candidate in candidates {
        let column = column(candidate, &rows, options.runs, scratch);
        columns.push(column.map_err(|error| format!("{}: {error}", candidate.name))?);
    }
    for (place, row) in rows.iter().enumerate() {
        print!("{:<NAME$}", row.name());
        columns.iter().for_each(|figures| print!("{:>WIDTH$}", millions(figures[place])));
        println!();
    }
    print_aims(&columns);
    beside::count(candidates, options.runs, scratch)
}

/// A candidate's figures, in the rows' order, in which there are more and more cells.
fn column(candidate: &Candidate, rows: &[Row], runs: usize, scratch: &Path) -> std::io::Result<Vec<u64>> {
    let mut living: Vec<Living> = Vec::new();
    let mut figures = Vec::with_capacity(rows.len());
    candidate.bare.get_ready()?;
    for row in rows {
        figures.push(match *row {
            Row::Cells(count) => {
                while living.len() < count {
                    living.push(candidate.bare.make()?);
                }
                median(&candidate.bare, runs)?
            }
            Row::Mounts(count) => {
                living.clear();
                let _mounts = Mounts::make(scratch, count)?;
                median(&candidate.bare, runs)?
            }
            Row::Sized => {
                living.clear();
                median(&candidate.sized, runs)?
            }
        });
    }
    Ok(figures)
}

fn print_aims(columns: &[Vec<u64>]) {
    let Some((own, peers)) = columns.split_first() else { return };
    let (least, most) = (own.iter().min().copied().unwrap_or(1), own.iter().max().copied().unwrap_or(1));
    println!("aim: the dearest row within 20 % of the cheapest: {}", verdict(most * 100 <= least * 120));
    if let Some(peer) = peers.first() {
        let quarter = own.iter().zip(peer).all(|(own, peer)| own * 4 <= *peer);
        println!("aim: a quarter of the peer's, in each row: {}", verdict(quarter));
        println!(
            "(firecracker's: --new-pid-ns, the same limits; it makes no user, network, ipc or uts namespace, and copies its program)"
        );
    }
}

fn median(maker: &Maker, runs: usize) -> std::io::Result<u64> {
    let mut figures = Vec::with_capacity(runs);
    // The first warms up.
    for _ in 0..=runs {
        maker.get_ready()?;
        std::thread::sleep(SETTLE);
        figures.push(maker.make()?.took());
    }
    figures.remove(0);
    figures.sort_unstable();
    Ok(figures[figures.len() / 2])
}

/// Sixteen at once, husk and peer in turn: of the bare program, and of one as large as the monitor.
fn race(candidates: &[Candidate]) -> Result<(), String> {
    println!(
        "{AT_ONCE} cells at once, until the last one's program runs, in milliseconds; {TIMED_RUNS} alternating runs"
    );
    head(candidates);
    for (name, sized) in [("bare program", false), ("of its monitor's size", true)] {
        let maker = if sized { Candidate::sized } else { Candidate::bare };
        let mut ratios = Vec::new();
        for run in 0..=TIMED_RUNS {
            let row: std::io::Result<Vec<_>> =
                candidates.iter().map(|candidate: &Candidate| at_once(maker(candidate))).collect();
            let row = row.map_err(|error| error.to_string())?;
            // The first warms up.
            if run > 0 {
                print!("{:<NAME$}", format!("{name}, run {run}"));
                row.iter().for_each(|took| print!("{:>WIDTH$}", millions(*took)));
                println!();
                ratios.extend(row.get(1).map(|peer| ratio(row[0], *peer)));
            }
        }
        ratios.sort_by(f64::total_cmp);
        if let [least, .., most] = ratios[..] {
            let middle = ratios[ratios.len() / 2];
            println!("{name}: husk's / firecracker's: {middle:.2} ({least:.2} to {most:.2})");
        }
    }
    Ok(())
}

fn at_once(maker: &Maker) -> std::io::Result<u64> {
    maker.get_ready()?;
    std::thread::sleep(SETTLE);
    let mut living = (0..AT_ONCE).map(|_| maker.begin()).collect::<std::io::Result<Vec<_>>>()?;
    living.iter_mut().try_for_each(Living::wait)?;
    let spans = || living.iter().map(Living::span);
    let (first, last) = (spans().map(|span| span.0).min(), spans().map(|span| span.1).max());
    Ok(last.unwrap_or_default().saturating_sub(first.unwrap_or_default()))
}

fn head(candidates: &[Candidate]) {
    print!("{:<NAME$}", "");
    candidates.iter().for_each(|candidate| print!("{:>WIDTH$}", candidate.name));
    println!();
}

fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "MISSED" }
}

#[expect(clippy::cast_precision_loss, reason = "three digits are printed")]
fn ratio(own: u64, peer: u64) -> f64 {
    own as f64 / peer.max(1) as f64
}

fn millions(span: u64) -> String {
    format!("{}.{:02}", span / 1_000_000, span % 1_000_000 / 10_000)
}
