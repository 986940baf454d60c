//! Memory that a guest is given and gives back while it runs, block by block, in a region of its own (virtio-mem).
//!
//! Owns the region's mapping until the process ends, and the answer to which blocks are the guest's. Refuses to plug or
//! unplug where that would take more of the host's mappings than [`MOST_PIECES`]. Invariants: what was never plugged cannot
//! be touched, by the guest (its access ends `KVM_RUN`) or by the kernel for it; nobody but the thread that works for the
//! device plugs and unplugs; and no byte of a block is made inaccessible while another thread may be copying to or from it:
//!
//! 1. A thread that moves bytes of guest memory beside the device thread says so by a [`Reader`]: its count is odd meanwhile.
//! 2. It looks a block up in `plugged` after its count became odd, and forgets what it found before the count is even again.
//! 3. [`Hotplug::unplug`] takes the block out of `plugged` first, and then notes every reader's count.
//! 4. All of that is `SeqCst`. So a reader whose count was even then, or is another since, does not see the block.
//! 5. [`Hotplug::take_away`] waits for that of every reader, without waiting: until then the block stays accessible and in `open`,
//!    and the last reader to leave makes [`Hotplug::left`] readable.

use super::blocks::Blocks;
use super::{HUGE_PAGE, MemoryError, mapping};
use rustix::io::Errno;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vm_memory::{Address, GuestAddress, GuestMemoryRegion, GuestRegionMmap};
use vmm_sys_util::eventfd::EventFd;

/// Bytes of a block: a huge page, so that one that goes leaves no part of one behind.
pub const BLOCK: u64 = HUGE_PAGE as u64;
/// Most pieces that the plugged blocks may lie in. Each costs the host up to two mappings, of which a process has 65530.
pub(super) const MOST_PIECES: usize = 4096;
/// Most bytes that one call of [`Hotplug::take_away`] takes away.
const TAKEN_AT_ONCE: u64 = 256 << 20;

/// See the module; a clone is the same region.
#[derive(Debug, Clone)]
pub struct Hotplug {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    region: Arc<GuestRegionMmap<()>>,
    /// What is the guest's.
    plugged: Blocks,
    plugged_count: AtomicUsize,
    /// How often something was unplugged.
    unplugs: AtomicU64,
    /// What can be touched: what is plugged, and what is not taken away yet.
    open: Blocks,
    state: Mutex<State>,
    /// Something waits to be taken away, for a reader to leave.
    waiting: AtomicBool,
    left: EventFd,
}

#[derive(Debug, Default)]
struct State {
    open_count: usize,
    /// Runs of plugged blocks.
    pieces: usize,
    readers: Vec<Arc<Turn>>,
}

/// How the blocks of a range are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blockwise {
    /// All are plugged.
    Plugged,
    /// None is plugged.
    Unplugged,
    /// Some are.
    Mixed,
}

/// The host cannot do it now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotNow;

impl Hotplug {
    /// Reserves `bytes` for the guest at `base`, both multiples of [`BLOCK`]; nothing of it is plugged.
    ///
    /// # Errors
    /// [`MemoryError::NotPages`], [`MemoryError::Hotplug`] if the host cannot reserve so much.
    pub fn map(bytes: u64, base: GuestAddress) -> Result<Self, MemoryError> {
        let failed = |source| MemoryError::Hotplug { mib: bytes >> 20, source };
        let length = usize::try_from(bytes).map_err(|_| failed(Errno::OVERFLOW))?;
        if length == 0 || !length.is_multiple_of(HUGE_PAGE) {
            return Err(MemoryError::NotPages { bytes: length, page: HUGE_PAGE });
        }
        let region = mapping::inaccessible(length).map_err(failed)?;
        let region = GuestRegionMmap::new(region, base).ok_or(MemoryError::Wraps(base.raw_value()))?;
        let left = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        let left = left.map_err(|error| failed(Errno::from_io_error(&error).unwrap_or(Errno::MFILE)))?;
        let count = length / HUGE_PAGE;
        Ok(Self {
            shared: Arc::new(Shared {
                region: Arc::new(region),
                plugged: Blocks::none_of(count),
                plugged_count: AtomicUsize::new(0),
                unplugs: AtomicU64::new(0),
                open: Blocks::none_of(count),
                state: Mutex::default(),
                waiting: AtomicBool::new(false),
                left,
            }),
        })
    }

    /// First guest address.
    #[must_use]
    pub fn start(&self) -> u64 {
        self.shared.region.start_addr().raw_value()
    }

