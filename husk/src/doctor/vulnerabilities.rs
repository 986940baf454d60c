//! The processor's known vulnerabilities, as the kernel tells them.
//!
//! Refuses nothing: a text that is not known is shown and counts as worth knowing. Source: the kernel's
//! Documentation/admin-guide/hw-vuln and arch/x86/kernel/cpu/bugs.c. Invariant: at most one check a vulnerability, and
//! those that do not affect this processor are counted in one.

use super::files::{Reading, Root};
use super::{Check, Verdict};

const DIRECTORY: &str = "sys/devices/system/cpu/vulnerabilities";
const ITLB_MULTIHIT: &str = "itlb_multihit";

/// What there is.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    known: Vec<(String, Reading)>,
    nx_huge_pages: Reading,
}

impl Facts {
    pub(super) fn collect(root: &Root) -> Self {
        let read = |name: String| {
            let reading = root.read(format!("{DIRECTORY}/{name}"));
            (name, reading)
        };
        Self {
            known: root.list(DIRECTORY).into_iter().map(read).collect(),
            nx_huge_pages: root.read("sys/module/kvm/parameters/nx_huge_pages"),
        }
    }

    pub(super) fn judge(&self) -> Vec<Check> {
        let not_affected =
            |reading: &Reading| reading.text().is_some_and(|text| text.starts_with("Not affected"));
        let unaffected = self.known.iter().filter(|(_, reading)| not_affected(reading)).count();
        const WHY: &str = "what the kernel knows of this processor; each that affects it follows";
        let mut checks = vec![if self.known.is_empty() {
            Check::new("vulnerabilities", Verdict::Degraded, format!("unknown: nothing in /{DIRECTORY}"), WHY)
                .mend("run a kernel that reports them (x86: 4.15 or later)")
        } else {
            let found = format!("{} known, {unaffected} do not affect this processor", self.known.len());
            Check::new("vulnerabilities", Verdict::Ok, found, WHY)
        }];
        let affected = self.known.iter().filter(|(_, reading)| !not_affected(reading));
        checks.extend(affected.map(|(name, reading)| vulnerability(name, reading)));
        checks.push(self.nx_huge_pages());
        checks
    }

    /// Whether guests' large pages are not executable, which keeps them from stopping an Intel processor.
    fn nx_huge_pages(&self) -> Check {
        const WHY: &str = "where itlb_multihit affects the processor, a guest with executable huge pages can stop the machine";
        let name = "nx_huge_pages";
        let multihit =
            self.known.iter().find(|(name, _)| name == ITLB_MULTIHIT).and_then(|(_, text)| text.text());
        let harmless = multihit.is_some_and(|text| text.starts_with("Not affected"));
        match (self.nx_huge_pages.text(), harmless) {
            (Some("Y" | "1" | "force"), _) => Check::new(name, Verdict::Ok, "on", WHY),
            (Some(off @ ("N" | "0" | "off" | "never")), true) => {
                Check::new(name, Verdict::Ok, format!("off ({off}), and not needed on this processor"), WHY)
            }
            (Some(off @ ("N" | "0" | "off" | "never")), false) if multihit.is_some() => {
                Check::new(name, Verdict::Unsafe, format!("off ({off}) on an affected processor"), WHY)
                    .mend("echo force > /sys/module/kvm/parameters/nx_huge_pages")
            }
            _ => Check::new(name, Verdict::Note, self.nx_huge_pages.shown(), WHY),
        }
    }
}

/// A vulnerability that affects this processor, or may.
fn vulnerability(name: &str, reading: &Reading) -> Check {
    const WHY: &str = "an unmitigated one lets a guest read what is not its own";
    const SIBLINGS: &str =
        "mitigated on each core, not between its threads: neighbours on one core can listen";
    const PARTLY: &str = "mitigated, but for one of its ways";
    const ONE_PROCESS: &str = "it works within one process, not from machine to machine; programs in a guest may ask for the \
                               mitigation";
    let check = |verdict, why| Check::new(format!("cpu {name}"), verdict, reading.shown(), why);
    let Some(text) = reading.text() else { return check(Verdict::Note, WHY) };
    let update = "install the newest kernel and microcode (apt install intel-microcode amd64-microcode), take mitigations=off \
                  off the kernel's command line, and boot";
    let parts = || text.split([';', ',']).map(str::trim);
    // What concerns machines stands in parts of its own: "KVM: Vulnerable", "VMX: vulnerable".
    let open = |part: &str| {
        let machines = part.strip_prefix("KVM:").or_else(|| part.strip_prefix("VMX:"));
        machines.is_some_and(|state| state.trim().to_ascii_lowercase().starts_with("vulnerable"))
    };
    if text.starts_with("Vulnerable") || text.starts_with("Processor vulnerable") || parts().any(open) {
        return if name == "spec_store_bypass" {
            check(Verdict::Degraded, ONE_PROCESS).mend(update)
        } else {
            check(Verdict::Unsafe, WHY).mend(update)
        };
    }
    if parts().any(|part| part == "SMT vulnerable") {
        return check(Verdict::Degraded, SIBLINGS).mend("echo off > /sys/devices/system/cpu/smt/control");
    }
    if parts().any(|part| part.contains("Vulnerable")) || text.starts_with("Unknown") {
        return check(Verdict::Degraded, PARTLY).mend(update);
    }
    if parts().any(|part| part == "SMT Host state unknown") {
        return check(
            Verdict::Note,
            "mitigated; what the outer host does between the threads of a core is not known here",
        );
    }
    if text.starts_with("Mitigation") || text.starts_with("KVM: Mitigation") {
        return check(Verdict::Ok, "mitigated");
    }
    check(Verdict::Note, WHY)
}
