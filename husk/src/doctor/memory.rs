//! Memory: huge pages, merging, swap, NUMA.
//!
//! Refuses nothing. Invariant: numbers of pages are shown as the kernel counts them, by size and by node.

use super::files::{Reading, Root};
use super::{Check, Verdict};
use crate::sys::probe;

const SIZES: &str = "sys/kernel/mm/hugepages";
const NODES: &str = "sys/devices/system/node";
/// The size that guests can have (`--hugepages 2M`).
const TWO_MIB: &str = "hugepages-2048kB";

/// What there is.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    pools: Vec<Pool>,
    nodes: usize,
    balancing: Reading,
    ksm: Reading,
    /// KSM may merge all memory of husk and of what husk starts.
    pub(super) merged: bool,
    swaps: Reading,
    zswap: Reading,
    thp: Reading,
    defrag: Reading,
}

/// Huge pages of one size.
#[derive(Debug, Clone)]
struct Pool {
    /// As the kernel's directory is called.
    size: String,
    total: Reading,
    free: Reading,
    /// Node, total, free.
    nodes: Vec<(String, Reading, Reading)>,
}

impl Facts {
    pub(super) fn collect(root: &Root) -> Self {
        let mut nodes = root.list(NODES);
        nodes.retain(|name| name.strip_prefix("node").is_some_and(|number| number.parse::<u32>().is_ok()));
        let of_node = |node: &String, size: &str| {
            let read = |file| root.read(format!("{NODES}/{node}/hugepages/{size}/{file}"));
            (node.clone(), read("nr_hugepages"), read("free_hugepages"))
        };
        let pool = |size: String| Pool {
            total: root.read(format!("{SIZES}/{size}/nr_hugepages")),
            free: root.read(format!("{SIZES}/{size}/free_hugepages")),
            nodes: nodes.iter().map(|node| of_node(node, &size)).collect(),
            size,
        };
        Self {
            pools: root.list(SIZES).into_iter().map(pool).collect(),
            balancing: root.read("proc/sys/kernel/numa_balancing"),
            ksm: root.read("sys/kernel/mm/ksm/run"),
            merged: probe::merges_memory(),
            swaps: root.read_up_to("proc/swaps", 64 << 10),
            zswap: root.read("sys/module/zswap/parameters/enabled"),
            thp: root.read("sys/kernel/mm/transparent_hugepage/enabled"),
            defrag: root.read("sys/kernel/mm/transparent_hugepage/defrag"),
            nodes: nodes.len(),
        }
    }

    pub(super) fn judge(&self) -> Vec<Check> {
        let mut checks: Vec<Check> = self.pools.iter().map(Pool::judge).collect();
        if !self.pools.iter().any(|pool| pool.size == TWO_MIB) {
            const WHY: &str = "--hugepages 2M takes pages from this pool";
            let found = "this kernel has no huge pages of 2 MiB";
            checks.push(Check::new("hugepages 2048kB", Verdict::Note, found, WHY));
        }
        checks.extend([self.thp(), self.ksm(), self.swap(), self.numa()]);
        checks
    }

    fn thp(&self) -> Check {
        const WHY: &str =
            "guest memory in transparent huge pages costs fewer page faults and shorter page walks";
        let name = "transparent huge pages";
        let Some(mode) = chosen(&self.thp) else {
            return Check::new(name, Verdict::Note, self.thp.shown(), WHY);
        };
        let defrag = chosen(&self.defrag).unwrap_or("unknown");
        let found = format!("{mode}, defrag {defrag}");
        if mode == "never" {
            return Check::new(name, Verdict::Note, found, WHY)
                .mend("echo madvise > /sys/kernel/mm/transparent_hugepage/enabled");
        }
        if defrag == "always" {
            const STALLS: &str =
                "with defrag always, each page fault of any program may wait for memory to be moved";
            return Check::new(name, Verdict::Note, found, STALLS)
                .mend("echo madvise > /sys/kernel/mm/transparent_hugepage/defrag");
        }
        Check::new(name, Verdict::Ok, found, WHY)
    }

