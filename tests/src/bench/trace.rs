//! Stamps from the host's kernel: when a program was executed, and when a virtual CPU entered its guest for the first time.
//!
//! Owns a tracefs instance of its own, so that nobody else's tracing is disturbed; it goes when dropped. The same two
//! tracepoints (`sched:sched_process_exec`, `kvm:kvm_entry`) stamp every monitor alike, whatever it says about itself.
//! Refuses to run without tracefs or without the kvm module's tracepoints. Invariant: entries are recorded up
//! to the guest's first exit after [`KvmEntryTrace::arm`]; from then on both pay for a disabled tracepoint only.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Where a tracefs may be mounted (`Documentation/trace/ftrace.rst`).
const TRACEFS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// The guest's first exit switches the entries' tracepoint off: the guest makes thousands of them, and each recorded one
/// would be some 250 instructions in the figures.
const TRIGGER: &str = "disable_event:kvm:kvm_entry:1";
const TRIGGER_FILE: &str = "events/kvm/kvm_exit/trigger";

/// Why there are no stamps.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// No tracefs is mounted.
    #[error("no tracefs at /sys/kernel/tracing: mount it (mount -t tracefs tracefs /sys/kernel/tracing)")]
    NoTracefs,
    /// A control file of the instance refuses.
    #[error("{path}: {source}; a kernel with kvm loaded and event tracing, and root, are needed")]
    Control {
        /// The control file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A program execution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exec {
    /// `CLOCK_MONOTONIC`, ns; the kernel prints whole microseconds.
    pub at: u64,
    /// The process, as the host numbers it.
    pub pid: u32,
    /// The path that was executed.
    pub path: String,
}

/// The first entry of vCPU 0 into its guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// `CLOCK_MONOTONIC`, ns; the kernel prints whole microseconds.
    pub at: u64,
    /// The vCPU's thread, as the host numbers it.
    pub tid: u32,
    /// The guest's instruction pointer: the kernel's entry point.
    pub rip: u64,
}

/// What was seen since the trace was armed.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Observed {
    /// Executions, in order.
    pub execs: Vec<Exec>,
    /// The first guest entry.
    pub entry: Option<Entry>,
}

impl Observed {
    /// When a program whose path ends in this file name was first executed, ns of `CLOCK_MONOTONIC`.
    #[must_use]
    pub fn exec_of(&self, name: &str) -> Option<&Exec> {
        self.execs.iter().find(|exec| Path::new(&exec.path).file_name().is_some_and(|file| file == name))
    }

    /// The execution of the monitor: the last one before the guest was entered, whatever its path was (one that was
    /// executed by descriptor has none). Holds as long as nothing else starts programs meanwhile.
    #[must_use]
    pub fn monitor(&self) -> Option<&Exec> {
        let entry = self.entry.as_ref()?;
        self.execs.iter().rfind(|exec| exec.at <= entry.at)
    }
}

/// A trace of executions and of the first guest entry.
pub struct KvmEntryTrace {
    dir: PathBuf,
}

impl KvmEntryTrace {
    /// Makes the instance and selects events and clock. Nothing is recorded before [`Self::arm`].
    ///
    /// # Errors
    /// tracefs or a tracepoint is missing, or this is not root.
    pub fn new() -> Result<Self, TraceError> {
        let root = TRACEFS.iter().map(Path::new).find(|dir| dir.join("instances").is_dir());
        let dir =
            root.ok_or(TraceError::NoTracefs)?.join(format!("instances/husk-bench-{}", std::process::id()));
        fs::create_dir(&dir).map_err(|source| TraceError::Control { path: dir.clone(), source })?;
        let trace = Self { dir };
        trace.write("tracing_on", "0")?;
        trace.write("trace_clock", "mono")?;
        trace.write("buffer_size_kb", "64")?;
        trace.write("events/sched/sched_process_exec/enable", "1")?;
        Ok(trace)
    }

    /// Forgets what was seen and starts to record.
    ///
    /// # Errors
    /// The instance was taken away.
    pub fn arm(&self) -> Result<(), TraceError> {
        // A used-up trigger can only be replaced; the first time there is none to remove.
        drop(self.write(TRIGGER_FILE, &format!("!{TRIGGER}")));
        self.write("events/kvm/kvm_entry/enable", "1")?;
        self.write(TRIGGER_FILE, TRIGGER)?;
        self.write("trace", "")?;
        self.write("tracing_on", "1")
    }

