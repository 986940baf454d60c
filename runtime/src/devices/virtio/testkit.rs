//! A driver in the same process: builds rings in guest memory and drives devices without KVM.
//!
//! Owns the driver's side of everything, well-behaved by default and as hostile as a test wants: any descriptor, any
//! index, any register. [`Bench`] runs a worker in the test's own thread; [`drive`] talks to a transport's registers.

pub(crate) mod pci;
#[cfg(test)]
pub(crate) mod rig;

use super::mmio::MmioTransport;
use super::queue::{QueueSetup, Virtqueue};
use super::{Activation, DeviceError, Interrupt, Memory, Token, VirtioDevice, Worker};
use crate::devices::BusDevice;
use crate::memory::Image;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

/// Guest memory: [0, 8 MiB) and [16 MiB, 24 MiB), a hole between.
pub(crate) const LOW_END: u64 = 8 << 20;
pub(crate) const HIGH: u64 = 16 << 20;
pub(crate) const HIGH_END: u64 = 24 << 20;
/// Then an image of two pages, each byte 0xda, which nobody may write to; what follows it up to 2 MiB is zero.
pub(crate) const IMAGE: u64 = 1 << 30;
pub(crate) const IMAGE_BYTES: u64 = 8192;
/// Where rings are put; buffers go above 1 MiB.
pub(crate) const RINGS: u64 = 0x1_0000;
pub(crate) const RING_STRIDE: u64 = 0x4000;

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

pub(crate) fn memory() -> Memory {
    let half = usize::try_from(LOW_END).unwrap();
    let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), half), (GuestAddress(HIGH), half)]).unwrap();
    Memory::new(&ram, &[image()]).unwrap()
}

/// The image alone; the same each time: it is never unmapped, and nobody can change it.
pub(crate) fn image() -> Image {
    static IMAGE_OF_ALL: LazyLock<Image> = LazyLock::new(map_image);
    IMAGE_OF_ALL.clone()
}

