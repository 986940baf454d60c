//! Prints the stages of a cold run, with the peer in the same boot of the lab.
//!
//! `husk-bench [--husk PATH] [--runs N] [--unit instructions|time] [--firecracker PATH --jailer PATH --kernel PATH]`,
//! with `--load PATH` (the guest's program) what the devices' work costs instead; `--only TEXT`: the rows that have it in their name;
//! with `--cells PATH` (the program in them) what one more cell costs instead.
//!
//! A benchmark judges nothing: an aim that is missed is printed with the stage that takes most of it.

mod cells;
mod table;
mod throughput;

use husk_tests::bench::stages::{Stamps, between, cold_run};
use std::process::ExitCode;
use table::{Aim, Table};

/// The host's pool of 2 MiB pages.
const HUGE_PAGES: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";

struct Options {
    husk: String,
    runs: usize,
    instructions: bool,
    firecracker: Option<String>,
    jailer: Option<String>,
    kernel: Option<String>,
    load: Option<String>,
    cells: Option<String>,
    only: String,
}

fn options() -> Result<Options, String> {
    let mut options = Options {
        husk: husk_tests::husk::binary().to_string_lossy().into_owned(),
        runs: 3,
        instructions: true,
        firecracker: None,
        jailer: None,
        kernel: None,
        load: None,
        cells: None,
        only: String::new(),
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().ok_or(format!("{word} needs a value"))?;
        match word.as_str() {
            "--husk" => options.husk = value,
            "--runs" => options.runs = value.parse().map_err(|_| format!("--runs {value}: not a number"))?,
            "--unit" => options.instructions = value == "instructions",
            "--firecracker" => options.firecracker = Some(value),
            "--jailer" => options.jailer = Some(value),
            "--kernel" => options.kernel = Some(value),
            "--load" => options.load = Some(value),
            "--cells" => options.cells = Some(value),
            "--only" => options.only = value,
            _ => return Err(format!("{word}: no such option")),
        }
    }
    Ok(options)
}

fn main() -> ExitCode {
    let done = options().and_then(|options| match (&options.load, &options.cells) {
        (Some(program), _) => throughput::bench(&options, program),
        (None, Some(program)) => cells::bench(&options, program),
        (None, None) => bench(&options),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("husk-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// One warm-up, then the runs that count.
fn runs_of(options: &Options, extra: &[&str]) -> Result<Vec<Stamps>, String> {
    let command = ["echo", "hi"];
    drop(cold_run(&options.husk, extra, &command)?);
    (0..options.runs).map(|_| cold_run(&options.husk, extra, &command)).collect()
}

fn bench(options: &Options) -> Result<(), String> {
    let lazy = runs_of(options, &[])?;
    let pci = runs_of(options, &["--pci"])?;
    let prefault = runs_of(options, &["--prefault"])?;
    let pool = std::fs::read_to_string(HUGE_PAGES).unwrap_or_default();
    drop(std::fs::write(HUGE_PAGES, "72"));
    let huge = runs_of(options, &["--hugepages", "2M"]);
    drop(std::fs::write(HUGE_PAGES, pool.trim()));
    let peer = peer_runs(options)?;
    let mut table = Table::new(options.instructions);
    table.column("husk", &lazy);
    if !peer.is_empty() {
        table.column("firecracker", &peer);
    }
    table.column("--pci", &pci);
    table.column("--prefault", &prefault);
    match &huge {
        Ok(runs) => table.column("--hugepages 2M", runs),
        Err(error) => eprintln!("husk-bench: no row for --hugepages 2M: {error}"),
    }
    table.print();
    if !peer.is_empty() {
        println!(
            "(firecracker: over MMIO, its jailer and filters on, the same kernel, transparent huge pages `always`, as Debian \
             has them; husk asks for them itself)"
        );
    }
    if !options.instructions {
        println!("no aims are set in time: they are in instructions, for the lab's deterministic mode");
        return Ok(());
    }
    let peers_start = between(&peer, "runtime", "kernel_entry").unwrap_or(13_000_000);
    let source = if peer.is_empty() { "the peer's documented 13 M" } else { "the peer's in this run" };
    let aims = [
        Aim::new("runtime start → first guest instruction", "runtime", "kernel_entry", peers_start / 2)
            .because(format!("half of {source}")),
        Aim::new("kernel entry → init", "kernel_entry", "init", 25_000_000),
        Aim::new("exec of the jailer → first output byte", "planned", "first_output", 60_000_000),
    ];
    for aim in aims {
        aim.print(&lazy);
    }
    Ok(())
}

fn peer_runs(options: &Options) -> Result<Vec<Stamps>, String> {
    let (Some(firecracker), Some(jailer)) = (&options.firecracker, &options.jailer) else {
        eprintln!("husk-bench: no peer: PEER_FIRECRACKER (and PEER_JAILER) name none");
        return Ok(Vec::new());
    };
    let kernel = options.kernel.as_ref().ok_or("--kernel is needed with --firecracker")?;
    husk_tests::bench::peer::runs(firecracker, jailer, kernel, options.runs)
}
