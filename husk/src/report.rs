//! What is told about a run: to a program as one JSON object, to a person as lines.
//!
//! Owns the shape of the result object. Refuses nothing. Invariant: every text in it is printable and bounded, because
//! it went through [`crate::text`] where it came from outside.

use crate::isolation::{Isolation, Walls};
use crate::outcome::Outcome;
use crate::sys::ChildEnd;
use crate::timeline::Timeline;
use crate::units::human_ns;
use husk_protocol::control::{BalloonReport, Landlock};
use husk_protocol::exec::GuestReport;
use serde_json::{Value, json};
use std::io::Write;

/// What a run used.
#[derive(Debug, Clone, Default)]
pub struct Resources {
    pub(crate) guest: Option<GuestReport>,
    pub(crate) runtime: Option<ChildEnd>,
    /// What the guest last said of its memory.
    pub(crate) balloon: Option<BalloonReport>,
    /// Bytes.
    pub(crate) peak_memory: Option<u64>,
}

/// How a run went.
#[derive(Debug, Clone)]
pub struct Report {
    /// The sandbox's name; empty if it never had one.
    pub id: String,
    /// Its end.
    pub outcome: Outcome,
    /// When each stage was passed.
    pub timeline: Timeline,
    /// How much of what the runtime denied itself by landlock the kernel enforces; `None`: it never got so far.
    pub landlock: Option<Landlock>,
    /// What it used.
    pub resources: Resources,
    /// Its walls.
    pub walls: Walls,
    /// What was to be done about walls that cannot be.
    pub isolation: Isolation,
    /// Writable drives that were not unmounted cleanly, each `serial: reason`.
    pub unclean: Vec<String>,
    /// What was asked for and was not to be had here, or not to the end: the sandbox did without.
    pub degraded: Vec<String>,
    /// The console's last lines, if the cell told them.
    pub console_tail: Vec<String>,
    /// What could not be removed.
    pub warnings: Vec<String>,
    /// The command left standard error in the middle of a line: what is told begins a new one.
    pub mid_line: bool,
}

impl Report {
    pub(crate) fn new(timeline: Timeline) -> Self {
        Self {
            id: String::new(),
            outcome: Outcome::failure(husk_protocol::control::Fault::Bug, "nothing happened"),
            timeline,
            landlock: None,
            resources: Resources::default(),
            walls: Walls::default(),
            isolation: Isolation::Strict,
            unclean: Vec::new(),
            degraded: Vec::new(),
            console_tail: Vec::new(),
            warnings: Vec::new(),
            mid_line: false,
        }
    }

    /// The result object.
    #[must_use]
    pub fn json(&self) -> Value {
        let outcome = &self.outcome;
        let stages: Vec<Value> = self
            .timeline
            .passed()
            .iter()
            .map(|passed| json!({"stage": passed.stage.name(), "at_ns": passed.at_ns, "took_ns": passed.took_ns}))
            .collect();
        let (guest, runtime) = (self.resources.guest.as_ref(), self.resources.runtime.as_ref());
        json!({
            "id": self.id,
            "status": outcome.status,
            "signal": outcome.signal,
            "fault": outcome.fault,
            "error": outcome.error,
            "timed_out": outcome.timed_out,
            "started_ns": self.timeline.start_ns(),
            "stages": stages,
            "landlock": self.landlock,
            "resources": {
                "guest_user_us": guest.map(|guest| guest.user_us),
                "guest_system_us": guest.map(|guest| guest.system_us),
                "guest_max_rss_kib": guest.map(|guest| guest.max_rss_kib),
                "guest_leftovers_killed": guest.map(|guest| guest.leftovers_killed),
                "host_user_us": runtime.map(|end| end.user_us),
                "host_system_us": runtime.map(|end| end.system_us),
                "host_max_rss_kib": runtime.map(|end| end.max_rss_kib),
                "host_peak_memory_bytes": self.resources.peak_memory,
            },
            "balloon": self.balloon(),
            "isolation": self.walls.json(),
            "unclean": self.unclean,
            "degraded": self.degraded,
            "console_tail": self.console_tail,
            "warnings": self.warnings,
        })
    }

    /// What the guest last said of its memory, with the time counted from the start as a stage's is; null: it said nothing.
    fn balloon(&self) -> Value {
        let Some(report) = &self.resources.balloon else { return Value::Null };
        json!({
            "at_ns": report.at_ns.saturating_sub(self.timeline.start_ns()),
            "actual_mib": report.actual_mib,
            "statistics": report.statistics,
        })
    }