fn map_image() -> Image {
    let file = rustix::fs::memfd_create("image", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let bytes = usize::try_from(IMAGE_BYTES).unwrap();
    assert_eq!(rustix::io::write(&file, &vec![0xda; bytes]).unwrap(), bytes);
    Image::map(&file, "test", IMAGE_BYTES, GuestAddress(IMAGE)).unwrap()
}

/// The driver's side of a queue.
pub(crate) struct Ring {
    pub(crate) memory: Memory,
    pub(crate) setup: QueueSetup,
    size: u16,
    next_descriptor: u16,
    pub(crate) available: u16,
    seen: u16,
}

impl Ring {
    pub(crate) fn new(memory: &Memory, number: u16, size: u16) -> Self {
        let base = RINGS + RING_STRIDE * u64::from(number);
        let setup = QueueSetup {
            size: size.into(),
            ready: true,
            descriptors: base,
            available: base + 0x2000,
            used: base + 0x3000,
        };
        Self { memory: memory.clone(), setup, size, next_descriptor: 0, available: 0, seen: 0 }
    }

    /// The same ring in a copy of the memory.
    #[cfg(test)]
    pub(crate) fn moved(self, memory: &Memory) -> Self {
        Self { memory: memory.clone(), ..self }
    }

    /// Writes descriptor `index` of the table at `table`.
    pub(crate) fn describe_at(&self, table: u64, index: u16, (addr, len, flags, next): (u64, u32, u16, u16)) {
        let at = table + 16 * u64::from(index);
        self.memory.write_obj(addr, GuestAddress(at)).unwrap();
        self.memory.write_obj(len, GuestAddress(at + 8)).unwrap();
        self.memory.write_obj(flags, GuestAddress(at + 12)).unwrap();
        self.memory.write_obj(next, GuestAddress(at + 14)).unwrap();
    }

    pub(crate) fn describe(&self, index: u16, descriptor: (u64, u32, u16, u16)) {
        self.describe_at(self.setup.descriptors, index, descriptor);
    }

    /// Makes `head` available.
    pub(crate) fn offer_head(&mut self, head: u16) {
        let slot = u64::from(self.available % self.size);
        self.memory.write_obj(head, GuestAddress(self.setup.available + 4 + 2 * slot)).unwrap();
        self.set_available(self.available.wrapping_add(1));
    }

    pub(crate) fn set_available(&mut self, index: u16) {
        self.available = index;
        self.memory.write_obj(index, GuestAddress(self.setup.available + 2)).unwrap();
    }

    /// Makes a chain of `(address, length, device writes)` available; returns its head.
    pub(crate) fn offer(&mut self, buffers: &[(u64, u32, bool)]) -> u16 {
        let head = self.next_descriptor % self.size;
        for (place, &(addr, len, writable)) in buffers.iter().enumerate() {
            let index = self.next_descriptor % self.size;
            self.next_descriptor = (index + 1) % self.size;
            let more = if place + 1 < buffers.len() { NEXT } else { 0 };
            let write = if writable { WRITE } else { 0 };
            self.describe(index, (addr, len, more | write, self.next_descriptor));
        }
        self.offer_head(head);
        head
    }

    /// The next chain that the device gave back: head and length.
    pub(crate) fn take_used(&mut self) -> Option<(u32, u32)> {
        let index: u16 = self.memory.read_obj(GuestAddress(self.setup.used + 2)).unwrap();
        if index == self.seen {
            return None;
        }
        let at = self.setup.used + 4 + 8 * u64::from(self.seen % self.size);
        self.seen = self.seen.wrapping_add(1);
        let id = self.memory.read_obj(GuestAddress(at)).unwrap();
        let len = self.memory.read_obj(GuestAddress(at + 4)).unwrap();
        Some((id, len))
    }

    pub(crate) fn take_all_used(&mut self) -> Vec<(u32, u32)> {
        std::iter::from_fn(|| self.take_used()).collect()
    }

    /// How far the device may use buffers before it has to interrupt (`EVENT_IDX`).
    pub(crate) fn set_used_event(&self, index: u16) {
        let at = self.setup.available + 4 + 2 * u64::from(self.size);
        self.memory.write_obj(index, GuestAddress(at)).unwrap();
    }
}

#[derive(Debug, Default)]
pub(crate) struct Bell {
    pub(crate) queues: AtomicU32,
    pub(crate) configs: AtomicU32,
}

impl Interrupt for Bell {
    fn queue(&self, _index: u16) {
        self.queues.fetch_add(1, Ordering::SeqCst);
    }

    fn config(&self) {
        self.configs.fetch_add(1, Ordering::SeqCst);
    }
}

pub(crate) fn notifiers(count: usize) -> Arc<[EventFd]> {
    (0..count).map(|_| EventFd::new(libc::EFD_NONBLOCK).unwrap()).collect()
}

/// A worker with its driver, in one thread.
pub(crate) struct Bench {
    pub(crate) memory: Memory,
    pub(crate) rings: Vec<Ring>,
    pub(crate) worker: Box<dyn Worker>,
    pub(crate) bell: Arc<Bell>,
    pub(crate) dropped: Arc<AtomicU64>,
    notifiers: Arc<[EventFd]>,
    epoll: Epoll,
    armed: Vec<Token>,
    features: u64,
}

impl Bench {
    /// Activates `device` with all its queues and all its features.
    pub(crate) fn start(device: &mut dyn VirtioDevice) -> Self {
        let features = device.features();
        Self::start_with(device, features)
    }

    pub(crate) fn start_with(device: &mut dyn VirtioDevice, features: u64) -> Self {
        Self::start_in(memory(), device, features)
    }

    pub(crate) fn start_in(memory: Memory, device: &mut dyn VirtioDevice, features: u64) -> Self {
        let sizes = device.queue_sizes().to_vec();
        let notifiers = notifiers(sizes.len());
        let (bell, dropped) = (Arc::new(Bell::default()), Arc::default());
        let event_idx = features & super::FEATURE_EVENT_IDX != 0;
        let mut rings = Vec::new();
        let mut queues = Vec::new();
        for (index, &size) in (0..).zip(&sizes) {
            let ring = Ring::new(&memory, index, size);
            let queue = ring.setup.check(size, event_idx, &memory).unwrap();
            queues.push(Some(Virtqueue::new(index, queue, memory.clone(), notifiers.clone(), bell.clone())));
            rings.push(ring);
        }
        let activation = Activation {
            features,
            memory: memory.clone(),
            interrupt: bell.clone(),
            queues,
            dropped: Arc::clone(&dropped),
        };
        let worker = device.activate(activation).unwrap();
        let (epoll, armed) = (Epoll::new().unwrap(), Vec::new());
        let mut bench = Self { memory, rings, worker, bell, dropped, notifiers, epoll, armed, features };
        bench.arm();
        bench
    }

    /// Takes the queues back, as a pause does, and lets a new worker of the device go on with them.
    pub(crate) fn pause_and_resume(&mut self, device: &mut dyn VirtioDevice) {
        self.pause_for(device, std::time::Duration::ZERO);
    }

    /// The same, after some time.
    pub(crate) fn pause_for(&mut self, device: &mut dyn VirtioDevice, time: std::time::Duration) {
        let drained = self.worker.drain(std::time::Instant::now()).unwrap();
        std::thread::sleep(time);
        self.go_on_with(device, drained);
    }

    /// Lets a new worker of the device go on with the queues that the last one gave back.
    pub(crate) fn go_on_with(
        &mut self,
        device: &mut dyn VirtioDevice,
        drained: Vec<(u16, virtio_queue::Queue)>,
    ) {
        let queue = |(index, queue): (u16, virtio_queue::Queue)| {
            assert_eq!(queue.next_avail(), queue.next_used(), "nothing of queue {index} is in flight");
            let (notifiers, bell) = (self.notifiers.clone(), self.bell.clone());
            Some(Virtqueue::new(index, queue, self.memory.clone(), notifiers, bell))
        };
        let activation = Activation {
            features: self.features,
            memory: self.memory.clone(),
            interrupt: self.bell.clone(),
            queues: drained.into_iter().map(queue).collect(),
            dropped: Arc::clone(&self.dropped),
        };
        self.worker = device.activate(activation).unwrap();
        (self.epoll, self.armed) = (Epoll::new().unwrap(), Vec::new());
        self.arm();
    }

    /// Watches what the worker wants, as the event loop does.
    fn arm(&mut self) {
        for &(token, fd) in self.worker.events() {
            let (wanted, armed) = (self.worker.wants(token), self.armed.contains(&token));
            let (operation, events) = match wanted {
                true if self.worker.by_edge(token) => {
                    (ControlOperation::Add, EventSet::IN | EventSet::EDGE_TRIGGERED)
                }
                true => (ControlOperation::Add, EventSet::IN),
                false => (ControlOperation::Delete, EventSet::empty()),
            };
            if wanted != armed {
                self.epoll.ctl(operation, fd, EpollEvent::new(events, token.0.into())).unwrap();
                self.armed.retain(|armed| *armed != token);
                self.armed.extend(wanted.then_some(token));
            }
        }
    }

    pub(crate) fn kick(&self, queue: usize) {
        self.notifiers[queue].write(1).unwrap();
    }

    /// Delivers one round of events; returns how many there were.
    pub(crate) fn round(&mut self) -> Result<usize, DeviceError> {
        let mut events = [EpollEvent::default(); 8];
        let count = self.epoll.wait(0, &mut events).unwrap();
        for event in &events[..count] {
            let token = Token(u32::try_from(event.data()).unwrap());
            if self.armed.contains(&token) {
                self.worker.ready(token)?;
                self.arm();
            }
        }
        Ok(count)
    }

    /// Delivers events until none is left; a worker that keeps itself busy for ever fails the test.
    pub(crate) fn settle(&mut self) {
        for _ in 0..10_000 {
            if self.round().unwrap() == 0 {
                return;
            }
        }
        panic!("the worker never comes to rest");
    }

    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::SeqCst)
    }

    pub(crate) fn write(&self, addr: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(addr)).unwrap();
    }

    pub(crate) fn read(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(addr)).unwrap();
        bytes
    }
}

