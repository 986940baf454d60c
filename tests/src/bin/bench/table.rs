//! The table: stages down, candidates across; and the aims below it.

use husk_tests::bench::stages::{Stamps, between};

/// The stages in their order, with what lies between one and the next.
const ROWS: [(&str, &str, &str); 11] = [
    ("process start → husk's main", "process", "start"),
    ("husk: parse, open, plan", "start", "planned"),
    ("spawn of the jailer → its main", "planned", "jailer"),
    ("jailer: build the cell", "jailer", "jailed"),
    ("exec of the runtime → its main", "jailed", "runtime"),
    ("runtime: build the machine", "runtime", "built"),
    ("runtime: load the kernel", "built", "loaded"),
    ("runtime: threads, filters → first guest instruction", "loaded", "kernel_entry"),
    ("guest kernel → init", "kernel_entry", "init"),
    ("init → ready", "init", "ready"),
    ("ready → first output byte", "ready", "first_output"),
];

/// Sums that span several rows.
const SUMS: [(&str, &str, &str); 3] = [
    ("runtime start → first guest instruction", "runtime", "kernel_entry"),
    ("exec of the jailer → first output byte", "planned", "first_output"),
    ("process start → first output byte", "process", "first_output"),
];

pub(crate) struct Table {
    instructions: bool,
    columns: Vec<(String, Vec<Stamps>)>,
}

impl Table {
    pub(crate) fn new(instructions: bool) -> Self {
        Self { instructions, columns: Vec::new() }
    }

    pub(crate) fn column(&mut self, name: &str, runs: &[Stamps]) {
        self.columns.push((name.to_owned(), runs.to_vec()));
    }

    pub(crate) fn print(&self) {
        let unit = if self.instructions { "million instructions" } else { "milliseconds" };
        let runs = self.columns.first().map_or(0, |(_, runs)| runs.len());
        println!("Stages of a cold run of `echo hi`, 1 vCPU, 128 MiB, in {unit}; median of {runs}");
        print!("{:<54}", "");
        for (name, _) in &self.columns {
            print!("{name:>16}");
        }
        println!();
        for (label, from, to) in ROWS.iter().chain(&SUMS) {
            print!("{label:<54}");
            for (_, runs) in &self.columns {
                match between(runs, from, to) {
                    Some(span) => print!("{:>16}", millions(span)),
                    None => print!("{:>16}", "–"),
                }
            }
            println!();
        }
    }
}

/// What a span should not exceed.
pub(crate) struct Aim {
    label: &'static str,
    from: &'static str,
    to: &'static str,
    most: u64,
    because: String,
}

impl Aim {
    pub(crate) fn new(label: &'static str, from: &'static str, to: &'static str, most: u64) -> Self {
        Self { label, from, to, most, because: String::new() }
    }

    pub(crate) fn because(mut self, why: String) -> Self {
        self.because = format!(" ({why})");
        self
    }

    /// Says whether it is met, and if not which step takes most.
    pub(crate) fn print(&self, runs: &[Stamps]) {
        let most = millions(self.most);
        let Some(span) = between(runs, self.from, self.to) else {
            println!("aim: {} ≤ {most} M{}: not measured", self.label, self.because);
            return;
        };
        let verdict = if span <= self.most { "met" } else { "MISSED" };
        println!("aim: {} ≤ {most} M{}: {} M, {verdict}", self.label, self.because, millions(span));
        if span > self.most
            && let Some((label, cost)) = self.dearest(runs)
        {
            println!("     the dearest step: {label}, {} M", millions(cost));
        }
    }

    /// The row within this span that costs most.
    fn dearest(&self, runs: &[Stamps]) -> Option<(&'static str, u64)> {
        let first = ROWS.iter().position(|(_, from, _)| *from == self.from)?;
        let last = ROWS.iter().position(|(_, _, to)| *to == self.to)?;
        ROWS.get(first..=last)?
            .iter()
            .filter_map(|(label, from, to)| Some((*label, between(runs, from, to)?)))
            .max_by_key(|(_, cost)| *cost)
    }
}

fn millions(span: u64) -> String {
    format!("{}.{:02}", span / 1_000_000, span % 1_000_000 / 10_000)
}
