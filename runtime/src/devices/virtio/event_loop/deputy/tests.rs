use crate::devices::virtio::event_loop::tests::Diary;
use crate::devices::virtio::event_loop::{EventLoop, LoopHandle, Owner};
use crate::devices::virtio::testkit::drive::until;
use crate::devices::virtio::{Busy, DeviceError, Token, Worker};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use virtio_queue::Queue;
use vmm_sys_util::eventfd::EventFd;

/// Waits, as for a disk, until the test lets it go on; fails if the test hangs up.
struct Patient {
    events: [(Token, RawFd); 1],
    kick: EventFd,
    entered: Arc<AtomicUsize>,
    disk: Receiver<()>,
    gone: Arc<AtomicUsize>,
}

impl Worker for Patient {
    fn events(&self) -> &[(Token, RawFd)] {
        &self.events
    }
    fn ready(&mut self, _token: Token) -> Result<(), DeviceError> {
        let _ = self.kick.read();
        self.entered.fetch_add(1, Ordering::SeqCst);
        self.disk
            .recv()
            .map_err(|_| DeviceError::Host { what: "the disk", source: io::ErrorKind::BrokenPipe.into() })
    }
    fn drain(&mut self, _deadline: Instant) -> Result<Vec<(u16, Queue)>, Busy> {
        Ok(vec![(0, Queue::default())])
    }
}

impl Drop for Patient {
    fn drop(&mut self) {
        self.gone.fetch_add(1, Ordering::SeqCst);
    }
}

struct Rig {
    watch: LoopHandle,
    slow: LoopHandle,
    handle: LoopHandle,
    threads: Vec<JoinHandle<()>>,
    entered: Arc<AtomicUsize>,
    gone: Arc<AtomicUsize>,
}

impl Rig {
    #[allow(clippy::disallowed_methods, reason = "tests have no thread policy")]
    fn new(patience: Duration) -> Self {
        let (mut event_loop, watch) = EventLoop::new().unwrap();
        event_loop.patience = patience;
        let (other, slow) = EventLoop::new().unwrap();
        let handle = watch.watching(slow.clone()).unwrap();
        let threads = [event_loop, other].map(|it| std::thread::spawn(|| it.run().unwrap())).into();
        let (entered, gone) = (Arc::default(), Arc::default());
        Self { watch, slow, handle, threads, entered, gone }
    }

    fn patient(&self) -> (Box<Patient>, EventFd, Sender<()>) {
        let kick = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let (driver, (disk, waiting)) = (kick.try_clone().unwrap(), channel());
        let events = [(Token(0), kick.as_raw_fd())];
        let (entered, gone) = (Arc::clone(&self.entered), Arc::clone(&self.gone));
        (Box::new(Patient { events, kick, entered, disk: waiting, gone }), driver, disk)
    }

    fn entered(&self) -> usize {
        self.entered.load(Ordering::SeqCst)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.watch.stop();
        self.slow.stop();
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
    }
}

const LONG: Duration = Duration::from_secs(60);

#[test]
fn item_32_a_hung_disk_does_not_hold_the_loop_that_watches() {
    let rig = Rig::new(LONG);
    let (hung, kick, disk) = rig.patient();
    rig.handle.run(hung, Arc::new(Diary::default()));
    kick.write(1).unwrap();
    until(|| rig.entered() == 1);
    let (other, bell, answers) = rig.patient();
    rig.watch.run(other, Arc::new(Diary::default()));
    for round in 2..100 {
        answers.send(()).unwrap();
        bell.write(1).unwrap();
        until(|| rig.entered() == round);
    }
    disk.send(()).unwrap();
}

#[test]
fn item_7_a_reset_during_a_hung_request_waits_for_it_and_says_so() {
    let rig = Rig::new(Duration::from_millis(50));
    let diary = Arc::new(Diary::default());
    let (hung, kick, disk) = rig.patient();
    let key = rig.handle.run(hung, Arc::clone(&diary) as Arc<dyn Owner>);
    kick.write(1).unwrap();
    until(|| rig.entered() == 1);
    rig.handle.drain(key);
    until(|| diary.failures.lock().unwrap().iter().any(|text| text.contains("requests in flight")));
    assert!(diary.drained.lock().unwrap().is_empty());
    assert_eq!(rig.gone.load(Ordering::SeqCst), 0, "the buffers of a request in flight stay");
    disk.send(()).unwrap();
    until(|| *diary.drained.lock().unwrap() == [1]);
    until(|| rig.gone.load(Ordering::SeqCst) == 1);
}

#[test]
fn a_failure_over_there_is_heard_here_and_its_worker_can_be_drained() {
    let rig = Rig::new(LONG);
    let diary = Arc::new(Diary::default());
    let (bad, kick, disk) = rig.patient();
    let key = rig.handle.run(bad, Arc::clone(&diary) as Arc<dyn Owner>);
    drop(disk);
    kick.write(1).unwrap();
    until(|| diary.failures.lock().unwrap().len() == 1);
    assert!(diary.failures.lock().unwrap()[0].starts_with("the disk: "));
    rig.handle.drain(key);
    until(|| *diary.drained.lock().unwrap() == [1]);
}

#[test]
fn item_7_a_storm_of_workers_through_one_handle_ends() {
    /// Starts the next worker when the last is gone, as a transport does.
    struct Relay(Mutex<usize>);
    impl Owner for Relay {
        fn failed(&self, error: DeviceError) {
            panic!("{error}");
        }
        fn drained(&self, queues: Vec<(u16, Queue)>) {
            assert_eq!(queues.len(), 1);
            *self.0.lock().unwrap() += 1;
        }
    }
    let rig = Rig::new(LONG);
    let relay = Arc::new(Relay(Mutex::new(0)));
    for round in 1..=500 {
        let (worker, kick, disk) = rig.patient();
        let key = rig.handle.run(worker, Arc::clone(&relay) as Arc<dyn Owner>);
        disk.send(()).unwrap();
        disk.send(()).unwrap();
        kick.write(1).unwrap();
        rig.handle.drain(key);
        until(|| *relay.0.lock().unwrap() == round);
    }
    until(|| rig.gone.load(Ordering::SeqCst) == 500);
}
