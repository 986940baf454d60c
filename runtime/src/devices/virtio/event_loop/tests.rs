use super::*;
use crate::devices::virtio::testkit::drive::until;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;

struct Clerk {
    events: Vec<(Token, RawFd)>,
    bell: EventFd,
    served: Arc<AtomicUsize>,
    /// Leaves its descriptor readable: there is always more to do.
    insatiable: bool,
    fails: bool,
    refusals: usize,
    /// Events of the bell after which it is deaf to it.
    patience: usize,
    comfort: Option<EventFd>,
}

/// Gives a deaf clerk new patience.
const COMFORT: Token = Token(9);

impl Worker for Clerk {
    fn events(&self) -> &[(Token, RawFd)] {
        &self.events
    }
    fn wants(&self, token: Token) -> bool {
        token == COMFORT || self.patience > 0
    }
    fn ready(&mut self, token: Token) -> Result<(), DeviceError> {
        if token == COMFORT {
            self.comfort.as_ref().unwrap().read().unwrap();
            self.patience += 1;
            return Ok(());
        }
        assert_eq!(token, Token(7));
        self.patience -= 1;
        if !self.insatiable {
            self.bell.read().unwrap();
        }
        self.served.fetch_add(1, Ordering::SeqCst);
        if self.fails {
            return Err(DeviceError::Host { what: "the disk", source: io::ErrorKind::Other.into() });
        }
        Ok(())
    }
    fn drain(&mut self, _deadline: Instant) -> Result<Vec<(u16, Queue)>, Busy> {
        match self.refusals.checked_sub(1) {
            Some(left) => {
                self.refusals = left;
                Err(Busy)
            }
            None => Ok(vec![(3, Queue::default())]),
        }
    }
}

#[derive(Default)]
pub(super) struct Diary {
    pub(super) failures: Mutex<Vec<String>>,
    pub(super) drained: Mutex<Vec<usize>>,
}

impl Owner for Diary {
    fn failed(&self, error: DeviceError) {
        self.failures.lock().unwrap().push(error.to_string());
    }
    fn drained(&self, queues: Vec<(u16, Queue)>) {
        self.drained.lock().unwrap().push(queues.len());
    }
}

fn clerk() -> (Clerk, EventFd, Arc<AtomicUsize>) {
    let bell = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let (other, served) = (bell.try_clone().unwrap(), Arc::new(AtomicUsize::new(0)));
    let events = vec![(Token(7), bell.as_raw_fd())];
    (
        Clerk {
            events,
            bell,
            served: served.clone(),
            insatiable: false,
            fails: false,
            refusals: 0,
            patience: usize::MAX,
            comfort: None,
        },
        other,
        served,
    )
}

#[allow(clippy::disallowed_methods, reason = "tests have no thread policy")]
fn with_loop(test: impl FnOnce(&LoopHandle)) {
    let (event_loop, handle) = EventLoop::new().unwrap();
    let thread = std::thread::spawn(|| event_loop.run());
    test(&handle);
    handle.stop();
    thread.join().unwrap().unwrap();
}

#[test]
fn item_9_a_storm_does_not_starve_the_others() {
    with_loop(|handle| {
        let (mut storm, storm_bell, storm_served) = clerk();
        storm.insatiable = true;
        let (calm, bell, served) = clerk();
        handle.run(Box::new(storm), Arc::new(Diary::default()));
        handle.run(Box::new(calm), Arc::new(Diary::default()));
        storm_bell.write(1).unwrap();
        until(|| storm_served.load(Ordering::SeqCst) > 100);
        for round in 1..=1000 {
            bell.write(1).unwrap();
            until(|| served.load(Ordering::SeqCst) == round);
        }
    });
}

#[test]
fn a_worker_that_fails_is_cut_off_and_can_still_be_drained() {
    with_loop(|handle| {
        let (mut bad, bad_bell, bad_served) = clerk();
        bad.fails = true;
        bad.insatiable = true;
        let (good, good_bell, good_served) = clerk();
        let diary = Arc::new(Diary::default());
        let key = handle.run(Box::new(bad), diary.clone());
        handle.run(Box::new(good), Arc::new(Diary::default()));
        bad_bell.write(1).unwrap();
        until(|| !diary.failures.lock().unwrap().is_empty());
        good_bell.write(1).unwrap();
        until(|| good_served.load(Ordering::SeqCst) == 1);
        assert_eq!(bad_served.load(Ordering::SeqCst), 1);
        assert!(diary.failures.lock().unwrap()[0].starts_with("the disk: "));
        handle.drain(key);
        until(|| *diary.drained.lock().unwrap() == [1]);
    });
}

