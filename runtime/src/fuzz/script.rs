//! A driver that does what the input says to a device's queues.
//!
//! Owns the driver's side and the order of things. Refuses, by a panic, what [`super::guard`] refuses, a worker that does
//! not come to rest once its driver has, and a drain that does not give every queue back. Invariant: the driver stands
//! still while the worker works, so what a copy of memory shows is what the worker saw; what the worker has the host do
//! meanwhile is waited for.

use super::guard::Guard;
use super::input::{HIGH, Input, REGION};
use crate::devices::virtio::testkit::{Bench, RING_STRIDE, RINGS, Ring, image};
use crate::devices::virtio::{Busy, DeviceError, Memory, VirtioDevice};
use std::time::{Duration, Instant};
use virtio_queue::Queue;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// How long what is in flight may be.
const FLIGHT: Duration = Duration::from_secs(20);
/// Rounds of events within which a worker whose driver and host stand still has nothing left to do.
const PATIENCE: u32 = 5_000;

/// What an operation is; its operands follow in the input. See [`Driver::step`].
pub(super) mod op {
    pub(crate) const DESCRIBE: u8 = 0;
    pub(crate) const HEAD: u8 = 1;
    pub(crate) const INDEX: u8 = 2;
    pub(crate) const CHAIN: u8 = 3;
    pub(crate) const WRITE: u8 = 4;
    pub(crate) const KICK: u8 = 5;
    pub(crate) const ROUND: u8 = 6;
    pub(crate) const TABLE: u8 = 7;
    pub(crate) const HOST: u8 = 8;
    pub(crate) const RESTART: u8 = 9;
    pub(crate) const SUPPRESS: u8 = 10;
    pub(crate) const PAUSE: u8 = SUPPRESS + 1;
    pub(super) const COUNT: u8 = PAUSE + 1;
}

/// What is on the device's other side.
pub(super) trait Host {
    /// Does what the input says there.
    fn act(&mut self, input: &mut Input<'_>);
    /// Panics if the device did there what it must not.
    fn check(&mut self) {}
    /// The device was reset.
    fn restarted(&mut self) {}
}

/// A device without another side.
impl Host for () {
    fn act(&mut self, _: &mut Input<'_>) {}
}

/// A device, and what may be expected of it.
pub(super) struct Subject<'a> {
    pub(super) device: &'a mut dyn VirtioDevice,
    pub(super) features: u64,
    pub(super) host: &'a mut dyn Host,
    /// Most chains that it gives back for one round of events, of a queue.
    pub(super) most: u16,
    /// It gives pages back to the host.
    pub(super) discards: bool,
    /// What it has taken may be in flight when a round is over.
    pub(super) flies: bool,
}

/// Drives `subject` by `input` to its end; says how many chains it gave back while it was judged.
pub(super) fn run(subject: Subject<'_>, mut input: Input<'_>) -> u32 {
    let mut driver = Driver::new(subject);
    while !input.is_empty() {
        driver.step(&mut input);
    }
    driver.finish()
}

pub(super) fn memory() -> Memory {
    let bytes = usize::try_from(REGION).unwrap();
    let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), bytes), (GuestAddress(HIGH), bytes)]).unwrap();
    Memory::new(&ram, &[image()]).unwrap()
}

struct Driver<'a> {
    subject: Subject<'a>,
    memory: Memory,
    bench: Bench,
    guard: Guard,
    /// The worker has not failed.
    alive: bool,
    /// The queues of one that has, if they were taken back already.
    taken: Option<Vec<(u16, Queue)>>,
}

impl<'a> Driver<'a> {
    fn new(subject: Subject<'a>) -> Self {
        let memory = memory();
        let bench = Bench::start_in(memory.clone(), subject.device, subject.features);
        let guard = Guard::new(bench.rings.iter().map(|ring| ring.setup).collect(), subject.discards);
        Self { subject, memory, bench, guard, alive: true, taken: None }
    }

    /// One operation.
    fn step(&mut self, input: &mut Input<'_>) {
        let operation = input.u8() % op::COUNT;
        match operation {
            op::KICK => {
                let queue = input.below(self.bench.rings.len());
                self.bench.kick(queue);
            }
            op::ROUND => self.round(),
            op::WRITE => {
                let (addr, count) = (input.place(), input.u16());
                self.write(addr, input.bytes(count.into()));
            }
            op::TABLE => {
                let (table, index) = (input.place(), input.u8());
                let bytes = descriptor(input);
                self.write(table.wrapping_add(16 * u64::from(index)), &bytes);
            }
            op::HOST => self.subject.host.act(input),
            op::RESTART => self.restart(),
            op::PAUSE => self.pause(),
            _ => self.offer(operation, input),
        }
    }

