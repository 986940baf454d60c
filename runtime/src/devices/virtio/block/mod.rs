//! virtio-block (virtio 1.2, 5.2) over a raw file.
//!
//! Owns configuration and features; the worker has the queues, `request` the logic. Refuses files that cannot be a
//! disk. The capacity is the file's length when it becomes the disk, in sectors of 512 bytes: a tail shorter than a
//! sector is invisible to the guest. The file's content is never looked at, so no image format can be smuggled in.
//! Invariant: whether writes are allowed is decided here, once, and checked on the host for each request.

mod flight;
mod ranges;
mod request;
mod seat;
mod worker;

pub use seat::{Answers, Exchange, ExchangeError};

use super::event_loop::LoopHandle;
use super::gate::{Gate, Limit};
use super::{ActivateError, Activation, DeviceKind, FEATURE_EVENT_IDX, VirtioDevice, Worker};
use crate::state::{Format, LoadError, Section};
use husk_protocol::spec::CacheType;
use request::{Disk, SECTOR_BYTES};
use seat::{CONFIG_BYTES, Seat};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use virtio_bindings::virtio_blk as blk;
use worker::{BlockWorker, Outlets};

/// Descriptors in a queue.
const QUEUE_SIZE: u16 = 256;
/// Most data segments in a request: what fits into the queue beside header and status.
const SEGMENTS: u32 = 126;
/// Largest data segment in bytes; with [`SEGMENTS`] it bounds the work of one request.
const SEGMENT_BYTES: u32 = 256 * 1024;
/// Bytes of a drive's name that the guest can read.
const ID_BYTES: usize = blk::VIRTIO_BLK_ID_BYTES as usize;

/// What is saved of it: the capacity that the guest has seen, in sectors. A limiter is full again after a load.
const FORMAT: Format = Format { id: "virtio-block", version: 1 };

/// A file that cannot be a disk.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// The host refused.
    #[error("drive {id}: reading its size: {source}")]
    Size {
        /// The drive.
        id: String,
        /// The system's answer.
        source: io::Error,
    },
    /// Not even one sector.
    #[error("drive {id}: the file has {bytes} bytes; a disk has at least one sector of 512")]
    TooSmall {
        /// The drive.
        id: String,
        /// The file's length.
        bytes: u64,
    },
    /// The file ends before the part of it that is the disk.
    #[error("drive {id}: the file has {length} bytes; its part ends at {end}")]
    Part {
        /// The drive.
        id: String,
        /// Where the part ends.
        end: u64,
        /// The file's length.
        length: u64,
    },
    /// No descriptor is left for it.
    #[error("drive {id}: {source} (the limit of open files)")]
    Descriptor {
        /// The drive.
        id: String,
        /// What the host said.
        source: io::Error,
    },
    /// Neither has a length that stays.
    #[error("drive {id}: neither a regular file nor a block device")]
    NotADisk {
        /// The drive.
        id: String,
    },
}

/// See the module.
#[derive(Debug)]
pub struct Block {
    seat: Arc<Seat>,
    features: u64,
    queue_sizes: Vec<u16>,
    limit: Option<Arc<Limit>>,
    /// The generation that the last driver could read when it started, or was told of.
    told: u32,
}

impl Block {
    /// The disk that `file` is. Its guest reads `id`'s first 20 bytes as the serial number. Without write-back caching
    /// no flush is offered: then what the guest wrote is as safe as the host's page cache.
    pub fn new(file: File, id: &str, read_only: bool, cache: CacheType) -> Result<Self, BlockError> {
        Self::of_part(file, None, id, read_only, cache)
    }

    /// The same, if a part is given for those bytes of `file` alone.
    pub fn of_part(
        file: File,
        part: Option<Range<u64>>,
        id: &str,
        read_only: bool,
        cache: CacheType,
    ) -> Result<Self, BlockError> {
        let length = length(&file, id)?;
        let is_part = part.is_some();
        let part = part.unwrap_or(0..length);
        if part.end > length {
            return Err(BlockError::Part { id: id.to_owned(), end: part.end, length });
        }
        let bytes = part.end.saturating_sub(part.start);
        let sectors = bytes / SECTOR_BYTES;
        if sectors == 0 {
            return Err(BlockError::TooSmall { id: id.to_owned(), bytes });
        }
        let writeback = cache == CacheType::Writeback;
        let mut features = FEATURE_EVENT_IDX
            | 1 << blk::VIRTIO_BLK_F_SIZE_MAX
            | 1 << blk::VIRTIO_BLK_F_SEG_MAX
            | 1 << blk::VIRTIO_BLK_F_BLK_SIZE;
        if read_only {
            features |= 1 << blk::VIRTIO_BLK_F_RO;
        } else {
            features |= 1 << blk::VIRTIO_BLK_F_DISCARD | 1 << blk::VIRTIO_BLK_F_WRITE_ZEROES;
        }
        if writeback {
            features |= 1 << blk::VIRTIO_BLK_F_FLUSH;
        }
        let config = configuration(sectors, read_only);
        let mut serial = [0; ID_BYTES];
        for (to, from) in serial.iter_mut().zip(id.bytes()) {
            *to = from;
        }
        let disk = Disk { file, start: part.start, sectors, read_only, writeback, serial };
        let seat = Seat::new(disk, config, is_part);
        let seat = seat.map_err(|source| BlockError::Descriptor { id: id.to_owned(), source })?;
        Ok(Self { seat: Arc::new(seat), features, queue_sizes: vec![QUEUE_SIZE], limit: None, told: 0 })
    }