    /// What was seen since [`Self::arm`]; stops recording.
    ///
    /// # Errors
    /// The instance was taken away.
    pub fn observed(&self) -> Result<Observed, TraceError> {
        self.write("tracing_on", "0")?;
        let path = self.dir.join("trace");
        let text = fs::read_to_string(&path).map_err(|source| TraceError::Control { path, source })?;
        Ok(parse(&text))
    }

    fn write(&self, name: &str, value: &str) -> Result<(), TraceError> {
        let path = self.dir.join(name);
        fs::write(&path, value).map_err(|source| TraceError::Control { path, source })
    }
}

impl Drop for KvmEntryTrace {
    fn drop(&mut self) {
        // The events hold the instance, and a directory that cannot go is no reason to lose the figures.
        drop(self.write(TRIGGER_FILE, &format!("!{TRIGGER}")));
        drop(self.write("events/enable", "0"));
        drop(fs::remove_dir(&self.dir));
    }
}

fn parse(text: &str) -> Observed {
    let mut observed = Observed::default();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        if let Some((head, event)) = line.split_once(": sched_process_exec: ") {
            observed.execs.extend(parse_exec(head, event));
        } else if let Some((head, event)) = line.split_once(": kvm_entry: ")
            && observed.entry.is_none()
        {
            observed.entry = parse_entry(head, event);
        }
    }
    observed
}

/// `filename=/bin/true pid=12 old_pid=12`
fn parse_exec(head: &str, event: &str) -> Option<Exec> {
    let (path, rest) = event.strip_prefix("filename=")?.split_once(" pid=")?;
    let pid = rest.split(' ').next()?.parse().ok()?;
    Some(Exec { at: stamp(head)?, pid, path: path.to_owned() })
}

/// `vcpu 0, rip 0x1000000 …`
fn parse_entry(head: &str, event: &str) -> Option<Entry> {
    let rip = event.split_once("rip 0x")?.1;
    let end = rip.find(|digit: char| !digit.is_ascii_hexdigit()).unwrap_or(rip.len());
    let rip = u64::from_str_radix(&rip[..end], 16).ok()?;
    let tid = head.split_once(" [")?.0.rsplit_once('-')?.1.trim().parse().ok()?;
    Some(Entry { at: stamp(head)?, tid, rip })
}

/// `name-pid [cpu] flags seconds.microseconds` to ns.
fn stamp(head: &str) -> Option<u64> {
    let (seconds, micros) = head.rsplit(' ').next()?.split_once('.')?;
    Some(seconds.parse::<u64>().ok()? * 1_000_000_000 + micros.parse::<u64>().ok()? * 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
# tracer: nop
#           TASK-PID     CPU#  |||||  TIMESTAMP  FUNCTION
          jailer-71      [000] .....     4.001002: sched_process_exec: filename=/run/a b/jailer pid=71 old_pid=71
     firecracker-71      [000] .....     4.010500: sched_process_exec: filename=/firecracker pid=71 old_pid=71
       fc_vcpu 0-73      [000] d..1.     4.020001: kvm_entry: vcpu 0, rip 0x1000000 intr_info 0x00000000
       fc_vcpu 0-73      [000] d..1.     4.020009: kvm_entry: vcpu 0, rip 0x1000009
               sh-80      [000] .....     4.030000: sched_process_exec: filename=/bin/sh pid=80 old_pid=80
";

    #[test]
    fn executions_and_the_first_entry_are_found() {
        let observed = parse(TEXT);
        assert_eq!(observed.exec_of("jailer").map(|exec| exec.at), Some(4_001_002_000));
        assert_eq!(
            observed.exec_of("firecracker").map(|exec| (exec.at, exec.pid)),
            Some((4_010_500_000, 71))
        );
        assert_eq!(observed.exec_of("fire"), None);
        assert_eq!(observed.monitor().map(|exec| exec.path.as_str()), Some("/firecracker"));
        assert_eq!(observed.entry, Some(Entry { at: 4_020_001_000, tid: 73, rip: 0x100_0000 }));
    }

    #[test]
    fn lines_of_another_shape_are_no_stamps() {
        assert_eq!(
            parse("x: kvm_entry: vcpu 0\ny-1 [0] . 5: sched_process_exec: filename=/a\n"),
            Observed::default()
        );
    }
}
