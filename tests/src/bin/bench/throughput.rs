//! The table of what a device's byte and operation cost, husk's beside the peer's, over each transport.
//!
//! Owns the order of runs: husk and the peers in turn, so that whatever the machine does meanwhile hits all.

use crate::Options;
use husk_tests::bench::peer::Transport;
use husk_tests::bench::throughput::{Amount, Ground, HuskGuest, Load, PeerGuest, loads};
use husk_tests::load::Took;
use std::path::Path;

/// Runs that alternate where time is measured.
const TIMED_RUNS: usize = 5;
/// And where instructions are counted: when one thread takes the CPU from another differs by a few of them, and with it how
/// many frames are handled in one go, so runs of a stream differ by 3 %.
const COUNTED_RUNS: usize = 3;
/// The columns of husk, and then of the peer: each is compared with its like.
const TRANSPORTS: [(&str, Transport); 2] = [("MMIO", Transport::Mmio), ("PCI", Transport::Pci)];
/// Columns' widths.
const NAME: usize = 30;
const PRICE: usize = 14;
const RATIO: usize = 20;

/// Runs every load and prints the table.
pub(crate) fn bench(options: &Options, program: &str) -> Result<(), String> {
    let (runs, amount) =
        if options.instructions { (COUNTED_RUNS, Amount::COUNTED) } else { (TIMED_RUNS, Amount::TIMED) };
    let ground = Ground::prepare(program.into())?;
    let husk = TRANSPORTS.map(|(_, transport)| HuskGuest::new(&options.husk, &ground, transport));
    let husk = husk.into_iter().collect::<Result<Vec<_>, _>>()?;
    let peers = peers(options, &ground)?;
    print_head(options.instructions, runs, peers.len());
    let mut missed = 0;
    let rows = loads(HuskGuest::DISK, amount).into_iter().zip(loads(PeerGuest::DISK, amount));
    for (own, theirs) in rows.filter(|(own, _)| own.name.contains(&options.only)) {
        let mut row = vec![Vec::new(); husk.len() + peers.len()];
        for _ in 0..runs {
            let (mine, others) = row.split_at_mut(husk.len());
            for (husk, column) in husk.iter().zip(mine) {
                column.push(husk.run(&own.job)?);
            }
            for (peer, column) in peers.iter().zip(others) {
                column.push(peer.run(&theirs.job)?);
            }
        }
        missed += print_row(&own, options.instructions, &row);
    }
    print_foot(options, &peers, missed);
    Ok(())
}

/// The peer over each transport.
fn peers(options: &Options, ground: &Ground) -> Result<Vec<PeerGuest>, String> {
    let (Some(firecracker), Some(jailer)) = (&options.firecracker, &options.jailer) else {
        return Ok(Vec::new());
    };
    let kernel = options.kernel.as_ref().ok_or("--kernel is needed with --firecracker")?;
    let programs = [firecracker, jailer, kernel].map(Path::new);
    TRANSPORTS.map(|(_, transport)| PeerGuest::new(programs, transport, ground)).into_iter().collect()
}

/// What a job came to in one number: instructions (the guest's clock in the deterministic mode) per operation or byte,
/// operations per second, or MB per second.
#[expect(clippy::cast_precision_loss, reason = "three digits are printed")]
fn figure(load: &Load, instructions: bool, took: Took) -> f64 {
    let count = if load.by_operation { took.operations } else { took.bytes }.max(1) as f64;
    let ns = took.ns.max(1) as f64;
    match (instructions, load.by_operation) {
        (true, _) => ns / count,
        (false, true) => count * 1e9 / ns,
        (false, false) => count * 1e3 / ns,
    }
}

fn shown(load: &Load, instructions: bool, figure: f64) -> String {
    match (instructions, load.by_operation) {
        (true, true) => format!("{figure:.0}/op"),
        (true, false) => format!("{figure:.3}/B"),
        (false, true) => format!("{figure:.0} op/s"),
        (false, false) => format!("{figure:.1} MB/s"),
    }
}

fn print_head(instructions: bool, runs: usize, peers: usize) {
    println!();
    if instructions {
        println!(
            "What a device's work costs, in instructions per operation or byte, all of the host's and the guest's; median of {runs}"
        );
    } else {
        println!(
            "What a device carries; medians of {runs} alternating runs, and the runs' ratios: median (lowest to highest)"
        );
    }
    print!("{:<NAME$}", "");
    for (name, _) in TRANSPORTS {
        print!("{:>PRICE$}", format!("husk {name}"));
    }
    for (name, _) in TRANSPORTS.into_iter().take(peers) {
        print!("{:>RATIO$}{:>RATIO$}", format!("firecracker {name}"), "husk's / its");
    }
    println!();
}

/// Prints a row; says how many comparisons came out against husk.
fn print_row(load: &Load, instructions: bool, row: &[Vec<Took>]) -> usize {
    let figures: Vec<Vec<f64>> =
        row.iter().map(|runs| runs.iter().map(|took| figure(load, instructions, *took)).collect()).collect();
    let (husk, peers) = figures.split_at(TRANSPORTS.len().min(figures.len()));
    print!("{:<NAME$}", load.name);
    for own in husk {
        print!("{:>PRICE$}", shown(load, instructions, spread(own).1));
    }
    let mut missed = 0;
    for (own, peer) in husk.iter().zip(peers) {
        let ratios: Vec<f64> = own.iter().zip(peer).map(|(own, peer)| own / peer).collect();
        let (least, ratio, most) = spread(&ratios);
        let lost = instructions && ratio > 1.0;
        missed += usize::from(lost);
        let text = match (instructions, lost) {
            (true, true) => format!("{ratio:.2} MISSED"),
            (true, false) => format!("{ratio:.2}"),
            (false, _) => format!("{ratio:.2} ({least:.2} to {most:.2})"),
        };
        print!("{:>RATIO$}{text:>RATIO$}", shown(load, instructions, spread(peer).1));
    }
    println!();
    missed
}

fn print_foot(options: &Options, peers: &[PeerGuest], missed: usize) {
    let skipped = 6 * (2 - peers.len());
    if !peers.is_empty() {
        println!(
            "(firecracker: in a cgroup with memory and pids limits, as husk's cell is; one queue each, synchronous disk; the same \
             program and kernel; each compared with husk over the same transport)"
        );
    }
    if skipped > 0 {
        println!("({skipped} comparisons skipped: PEER_FIRECRACKER names no peer)");
    }
    if options.instructions && !peers.is_empty() {
        println!("aim: no more instructions than the peer: missed {missed} times");
    }
}

/// Least, median, most.
fn spread(figures: &[f64]) -> (f64, f64, f64) {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
    (at(0), at(sorted.len() / 2), at(sorted.len().saturating_sub(1)))
}