#[test]
fn a_busy_worker_is_asked_again_and_drained_once() {
    with_loop(|handle| {
        let (mut busy, bell, served) = clerk();
        busy.refusals = 20;
        let diary = Arc::new(Diary::default());
        let key = handle.run(Box::new(busy), diary.clone());
        handle.drain(key);
        bell.write(1).unwrap();
        until(|| served.load(Ordering::SeqCst) == 1);
        until(|| *diary.drained.lock().unwrap() == [1]);
        handle.drain(key);
        bell.write(1).unwrap();
        assert_eq!(*diary.drained.lock().unwrap(), [1]);
        assert!(diary.failures.lock().unwrap().is_empty());
    });
}

#[test]
fn a_pause_is_patient_until_a_reset_follows() {
    let (mut event_loop, handle) = EventLoop::new().unwrap();
    event_loop.patience = Duration::ZERO;
    let (mut busy, ..) = clerk();
    busy.refusals = 100;
    let diary = Arc::new(Diary::default());
    let key = handle.run(Box::new(busy), diary.clone());
    handle.pause(key);
    (0..20).for_each(|_| assert!(event_loop.turn(0).unwrap().is_continue()));
    assert!(diary.failures.lock().unwrap().is_empty() && diary.drained.lock().unwrap().is_empty());
    handle.drain(key);
    while diary.drained.lock().unwrap().is_empty() {
        assert!(event_loop.turn(0).unwrap().is_continue());
    }
    assert!(diary.failures.lock().unwrap()[0].contains("ending the requests in flight"));
}

#[test]
fn a_descriptor_that_cannot_be_watched_fails_its_worker_only() {
    with_loop(|handle| {
        let (mut blind, ..) = clerk();
        blind.events.push((Token(8), -1));
        let diary = Arc::new(Diary::default());
        handle.run(Box::new(blind), diary.clone());
        until(|| diary.failures.lock().unwrap().len() == 1);
        let (good, bell, served) = clerk();
        handle.run(Box::new(good), Arc::new(Diary::default()));
        bell.write(1).unwrap();
        until(|| served.load(Ordering::SeqCst) == 1);
    });
}

#[test]
fn a_descriptor_that_is_not_wanted_is_left_alone_until_it_is() {
    with_loop(|handle| {
        let (mut moody, bell, served) = clerk();
        let comfort = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        moody.comfort = Some(comfort.try_clone().unwrap());
        moody.events.push((COMFORT, comfort.as_raw_fd()));
        (moody.insatiable, moody.patience) = (true, 3);
        let diary = Arc::new(Diary::default());
        let key = handle.run(Box::new(moody), diary.clone());
        bell.write(1).unwrap();
        until(|| served.load(Ordering::SeqCst) == 3);
        // It stays readable all the while: the other worker's rounds would show it being served.
        let (calm, calm_bell, calm_served) = clerk();
        handle.run(Box::new(calm), Arc::new(Diary::default()));
        for round in 1..=100 {
            calm_bell.write(1).unwrap();
            until(|| calm_served.load(Ordering::SeqCst) == round);
        }
        assert_eq!(served.load(Ordering::SeqCst), 3);
        for round in 4..=6 {
            comfort.write(1).unwrap();
            until(|| served.load(Ordering::SeqCst) == round);
        }
        handle.drain(key);
        until(|| *diary.drained.lock().unwrap() == [1]);
        assert!(diary.failures.lock().unwrap().is_empty());
    });
}

#[test]
fn a_loop_that_has_ended_takes_no_offence() {
    let (event_loop, handle) = EventLoop::new().unwrap();
    handle.stop();
    event_loop.run().unwrap();
    let (late, ..) = clerk();
    let key = handle.run(Box::new(late), Arc::new(Diary::default()));
    handle.drain(key);
    handle.stop();
}
