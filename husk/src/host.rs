//! What the machine must have before a sandbox can be: /dev/kvm with hardware behind it, memory, CPUs, huge pages.
//!
//! Owns no state. Refuses early what would fail later with a worse message. Invariant: the only thing opened here that
//! a sandbox keeps is /dev/kvm.

use husk_protocol::control::Fault;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

const KVM: &str = "/dev/kvm";

/// Why this machine cannot run the sandbox.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HostError {
    /// No KVM.
    #[error(
        "/dev/kvm does not exist; load the module kvm_intel or kvm_amd and enable virtualization in the firmware, or run \
         in the lab: tests/lab/husk, make lab"
    )]
    NoKvm,
    /// KVM, but not for this user.
    #[error("no permission to open /dev/kvm; {0}, or use sudo")]
    KvmPermission(String),
    /// KVM cannot be opened.
    #[error("/dev/kvm cannot be opened: {0}")]
    Kvm(io::Error),
    /// KVM without hardware.
    #[error(
        "/dev/kvm is a software KVM here (the CPU has neither vmx nor svm) and cannot boot Linux; run in the lab: \
         tests/lab/husk, make lab"
    )]
    SoftwareKvm,
    /// Not enough memory in the machine.
    #[error("memory {asked} MiB is more than this machine has ({has} MiB)")]
    Memory {
        /// MiB.
        asked: u64,
        /// MiB.
        has: u64,
    },
    /// Not enough free huge pages.
    #[error(
        "memory {asked} MiB needs {needs} huge pages of 2M, {free} are free; reserve them: sysctl vm.nr_hugepages={needs}"
    )]
    HugePages {
        /// MiB.
        asked: u64,
        /// Pages.
        needs: u64,
        /// Pages.
        free: u64,
    },
    /// A CPU that is not there.
    #[error("--pin names CPU {cpu}, which husk may not use here; usable are {usable}")]
    Cpu {
        /// Its number.
        cpu: u32,
        /// The ones that are.
        usable: String,
    },
}

impl HostError {
    /// Who is at fault.
    #[must_use]
    pub(crate) fn fault(&self) -> Fault {
        match self {
            Self::Cpu { .. } | Self::Memory { .. } => Fault::Operator,
            _ => Fault::Host,
        }
    }
}

/// Opens /dev/kvm if it can boot Linux.
pub(crate) fn open_kvm() -> Result<File, HostError> {
    let kvm = OpenOptions::new().read(true).write(true).open(KVM).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => HostError::NoKvm,
        io::ErrorKind::PermissionDenied => HostError::KvmPermission(who_may()),
        _ => HostError::Kvm(error),
    })?;
    if cfg!(target_arch = "x86_64")
        && let Ok(cpuinfo) = std::fs::read_to_string("/proc/cpuinfo")
        && !has_virtualization(&cpuinfo)
    {
        return Err(HostError::SoftwareKvm);
    }
    Ok(kvm)
}

/// What would give permission: the device's group, if the group may.
fn who_may() -> String {
    let groups = std::fs::read_to_string("/etc/group").unwrap_or_default();
    let found = std::fs::metadata(KVM).ok().filter(|found| found.mode() & 0o060 == 0o060 && found.gid() != 0);
    match found.map(|found| group_name(&groups, found.gid())) {
        Some(group) => {
            format!("it is the group {group}'s: join it (usermod -aG {group} USER, then a new login)")
        }
        None => {
            "it is root's alone here: give it a group (chgrp kvm /dev/kvm && chmod 660 /dev/kvm)".to_owned()
        }
    }
}

/// The name of a group in /etc/group's text, or its number.
fn group_name(groups: &str, gid: u32) -> String {
    let name = groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == gid.to_string()).then(|| name.to_owned())
    });
    name.unwrap_or_else(|| gid.to_string())
}

/// Whether /proc/cpuinfo names Intel's or AMD's extension. No flags at all says nothing, so it passes.
fn has_virtualization(cpuinfo: &str) -> bool {
    let Some(flags) = cpuinfo.lines().find(|line| line.starts_with("flags")) else { return true };
    flags.split_ascii_whitespace().any(|flag| matches!(flag, "vmx" | "svm"))
}

/// Whether the machine has this much memory at all.
pub(crate) fn check_memory(asked_mib: u64) -> Result<(), HostError> {
    let Some(has) = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| memory_total_mib(&text))
    else {
        return Ok(());
    };
    if asked_mib <= has { Ok(()) } else { Err(HostError::Memory { asked: asked_mib, has }) }
}

fn memory_total_mib(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.split_ascii_whitespace().next()?.parse::<u64>().ok().map(|kib| kib / 1024)
}

/// Whether enough huge pages are free. Another process may still take them first; the runtime says so then.
pub(crate) fn check_huge_pages(asked_mib: u64) -> Result<(), HostError> {
    let path = Path::new("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
    let free = std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    let needs = asked_mib / 2;
    if needs <= free { Ok(()) } else { Err(HostError::HugePages { asked: asked_mib, needs, free }) }
}

/// Whether husk itself may run on these CPUs.
pub(crate) fn check_cpus(pin: &[u32]) -> Result<(), HostError> {
    let Ok(usable) = rustix::thread::sched_getaffinity(None) else { return Ok(()) };
    for &cpu in pin {
        let index = cpu as usize;
        if index >= rustix::thread::CpuSet::MAX_CPU || !usable.is_set(index) {
            let usable: Vec<String> = (0..rustix::thread::CpuSet::MAX_CPU)
                .filter(|&index| usable.is_set(index))
                .map(|index| index.to_string())
                .collect();
            return Err(HostError::Cpu { cpu, usable: usable.join(",") });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_is_seen_in_the_flags() {
        assert!(has_virtualization("processor : 0\nflags\t\t: fpu vmx de\n"));
        assert!(has_virtualization("flags\t\t: svm\n"));
        assert!(!has_virtualization("flags\t\t: fpu svm_lock\n"));
        assert!(has_virtualization("processor : 0\n"));
    }

    #[test]
    fn a_group_is_called_by_its_name() {
        let groups = "root:x:0:\nkvm:x:108:one,two\nnonsense\n";
        assert_eq!((group_name(groups, 108).as_str(), group_name(groups, 7).as_str()), ("kvm", "7"));
    }

    #[test]
    fn total_memory_is_read() {
        assert_eq!(memory_total_mib("MemTotal:        2097152 kB\nMemFree: 1 kB\n"), Some(2048));
        assert_eq!(memory_total_mib("nothing"), None);
    }

    #[test]
    fn a_cpu_that_cannot_be_is_named() {
        let error = check_cpus(&[8000]).unwrap_err().to_string();
        assert!(error.contains("CPU 8000"), "{error}");
    }
}