    fn ksm(&self) -> Check {
        const WHY: &str = "merged pages tell neighbours, by the time a write takes, what others have in memory; husk offers no \
                           guest's memory to KSM";
        const ALL: &str = "whoever started husk lets KSM merge all memory, guests' included: neighbours learn by timing what \
                           others have in memory";
        const MEND: &str = "echo 2 > /sys/kernel/mm/ksm/run";
        match (self.ksm.number(), self.merged) {
            (Some(1), true) => {
                Check::new("ksm", Verdict::Unsafe, "runs, and may merge guests' memory", ALL).mend(MEND)
            }
            (Some(1), false) => Check::new("ksm", Verdict::Degraded, "runs", WHY).mend(MEND),
            (Some(0 | 2), _) => Check::new("ksm", Verdict::Ok, "does not run", WHY),
            _ if self.ksm == Reading::Missing => Check::new("ksm", Verdict::Ok, "not in this kernel", WHY),
            _ => Check::new("ksm", Verdict::Note, self.ksm.shown(), WHY),
        }
    }

    fn swap(&self) -> Check {
        const WHY: &str = "guest memory that is swapped out lies on the disk after its sandbox is gone, and comes back slowly";
        let Some(text) = self.swaps.text() else {
            return Check::new("swap", Verdict::Note, self.swaps.shown(), WHY);
        };
        let devices: Vec<&str> =
            text.lines().skip(1).filter_map(|line| line.split_ascii_whitespace().next()).collect();
        let compressed = matches!(self.zswap.text(), Some("Y" | "1"));
        let zswap = if compressed { ", through zswap" } else { "" };
        if devices.is_empty() {
            return Check::new("swap", Verdict::Ok, "none", WHY);
        }
        let found = format!("{}{zswap}", devices.join(" "));
        if devices.iter().all(|device| device.starts_with("/dev/zram") || device.starts_with("/zram")) {
            const COMPRESSED: &str =
                "swap in compressed memory leaves nothing on a disk, but guests' speed tells what others do";
            return Check::new("swap", Verdict::Note, found, COMPRESSED);
        }
        Check::new("swap", Verdict::Degraded, found, WHY)
            .mend("swapoff -a (to last: take swap out of /etc/fstab)")
    }

    fn numa(&self) -> Check {
        const WHY: &str = "with several nodes, balancing unmaps guests' pages to see who uses them; pinned guests gain nothing \
                           by it";
        let found = format!("{} nodes, balancing {}", self.nodes, self.balancing.shown());
        match (self.nodes, self.balancing.number()) {
            (0, _) => Check::new("numa", Verdict::Note, "unknown: the kernel tells of no nodes", WHY),
            (1, _) => Check::new("numa", Verdict::Ok, "1 node", WHY),
            (_, None | Some(0)) => Check::new("numa", Verdict::Ok, found, WHY),
            (_, Some(_)) => {
                Check::new("numa", Verdict::Note, found, WHY).mend("sysctl -w kernel.numa_balancing=0")
            }
        }
    }
}

impl Pool {
    fn judge(&self) -> Check {
        const WHY: &str = "--hugepages 2M takes pages from this pool, and is refused when it is empty";
        const UNUSED: &str =
            "husk uses huge pages of 2 MiB alone; others that are reserved are memory that no guest gets";
        let size = self.size.strip_prefix("hugepages-").unwrap_or(&self.size);
        let name = format!("hugepages {size}");
        let mut found = format!("{} free of {}", self.free.shown(), self.total.shown());
        if self.nodes.len() > 1 {
            let each: Vec<String> = self
                .nodes
                .iter()
                .map(|(node, total, free)| format!("{node} {} of {}", free.shown(), total.shown()))
                .collect();
            found = format!("{found} ({})", each.join(", "));
        }
        let (free, total) = (self.free.number(), self.total.number());
        match (self.size == TWO_MIB, free, total) {
            (true, Some(1..), _) | (false, _, Some(0)) => Check::new(name, Verdict::Ok, found, WHY),
            (true, Some(0), _) => Check::new(name, Verdict::Note, found, WHY)
                .mend("sysctl -w vm.nr_hugepages=64 (64 pages for each guest of 128 MiB)"),
            (false, _, Some(1..)) => Check::new(name, Verdict::Note, found, UNUSED)
                .mend(format!("echo 0 > /{SIZES}/{}/nr_hugepages", crate::text::line(&self.size))),
            _ => Check::new(name, Verdict::Note, found, WHY),
        }
    }
}

/// The choice in brackets: `always [madvise] never`.
fn chosen(reading: &Reading) -> Option<&str> {
    let (_, rest) = reading.text()?.split_once('[')?;
    rest.split_once(']').map(|(choice, _)| choice)
}
