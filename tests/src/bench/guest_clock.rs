//! Turns a guest's time-stamp counter into the host's `CLOCK_MONOTONIC`.
//!
//! Owns the arithmetic and its three inputs: KVM's own offset of the guest's counter (debugfs, `kvm/<pid>-<fd>/vcpu0`)
//! and two readings of counter and clock on the host. So a guest stamps with one `rdtsc`, at the price of an
//! instruction, and no monitor has to tell us anything. Refuses a guest whose counter is scaled. Invariant: readings are
//! taken as (clock, counter, clock) and the tightest of several counts.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::stages::now_ns;

const DEBUGFS: &str = "/sys/kernel/debug/kvm";

/// Why a guest's stamp cannot be converted.
#[derive(Debug, thiserror::Error)]
pub enum ClockError {
    /// No debugfs, no such machine, not root.
    #[error("{path}: {source}; a mounted debugfs, a running guest and root are needed")]
    Debugfs {
        /// What was to be read.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// No machine of that process.
    #[error("process {0} has no virtual CPU in {DEBUGFS}")]
    NoMachine(u32),
    /// The kernel's file holds something else than a number.
    #[error("{path}: '{text}' is no offset in ticks")]
    NotANumber {
        /// The file.
        path: PathBuf,
        /// Its content.
        text: String,
    },
    /// Both readings were taken at the same instant.
    #[error("the two clock readings are no time apart: take one before the run and one after it")]
    NoSpan,
}

/// Counter and clock of the host at one instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// The time-stamp counter, in ticks.
    pub ticks: u64,
    /// `CLOCK_MONOTONIC`, ns.
    pub at: u64,
}

impl Reading {
    /// Reads both.
    #[must_use]
    pub fn take() -> Self {
        let sample = || {
            let before = now_ns();
            let ticks = ticks();
            let after = now_ns();
            (after - before, Self { ticks, at: before + (after - before) / 2 })
        };
        let mut best = sample();
        for _ in 0..4 {
            let next = sample();
            if next.0 < best.0 {
                best = next;
            }
        }
        best.1
    }
}

/// This CPU's time-stamp counter.
#[must_use]
pub fn ticks() -> u64 {
    #[expect(unsafe_code, reason = "the counter has no safe reader")]
    // SAFETY: rdtsc reads a counter and touches no memory; x86-64 has it always, and Linux leaves it to user mode.
    unsafe {
        core::arch::x86_64::_rdtsc()
    }
}

/// How far a guest's counter is from the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestClock {
    offset: i64,
}

impl GuestClock {
    /// Asks KVM about vCPU 0 of the machine that this process runs. The machine must be alive.
    ///
    /// # Errors
    /// There is no such machine, or no debugfs.
    pub fn of(pid: u32) -> Result<Self, ClockError> {
        let root = Path::new(DEBUGFS);
        let failed = |source| ClockError::Debugfs { path: root.to_owned(), source };
        let prefix = format!("{pid}-");
        let machine = fs::read_dir(root)
            .map_err(failed)?
            .filter_map(Result::ok)
            .find(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
            .ok_or(ClockError::NoMachine(pid))?;
        let path = machine.path().join("vcpu0/tsc-offset");
        let text =
            fs::read_to_string(&path).map_err(|source| ClockError::Debugfs { path: path.clone(), source })?;
        let offset = text.trim().parse();
        Ok(Self {
            offset: offset.map_err(|_| ClockError::NotANumber { path, text: text.trim().to_owned() })?,
        })
    }

    /// The guest's ticks in ns of `CLOCK_MONOTONIC`, by a reading before and one after.
    ///
    /// # Errors
    /// The readings are the same instant.
    pub fn monotonic(&self, guest: u64, before: Reading, after: Reading) -> Result<u64, ClockError> {
        let host = i128::from(guest.wrapping_sub(self.offset.cast_unsigned()));
        let span = i128::from(after.ticks) - i128::from(before.ticks);
        if span <= 0 || after.at <= before.at {
            return Err(ClockError::NoSpan);
        }
        let elapsed = (host - i128::from(before.ticks)) * i128::from(after.at - before.at) / span;
        Ok(u64::try_from(i128::from(before.at) + elapsed).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_tick_lies_between_the_readings() {
        let before = Reading { ticks: 10_000, at: 1_000 };
        let after = Reading { ticks: 30_000, at: 11_000 };
        let clock = GuestClock { offset: -9_000 };
        assert_eq!(clock.monotonic(11_000, before, after).unwrap(), 6_000);
        assert!(matches!(clock.monotonic(11_000, after, before), Err(ClockError::NoSpan)));
    }

    #[test]
    fn readings_go_forward() {
        let first = Reading::take();
        let second = Reading::take();
        assert!(second.ticks > first.ticks && second.at >= first.at);
    }
}
