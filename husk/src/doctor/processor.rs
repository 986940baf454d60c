//! The processor: virtualization, threads of a core, microcode, the clock.
//!
//! Refuses nothing. Invariant: /proc/cpuinfo is read no further than the first processor.

use super::files::{Reading, Root};
use super::{Check, Verdict};
use crate::sys::probe;

/// Bytes that hold the first processor of /proc/cpuinfo. The kernel makes the file as it is read.
const FIRST_PROCESSOR: u64 = 8 << 10;

/// What there is.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    cpuinfo: Reading,
    smt: Reading,
    smt_control: Reading,
    /// Whether the scheduler could keep siblings apart.
    pub(super) core_scheduling: bool,
    clock: Reading,
    cmdline: Reading,
}

impl Facts {
    pub(super) fn collect(root: &Root) -> Self {
        Self {
            cpuinfo: root.read_up_to("proc/cpuinfo", FIRST_PROCESSOR),
            smt: root.read("sys/devices/system/cpu/smt/active"),
            smt_control: root.read("sys/devices/system/cpu/smt/control"),
            core_scheduling: probe::has_core_scheduling(),
            clock: root.read("sys/devices/system/clocksource/clocksource0/current_clocksource"),
            cmdline: root.read("proc/cmdline"),
        }
    }

    /// A line of the first processor.
    fn line(&self, key: &str) -> Option<&str> {
        let lines = self.cpuinfo.text()?.lines().take_while(|line| !line.trim().is_empty());
        let mut pairs = lines.filter_map(|line| line.split_once(':'));
        pairs.find(|(name, _)| name.trim() == key).map(|(_, value)| value.trim())
    }

    /// Whether the processor has `flag`; none if it does not say.
    pub(super) fn flag(&self, flag: &str) -> Option<bool> {
        Some(self.line("flags")?.split_ascii_whitespace().any(|word| word == flag))
    }

    pub(super) fn judge(&self) -> Vec<Check> {
        vec![self.outer(), self.smt(), self.microcode(), self.mitigations(), self.kaslr(), self.clock()]
    }

    fn outer(&self) -> Check {
        const WHY: &str = "on a virtual machine the outer host is trusted with everything, and each exit of a guest costs \
                           several";
        match self.flag("hypervisor") {
            Some(true) => Check::new("machine", Verdict::Note, "a virtual machine itself", WHY),
            Some(false) => Check::new("machine", Verdict::Ok, "not a virtual machine", WHY),
            None => Check::new("machine", Verdict::Note, "unknown: no flags in /proc/cpuinfo", WHY),
        }
    }

    fn smt(&self) -> Check {
        const WHY: &str =
            "threads of one core share caches and buffers, through which neighbours listen to each other";
        const APART: &str = "a sandbox shares no core with another at the same time (core scheduling), but with the host's own \
                             programs";
        const MEND: &str = "echo off > /sys/devices/system/cpu/smt/control (until the next boot; then: nosmt on the kernel's \
                            command line)";
        match self.smt.text() {
            Some("0") => Check::new("smt", Verdict::Ok, format!("off ({})", self.smt_control.shown()), WHY),
            Some("1") if self.core_scheduling => {
                Check::new("smt", Verdict::Note, "on, with core scheduling", APART).mend(MEND)
            }
            Some("1") => Check::new("smt", Verdict::Degraded, "on, no core scheduling", WHY).mend(MEND),
            _ => Check::new("smt", Verdict::Note, self.smt.shown(), WHY),
        }
    }

    fn microcode(&self) -> Check {
        const WHY: &str = "many mitigations need the maker's newest microcode; whether they have it stands with each \
                           vulnerability";
        match self.line("microcode") {
            Some(revision) => Check::new("microcode", Verdict::Ok, format!("revision {revision}"), WHY),
            None => Check::new("microcode", Verdict::Note, "unknown: not in /proc/cpuinfo", WHY),
        }
    }

    fn words(&self) -> impl Iterator<Item = &str> {
        self.cmdline.text().unwrap_or_default().split_ascii_whitespace()
    }

    fn mitigations(&self) -> Check {
        const WHY: &str = "without mitigations a guest reads its neighbours' memory through the processor";
        let off = self.words().find(|word| {
            word.strip_prefix("mitigations=").is_some_and(|list| list.split(',').any(|item| item == "off"))
        });
        match (off, self.cmdline.text()) {
            (Some(word), _) => Check::new(
                "mitigations",
                Verdict::Unsafe,
                format!("{word} on the kernel's command line"),
                WHY,
            )
            .mend(format!(
                "take {word} off the kernel's command line (/etc/default/grub, update-grub) and boot"
            )),
            (None, Some(_)) => Check::new("mitigations", Verdict::Ok, "not switched off", WHY),
            (None, None) => Check::new("mitigations", Verdict::Note, self.cmdline.shown(), WHY),
        }
    }

    fn kaslr(&self) -> Check {
        const WHY: &str = "a kernel at a known address is easier to attack, once something else is broken";
        if self.words().any(|word| word == "nokaslr") {
            return Check::new("kaslr", Verdict::Degraded, "nokaslr on the kernel's command line", WHY).mend(
                "take nokaslr off the kernel's command line (/etc/default/grub, update-grub) and boot",
            );
        }
        let verdict = if self.cmdline.text().is_some() { Verdict::Ok } else { Verdict::Note };
        Check::new("kaslr", verdict, if verdict == Verdict::Ok { "not switched off" } else { "unknown" }, WHY)
    }

    fn clock(&self) -> Check {
        const WHY: &str = "only with the time stamp counter is the time read without a system call or an exit, also in guests";
        match self.clock.text() {
            Some(clock @ ("tsc" | "arch_sys_counter")) => Check::new("clock", Verdict::Ok, clock, WHY),
            Some(clock @ ("kvm-clock" | "hyperv_clocksource_tsc_page")) => {
                Check::new("clock", Verdict::Note, clock, WHY)
            }
            Some(clock) => Check::new("clock", Verdict::Degraded, clock, WHY)
                .mend("echo tsc > /sys/devices/system/clocksource/clocksource0/current_clocksource"),
            None => Check::new("clock", Verdict::Note, self.clock.shown(), WHY),
        }
    }
}
