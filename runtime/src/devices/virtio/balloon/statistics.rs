//! The guest's statistics (virtio 1.2, 5.5.6.3): asked for at an interval, told to husk.
//!
//! Owns the queue with the driver's one buffer, which stays here between two ticks of the timer. Refuses a buffer that is
//! no list of statistics, or a longer one than a driver can mean. Invariant: a tick takes one buffer and tells husk once,
//! whatever the driver does meanwhile (a reset included); each number in it is an allegation.

use crate::devices::virtio::guest_io::GuestIo;
use crate::devices::virtio::queue::{Chain, Popped, QueueError, Virtqueue};
use crate::devices::virtio::{DeviceError, Memory};
use husk_protocol::control::{BalloonReport, BalloonStatistics};
use rustix::io::Errno;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use rustix::time::{timerfd_create, timerfd_settime};
use std::io;
use std::num::NonZeroU16;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use vm_memory::Permissions;

/// Tells husk what the guest said of its memory; must not wait.
pub type Tell = Arc<dyn Fn(BalloonReport) + Send + Sync>;

/// Bytes of a statistic: a tag (u16), then its value (u64), little-endian and packed.
const ENTRY_BYTES: usize = 10;
/// Most statistics in a buffer, four times what Linux has tags for.
pub(super) const MOST_ENTRIES: usize = 64;

/// When the guest is asked, and who hears of it; outlives the driver's resets.
pub(super) struct Polling {
    timer: OwnedFd,
    tell: Tell,
    /// Whether husk was told since the last tick.
    told: AtomicBool,
    /// Pages that the driver says are in the balloon.
    pub(super) actual: AtomicU32,
}

impl Polling {
    /// Asks every `interval` seconds, from now on.
    pub(super) fn new(interval: NonZeroU16, tell: Tell) -> io::Result<Self> {
        let timer =
            timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        let interval = Timespec { tv_sec: interval.get().into(), tv_nsec: 0 };
        let each = Itimerspec { it_interval: interval, it_value: interval };
        timerfd_settime(&timer, TimerfdTimerFlags::empty(), &each)?;
        Ok(Self { timer, tell, told: AtomicBool::new(false), actual: AtomicU32::new(0) })
    }

    pub(super) fn timer(&self) -> RawFd {
        self.timer.as_raw_fd()
    }

    /// Whether the timer ran out since this was last asked.
    fn ticked(&self) -> Result<bool, DeviceError> {
        match rustix::io::read(&self.timer, &mut [0; 8]) {
            Ok(_) => Ok(true),
            Err(Errno::AGAIN | Errno::INTR) => Ok(false),
            Err(error) => Err(DeviceError::host("reading the timer of the statistics")(error)),
        }
    }

    fn report(&self, statistics: BalloonStatistics) {
        if !self.told.swap(true, Ordering::Relaxed) {
            let actual_mib = self.actual.load(Ordering::Relaxed) / super::PAGES_PER_MIB;
            let at_ns = crate::sys::monotonic_ns();
            (self.tell)(BalloonReport { at_ns, actual_mib, statistics });
        }
    }
}

/// The queue of the statistics.
pub(super) struct Statistics {
    pub(super) queue: Virtqueue,
    polling: Arc<Polling>,
    dropped: Arc<AtomicU64>,
    chain: Chain,
    /// The chain in `chain` is with us until the next tick.
    held: bool,
}

impl Statistics {
    pub(super) fn new(queue: Virtqueue, polling: Arc<Polling>, dropped: Arc<AtomicU64>) -> Self {
        Self { queue, polling, dropped, chain: Chain::default(), held: false }
    }

    /// The driver has put statistics into the queue.
    pub(super) fn kicked(&mut self) -> Result<(), DeviceError> {
        self.queue.acknowledge_kick();
        self.take().map_err(self.failed())
    }

    /// Asks for new statistics: the driver gets its buffer back.
    pub(super) fn tick(&mut self) -> Result<(), DeviceError> {
        if !self.polling.ticked()? {
            return Ok(());
        }
        self.polling.told.store(false, Ordering::Relaxed);
        self.give_back().and_then(|()| self.take()).map_err(self.failed())
    }

    /// For a queue that goes back to the transport: a buffer that is here is still the device's to answer.
    pub(super) fn put_back(&mut self) {
        if std::mem::take(&mut self.held) {
            self.queue.unpop(1);
        }
    }

    fn give_back(&mut self) -> Result<(), QueueError> {
        if !std::mem::take(&mut self.held) {
            return Ok(());
        }
        self.queue.add_used(self.chain.head, 0)?;
        self.queue.signal()
    }

    /// Takes one buffer, if none is here. What else is in the queue waits for the next tick.
    fn take(&mut self) -> Result<(), QueueError> {
        // A second look after asking for kicks: the driver may have been faster.
        for _ in 0..2 {
            if self.held {
                break;
            }
            match self.queue.pop(&mut self.chain)? {
                Popped::Empty if self.queue.want_kicks()? => continue,
                Popped::Empty => return Ok(()),
                Popped::Chain => match read(self.queue.memory(), &self.chain) {
                    Some(statistics) => self.polling.report(statistics),
                    None => self.drop_it(),
                },
                Popped::Malformed => self.drop_it(),
            }
            self.held = true;
            self.queue.want_kicks()?;
        }
        Ok(())
    }

    fn drop_it(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    fn failed(&self) -> impl FnOnce(QueueError) -> DeviceError + use<> {
        let index = self.queue.index();
        move |source| DeviceError::Queue { index, source }
    }
}

/// The statistics in `chain`; of one that is there twice the last. `None`: it is no such list.
fn read(memory: &Memory, chain: &Chain) -> Option<BalloonStatistics> {
    let mut readable = GuestIo::new(memory, &chain.readable, Permissions::Read).ok()?;
    let bytes = readable.len();
    let fits = bytes <= MOST_ENTRIES * ENTRY_BYTES && bytes.is_multiple_of(ENTRY_BYTES);
    if !fits || !chain.writable.is_empty() {
        return None;
    }
    let mut raw = [[0; ENTRY_BYTES]; MOST_ENTRIES];
    let entries = &mut raw[..bytes / ENTRY_BYTES];
    if readable.copy_into(entries.as_flattened_mut()) != bytes {
        return None;
    }
    let mut statistics = BalloonStatistics::default();
    for [tag_low, tag_high, value @ ..] in entries {
        let tag = u16::from_le_bytes([*tag_low, *tag_high]);
        if let Some(place) = place(&mut statistics, tag) {
            *place = Some(u64::from_le_bytes(*value));
        }
    }
    Some(statistics)
}

/// Where the value of `tag` goes (linux/virtio_balloon.h); a tag of a later driver's goes nowhere.
fn place(statistics: &mut BalloonStatistics, tag: u16) -> Option<&mut Option<u64>> {
    let it = statistics;
    let places = [
        &mut it.swap_in,
        &mut it.swap_out,
        &mut it.major_faults,
        &mut it.minor_faults,
        &mut it.free_memory,
        &mut it.total_memory,
        &mut it.available_memory,
        &mut it.disk_caches,
        &mut it.hugetlb_allocations,
        &mut it.hugetlb_failures,
        &mut it.oom_kill,
        &mut it.alloc_stall,
        &mut it.async_scan,
        &mut it.direct_scan,
        &mut it.async_reclaim,
        &mut it.direct_reclaim,
    ];
    places.into_iter().nth(tag.into())
}
