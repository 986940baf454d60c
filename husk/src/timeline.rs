//! When each stage was passed.
//!
//! Owns one time per stage, the first that was said. Refuses what a cell cannot know: stages that are husk's own, and
//! times outside husk's own start and now. Invariant: every time is `CLOCK_MONOTONIC` nanoseconds, at or after
//! [`Stage::Start`].

use husk_protocol::control::Stage;
use rustix::time::{ClockId, clock_gettime};
use std::collections::BTreeMap;

/// `CLOCK_MONOTONIC` in nanoseconds.
#[must_use]
pub fn now_ns() -> u64 {
    nanoseconds(ClockId::Monotonic)
}

/// `CLOCK_REALTIME` in nanoseconds since 1970.
#[must_use]
pub(crate) fn realtime_ns() -> u64 {
    nanoseconds(ClockId::Realtime)
}

fn nanoseconds(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(time.tv_nsec).unwrap_or(0))
}

/// The stages that were passed, each with its time.
#[derive(Debug, Clone, Default)]
pub struct Timeline {
    at: BTreeMap<Stage, u64>,
    clock: Option<GuestClock>,
    init_ticks: Option<u64>,
}

/// Relates the guest's counter to host time.
#[derive(Debug, Clone, Copy)]
struct GuestClock {
    ticks: u64,
    hz: u64,
    at_ns: u64,
}

/// A stage, when it was passed and how long it took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passed {
    /// Which.
    pub stage: Stage,
    /// Nanoseconds since [`Stage::Start`].
    pub at_ns: u64,
    /// Nanoseconds since the stage before it.
    pub took_ns: u64,
}

impl Timeline {
    /// A timeline that begins at `start_ns`, `CLOCK_MONOTONIC`.
    #[must_use]
    pub fn starting_at(start_ns: u64) -> Self {
        let mut timeline = Self::default();
        timeline.at.insert(Stage::Start, start_ns);
        timeline
    }

    /// Stamps `stage` with the time now, unless it has one.
    pub fn mark(&mut self, stage: Stage) {
        self.at.entry(stage).or_insert_with(now_ns);
    }

    /// Stamps `stage` with what a cell alleges.
    pub(crate) fn alleged(&mut self, stage: Stage, at_ns: u64) {
        let the_cells = (Stage::Jailer..=Stage::KernelEntry).contains(&stage);
        if the_cells && self.is_possible(at_ns) {
            self.at.entry(stage).or_insert(at_ns);
        }
    }

    fn is_possible(&self, at_ns: u64) -> bool {
        (self.start_ns()..=now_ns()).contains(&at_ns)
    }

    /// The runtime's word on the guest's counter.
    pub(crate) fn guest_clock(&mut self, ticks: u64, hz: u64, at_ns: u64) {
        if self.clock.is_none() && hz > 0 && self.is_possible(at_ns) {
            self.clock = Some(GuestClock { ticks, hz, at_ns });
            self.place_init();
        }
    }

    /// The guest's counter when its PID 1 began.
    pub(crate) fn init_ticks(&mut self, ticks: u64) {
        self.init_ticks = Some(ticks);
        self.place_init();
    }

    fn place_init(&mut self) {
        let (Some(clock), Some(ticks)) = (self.clock, self.init_ticks) else { return };
        let passed = i128::from(ticks) - i128::from(clock.ticks);
        let at = i128::from(clock.at_ns) + passed * 1_000_000_000 / i128::from(clock.hz);
        if let Ok(at) = u64::try_from(at)
            && self.is_possible(at)
            && self.at.get(&Stage::KernelEntry).is_none_or(|&entry| at >= entry)
        {
            self.at.entry(Stage::Init).or_insert(at);
        }
    }

    /// `CLOCK_MONOTONIC` nanoseconds of [`Stage::Start`].
    #[must_use]
    pub fn start_ns(&self) -> u64 {
        self.at.get(&Stage::Start).copied().unwrap_or(0)
    }

    /// Whether `stage` was passed.
    #[must_use]
    pub fn has(&self, stage: Stage) -> bool {
        self.at.contains_key(&stage)
    }

    /// All stages that were passed, in the order of their times.
    #[must_use]
    pub fn passed(&self) -> Vec<Passed> {
        let start = self.start_ns();
        let mut stages: Vec<(u64, Stage)> = self.at.iter().map(|(&stage, &at)| (at, stage)).collect();
        stages.sort_unstable();
        let mut previous = start;
        stages
            .into_iter()
            .map(|(at, stage)| {
                let passed = Passed { stage, at_ns: at - start, took_ns: at - previous };
                previous = at;
                passed
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_cannot_say_what_it_cannot_know() {
        let start = now_ns();
        let mut timeline = Timeline::starting_at(start);
        timeline.alleged(Stage::Ready, start + 1);
        timeline.alleged(Stage::Start, start + 1);
        timeline.alleged(Stage::Runtime, start - 1);
        timeline.alleged(Stage::Built, u64::MAX);
        assert_eq!(timeline.passed(), [Passed { stage: Stage::Start, at_ns: 0, took_ns: 0 }]);
        std::thread::sleep(std::time::Duration::from_millis(1));
        timeline.alleged(Stage::Jailer, start + 1000);
        timeline.alleged(Stage::Jailer, start + 2000);
        timeline.alleged(Stage::Jailed, start + 3000);
        assert_eq!(timeline.passed()[1], Passed { stage: Stage::Jailer, at_ns: 1000, took_ns: 1000 });
        assert_eq!(timeline.passed()[2], Passed { stage: Stage::Jailed, at_ns: 3000, took_ns: 2000 });
    }

    #[test]
    fn the_guests_stamp_becomes_host_time() {
        let start = now_ns() - 1_000_000;
        let mut timeline = Timeline::starting_at(start);
        timeline.alleged(Stage::KernelEntry, start + 1000);
        timeline.init_ticks(5_000);
        timeline.guest_clock(3_000, 1_000_000_000, start + 10_000);
        assert!(timeline.passed().contains(&Passed { stage: Stage::Init, at_ns: 12_000, took_ns: 11_000 }));
        // Before the kernel's entry, or in the future: not believed.
        for ticks in [0, u64::MAX] {
            let mut timeline = Timeline::starting_at(start);
            timeline.alleged(Stage::KernelEntry, start + 9_000);
            timeline.guest_clock(3_000, 1_000_000_000, start + 10_000);
            timeline.init_ticks(ticks);
            assert!(!timeline.has(Stage::Init), "{ticks}");
        }
    }
}
