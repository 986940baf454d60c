//! The table of what a device's byte and operation cost, husk's beside the peer's.
//!
//! Owns the order of runs: husk and the peer in turn, so that whatever the machine does meanwhile hits both.

use crate::Options;
use husk_tests::bench::throughput::{Ground, HuskGuest, Load, PeerGuest, loads};
use husk_tests::load::Took;
use std::path::Path;

/// Runs that alternate where time is measured. Instructions come out the same each time.
const TIMED_RUNS: usize = 5;

/// Runs every load and prints the table.
pub(crate) fn bench(options: &Options, program: &str) -> Result<(), String> {
    let (runs, scale) = if options.instructions { (1, 1) } else { (TIMED_RUNS, 4) };
    let ground = Ground::prepare(program.into())?;
    let husk = HuskGuest::new(&options.husk, &ground)?;
    let peer = match (&options.firecracker, &options.jailer, &options.kernel) {
        (Some(firecracker), Some(jailer), Some(kernel)) => {
            Some(PeerGuest::new([firecracker, jailer, kernel].map(Path::new), &ground)?)
        }
        _ => None,
    };
    let unit = if options.instructions { "instructions" } else { "nanoseconds" };
    println!();
    println!(
        "What a device's work costs, in {unit} per operation or byte, all of the host's and the guest's; median of {runs}"
    );
    println!("{:<32}{:>14}{:>14}{:>10}", "", "husk", "firecracker", "ratio");
    let rows = loads(HuskGuest::DISK, scale).into_iter().zip(loads(PeerGuest::DISK, scale));
    for (own, peers) in rows {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..runs {
            ours.push(price(&own, husk.run(&own.job)?));
            if let Some(peer) = &peer {
                theirs.push(price(&peers, peer.run(&peers.job)?));
            }
        }
        print_row(&own, &mut ours, &mut theirs);
    }
    match peer {
        Some(_) => println!(
            "(firecracker: over MMIO, one queue each, synchronous disk; the same kernel and program)"
        ),
        None => println!("(no peer: PEER_FIRECRACKER names none; 6 comparisons skipped)"),
    }
    Ok(())
}

/// Nanoseconds of the guest's clock, which in the deterministic mode are instructions, per operation or byte.
#[expect(clippy::cast_precision_loss, reason = "three digits are printed")]
fn price(load: &Load, took: Took) -> f64 {
    let count = if load.by_operation { took.operations } else { took.bytes };
    took.ns as f64 / count.max(1) as f64
}

fn print_row(load: &Load, ours: &mut [f64], theirs: &mut [f64]) {
    let unit = if load.by_operation { "/op" } else { "/B" };
    let Some(own) = median(ours) else { return };
    let shown = |price: f64| {
        if load.by_operation { format!("{price:.0}{unit}") } else { format!("{price:.3}{unit}") }
    };
    match median(theirs) {
        Some(peer) => {
            let verdict = if own <= peer { "" } else { "  MISSED: more than the peer's" };
            println!("{:<32}{:>14}{:>14}{:>10.2}{verdict}", load.name, shown(own), shown(peer), own / peer);
        }
        None => println!("{:<32}{:>14}{:>14}{:>10}", load.name, shown(own), "–", "–"),
    }
}

fn median(prices: &mut [f64]) -> Option<f64> {
    prices.sort_by(f64::total_cmp);
    prices.get(prices.len() / 2).copied()
}
