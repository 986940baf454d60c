//! The drives of a machine: how each is made, and how its file is changed while the guest runs.
//!
//! Owns the ways to the drives and what they answer. Refuses drives that are not there. Invariant: each drive has a loop, and
//! with it a thread, of its own; what a ring takes of the kernel is taken before any filter of the running phase.

use super::virtio::{Virtio, limit};
use super::{Loop, MachineError, descriptor};
use crate::devices::virtio::block::{Answers, Block, Exchange};
use crate::devices::virtio::event_loop::{EventLoop, LoopHandle};
use crate::spec::DriveSpec;
use husk_protocol::spec::IoEngine;
use husk_seccomp::Role;
use std::fs::File;
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

/// The disk that `drive` describes, in `file`.
fn disk(drive: &DriveSpec, file: File) -> Result<Block, MachineError> {
    let block = Block::of_part(file, drive.part(), drive.id(), drive.is_read_only(), drive.cache());
    let block = block.map_err(|source| MachineError::Drive { id: drive.id().into(), source })?;
    Ok(block.with_queues(drive.queues()))
}

/// See the module.
pub struct Drives {
    /// By id, in the guest's order.
    ways: Vec<(String, Exchange)>,
    answers: Arc<Answers>,
    degraded: Vec<String>,
}

impl Drives {
    /// None yet. Makes a descriptor.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { ways: Vec::new(), answers: Arc::new(Answers::new()?), degraded: Vec::new() })
    }

    /// Lines about what was asked for and is not to be had, at most one a drive.
    #[must_use]
    pub fn degraded(&self) -> &[String] {
        &self.degraded
    }

    /// What they answer to wishes for other files.
    #[must_use]
    pub fn answers(&self) -> &Arc<Answers> {
        &self.answers
    }

    /// Readable when there is an answer.
    #[must_use]
    pub fn bell(&self) -> RawFd {
        self.answers.bell()
    }

    /// The way to drive `id`.
    #[must_use]
    pub fn way(&self, id: &str) -> Option<&Exchange> {
        self.ways.iter().find(|(known, _)| known == id).map(|(_, way)| way)
    }
}

impl Virtio<'_> {
    /// The drive `name` in `file`, and the way to its loop.
    pub(super) fn drive(
        &mut self,
        drive: &DriveSpec,
        file: File,
        name: &str,
    ) -> Result<(Block, LoopHandle), MachineError> {
        let disk = disk(drive, file)?.with_limit(limit(drive.limiter(), name)?);
        let workers = self.drive_loop(drive, &disk).map_err(descriptor(name))?;
        Ok((disk, workers))
    }

    /// A loop for one drive alone: a disk that hangs stops nobody else. The drive's ring is made here, if it is to have one.
    fn drive_loop(&mut self, drive: &DriveSpec, disk: &Block) -> io::Result<LoopHandle> {
        let (mut event_loop, handle) = EventLoop::new()?;
        if let Some(hotplug) = self.hotplug {
            event_loop = event_loop.with_reader(hotplug.reader());
        }
        let asked = drive.engine() == IoEngine::Async;
        let ring = asked.then(|| disk.add_ring());
        if let Some(Err(error)) = &ring {
            let id = drive.id();
            self.drives
                .degraded
                .push(format!("drive {id:?}: no io_uring ({error}); it works as with io_engine Sync"));
        }
        // Its name tells its role.
        let (role, name) = match ring {
            Some(Ok(())) => (Role::BlockRing, "husk-ring"),
            _ => (Role::Block, "husk-blk"),
        };
        // The first loop is the devices'.
        let thread = format!("{name}{}", self.loops.len() - 1);
        self.loops.push(Loop { role, thread, event_loop });
        self.drives.ways.push((drive.id().to_owned(), disk.exchange(handle.clone())));
        self.workers.watching(handle)
    }
}

#[cfg(test)]
impl Drives {
    /// One drive, with the way to it.
    pub(crate) fn of(id: &str, way: Exchange) -> Self {
        Self { ways: vec![(id.into(), way)], ..Self::new().unwrap() }
    }
}
