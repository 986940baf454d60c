//! Where a drive's file sits: what it is now, and how another takes its place while the guest runs.
//!
//! Owns the disk, its configuration space and, while no worker has it, its ring. Refuses a file that cannot be the disk that
//! the drive was declared to be. Invariant: the file changes on the drive's own thread, when nothing is in flight on the old
//! one, or not at all; who asked hears it once. A wish that was taken back, because the thread waits for a disk that hangs,
//! changes nothing, however late the thread gets to it.

use super::flight::Job;
use super::request::{Disk, SECTOR_BYTES};
use crate::devices::virtio::event_loop::LoopHandle;
use crate::devices::virtio::guest_ring::GuestRing;
use crate::devices::virtio::read_from;
use rustix::fs::{FileType, OFlags, SeekFrom, fcntl_getfl, fstat, seek};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vmm_sys_util::eventfd::EventFd;

/// Up to and with `write_zeroes_may_unmap` of `virtio_blk_config`, and its padding.
pub(super) const CONFIG_BYTES: usize = 60;

/// A file that cannot take another's place.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The host refused.
    #[error("looking at the new file: {0}")]
    Look(#[from] Errno),
    /// It has no length that stays.
    #[error("the new file is neither a regular file nor a block device")]
    NotADisk,
    /// It is not whole sectors.
    #[error("the new file has {0} bytes; a multiple of 512, and not 0, is needed")]
    Size(u64),
    /// It was opened for less than the drive needs.
    #[error("the new file is not open for {0}")]
    Access(&'static str),
    /// There is one already, or was, and the drive's thread has not come to it.
    #[error("it has not come to the last file that it was given; ask again later")]
    Busy,
    /// It is not a file of its own.
    #[error("it is a part of a file, and not one of its own")]
    Part,
}

/// Answers to wishes, in any order, and the bell that says that there are some.
#[derive(Debug)]
pub struct Answers {
    given: Mutex<Vec<(u32, Result<(), ExchangeError>)>>,
    bell: EventFd,
}

impl Answers {
    /// None yet. Makes a descriptor.
    ///
    /// # Errors
    /// No descriptor can be made.
    pub fn new() -> io::Result<Self> {
        let bell = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        Ok(Self { given: Mutex::default(), bell })
    }

    /// Readable when there is one.
    #[must_use]
    pub fn bell(&self) -> RawFd {
        self.bell.as_raw_fd()
    }

    /// Those that came since the last call, each with its wish's number.
    #[must_use]
    pub fn take(&self) -> Vec<(u32, Result<(), ExchangeError>)> {
        // It fails only where nobody rang.
        let _ = self.bell.read();
        mem::take(&mut self.given.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn give(&self, number: u32, result: Result<(), ExchangeError>) {
        self.given.lock().unwrap_or_else(PoisonError::into_inner).push((number, result));
        // It fails only at 2^64 - 2 rings: readable all the same.
        let _ = self.bell.write(1);
    }
}

/// A wish for another file.
#[derive(Debug)]
struct Wish {
    number: u32,
    /// Found fit; before that it is on its way to the drive's thread.
    file: Option<(File, u64)>,
    answers: Arc<Answers>,
}

#[derive(Debug)]
struct State {
    disk: Arc<Disk>,
    config: [u8; CONFIG_BYTES],
    generation: u32,
    ring: Option<GuestRing<Job>>,
    /// A worker has the disk.
    taken: bool,
    /// The disk is a part of its file.
    part: bool,
    wish: Option<Wish>,
    /// A file is on its way to the drive's thread, though its wish may have been taken back meanwhile.
    on_the_way: bool,
}

/// See the module; shared by the device, its worker and who changes it.
#[derive(Debug)]
pub(super) struct Seat {
    state: Mutex<State>,
    bell: EventFd,
}

impl Seat {
    pub(super) fn new(disk: Disk, config: [u8; CONFIG_BYTES], part: bool) -> io::Result<Self> {
        let bell = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let disk = Arc::new(disk);
        let state = State {
            disk,
            config,
            generation: 0,
            ring: None,
            taken: false,
            part,
            wish: None,
            on_the_way: false,
        };
        Ok(Self { state: Mutex::new(state), bell })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the configuration space before the guest sees it.
    pub(super) fn configure(&self, at: usize, bytes: &[u8]) {
        if let Some(place) = self.lock().config.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }

    /// Makes a ring for the file. To be called before a worker is made.
    pub(super) fn add_ring(&self) -> io::Result<()> {
        use std::os::fd::AsFd;
        let mut state = self.lock();
        state.ring = Some(GuestRing::new(state.disk.file.as_fd())?);
        Ok(())
    }

    pub(super) fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_from(&self.lock().config, offset, data);
    }

    pub(super) fn generation(&self) -> u32 {
        self.lock().generation
    }

    /// Readable when the worker is to call [`Self::change`].
    pub(super) fn bell(&self) -> RawFd {
        self.bell.as_raw_fd()
    }

    /// The bell was heard.
    pub(super) fn hush(&self) {
        // It fails only where nobody rang.
        let _ = self.bell.read();
    }

    /// Gives the disk, and the ring if there is one, to a worker.
    pub(super) fn take(&self) -> (Arc<Disk>, Option<GuestRing<Job>>) {
        let mut state = self.lock();
        state.taken = true;
        (Arc::clone(&state.disk), state.ring.take())
    }

    /// Takes the disk back from a worker that has nothing in flight any more. A wish that waited for that is fulfilled.
    pub(super) fn put_back(&self, ring: Option<GuestRing<Job>>) {
        let mut state = self.lock();
        state.taken = false;
        state.ring = ring;
        fulfil(state);
    }

    /// Whether a wish waits for the worker to have nothing in flight.
    pub(super) fn wants_change(&self) -> bool {
        self.lock().wish.as_ref().is_some_and(|wish| wish.file.is_some())
    }

    /// Fulfils the wish, if it was not taken back; the new disk. The worker has nothing in flight, and drops its ring, which
    /// knows the old file alone.
    pub(super) fn change(&self) -> Option<Arc<Disk>> {
        let changed = fulfil(self.lock());
        changed.then(|| Arc::clone(&self.lock().disk))
    }
}

/// Puts the file of the wish, if there is one, in place.
fn fulfil(mut state: MutexGuard<'_, State>) -> bool {
    let Some(Wish { number, file: Some((file, sectors)), answers }) =
        state.wish.take_if(|wish| wish.file.is_some())
    else {
        return false;
    };
    let disk = Arc::new(state.disk.with_file(file, sectors));
    let old = (mem::replace(&mut state.disk, disk), state.ring.take());
    // Under the lock that a read of either takes: a driver that reads half of the capacity before and half after sees
    // another generation.
    state.config[..8].copy_from_slice(&sectors.to_le_bytes());
    state.generation = state.generation.wrapping_add(1);
    drop(state);
    answers.give(number, Ok(()));
    // The last of it: a disk that hangs may hold up its own close.
    drop(old);
    true
}

/// The way to a drive for who gives it another file.
pub struct Exchange {
    seat: Arc<Seat>,
    /// The drive's own.
    event_loop: LoopHandle,
}

impl Exchange {
    pub(super) fn new(seat: Arc<Seat>, event_loop: LoopHandle) -> Self {
        Self { seat, event_loop }
    }

    /// Wishes that `file` be the disk. The answer comes in `answers`, with this `number`; it may be long in coming, if the
    /// disk hangs.
    ///
    /// # Errors
    /// There is such a wish already.
    pub fn wish(&self, file: File, number: u32, answers: &Arc<Answers>) -> Result<(), ExchangeError> {
        let mut state = self.seat.lock();
        if state.part {
            return Err(ExchangeError::Part);
        }
        // However long its thread hangs, and however often it is asked, one file waits for it.
        if state.wish.is_some() || state.on_the_way {
            return Err(ExchangeError::Busy);
        }
        state.on_the_way = true;
        state.wish = Some(Wish { number, file: None, answers: Arc::clone(answers) });
        drop(state);
        let seat = Arc::clone(&self.seat);
        // A file may be as slow to look at as it is to read.
        self.event_loop.call(Box::new(move || seat.consider(file, number)));
        Ok(())
    }

    /// Takes the wish back. False if it was fulfilled or refused already: its answer is there.
    #[must_use]
    pub fn withdraw(&self, number: u32) -> bool {
        let withdrawn = self.seat.lock().wish.take_if(|wish| wish.number == number);
        let was_there = withdrawn.is_some();
        // A worker may rest for its sake. It fails only at 2^64 - 2 rings: readable all the same.
        let _ = self.seat.bell.write(1);
        // Its file is closed where files may be waited for.
        self.event_loop.call(Box::new(move || drop(withdrawn)));
        was_there
    }
}

impl Seat {
    /// On the drive's thread: looks at the file of wish `number`, and puts it in place if no worker has to let go first.
    fn consider(&self, file: File, number: u32) {
        let read_only = self.lock().disk.read_only;
        let found = sectors(&file, read_only);
        let mut state = self.lock();
        state.on_the_way = false;
        // It may have been taken back meanwhile.
        let Some(wish) = state.wish.as_mut().filter(|wish| wish.number == number) else { return };
        match found {
            Ok(sectors) => wish.file = Some((file, sectors)),
            Err(error) => {
                let answers = Arc::clone(&wish.answers);
                state.wish = None;
                drop(state);
                return answers.give(number, Err(error));
            }
        }
        if state.taken {
            // It fails only at 2^64 - 2 rings: readable all the same.
            let _ = self.bell.write(1);
        } else {
            fulfil(state);
        }
    }
}

/// Sectors of a file that can be a disk.
fn sectors(file: &File, read_only: bool) -> Result<u64, ExchangeError> {
    let flags = fcntl_getfl(file)?;
    let mode = flags & OFlags::ACCMODE;
    if flags.contains(OFlags::PATH) || mode == OFlags::WRONLY {
        return Err(ExchangeError::Access("reading"));
    }
    if !read_only && mode != OFlags::RDWR {
        return Err(ExchangeError::Access("writing"));
    }
    let stat = fstat(file)?;
    let bytes = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => stat.st_size.unsigned_abs(),
        FileType::BlockDevice => seek(file, SeekFrom::End(0))?,
        _ => return Err(ExchangeError::NotADisk),
    };
    if bytes == 0 || !bytes.is_multiple_of(SECTOR_BYTES) {
        return Err(ExchangeError::Size(bytes));
    }
    Ok(bytes / SECTOR_BYTES)
}

#[cfg(test)]
mod tests;