/// So that a share of a transport is driven as the transport is.
impl<T: BusDevice + ?Sized> BusDevice for Arc<T> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        T::read(self, offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        T::write(self, offset, data);
    }
}

/// The driver at a transport's registers.
pub(crate) mod drive {
    use super::*;

    pub(crate) fn read(transport: &dyn BusDevice, offset: u64) -> u32 {
        let mut data = [0; 4];
        transport.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    pub(crate) fn write(transport: &dyn BusDevice, offset: u64, value: u32) {
        transport.write(offset, &value.to_le_bytes());
    }

    pub(crate) fn status(transport: &dyn BusDevice) -> u32 {
        read(transport, 0x70)
    }

    /// Acknowledges all features that are offered, and `FEATURES_OK`.
    pub(crate) fn negotiate(transport: &dyn BusDevice) {
        write(transport, 0x70, 0);
        write(transport, 0x70, 1);
        write(transport, 0x70, 3);
        for half in 0..2 {
            write(transport, 0x14, half);
            write(transport, 0x24, half);
            write(transport, 0x20, read(transport, 0x10));
        }
        write(transport, 0x70, 11);
        assert_eq!(status(transport), 11);
    }

    pub(crate) fn set_queue(transport: &dyn BusDevice, index: u32, setup: &QueueSetup) {
        write(transport, 0x30, index);
        write(transport, 0x38, setup.size);
        for (register, addr) in [(0x80, setup.descriptors), (0x90, setup.available), (0xa0, setup.used)] {
            write(transport, register, u32::try_from(addr & 0xffff_ffff).unwrap());
            write(transport, register + 4, u32::try_from(addr >> 32).unwrap());
        }
        write(transport, 0x44, setup.ready.into());
    }

    pub(crate) fn driver_ok(transport: &dyn BusDevice) {
        write(transport, 0x70, 15);
    }

    /// Waits until `condition` holds; another thread brings it about.
    pub(crate) fn until(mut condition: impl FnMut() -> bool) {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while !condition() {
            assert!(std::time::Instant::now() < deadline, "it did not happen within 10 s");
            std::thread::yield_now();
        }
    }
}
