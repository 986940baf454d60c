use super::super::entropy::Entropy;
use super::super::event_loop::EventLoop;
use super::super::limiter::TokenBucket;
use super::super::mmio::MmioTransport;
use super::super::testkit::drive::{driver_ok, negotiate, set_queue, status, until, write};
use super::super::testkit::{Ring, memory};
use super::*;
use rustix::event::{PollFd, PollFlags, poll};
use std::num::{NonZeroU32, NonZeroU64};
use vmm_sys_util::eventfd::EventFd;

/// Longer than any test.
pub(in super::super) const DAY: u32 = 86_400_000;

/// A limit of so many bytes and so many operations, each in so many milliseconds; of 0: none.
pub(in super::super) fn limit(bytes: (u64, u32), operations: (u64, u32)) -> Limit {
    let bucket = |(size, refill): (u64, u32)| {
        Some(TokenBucket::new(NonZeroU64::new(size)?, 0, NonZeroU32::new(refill)?))
    };
    Limit::new(RateLimiter::new(bucket(bytes), bucket(operations))).unwrap()
}

fn has_rung(gate: &Gate) -> bool {
    let mut fds = [PollFd::new(&gate.limit.timer, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() > 0
}

#[test]
fn a_gate_closes_when_tokens_are_gone_and_its_timer_opens_it() {
    let start = Instant::now();
    let mut gate = Gate::new(Arc::new(limit((0, 0), (2, 1000))));
    for _ in 0..2 {
        assert!(gate.admits(1 << 40).unwrap() && is_open(Some(&gate)));
        gate.took(1 << 40);
    }
    assert!(!gate.admits(0).unwrap() && !is_open(Some(&gate)));
    until(|| has_rung(&gate));
    assert!(start.elapsed() >= Duration::from_millis(500));
    assert!(!is_open(Some(&gate)), "it takes the worker to open it");
    gate.rang();
    assert!(is_open(Some(&gate)) && !has_rung(&gate));
    assert!(gate.admits(0).unwrap(), "and what was missing has come");
}

#[test]
fn a_limiter_of_the_finest_grain_does_not_wake_its_thread_for_each_token() {
    let mut gate = Gate::new(Arc::new(limit((1_000_000_000, 1), (0, 0))));
    gate.took(1_000_000_000);
    let mut rounds = 0;
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(20) {
        if gate.admits(1_000_000).unwrap() {
            gate.took(1_000_000_000);
            continue;
        }
        until(|| has_rung(&gate));
        gate.rang();
        rounds += 1;
    }
    assert!(rounds <= start.elapsed().as_micros() / 250 + 1, "{rounds} wakes in {:?}", start.elapsed());
}

#[test]
fn another_worker_of_the_device_finds_the_tokens_as_they_were() {
    let limit = Arc::new(limit((1000, DAY), (0, 0)));
    let mut first = Gate::new(Arc::clone(&limit));
    assert!(first.admits(900).unwrap());
    first.took(900);
    drop(first);
    let mut second = Gate::new(limit);
    assert!(is_open(Some(&second)));
    assert!(!second.admits(200).unwrap());
}

#[test]
#[allow(clippy::disallowed_methods, reason = "tests have no thread policy")]
fn a_device_that_waits_for_tokens_is_reset_and_lets_its_neighbours_go_on() {
    let memory = memory();
    let (event_loop, handle) = EventLoop::new().unwrap();
    let thread = std::thread::spawn(|| event_loop.run().unwrap());
    let device = |number, limit| {
        let line = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let entropy = Box::new(Entropy::new(limit));
        let transport = MmioTransport::new(entropy, memory.clone(), Box::new(line), handle.clone()).unwrap();
        (transport, Ring::new(&memory, number, 64))
    };
    let start = |transport: &MmioTransport, ring: &Ring| {
        negotiate(transport);
        set_queue(transport, 0, &ring.setup);
        driver_ok(transport);
    };
    let ask = |transport: &MmioTransport, ring: &mut Ring, count| {
        for _ in 0..count {
            ring.offer(&[(0x10_0000, 16, true)]);
            write(transport, 0x50, 0);
        }
    };
    let (slow, mut slow_ring) = device(0, Some(limit((0, 0), (3, DAY))));
    let (free, mut free_ring) = device(1, None);
    start(&slow, &slow_ring);
    start(&free, &free_ring);
    ask(&slow, &mut slow_ring, 50);
    for _ in 0..100 {
        ask(&free, &mut free_ring, 1);
        until(|| free_ring.take_used().is_some());
    }
    until(|| slow_ring.take_used().is_some() && slow_ring.take_used().is_some());
    write(&slow, 0x70, 0);
    until(|| status(&slow) == 0);
    // What it had left it has left, and no more.
    let mut slow_ring = Ring::new(&memory, 2, 64);
    start(&slow, &slow_ring);
    ask(&slow, &mut slow_ring, 5);
    ask(&free, &mut free_ring, 1);
    until(|| free_ring.take_used().is_some());
    assert_eq!((slow_ring.take_all_used(), status(&slow)), (vec![], 15));
    handle.stop();
    thread.join().unwrap();
}
