//! KVM: whether it is there, what is behind it, and who may use it.
//!
//! Refuses nothing. Invariant: /dev/kvm is opened and asked for its version; no machine is made.

use super::files::{Reading, Root};
use super::processor;
use super::{Check, Verdict};
use crate::sys::probe;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

/// The only version since 2007.
const API_VERSION: i32 = 12;
const MODULES: [&str; 2] = ["kvm_intel", "kvm_amd"];

/// What came of opening /dev/kvm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Opened {
    /// It is KVM, with this version of its interface.
    Version(i32),
    /// It cannot be opened, or is not KVM.
    Failed(io::ErrorKind),
}

/// What there is.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    pub(super) opened: Opened,
    /// Permission bits and group of /dev/kvm.
    pub(super) access: Option<(u32, u32)>,
    /// The group's name, if it has one.
    pub(super) group: Option<String>,
    /// The module that drives the hardware, and whether it offers virtualization to guests.
    pub(super) module: Option<(&'static str, Reading)>,
}

impl Facts {
    pub(super) fn collect(root: &Root) -> Self {
        let opened = root.open("dev/kvm", true).and_then(|kvm| probe::kvm_api_version(kvm.as_fd()));
        let access = root.join("dev/kvm").metadata().ok().map(|node| (node.mode() & 0o777, node.gid()));
        let groups = root.read_up_to("etc/group", 256 << 10);
        let group = access.and_then(|(_, gid)| group_name(groups.text()?, gid));
        let module = MODULES.into_iter().find(|module| root.has(format!("sys/module/{module}")));
        Self {
            opened: opened.map_or_else(|error| Opened::Failed(error.kind()), Opened::Version),
            access,
            group,
            module: module.map(|name| (name, root.read(format!("sys/module/{name}/parameters/nested")))),
        }
    }

    pub(super) fn judge(&self, processor: &processor::Facts) -> Vec<Check> {
        vec![self.device(processor), self.kind(processor), self.access(), self.nested()]
    }

    fn device(&self, processor: &processor::Facts) -> Check {
        const WHY: &str = "sandboxes are virtual machines of KVM";
        let module = match (processor.flag("vmx"), processor.flag("svm")) {
            (Some(true), _) => "kvm_intel",
            (_, Some(true)) => "kvm_amd",
            _ => "kvm_intel or kvm_amd",
        };
        let unusable = |found: String| Check::new("kvm", Verdict::Unusable, found, WHY);
        match &self.opened {
            Opened::Version(API_VERSION) => {
                Check::new("kvm", Verdict::Ok, "/dev/kvm opens, interface 12", WHY)
            }
            Opened::Version(other) => {
                unusable(format!("/dev/kvm has interface {other}, husk needs {API_VERSION}"))
                    .mend("run a kernel of this century")
            }
            Opened::Failed(io::ErrorKind::NotFound) => unusable("no /dev/kvm".into())
                .mend(format!("modprobe {module}, and enable virtualization in the firmware if that fails")),
            Opened::Failed(io::ErrorKind::PermissionDenied) => {
                let open_to_group = self.access.is_some_and(|(mode, gid)| mode & 0o060 == 0o060 && gid != 0);
                if !open_to_group {
                    return unusable("no permission to open /dev/kvm".into()).mend(
                        "chgrp kvm /dev/kvm && chmod 660 /dev/kvm && usermod -a -G kvm YOU (and log in again), or use sudo",
                    );
                }
                let group = self.group.as_deref().unwrap_or("kvm");
                unusable("no permission to open /dev/kvm".into())
                    .mend(format!("usermod -a -G {group} YOU (and log in again), or use sudo"))
            }
            Opened::Failed(kind) => {
                unusable(format!("/dev/kvm is there and is not KVM, or does not open: {kind}"))
            }
        }
    }

    /// What executes the guest's instructions.
    fn kind(&self, processor: &processor::Facts) -> Check {
        const WHY: &str = "only the processor's own virtualization runs a Linux guest, and keeps it in";
        let name = "virtualization";
        let module = self.module.as_ref().map(|(module, _)| *module);
        let flag = ["vmx", "svm"].into_iter().find(|flag| processor.flag(flag) == Some(true));
        match (flag, module, processor.flag("vmx")) {
            (Some(flag), Some(module), _) => {
                Check::new(name, Verdict::Ok, format!("hardware ({flag}, {module})"), WHY)
            }
            (Some(flag), None, _) => Check::new(name, Verdict::Note, format!("hardware ({flag}), and no module that uses it"), WHY)
                .mend(if flag == "vmx" { "modprobe kvm_intel" } else { "modprobe kvm_amd" }),
            (None, _, Some(_)) => Check::new(name, Verdict::Unusable, "none: the processor has neither vmx nor svm", WHY)
                .mend("enable virtualization in the firmware, or nested virtualization on the outer host; to try husk: make lab"),
            (None, _, None) => Check::new(name, Verdict::Note, "unknown: the processor's flags are not told", WHY),
        }
    }

    fn access(&self) -> Check {
        const WHY: &str = "whoever may open /dev/kvm makes virtual machines that husk knows nothing of";
        let name = "kvm access";
        let Some((mode, gid)) = self.access else {
            return Check::new(name, Verdict::Note, "unknown: no /dev/kvm", WHY);
        };
        let group = self.group.clone().unwrap_or_else(|| gid.to_string());
        if mode & 0o002 != 0 {
            return Check::new(name, Verdict::Note, format!("everybody ({mode:04o})"), WHY)
                .mend("chmod o= /dev/kvm (to last: a rule in /etc/udev/rules.d)");
        }
        let who = if mode & 0o020 != 0 { format!("root and group {group}") } else { "root".into() };
        Check::new(name, Verdict::Ok, format!("{who} ({mode:04o})"), WHY)
    }

    fn nested(&self) -> Check {
        const WHY: &str = "KVM can play virtualization to guests; husk hides it from its own, other programs on this host may not";
        let name = "nested";
        match &self.module {
            None => Check::new(name, Verdict::Note, "unknown: no module of KVM's is loaded", WHY),
            Some((module, reading)) => match reading.text() {
                Some("0" | "N") => Check::new(name, Verdict::Ok, "not possible", WHY),
                Some("1" | "Y") => Check::new(name, Verdict::Note, format!("possible, by {module}"), WHY)
                    .mend(format!(
                        "echo options {module} nested=0 > /etc/modprobe.d/husk.conf && modprobe -r {module} && modprobe {module}"
                    )),
                _ => Check::new(name, Verdict::Note, reading.shown(), WHY),
            },
        }
    }
}

/// The name of group `gid` in /etc/group.
fn group_name(groups: &str, gid: u32) -> Option<String> {
    let mut lines = groups.lines().map(|line| line.split(':'));
    lines.find_map(|mut fields| {
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(gid)).then(|| crate::text::line(name))
    })
}