    /// An operation on a ring.
    fn offer(&mut self, operation: u8, input: &mut Input<'_>) {
        let queue = input.below(self.bench.rings.len());
        let ring = &mut self.bench.rings[queue];
        match operation {
            op::DESCRIBE => {
                let index = input.u16();
                let bytes = descriptor(input);
                let at = ring.setup.descriptors + 16 * u64::from(index);
                self.write(at, &bytes);
            }
            op::HEAD => ring.offer_head(input.u16()),
            op::INDEX => ring.set_available(input.u16()),
            op::CHAIN => {
                let count = 1 + input.below(32);
                let buffers: Vec<_> =
                    (0..count).map(|_| (input.place(), input.u32(), input.u8() & 1 != 0)).collect();
                ring.offer(&buffers);
            }
            // How far the driver wants to be left alone: the flag, or with EVENT_IDX the index.
            _ => {
                let (flags, index) = (input.u16(), input.u16());
                ring.set_used_event(index);
                let available = ring.setup.available;
                self.write(available, &flags.to_le_bytes());
            }
        }
    }

    fn write(&mut self, addr: u64, bytes: &[u8]) {
        // What does not lie in memory, nobody writes.
        if self.memory.write_slice(bytes, GuestAddress(addr)).is_ok() {
            self.guard.driver_wrote(addr, bytes.len() as u64);
        }
    }

    fn round(&mut self) {
        if !self.alive {
            return;
        }
        self.guard.before(&self.memory);
        self.alive = self.turn().is_ok();
        self.guard.after(&self.memory, self.subject.most);
        self.subject.host.check();
    }

    /// One round of events, to the end of what it has put in flight. Returns whether there is more to come: the number of events,
    /// or, of a worker that is started anew and so hears old kicks again, whether it has answered anything.
    fn turn(&mut self) -> Result<usize, DeviceError> {
        let used = self.used();
        let done = self.bench.round();
        if !self.subject.flies {
            return done;
        }
        let queues = self.land();
        if done.is_err() {
            self.taken = Some(queues);
            return done;
        }
        self.bench.go_on_with(self.subject.device, queues);
        let answered = self.used() != used;
        if answered {
            // As after a pause: what the device had no room for waits without a kick.
            (0..self.bench.rings.len()).for_each(|queue| self.bench.kick(queue));
        }
        Ok(answered.into())
    }

    /// Waits for what is in flight: memory that somebody else may write to cannot be judged. Takes the queues back.
    fn land(&mut self) -> Vec<(u16, Queue)> {
        let deadline = Instant::now() + FLIGHT;
        loop {
            match self.bench.worker.drain(deadline) {
                Ok(queues) => return queues,
                Err(Busy) => assert!(Instant::now() < deadline, "what is in flight never ends"),
            }
            std::thread::yield_now();
        }
    }

    /// How many chains each queue has given back, as its ring says.
    fn used(&self) -> Vec<u16> {
        let index = |ring: &Ring| self.memory.read_obj(GuestAddress(ring.setup.used + 2)).unwrap();
        self.bench.rings.iter().map(index).collect()
    }

    /// Takes the queues back and starts the device anew, with rings of zeros.
    fn restart(&mut self) {
        self.drain();
        let rings = vec![0; usize::try_from(RING_STRIDE).unwrap() * self.bench.rings.len()];
        self.memory.write_slice(&rings, GuestAddress(RINGS)).unwrap();
        self.subject.device.reset();
        self.subject.host.restarted();
        self.bench = Bench::start_in(self.memory.clone(), self.subject.device, self.subject.features);
        self.guard.restart();
        self.alive = true;
    }

    /// Takes the queues back and goes on with them. What the host has is waited for; if it says nothing, until the driver
    /// resets the device.
    fn pause(&mut self) {
        if !self.alive {
            return;
        }
        let never = Instant::now() + Duration::from_secs(3600);
        let drained = self.bench.worker.drain(never).or_else(|_busy| {
            self.round();
            self.bench.worker.drain(never)
        });
        match drained {
            Ok(queues) => {
                self.bench.go_on_with(self.subject.device, queues);
                (0..self.bench.rings.len()).for_each(|queue| self.bench.kick(queue));
            }
            Err(Busy) => self.restart(),
        }
    }

    fn drain(&mut self) {
        let queues = self.taken.take().or_else(|| self.bench.worker.drain(Instant::now()).ok());
        let Some(queues) = queues else { panic!("nothing is in flight") };
        let mut indexes: Vec<usize> = queues.iter().map(|(index, _)| usize::from(*index)).collect();
        indexes.sort_unstable();
        assert!(indexes.into_iter().eq(0..self.bench.rings.len()), "a drain gives every queue back, once");
    }

    /// Lets the device finish, takes the queues back, and starts it once more.
    fn finish(mut self) -> u32 {
        for queue in 0..self.bench.rings.len() {
            self.bench.kick(queue);
        }
        self.round();
        let mut rounds = 0;
        while self.alive {
            match self.turn() {
                Ok(0) => break,
                done => self.alive = done.is_ok(),
            }
            rounds += 1;
            assert!(rounds < PATIENCE, "the worker does not come to rest");
        }
        self.subject.host.check();
        self.restart();
        self.drain();
        self.guard.used()
    }
}

/// A descriptor as it lies in a table.
fn descriptor(input: &mut Input<'_>) -> Vec<u8> {
    let mut bytes = input.place().to_le_bytes().to_vec();
    bytes.extend(input.u32().to_le_bytes());
    bytes.extend(input.u16().to_le_bytes());
    bytes.extend(input.u16().to_le_bytes());
    bytes
}