    /// One line: how long each stage took.
    #[must_use]
    pub fn timings(&self) -> String {
        let passed = self.timeline.passed();
        let total = passed.last().map_or(0, |last| last.at_ns);
        let stages: Vec<String> = passed
            .iter()
            .skip(1)
            .map(|passed| format!("{} {}", passed.stage.name(), human_ns(passed.took_ns)))
            .collect();
        format!("{} in all: {}", human_ns(total), stages.join(", "))
    }

    /// Tells a person what he must know, on `out`.
    ///
    /// # Errors
    /// `out` cannot be written to.
    pub fn tell(&self, out: &mut impl Write, timings: bool) -> std::io::Result<()> {
        if let Some(error) = &self.outcome.error {
            writeln!(out, "husk: {error}")?;
            if self.outcome.show_console {
                for line in &self.console_tail {
                    writeln!(out, "console: {line}")?;
                }
            }
        }
        if let Some(line) = self.walls.line().filter(|_| self.isolation == Isolation::BestEffort) {
            writeln!(out, "husk: {line}")?;
        }
        for drive in &self.unclean {
            writeln!(out, "husk: not unmounted cleanly: drive {drive}")?;
        }
        for line in &self.degraded {
            writeln!(out, "husk: {line}")?;
        }
        for warning in &self.warnings {
            writeln!(out, "husk: left behind, husk gc will try again: {warning}")?;
        }
        if timings {
            writeln!(out, "husk: {}", self.timings())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use husk_protocol::control::{BalloonStatistics, Fault, Stage};

    fn report() -> Report {
        let mut timeline = Timeline::starting_at(crate::timeline::now_ns());
        timeline.mark(Stage::Planned);
        timeline.mark(Stage::Gone);
        let mut outcome = Outcome::failure(Fault::Guest, "the guest kernel panicked");
        outcome.show_console = true;
        let console_tail = vec!["one".into(), "two".into()];
        Report { outcome, console_tail, ..Report::new(timeline) }
    }

    #[test]
    fn the_object_has_every_field() {
        let value = report().json();
        for key in [
            "id",
            "status",
            "signal",
            "fault",
            "error",
            "timed_out",
            "started_ns",
            "stages",
            "landlock",
            "resources",
            "balloon",
            "isolation",
            "unclean",
            "degraded",
            "console_tail",
        ] {
            assert!(value.get(key).is_some(), "{key}");
        }
        assert_eq!(value["fault"], "guest");
        assert_eq!(value["stages"][0], json!({"stage": "start", "at_ns": 0, "took_ns": 0}));
        assert_eq!(value["stages"][2]["stage"], "gone");
        assert!(!value.to_string().contains('\n'));
    }

    #[test]
    fn the_guests_word_about_its_memory_is_passed_on() {
        assert_eq!(report().json()["balloon"], Value::Null);
        let mut report = report();
        let statistics = BalloonStatistics { free_memory: Some(u64::MAX), ..BalloonStatistics::default() };
        let at_ns = report.timeline.start_ns() + 7;
        report.resources.balloon = Some(BalloonReport { at_ns, actual_mib: 3, statistics });
        let expected = json!({"at_ns": 7, "actual_mib": 3, "statistics": {"free_memory": u64::MAX}});
        assert_eq!(report.json()["balloon"], expected);
    }

    #[test]
    fn how_well_the_runtime_was_confined_is_told() {
        assert_eq!(report().json()["landlock"], Value::Null);
        let landlock = Some(Landlock::Partial);
        assert_eq!(Report { landlock, ..report() }.json()["landlock"], "partial");
    }

    #[test]
    fn a_person_reads_lines() {
        let mut out = Vec::new();
        report().tell(&mut out, true).unwrap();
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[..3], ["husk: the guest kernel panicked", "console: one", "console: two"]);
        assert!(lines[3].starts_with("husk: ") && lines[3].contains("planned"), "{}", lines[3]);
        let mut report = report();
        report.walls.miss("cgroup", "x");
        let told = |report: &Report| {
            let mut out = Vec::new();
            report.tell(&mut out, false).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert!(!told(&report).contains("without cgroup"), "what is missing by order is told");
        report.isolation = Isolation::BestEffort;
        assert!(told(&report).contains("husk: the sandbox is without cgroup (x)\n"));
    }
}