    /// Bytes of the guest's address space, a multiple of [`BLOCK`].
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.shared.region.len()
    }

    /// First address in the host's address space.
    #[must_use]
    pub fn host_address(&self) -> u64 {
        self.shared.region.as_ptr().addr() as u64
    }

    /// Bytes that are plugged.
    #[must_use]
    pub fn plugged_bytes(&self) -> u64 {
        self.shared.plugged_count.load(Ordering::SeqCst) as u64 * BLOCK
    }

    /// How often something was unplugged, modulo 2^64: what was looked up before the last time may not be there.
    #[must_use]
    pub fn unplugs(&self) -> u64 {
        self.shared.unplugs.load(Ordering::SeqCst)
    }

    /// Bytes that can be touched: those that are plugged, and those that are not taken away yet.
    #[must_use]
    pub fn open_bytes(&self) -> u64 {
        self.lock().open_count as u64 * BLOCK
    }

    pub(super) fn region(&self) -> Arc<GuestRegionMmap<()>> {
        Arc::clone(&self.shared.region)
    }

    /// Whether `length` bytes from `address` touch no block that is not plugged; what lies outside the region does not count.
    #[must_use]
    pub fn allows(&self, address: u64, length: u64) -> bool {
        let (start, end) = (self.start(), self.start() + self.bytes());
        let (from, to) = (address.max(start), address.saturating_add(length).min(end));
        from >= to || {
            let mut blocks = index(from - start)..index((to - start).next_multiple_of(BLOCK));
            blocks.all(|block| self.shared.plugged.has(block))
        }
    }

    /// The blocks of `bytes` bytes from guest address `start`; `None`: not whole blocks of the region, at least one.
    #[must_use]
    pub fn blocks(&self, start: u64, bytes: u64) -> Option<Range<usize>> {
        let from = start.checked_sub(self.start())?;
        let to = from.checked_add(bytes)?;
        let whole = from.is_multiple_of(BLOCK) && bytes.is_multiple_of(BLOCK) && bytes > 0;
        (whole && to <= self.bytes()).then(|| index(from)..index(to))
    }

    /// How `blocks` are.
    #[must_use]
    pub fn state(&self, blocks: Range<usize>) -> Blockwise {
        match self.shared.plugged.within(blocks.clone()) {
            0 => Blockwise::Unplugged,
            count if count == blocks.len() => Blockwise::Plugged,
            _ => Blockwise::Mixed,
        }
    }

    /// The runs of plugged blocks, each as its first block and how many; at most [`MOST_PIECES`].
    #[must_use]
    pub fn runs(&self) -> Vec<(u64, u64)> {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for block in (0..self.shared.plugged.count()).filter(|&block| self.shared.plugged.has(block)) {
            let block = block as u64;
            match runs.last_mut() {
                Some((first, count)) if *first + *count == block => *count += 1,
                _ => runs.push((block, 1)),
            }
        }
        runs
    }

    /// Makes `blocks`, none of which is plugged, the guest's.
    ///
    /// # Errors
    /// The host does not give so much address space, or it would be in too many pieces; nothing has changed then.
    pub fn plug(&self, blocks: Range<usize>) -> Result<(), NotNow> {
        let mut state = self.lock();
        let neighbours = self.neighbours(&blocks);
        if state.pieces + 1 - neighbours > MOST_PIECES {
            return Err(NotNow);
        }
        mapping::open(&self.shared.region, place(&blocks)).map_err(|_| NotNow)?;
        state.open_count += self.shared.open.set(blocks.clone(), true);
        state.pieces = state.pieces + 1 - neighbours;
        let added = self.shared.plugged.set(blocks, true);
        self.shared.plugged_count.fetch_add(added, Ordering::SeqCst);
        Ok(())
    }

    /// Takes `blocks`, all of which are plugged, from the guest: no device touches them any more. [`Self::take_away`] has to
    /// follow.
    ///
    /// # Errors
    /// What is left would be in too many pieces; nothing has changed then.
    pub fn unplug(&self, blocks: Range<usize>) -> Result<(), NotNow> {
        let mut state = self.lock();
        let neighbours = self.neighbours(&blocks);
        if state.pieces + neighbours > MOST_PIECES + 1 {
            return Err(NotNow);
        }
        state.pieces = state.pieces + neighbours - 1;
        self.forget(&mut state, blocks);
        Ok(())
    }

    /// [`Self::unplug`] of all that is plugged.
    pub fn unplug_all(&self) {
        let mut state = self.lock();
        state.pieces = 0;
        self.forget(&mut state, 0..self.shared.plugged.count());
    }

    fn forget(&self, state: &mut State, blocks: Range<usize>) {
        let removed = self.shared.plugged.set(blocks, false);
        self.shared.unplugs.fetch_add(1, Ordering::SeqCst);
        self.shared.plugged_count.fetch_sub(removed, Ordering::SeqCst);
        for turn in &state.readers {
            turn.seen.store(turn.count.load(Ordering::SeqCst), Ordering::SeqCst);
        }
    }

    /// Makes blocks that are not plugged inaccessible and gives their memory back to the host: so many bytes a call, and
    /// none while a reader may still be at them. Where more is to be done, [`Self::left`] becomes readable when it can be.
    ///
    /// Returns how many blocks it took away.
    pub fn take_away(&self) -> usize {
        let mut state = self.lock();
        // Before the readers are looked at: one that leaves after this looks at it.
        self.shared.waiting.store(self.waits(&state), Ordering::SeqCst);
        let mut room = index(TAKEN_AT_ONCE);
        let (mut next, mut taken) = (0, 0);
        while self.waits(&state) && state.all_have_left() && room > 0 {
            let Some(run) = self.closing_from(next, room) else { break };
            (next, room) = (run.end, room - run.len());
            if mapping::close(&self.shared.region, place(&run)).is_err() {
                // No room for one more mapping: the next call tries again, after something else has changed.
                break;
            }
            let closed = self.shared.open.set(run, false);
            state.open_count -= closed;
            taken += closed;
        }
        let waits = self.waits(&state);
        self.shared.waiting.store(waits, Ordering::SeqCst);
        if waits && room == 0 {
            self.shared.call();
        }
        taken
    }

    /// Readable when [`Self::take_away`] has more to do.
    #[must_use]
    pub fn left(&self) -> &EventFd {
        &self.shared.left
    }

    /// For one more thread beside the device thread that moves bytes of guest memory.
    #[must_use]
    pub fn reader(&self) -> Reader {
        let turn = Arc::<Turn>::default();
        self.lock().readers.push(Arc::clone(&turn));
        Reader { turn, shared: Arc::clone(&self.shared) }
    }

    /// The first run of at most `most` blocks from `next` on that are open and not plugged.
    fn closing_from(&self, next: usize, most: usize) -> Option<Range<usize>> {
        let closing = |&block: &usize| self.shared.open.has(block) && !self.shared.plugged.has(block);
        let first = (next..self.shared.open.count()).find(closing)?;
        let length = (first..self.shared.open.count()).take(most).take_while(closing).count();
        Some(first..first + length)
    }

    fn waits(&self, state: &State) -> bool {
        state.open_count > self.shared.plugged_count.load(Ordering::SeqCst)
    }

    /// How many of the two blocks beside `blocks` are plugged.
    fn neighbours(&self, blocks: &Range<usize>) -> usize {
        let before = blocks.start.checked_sub(1).is_some_and(|block| self.shared.plugged.has(block));
        usize::from(before) + usize::from(self.shared.plugged.has(blocks.end))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether no reader can be at a block that was unplugged.
    fn all_have_left(&self) -> bool {
        let left = |turn: &Arc<Turn>| {
            let seen = turn.seen.load(Ordering::SeqCst);
            seen.is_multiple_of(2) || turn.count.load(Ordering::SeqCst) != seen
        };
        self.readers.iter().all(left)
    }
}

