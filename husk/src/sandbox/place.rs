//! Where a sandbox leaves traces: its state directory, its cgroups and its registration.
//!
//! Owns what is taken from there and ordered for there: limits, the jailer's order, the last look at the cgroup. Refuses, where isolation
//! is strict, a limit that this host's cgroups do not have. Invariant: what may still have processes keeps its user id.

use crate::cgroup::Hierarchies;
use crate::gc::{self, Collected};
use crate::isolation::Isolation;
use crate::limits::{self, Asked, Limits, Live, OrderError, Ordered};
use crate::outcome::{Evidence, judge};
use crate::plan;
use crate::pool::Pool;
use crate::prepare::Prepared;
use crate::report::{Report, Resources};
use crate::rootless;
use crate::spawn::{JailerOrder, Process};
use crate::state::{Record, Registration, State};
use husk_protocol::control::{Landlock, Stage};
use husk_protocol::spec::{HugePages, IoEngine};
use std::time::Duration;

/// A runtime that nobody announced may take this long to die.
const ORPHAN_PATIENCE: Duration = Duration::from_secs(2);

/// What is there of a sandbox on the host.
pub(super) struct Place {
    pub(super) state: State,
    pub(super) hierarchies: Hierarchies,
    pub(super) registration: Registration,
}

impl Place {
    /// What the sandbox's cgroup is to hold it to; at best effort without what this host's cgroups do not have.
    pub(super) fn limits(&self, prepared: &Prepared, report: &mut Report) -> Result<Ordered, OrderError> {
        let machine = &prepared.spec.machine_config;
        let drives = prepared.spec.drives.iter().map(|drive| threads(drive.io_engine)).sum();
        let volumes = u64::try_from(prepared.spec.volumes.len()).unwrap_or(u64::MAX);
        let memory = plan::most_memory_mib(&prepared.spec);
        let networks = u64::from(prepared.passt.is_some());
        let huge = machine.huge_pages != HugePages::None;
        let defaults = Hierarchies::defaults(memory, huge, machine.vcpu_count, [drives, volumes, networks]);
        let defaults = defaults.under(&Limits::of_pins(&prepared.limits.pinned));
        let ordered = limits::order(&self.hierarchies, defaults, &prepared.limits.limits);
        for &(name, why) in &ordered.without {
            if report.isolation == Isolation::Strict {
                return Err(OrderError::Never { name, why });
            }
            report.walls.miss(&format!("cgroup limit {name}"), why);
        }
        Ok(ordered)
    }

    /// What can be asked to be changed of the limits while the sandbox runs.
    pub(super) fn keep(&self, record: Record, limits: Limits, asked: Asked) -> Live<'_> {
        let (hierarchies, registration) = (&self.hierarchies, &self.registration);
        let Asked { drives, pinned, .. } = asked;
        Live { hierarchies, registration, record, limits, drives, pinned, moving: None }
    }

    pub(super) fn order(
        &self,
        prepared: &Prepared,
        limits: Vec<String>,
        isolation: Isolation,
    ) -> JailerOrder {
        let registration = &self.registration;
        JailerOrder {
            id: registration.id.clone(),
            uid: rootless::is_root().then_some(registration.uid),
            runtime: prepared.runtime.clone(),
            pool: Some(Pool::of(&self.state).directory().to_owned()),
            parent_cgroup: self.hierarchies.parent().to_owned(),
            limits,
            isolation,
        }
    }

    /// What is known only while the cgroup exists, and the judgement.
    pub(super) fn take_stock(
        &self,
        runtime: Option<&Process>,
        evidence: &mut Evidence,
        writable: &[String],
        report: &mut Report,
    ) {
        let id = &self.registration.id;
        evidence.out_of_memory = runtime.is_some() && self.hierarchies.out_of_memory(id);
        evidence.memory_limit = self.hierarchies.memory_limit(id);
        report.outcome = judge(evidence);
        report.console_tail =
            evidence.ended.as_ref().map(|ended| ended.console_tail.clone()).unwrap_or_default();
        report.landlock = evidence.landlock;
        report.degraded.append(&mut evidence.degraded);
        if evidence.landlock == Some(Landlock::Absent) {
            report.walls.miss("landlock", "this kernel has none, or it is off");
        }
        report.mid_line = evidence.heard.mid_line;
        let guest = evidence.heard.report.clone();
        report.unclean = match &guest {
            Some(guest) => guest.unclean.clone(),
            // They were mounted, and nobody says that they no longer were at the end.
            None if evidence.was_ready => {
                writable.iter().map(|id| format!("{id}: husk ended it before it was unmounted")).collect()
            }
            None => Vec::new(),
        };
        report.resources = Resources {
            guest,
            runtime: runtime.and_then(Process::end),
            balloon: evidence.balloon.take(),
            peak_memory: self.hierarchies.peak_memory(id),
        };
    }

    /// Removes everything; what cannot be removed becomes a warning.
    pub(super) fn tear_down(self, report: &mut Report) {
        let registration = self.registration;
        // A jailer that was killed at the wrong moment leaves a clone that it did not announce. It is a child of ours.
        for pid in self.hierarchies.processes(&registration.id) {
            if let Some(mut orphan) = Process::child(pid.as_raw_nonzero().get()) {
                orphan.kill();
                if orphan.wait(ORPHAN_PATIENCE) {
                    let _ = orphan.reap();
                }
            }
        }
        let mut collected = Collected::default();
        // What may still have processes keeps its user id, and is collected later.
        if gc::cgroups(&self.hierarchies, &registration.id, &mut collected)
            && let Err(error) = registration.remove()
        {
            report.warnings.push(error.to_string());
        }
        report.warnings.extend(collected.failed);
        gc::remove_parent(&self.state, &self.hierarchies);
        report.timeline.mark(Stage::Gone);
    }
}

/// Threads of a drive, the kernel's included.
fn threads(engine: IoEngine) -> u64 {
    1 + if engine == IoEngine::Async { u64::from(IoEngine::WORKERS) } else { 0 }
}
