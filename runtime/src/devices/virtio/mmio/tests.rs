use super::*;
use crate::devices::virtio::event_loop::{EventLoop, LoopHandle};
use crate::devices::virtio::queue::{QueueSetup, Virtqueue};
use crate::devices::virtio::testkit::drive::{driver_ok, negotiate, read, set_queue, status, until, write};
use crate::devices::virtio::testkit::{HIGH, HIGH_END, LOW_END, Ring, memory};
use crate::devices::virtio::{
    ActivateError, Activation, Busy, DeviceError, DeviceKind, FEATURE_EVENT_IDX, Interrupt, Token, Worker,
    read_from,
};
use crate::state::{Format, LoadError, Section};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;
use virtio_queue::Queue;

const NEEDS_RESET: u32 = 64;
const ECHO: Format = Format { id: "echo", version: 1 };

/// Answers every kick by giving one chain back; may refuse to drain.
struct Echo {
    config: Vec<u8>,
    busy: Arc<AtomicBool>,
    activations: Arc<AtomicU32>,
}

struct EchoWorker {
    events: [(Token, RawFd); 1],
    queue: Virtqueue,
    busy: Arc<AtomicBool>,
}

impl VirtioDevice for Echo {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Block
    }
    fn features(&self) -> u64 {
        FEATURE_EVENT_IDX
    }
    fn queue_sizes(&self) -> &[u16] {
        &[64, 64]
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_from(&self.config, offset, data);
    }
    fn activate(&mut self, mut activation: Activation) -> Result<Box<dyn Worker>, ActivateError> {
        self.activations.fetch_add(1, Ordering::SeqCst);
        let queue = activation.take_queue(0)?;
        let events = [(Token(0), queue.kick().as_raw_fd())];
        Ok(Box::new(EchoWorker { events, queue, busy: self.busy.clone() }))
    }
    fn save(&self) -> Section {
        ECHO.section(&self.config)
    }
    fn load(&mut self, section: &Section) -> Result<(), LoadError> {
        self.config = ECHO.parse(section)?;
        Ok(())
    }
}

impl Worker for EchoWorker {
    fn events(&self) -> &[(Token, RawFd)] {
        &self.events
    }
    fn ready(&mut self, _token: Token) -> Result<(), DeviceError> {
        self.queue.acknowledge_kick();
        let failed = |source| DeviceError::Queue { index: 0, source };
        let mut chain = crate::devices::virtio::queue::Chain::default();
        self.queue.pop(&mut chain).map_err(failed)?;
        self.queue.add_used(chain.head, 0).map_err(failed)?;
        self.queue.signal().map_err(failed)
    }
    fn drain(&mut self, _deadline: Instant) -> Result<Vec<(u16, Queue)>, Busy> {
        if self.busy.load(Ordering::SeqCst) { Err(Busy) } else { Ok(vec![self.queue.take()]) }
    }
}

pub(crate) struct Rig {
    pub(crate) transport: Arc<MmioTransport>,
    pub(crate) line: EventFd,
    pub(crate) ring: Ring,
    pub(crate) busy: Arc<AtomicBool>,
    activations: Arc<AtomicU32>,
    handle: LoopHandle,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.handle.stop();
        self.thread.take().unwrap().join().unwrap();
    }
}

#[allow(clippy::disallowed_methods, reason = "tests have no thread policy")]
fn rig() -> Rig {
    let memory = memory();
    let (event_loop, handle) = EventLoop::new().unwrap();
    let (busy, activations) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let device =
        Echo { config: vec![1, 2, 3, 4, 5, 6], busy: busy.clone(), activations: activations.clone() };
    let line = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let far = Box::new(line.try_clone().unwrap());
    let transport = MmioTransport::new(Box::new(device), memory.clone(), far, handle.clone()).unwrap();
    let thread = Some(std::thread::spawn(|| event_loop.run().unwrap()));
    Rig { transport, line, ring: Ring::new(&memory, 0, 64), busy, activations, handle, thread }
}

pub(crate) fn started() -> Rig {
    let rig = rig();
    negotiate(&rig.transport);
    set_queue(&rig.transport, 0, &rig.ring.setup);
    driver_ok(&rig.transport);
    assert_eq!(status(&rig.transport), 15);
    rig
}

#[test]
fn a_kick_through_the_register_reaches_the_worker_and_interrupts() {
    let mut rig = started();
    rig.ring.offer(&[(0x10_0000, 16, true)]);
    write(&rig.transport, 0x50, 0);
    until(|| rig.line.read().is_ok());
    assert_eq!((read(&rig.transport, 0x60), read(&rig.transport, 8)), (1, 2));
    write(&rig.transport, 0x64, 1);
    assert_eq!(read(&rig.transport, 0x60), 0);
    assert_eq!(rig.ring.take_used(), Some((0, 0)));
}