    /// The same disk with so many request queues, at least one: each vCPU can have its own, and none waits for another's
    /// lock in the guest. One thread serves them in turn.
    #[must_use]
    pub fn with_queues(mut self, queues: u8) -> Self {
        self.queue_sizes = vec![QUEUE_SIZE; usize::from(queues.max(1))];
        if queues > 1 {
            self.features |= 1 << blk::VIRTIO_BLK_F_MQ;
            self.seat.configure(34, &u16::from(queues).to_le_bytes());
        }
        self
    }

    /// The same disk behind `limit`, which counts its requests and the bytes that they read, write or zero. The thread that
    /// serves it does not sleep for that: it hears the loop's commands meanwhile.
    #[must_use]
    pub fn with_limit(mut self, limit: Option<Limit>) -> Self {
        self.limit = limit.map(Arc::new);
        self
    }

    /// Makes an `io_uring` for its file, through which its worker then works. To be called before the device is shown.
    ///
    /// # Errors
    /// The host has none, or none for us; the disk works without.
    pub fn add_ring(&self) -> io::Result<()> {
        self.seat.add_ring()
    }

    /// As the configuration has it now.
    fn sectors(&self) -> u64 {
        let mut sectors = [0; 8];
        self.seat.read_config(0, &mut sectors);
        u64::from_le_bytes(sectors)
    }

    /// The way to give it another file while it works; its worker runs on `event_loop`.
    #[must_use]
    pub fn exchange(&self, event_loop: LoopHandle) -> Exchange {
        Exchange::new(Arc::clone(&self.seat), event_loop)
    }
}

/// `virtio_blk_config` (5.2.4); the fields of features that are not offered are zero.
fn configuration(sectors: u64, read_only: bool) -> [u8; CONFIG_BYTES] {
    let mut config = [0; CONFIG_BYTES];
    let mut set = |at: usize, value: u32| config[at..at + 4].copy_from_slice(&value.to_le_bytes());
    set(8, SEGMENT_BYTES);
    set(12, SEGMENTS);
    set(20, 512);
    if !read_only {
        set(36, ranges::DISCARD_SECTORS);
        set(40, ranges::DISCARD_SEGMENTS);
        set(44, ranges::DISCARD_ALIGNMENT);
        set(48, ranges::ZEROES_SECTORS);
        set(52, ranges::ZEROES_SEGMENTS);
        // One byte, `write_zeroes_may_unmap`.
        set(56, 1);
    }
    config[..8].copy_from_slice(&sectors.to_le_bytes());
    config
}

fn length(file: &File, id: &str) -> Result<u64, BlockError> {
    use std::io::{Seek, SeekFrom};
    use std::os::unix::fs::FileTypeExt;
    let size = |source| BlockError::Size { id: id.to_owned(), source };
    let metadata = file.metadata().map_err(size)?;
    if metadata.is_file() {
        Ok(metadata.len())
    } else if metadata.file_type().is_block_device() {
        // A block device's length is where its end is.
        (&*file).seek(SeekFrom::End(0)).map_err(size)
    } else {
        Err(BlockError::NotADisk { id: id.to_owned() })
    }
}

impl VirtioDevice for Block {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Block
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.seat.read_config(offset, data);
    }

    fn config_generation(&self) -> u32 {
        self.seat.generation()
    }

    fn activate(&mut self, mut activation: Activation) -> Result<Box<dyn Worker>, ActivateError> {
        // A driver may use fewer queues than there are, but not none.
        let first = activation.take_queue(0)?;
        let queues = std::iter::once(first)
            .chain(std::mem::take(&mut activation.queues).into_iter().flatten())
            .collect();
        let gate = self.limit.clone().map(Gate::new);
        let Activation { interrupt, dropped, .. } = activation;
        // Another file may have come while no worker was there to tell of it.
        if std::mem::replace(&mut self.told, self.seat.generation()) != self.told {
            interrupt.config();
        }
        let outlets = Outlets { interrupt, dropped };
        Ok(Box::new(BlockWorker::new(queues, Arc::clone(&self.seat), gate, outlets)))
    }

    fn save(&self) -> Section {
        FORMAT.section(&self.sectors())
    }

    /// The guest goes on with file systems and partitions of the disk that it knows: another one is as large.
    fn load(&mut self, section: &Section) -> Result<(), LoadError> {
        let (was, is): (u64, _) = (FORMAT.parse(section)?, self.sectors());
        FORMAT.check(was == is, "capacity", was, format_args!("{is}, as the drive's file has"))
    }
}

#[cfg(test)]
mod tests;
