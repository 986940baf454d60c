//! Attempts to get out of a cell, or at a part of the kernel that a runtime has no use for: one system call each, or a few.
//!
//! Owns the list: what each attempt is, which wall denies it at the latest, and whether root succeeds with it outside of any cell.
//! Refuses nothing. Invariant: an attempt that succeeds harms nobody; it touches what the test made for it, or ends in an error
//! that comes after the check of permissions.

mod call;
mod descriptors;
mod files;
mod handles;
mod kernel;
mod kvm;
mod memory;
mod mounts;
mod namespaces;
mod network;
mod privileges;
mod processes;
mod surface;
#[cfg(target_arch = "x86_64")]
mod x86;

use husk_seccomp::Role;
use serde::{Deserialize, Serialize};
use std::io::Result;
use std::os::fd::RawFd;

/// What attempts aim at outside, by name.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Targets {
    /// A file that everybody may read and write.
    pub file: String,
    /// A name in its directory, of no file.
    pub new: String,
    /// A process of another user, or of the same one without root.
    pub pid: i32,
    /// A unix socket that listens.
    pub socket: String,
    /// The same without a file.
    pub abstract_name: String,
    /// A TCP port of the loopback that listens.
    pub port: u16,
    /// A program: the probe.
    pub program: String,
    /// A segment of System V shared memory.
    pub segment: i32,
}

/// What an attempt has: names, and the open files that a runtime might have been handed.
#[derive(Debug)]
pub struct World {
    /// What is outside.
    pub targets: Targets,
    /// The control socket.
    pub control: RawFd,
    /// The probe's program, for reading.
    pub program: RawFd,
    /// The file of the targets, for reading.
    pub image: RawFd,
    /// A disk: a file for reading and writing.
    pub disk: RawFd,
    /// The slave of a pseudo-terminal.
    pub terminal: RawFd,
    /// `/dev/kvm`, where it can be opened.
    pub kvm: Option<RawFd>,
}

/// The wall that denies an attempt at the latest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wall {
    /// Namespaces, empty root, user and capabilities: it is denied without a filter.
    Cell,
    /// The filter. It reaches nothing outside, but a part of the kernel that could have a hole.
    Filter,
}

/// What comes of an attempt outside of any cell, as root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outside {
    /// It succeeds.
    Reached,
    /// It succeeds where the kernel has what it asks for.
    WhereBuilt,
    /// Nobody succeeds on an ordinary kernel; why it is tried.
    Nobody(&'static str),
}

/// One attempt.
#[derive(Debug, Clone, Copy)]
pub struct Attempt {
    /// Its name, once in the list.
    pub name: &'static str,
    /// What denies it.
    pub wall: Wall,
    /// What comes of it outside.
    pub outside: Outside,
    /// Threads whose filter has a rule for it, because a machine takes it and a filter cannot tell more of it.
    pub allowed: &'static [Role],
    /// Done before any filter is on; its result is handed to the attempt, or -1 if it failed.
    before: fn(&World) -> Result<usize>,
    run: fn(&World, usize) -> Result<()>,
}

impl Attempt {
    /// Of something that the cell itself denies.
    const fn out(name: &'static str, run: fn(&World, usize) -> Result<()>) -> Self {
        Self { name, wall: Wall::Cell, outside: Outside::Reached, allowed: &[], before: |_| Ok(0), run }
    }

    /// Of something that only a filter denies.
    const fn surface(name: &'static str, run: fn(&World, usize) -> Result<()>) -> Self {
        let attempt = Self::out(name, run);
        Self { wall: Wall::Filter, ..attempt }
    }

    const fn after(self, before: fn(&World) -> Result<usize>) -> Self {
        Self { before, ..self }
    }

    const fn where_built(self) -> Self {
        Self { outside: Outside::WhereBuilt, ..self }
    }

    const fn nobody(self, why: &'static str) -> Self {
        Self { outside: Outside::Nobody(why), ..self }
    }

    const fn while_building(self) -> Self {
        self.allowed_to(&[Role::Shell, Role::Build])
    }

    const fn allowed_to(self, allowed: &'static [Role]) -> Self {
        Self { allowed, ..self }
    }

    /// That which always succeeds: whoever hears of it knows that the others were made at all.
    #[must_use]
    pub const fn nothing() -> Self {
        Self::surface("nothing", |_, _| Ok(()))
    }

    /// What it takes that is no part of it. Before the filters.
    #[must_use]
    pub fn prepare(&self, world: &World) -> usize {
        (self.before)(world).unwrap_or(usize::MAX)
    }

    /// Makes the attempt.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn make(&self, world: &World, prepared: usize) -> Result<()> {
        (self.run)(world, prepared)
    }
}

/// What attempts have in common, and they.
pub type Group = (&'static str, &'static [Attempt]);

/// All of them.
pub const GROUPS: &[Group] = &[
    ("files of the host", files::ALL),
    ("files by other ways", handles::ALL),
    ("other processes", processes::ALL),
    ("namespaces", namespaces::ALL),
    ("mounts and roots", mounts::ALL),
    ("network and sockets", network::ALL),
    ("privileges", privileges::ALL),
    ("the kernel as a whole", kernel::ALL),
    ("executable and foreign memory", memory::ALL),
    ("open descriptors", descriptors::ALL),
    ("KVM beyond what a machine takes", kvm::ALL),
    ("parts of the kernel without use", surface::ALL),
    #[cfg(target_arch = "x86_64")]
    ("old calls and other entries", x86::ALL),
];

/// Every attempt, in the list's order.
pub fn all() -> impl Iterator<Item = &'static Attempt> {
    GROUPS.iter().flat_map(|(_, attempts)| attempts.iter())
}

/// The attempt of this name.
#[must_use]
pub fn named(name: &str) -> Option<&'static Attempt> {
    const NOTHING: Attempt = Attempt::nothing();
    all().chain([&NOTHING]).find(|attempt| attempt.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn each_name_stands_once_and_can_be_an_id_of_a_cell() {
        let names: BTreeSet<_> = all().map(|attempt| attempt.name).collect();
        assert_eq!(names.len(), all().count());
        let plain = |name: &str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        for name in names {
            assert!(name.len() <= 40 && plain(name), "{name}");
        }
    }

    #[test]
    fn there_are_hundreds_and_nearly_all_are_shown_to_be_real() {
        assert!(all().count() > 350, "{}", all().count());
        let shown = all().filter(|attempt| attempt.outside == Outside::Reached).count();
        assert!(shown > 290, "only {shown} are shown to be real");
    }

    #[test]
    fn the_comparison_has_each_attempt() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/isolation.md");
        let document = std::fs::read_to_string(path).unwrap();
        for attempt in all() {
            let row = format!("\n| {} | ", attempt.name);
            assert!(document.contains(&row), "docs/isolation.md lacks {}: make probe", attempt.name);
        }
        assert!(document.contains(&format!("| **all: {}** |", all().count())));
    }
}
