//! The processes and threads of a running sandbox, seen from the host.

use std::fs;

/// Processes whose main thread has this name, by process id.
#[must_use]
pub fn named(name: &str) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| comm(&format!("/proc/{pid}")) == name)
        .collect()
}

/// The threads of a process: thread id and name.
#[must_use]
pub fn threads(pid: u32) -> Vec<(u32, String)> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let thread = entry.file_name().to_str()?.parse().ok()?;
            Some((thread, comm(&entry.path().to_string_lossy())))
        })
        .collect()
}

/// Whether a thread is one that the kernel itself runs in this process (`PF_USER_WORKER` of linux/sched.h): it makes no
/// system call, and no filter is asked about it.
#[must_use]
pub fn is_kernels_worker(pid: u32, thread: u32) -> bool {
    const PF_USER_WORKER: u64 = 0x4000;
    let stat = fs::read_to_string(format!("/proc/{pid}/task/{thread}/stat")).unwrap_or_default();
    // The flags are the ninth field; the second, the name, may have blanks in its parentheses.
    let flags =
        stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(6)?.parse::<u64>().ok());
    flags.is_some_and(|flags| flags & PF_USER_WORKER != 0)
}

/// A field of `/proc/PID/status`, e.g. `Cpus_allowed_list`.
#[must_use]
pub fn status(path: &str, field: &str) -> String {
    let text = fs::read_to_string(format!("{path}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_default().trim().to_owned()
}

fn comm(path: &str) -> String {
    fs::read_to_string(format!("{path}/comm")).unwrap_or_default().trim().to_owned()
}