#[test]
fn an_acknowledgement_by_the_eventfd_is_one_by_the_register() {
    let rig = started();
    let interrupted = |rig: &Rig| {
        rig.transport.interrupt.queue(0);
        rig.line.read().unwrap();
    };
    // One that came before any interrupt acknowledges none.
    rig.transport.acknowledgements().write(1).unwrap();
    interrupted(&rig);
    assert_eq!(read(&rig.transport, 0x60), 1);
    rig.transport.acknowledgements().write(1).unwrap();
    assert_eq!(read(&rig.transport, 0x60), 0);
    // Nor does one that came before the interrupt, and that nobody looked for.
    interrupted(&rig);
    rig.transport.acknowledgements().write(1).unwrap();
    interrupted(&rig);
    assert_eq!(read(&rig.transport, 0x60), 1);
    rig.transport.acknowledgements().write(1).unwrap();
    write(&rig.transport, 0x70, 0);
    until(|| status(&rig.transport) == 0);
    assert_eq!(read(&rig.transport, 0x60), 0);
}

#[test]
fn what_the_driver_has_yet_to_acknowledge_needs_no_second_edge() {
    let rig = started();
    let edge = |rig: &Rig| rig.line.read().is_ok();
    let interrupt = &rig.transport.interrupt;
    interrupt.queue(0);
    assert!(edge(&rig));
    interrupt.queue(1);
    assert!(!edge(&rig), "it looks at all queues when it has acknowledged");
    // The configuration is another thing to look at: it may have read the status already.
    interrupt.config();
    assert!(edge(&rig));
    interrupt.config();
    assert!(!edge(&rig));
    assert_eq!(read(&rig.transport, 0x60), 3);
    rig.transport.acknowledgements().write(1).unwrap();
    interrupt.queue(0);
    assert!(edge(&rig));
    write(&rig.transport, 0x64, 2);
    interrupt.config();
    assert!(edge(&rig));
}

#[test]
fn item_6_unsound_queues_need_a_reset() {
    let sound = Ring::new(&memory(), 0, 64).setup;
    let wrong = [
        QueueSetup { size: 0, ..sound },
        QueueSetup { size: 63, ..sound },
        QueueSetup { size: 128, ..sound },
        QueueSetup { size: 0x1_0000, ..sound },
        QueueSetup { size: u32::MAX, ..sound },
        QueueSetup { descriptors: sound.descriptors + 8, ..sound },
        QueueSetup { available: sound.available + 1, ..sound },
        QueueSetup { used: sound.used + 2, ..sound },
        QueueSetup { descriptors: LOW_END - 16, ..sound },
        QueueSetup { available: LOW_END, ..sound },
        QueueSetup { used: HIGH - 0x100, ..sound },
        QueueSetup { used: HIGH_END - 4, ..sound },
        QueueSetup { used: u64::MAX - 3, ..sound },
        QueueSetup { descriptors: !0xf, ..sound },
        QueueSetup { used: sound.descriptors, ..sound },
        QueueSetup { available: sound.used + 4, ..sound },
        QueueSetup { available: sound.descriptors + 16 * 64 - 2, ..sound },
    ];
    let rig = rig();
    for setup in wrong {
        negotiate(&rig.transport);
        set_queue(&rig.transport, 0, &setup);
        driver_ok(&rig.transport);
        assert_eq!(status(&rig.transport), 15 | NEEDS_RESET, "{setup:?}");
        assert_eq!(read(&rig.transport, 0x60), 2, "a configuration interrupt tells the driver");
    }
    assert_eq!(rig.activations.load(Ordering::SeqCst), 0);
    assert_eq!(rig.transport.faults().failures, wrong.len() as u64);
    negotiate(&rig.transport);
    set_queue(&rig.transport, 0, &sound);
    driver_ok(&rig.transport);
    assert_eq!(status(&rig.transport), 15);
}

#[test]
fn item_6_a_device_without_the_queue_it_needs_needs_a_reset() {
    let rig = rig();
    negotiate(&rig.transport);
    driver_ok(&rig.transport);
    assert_eq!(status(&rig.transport), 15 | NEEDS_RESET);
    assert!(rig.transport.faults().last.unwrap().contains("queue 0"));
}

#[test]
fn item_2_a_corrupt_queue_stops_its_device_only() {
    let mut rig = started();
    rig.ring.set_available(65);
    write(&rig.transport, 0x50, 0);
    until(|| status(&rig.transport) == 15 | NEEDS_RESET);
    until(|| rig.line.read().is_ok());
    assert_eq!(read(&rig.transport, 0x60), 2);
    for _ in 0..1000 {
        write(&rig.transport, 0x50, 0);
    }
    assert_eq!(rig.transport.faults().failures, 1, "a failed worker hears no kicks");
    write(&rig.transport, 0x70, 0);
    until(|| status(&rig.transport) == 0);
    rig.ring = Ring::new(&rig.ring.memory, 1, 64);
    negotiate(&rig.transport);
    set_queue(&rig.transport, 0, &rig.ring.setup);
    driver_ok(&rig.transport);
    rig.ring.offer(&[(0x10_0000, 16, true)]);
    write(&rig.transport, 0x50, 0);
    until(|| rig.ring.take_used().is_some());
}

