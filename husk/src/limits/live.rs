//! Other limits for a sandbox that runs: written into its cgroups by the husk that waits for it.
//!
//! Owns the limits as they stand. Refuses, before anything is written, what is no limit or what this host's cgroups do not have.
//! Invariant: all or nothing: a file that does not take its value has those before it written back, and the refusal names it.

use super::{
    Device, DeviceError, File, Limit, LimitError, LimitName, Limits, Places, Target, Version, device_of,
    files, resolve,
};
use crate::cgroup::Hierarchies;
use crate::state::{Record, Registration};
use husk_protocol::control::{Change, Fault};
use rustix::io::Errno;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// Rounds in which processes are moved into a cgroup that is made late, for some may be born meanwhile.
const ROUNDS: usize = 16;

/// See the module.
#[derive(Debug)]
pub(crate) struct Live<'a> {
    pub(crate) hierarchies: &'a Hierarchies,
    pub(crate) registration: &'a Registration,
    /// As it was published.
    pub(crate) record: Record,
    /// As they stand.
    pub(crate) limits: Limits,
    /// The drives' devices.
    pub(crate) drives: Places,
    /// CPUs that the vCPUs are pinned to.
    pub(crate) pinned: Vec<u32>,
    /// A drive that may be about to be on another device, and the number of the question.
    pub(crate) moving: Option<(u32, String, Option<Device>)>,
}

/// Limits that stay as they are.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LiveError {
    /// No limit.
    #[error("--limit {0}")]
    Limit(#[from] LimitError),
    /// No device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Not with this host's cgroups.
    #[error("--limit {name}: {why}")]
    Never {
        /// Which.
        name: LimitName,
        /// Why not.
        why: &'static str,
    },
    /// The kernel does not take it.
    #[error("cgroup limit {}={value:?}: {source}; no limit was changed{}", path.display(), also(unrestored))]
    Set {
        /// The file.
        path: PathBuf,
        /// What was written.
        value: String,
        /// Why not.
        source: io::Error,
        /// Files that did not take their old value back.
        unrestored: Vec<String>,
    },
}

fn also(unrestored: &[String]) -> String {
    if unrestored.is_empty() { String::new() } else { format!(", but {}", unrestored.join(", ")) }
}

impl LiveError {
    /// Who is at fault.
    #[must_use]
    pub(crate) fn fault(&self) -> Fault {
        match self {
            Self::Limit(_) | Self::Never { .. } => Fault::Operator,
            Self::Device(error) => error.fault(),
            Self::Set { source, .. } => match source.raw_os_error().map(Errno::from_raw_os_error) {
                Some(Errno::INVAL | Errno::RANGE | Errno::BUSY | Errno::NODEV | Errno::NOSPC) => {
                    Fault::Operator
                }
                _ => Fault::Host,
            },
        }
    }
}

/// What one file had before.
struct Undo {
    path: PathBuf,
    value: String,
}

