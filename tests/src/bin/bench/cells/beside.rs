//! The table of what the cell of a volume's server costs, and of a process that is a network: out of Husk's pool, and without.

use super::{Candidate, MOUNTS, NAME, SETTLE, WIDTH, millions, verdict};
use husk_tests::bench::cells::{Beside, Living, Maker, Mounts};
use std::path::Path;

/// Cells that live already.
const EXISTING: [usize; 2] = [1, 100];
const COLUMNS: [(&str, Beside, bool); 4] = [
    ("volume", Beside::Volume, true),
    ("volume, no pool", Beside::Volume, false),
    ("network", Beside::Network, true),
    ("network, no pool", Beside::Network, false),
];

/// Husk's alone: its jailer is the first candidate's.
pub(super) fn count(candidates: &[Candidate], runs: usize, scratch: &Path) -> Result<(), String> {
    let Some(Candidate { bare, .. }) = candidates.first() else { return Ok(()) };
    println!();
    println!(
        "The cell of a volume's server or of a network, beside a sandbox: likewise, in million instructions"
    );
    print!("{:<NAME$}", "");
    COLUMNS.iter().for_each(|(name, ..)| print!("{name:>WIDTH$}"));
    println!();
    let mut rows = Vec::new();
    let mut living: Vec<Living> = Vec::new();
    for count in EXISTING {
        while living.len() < count {
            living.push(bare.make().map_err(|error| error.to_string())?);
        }
        rows.push(row(&format!("{count} there"), bare, runs)?);
    }
    living.clear();
    let mounts = Mounts::make(scratch, MOUNTS).map_err(|error| error.to_string())?;
    rows.push(row(&format!("{MOUNTS} mounts of the host's"), bare, runs)?);
    drop(mounts);
    let flat = |place: usize| {
        let column = || rows.iter().filter_map(|row| row.get(place));
        let (least, most) = (column().min().copied().unwrap_or(1), column().max().copied().unwrap_or(1));
        most * 100 <= least * 120
    };
    let pooled = COLUMNS.iter().enumerate().filter(|(_, column)| column.2);
    let met = pooled.map(|(place, _)| place).all(flat);
    println!("aim: out of the pool the dearest row within 20 % of the cheapest: {}", verdict(met));
    Ok(())
}

/// Measures and prints.
fn row(name: &str, maker: &Maker, runs: usize) -> Result<Vec<u64>, String> {
    print!("{name:<NAME$}");
    let mut figures = Vec::new();
    for (column, what, pool) in COLUMNS {
        let median = median(maker, runs, what, pool).map_err(|error| format!("{column}: {error}"))?;
        print!("{:>WIDTH$}", millions(median));
        figures.push(median);
    }
    println!();
    Ok(figures)
}

fn median(maker: &Maker, runs: usize, what: Beside, pool: bool) -> std::io::Result<u64> {
    let mut figures = Vec::with_capacity(runs);
    // The first warms up.
    for _ in 0..=runs {
        let sandbox = maker.make()?;
        maker.get_ready()?;
        std::thread::sleep(SETTLE);
        figures.push(maker.make_beside(&sandbox, what, pool)?);
    }
    figures.remove(0);
    figures.sort_unstable();
    Ok(figures[figures.len() / 2])
}