impl Shared {
    fn call(&self) {
        // It fails only at 2^64 - 2 calls: readable all the same.
        let _ = self.left.write(1);
    }
}

/// How often a thread came and left.
#[derive(Debug, Default)]
struct Turn {
    /// Odd while it is there.
    count: AtomicU64,
    /// What that was when a block was unplugged last.
    seen: AtomicU64,
}

/// Says when a thread moves bytes of guest memory.
#[derive(Debug)]
pub struct Reader {
    turn: Arc<Turn>,
    shared: Arc<Shared>,
}

impl Reader {
    /// From here on the thread may look blocks up.
    pub fn enter(&self) {
        self.turn.count.fetch_add(1, Ordering::SeqCst);
    }

    /// The thread has forgotten what it looked up.
    pub fn leave(&self) {
        let count = self.turn.count.fetch_add(1, Ordering::SeqCst);
        // Only the turn that was seen is waited for: others would wake the device thread for nothing, again and again while
        // another reader hangs.
        if self.shared.waiting.load(Ordering::SeqCst) && self.turn.seen.load(Ordering::SeqCst) == count {
            self.shared.call();
        }
    }
}

/// The block at `offset` bytes of a region, whose size is a usize.
fn index(offset: u64) -> usize {
    usize::try_from(offset / BLOCK).unwrap_or(usize::MAX)
}

/// Start and length of blocks, in bytes of their region.
fn place(blocks: &Range<usize>) -> (usize, usize) {
    (blocks.start * HUGE_PAGE, blocks.len() * HUGE_PAGE)
}

#[cfg(test)]
mod tests;