#[test]
fn item_7_a_reset_with_requests_in_flight_is_over_when_they_are() {
    let rig = started();
    rig.busy.store(true, Ordering::SeqCst);
    let start = Instant::now();
    write(&rig.transport, 0x70, 0);
    assert!(start.elapsed().as_millis() < 1000, "the vCPU did not wait");
    for _ in 0..100 {
        assert_eq!(status(&rig.transport), 15);
        write(&rig.transport, 0x70, 0);
        write(&rig.transport, 0x70, 1);
        set_queue(&rig.transport, 0, &QueueSetup::default());
        driver_ok(&rig.transport);
    }
    assert_eq!(rig.activations.load(Ordering::SeqCst), 1, "no second worker while the first lives");
    rig.busy.store(false, Ordering::SeqCst);
    until(|| status(&rig.transport) == 0);
    assert_eq!(read(&rig.transport, 0x60), 0);
}

#[test]
fn item_7_a_storm_of_resets_ends() {
    let mut rig = rig();
    for round in 0..1000 {
        negotiate(&rig.transport);
        set_queue(&rig.transport, 0, &rig.ring.setup);
        driver_ok(&rig.transport);
        assert_eq!(rig.activations.load(Ordering::SeqCst), round + 1);
        write(&rig.transport, 0x70, 0);
        until(|| status(&rig.transport) == 0);
    }
    negotiate(&rig.transport);
    set_queue(&rig.transport, 0, &rig.ring.setup);
    driver_ok(&rig.transport);
    rig.ring.offer(&[(0x10_0000, 16, true)]);
    write(&rig.transport, 0x50, 0);
    until(|| rig.ring.take_used().is_some());
}

#[test]
fn item_15_wrong_widths_and_offsets_are_harmless() {
    let rig = started();
    for len in [0, 1, 2, 3, 5, 8, 16] {
        for offset in [0, 1, 2, 3, 0x50, 0x51, 0x70, 0x72, 0xfc, 0xff] {
            let mut data = vec![0xaa; len];
            rig.transport.read(offset, &mut data);
            assert!(data.iter().all(|&byte| byte == 0), "{len} at {offset:#x}");
            rig.transport.write(offset, &data);
        }
    }
    assert_eq!(status(&rig.transport), 15);
    for offset in [0x71, 0x6f, 0xfff, 0x1000, u64::MAX, u64::MAX - 3] {
        rig.transport.write(offset, &[0; 4]);
        rig.transport.read(offset, &mut [0; 4]);
    }
    assert_eq!(status(&rig.transport), 15);
}

#[test]
fn the_configuration_reads_as_zero_outside() {
    let rig = rig();
    let mut data = [9; 8];
    rig.transport.read(0x100, &mut data);
    assert_eq!(data, [1, 2, 3, 4, 5, 6, 0, 0]);
    rig.transport.read(0x105, &mut data[..2]);
    assert_eq!(data[..2], [6, 0]);
    rig.transport.read(0xfff, &mut data);
    assert_eq!(data, [0; 8]);
    rig.transport.write(0x100, &[7; 8]);
    rig.transport.read(0x100, &mut data);
    assert_eq!(data, [1, 2, 3, 4, 5, 6, 0, 0]);
}

#[test]
fn what_the_guest_does_with_the_interrupt_status_stays_there() {
    let rig = started();
    write(&rig.transport, 0x60, 3);
    write(&rig.transport, 0x64, u32::MAX);
    assert_eq!(read(&rig.transport, 0x60), 0);
    assert_eq!(read(&rig.transport, 0x64), 0);
}

#[test]
fn a_configuration_that_changes_says_so() {
    let look = |rig: &Rig| (read(&rig.transport, 0xfc), read(&rig.transport, 0x60));
    let idle = rig();
    assert_eq!(look(&idle), (0, 0));
    let mut changed = false;
    idle.transport.change_config(|| changed = true);
    assert!(changed);
    assert_eq!(look(&idle), (1, 0), "without a driver there is nobody to tell");
    let live = started();
    live.transport.change_config(|| {});
    assert_eq!(look(&live), (1, 2));
}

#[test]
fn no_kick_outlives_a_reset() {
    let mut rig = started();
    write(&rig.transport, 0x50, 0);
    write(&rig.transport, 0x70, 0);
    until(|| status(&rig.transport) == 0);
    negotiate(&rig.transport);
    rig.ring = Ring::new(&rig.ring.memory, 1, 64);
    set_queue(&rig.transport, 0, &rig.ring.setup);
    assert!(rig.transport.queue_notifiers()[0].read().is_err(), "the kick of a driver that is gone");
    driver_ok(&rig.transport);
    rig.ring.offer(&[(0x10_0000, 16, true)]);
    write(&rig.transport, 0x50, 0);
    until(|| rig.ring.take_used().is_some());
}