impl Live<'_> {
    /// The cell is asked for `change`: another file is a drive's, perhaps, and on another device.
    pub(crate) fn asked(&mut self, number: u32, change: &Change, file: Option<&OwnedFd>) {
        if let (Change::Drive(drive), Some(file)) = (change, file) {
            let device = rustix::fs::fstat(file).ok().and_then(|file| device_of(&file));
            self.moving = Some((number, drive.drive_id.clone(), device));
        }
    }

    /// The cell's answer to the question `number`. What the drive's old device is limited to stays.
    pub(crate) fn answered(&mut self, number: u32, done: bool) {
        let Some((_, id, device)) = self.moving.take_if(|(asked, ..)| *asked == number) else { return };
        if let Some((_, place)) = self.drives.iter_mut().find(|(known, _)| done && *known == id) {
            *place = device;
        }
    }

    /// Makes `words`, each `NAME=VALUE`, hold from now on; those that are not named stay.
    pub(crate) fn change(&mut self, words: &[String]) -> Result<(), LiveError> {
        let asked: Result<Vec<Limit>, _> = words.iter().map(|word| word.parse()).collect();
        let asked = resolve(&Limits::once(asked?)?, &self.drives)?;
        asked.check_pins(&self.pinned)?;
        let limits = self.limits.clone().under(&asked);
        let planned = self.planned(&asked, &limits)?;
        let mut undo = Vec::new();
        for (file, needed) in &planned {
            match self.set(file, &mut undo) {
                Err((_, error)) if !needed && error.kind() == io::ErrorKind::NotFound => {}
                Err((path, source)) => return Err(refused(path, file, source, undo)),
                Ok(()) => {}
            }
        }
        self.record.limits = limits.texts();
        // What husk ps shows is late then, and no less true for the sandbox.
        let _ = self.registration.publish(&self.record);
        self.limits = limits;
        Ok(())
    }

    /// The files to write, in their order, and whether each has to be there.
    fn planned(&self, asked: &Limits, limits: &Limits) -> Result<Vec<(File, bool)>, LiveError> {
        let version = |controller| self.hierarchies.version_of(controller);
        let mut planned = Vec::new();
        for limit in asked.iter() {
            let found =
                files(limit, limits, version).map_err(|why| LiveError::Never { name: limit.name, why })?;
            planned.extend(found.into_iter().map(|file| (file, true)));
        }
        // Version 1 limits memory and swap together: one moves with the other.
        let memory = asked.get(LimitName::MemoryMax).is_some() && asked.get(LimitName::SwapMax).is_none();
        let swap = limits.iter().find(|limit| limit.name == LimitName::SwapMax);
        if let Some(swap) = swap.filter(|_| memory && version("memory") == Version::One) {
            let found = files(swap, limits, version).unwrap_or_default();
            planned.extend(found.into_iter().map(|file| (file, false)));
        }
        if asked.get(LimitName::MemoryMax).is_some() && self.raises_memory(limits) {
            // And takes no limit of memory above that of both.
            planned.sort_by_key(|(file, _)| file.name != "memory.memsw.limit_in_bytes");
        }
        Ok(planned)
    }

    fn raises_memory(&self, limits: &Limits) -> bool {
        let most = |limits: &Limits| limits.number(LimitName::MemoryMax).unwrap_or(u64::MAX);
        most(limits) > most(&self.limits)
    }

    /// Writes one file, and notes what it had; the error comes with the file's path.
    fn set(&self, file: &File, undo: &mut Vec<Undo>) -> Result<(), (PathBuf, io::Error)> {
        let id = &self.registration.id;
        let missing = || (PathBuf::from(&file.name), io::Error::from(io::ErrorKind::NotFound));
        let directory = self.hierarchies.group(file.target, id).ok_or_else(missing)?;
        let path = directory.join(&file.name);
        let fail = |source| (path.clone(), source);
        if !path.exists() {
            self.prepare(file.target, &directory).map_err(fail)?;
        }
        let before = std::fs::read_to_string(&path).map_err(fail)?;
        put(&path, &file.value).map_err(fail)?;
        undo.push(Undo { value: inverse(file, &before), path });
        Ok(())
    }

    /// Makes the controller there for the sandbox, which started without a limit of it.
    fn prepare(&self, target: Target, directory: &Path) -> io::Result<()> {
        match target.version {
            Version::Two => self.hierarchies.hand_down(target.controller),
            // It has no CPUs and no nodes at first, and nothing may be in it.
            Version::One if target.controller == "cpuset" => Ok(()),
            Version::One => {
                std::fs::create_dir_all(directory)?;
                self.move_into(directory)
            }
        }
    }

    fn move_into(&self, directory: &Path) -> io::Result<()> {
        let procs = directory.join("cgroup.procs");
        for _ in 0..ROUNDS {
            let there = std::fs::read_to_string(&procs)?;
            let there: Vec<&str> = there.lines().collect();
            let all = self.hierarchies.processes(&self.registration.id);
            let all = all.into_iter().map(|pid| pid.as_raw_nonzero().to_string());
            let outside: Vec<String> = all.filter(|pid| !there.contains(&pid.as_str())).collect();
            if outside.is_empty() {
                return Ok(());
            }
            for pid in outside {
                match put(&procs, &pid) {
                    // It has ended.
                    Err(error) if error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => {}
                    other => other?,
                }
            }
        }
        Err(io::ErrorKind::ResourceBusy.into())
    }
}

/// Writes into a file that is there.
fn put(path: &Path, value: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
}

fn refused(path: PathBuf, file: &File, source: io::Error, undo: Vec<Undo>) -> LiveError {
    let back = undo.into_iter().rev().filter_map(|Undo { path, value }| {
        let error = put(&path, &value).err()?;
        Some(format!("{} is not {value:?} again: {error}", path.display()))
    });
    LiveError::Set { path, value: file.value.clone(), source, unrestored: back.collect() }
}

/// What brings back the content `before` of a file, after it was given its value.
fn inverse(file: &File, before: &str) -> String {
    let per_device = file.name == "io.max" || file.name.starts_with("blkio.throttle.");
    if !per_device {
        // An empty list is a line of its own: nothing at all is not written.
        return if before.trim().is_empty() { "\n".to_owned() } else { before.trim().to_owned() };
    }
    let device = file.value.split(' ').next().unwrap_or_default();
    let line = before.lines().find(|line| line.split(' ').next() == Some(device));
    let none = if file.name == "io.max" { "rbps=max wbps=max riops=max wiops=max" } else { "0" };
    line.map_or_else(|| format!("{device} {none}"), str::to_owned)
}

#[cfg(test)]
mod tests;
