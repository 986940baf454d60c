//! From what was seen of a sandbox to what is said about it. Pure.
//!
//! Owns the order in which explanations are believed: what husk itself did, then what the guest said, then what the
//! cell said, then how processes ended. Refuses nothing. Invariant: exactly one line explains every status that is not
//! the command's own.

use crate::session::Heard;
use crate::sys::ChildExit;
use crate::units::signal_name;
use husk_protocol::control::{BalloonReport, EndReason, Ended, Fault, Landlock};
use husk_protocol::exec::{ExecFailureKind, Exit};
use husk_protocol::exit::{HUSK_FAILED, NOT_EXECUTABLE, NOT_FOUND, RuntimeExit, SIGNAL_BASE, TIMED_OUT};
use std::time::Duration;

/// Why husk ended the sandbox itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cause {
    /// `--timeout`.
    Timeout(Duration),
    /// `--boot-timeout`.
    BootTimeout(Duration),
    /// A second signal, or ten seconds after the first.
    Signal(i32),
    /// Something failed; who is at fault, and the line.
    Failure(Fault, String),
    /// The guest fell silent: its channel or its machine ended, and nothing followed.
    Silence,
}

/// Everything that was seen.
#[derive(Debug, Clone, Default)]
pub(crate) struct Evidence {
    pub(crate) cause: Option<Cause>,
    pub(crate) heard: Heard,
    /// The cell's own explanation.
    pub(crate) failed: Option<(Fault, String)>,
    pub(crate) ended: Option<Ended>,
    /// The last that the guest said of its memory.
    pub(crate) balloon: Option<BalloonReport>,
    /// How much of what the runtime denied itself the kernel enforces, as the runtime says.
    pub(crate) landlock: Option<Landlock>,
    /// What the machine does without, though it was asked for.
    pub(crate) degraded: Vec<String>,
    pub(crate) jailer: Option<ChildExit>,
    pub(crate) runtime: Option<ChildExit>,
    /// Last line of the jailer's standard error.
    pub(crate) jailer_said: Option<String>,
    /// The kernel killed something in the cgroup for want of memory.
    pub(crate) out_of_memory: bool,
    /// The limit of the cgroup's memory in bytes.
    pub(crate) memory_limit: Option<u64>,
    pub(crate) was_ready: bool,
    /// What the cell is without, and why.
    pub(crate) missing: Vec<(String, String)>,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// husk's exit status.
    pub status: u8,
    /// The signal that ended the command, if one did.
    pub signal: Option<u8>,
    /// Who is at fault, if husk failed.
    pub fault: Option<Fault>,
    /// One line, if the status is not the command's own.
    pub error: Option<String>,
    /// The time limit ended it.
    pub timed_out: bool,
    /// The console's last lines belong to the explanation.
    pub(crate) show_console: bool,
}

impl Outcome {
    fn of_command(exit: Exit) -> Self {
        let (status, signal) = match exit {
            Exit::Status(status) => (status, None),
            Exit::Signal(signal) => (SIGNAL_BASE.saturating_add(signal), Some(signal)),
        };
        Self { status, signal, fault: None, error: None, timed_out: false, show_console: false }
    }

    /// husk failed.
    pub(crate) fn failure(fault: Fault, error: impl AsRef<str>) -> Self {
        Self {
            status: HUSK_FAILED,
            signal: None,
            fault: Some(fault),
            error: Some(crate::text::message(error.as_ref())),
            timed_out: false,
            show_console: false,
        }
    }

    /// A signal to husk ended the sandbox.
    pub(crate) fn of_signal(signal: i32) -> Self {
        let number = u8::try_from(signal).unwrap_or(0);
        Self { status: SIGNAL_BASE.saturating_add(number), signal: None, ..Self::of_command(Exit::Status(0)) }
    }

    fn with_console(self) -> Self {
        Self { show_console: true, ..self }
    }
}

/// What it comes to.
pub(crate) fn judge(evidence: &Evidence) -> Outcome {
    by_husk(evidence)
        .or_else(|| by_guest(evidence))
        .or_else(|| by_cell(evidence))
        .unwrap_or_else(|| by_processes(evidence))
}

fn by_husk(evidence: &Evidence) -> Option<Outcome> {
    match evidence.cause.as_ref()? {
        Cause::Timeout(limit) => Some(Outcome {
            status: TIMED_OUT,
            error: Some(format!("the time limit of {} (--timeout) has passed", span(*limit))),
            timed_out: true,
            ..Outcome::of_command(Exit::Status(0))
        }),
        Cause::Signal(signal) => Some(Outcome::of_signal(*signal)),
        Cause::Failure(fault, line) => Some(Outcome::failure(*fault, line.clone())),
        // If the cell said what was wrong, that is the better explanation.
        Cause::BootTimeout(_) if evidence.failed.is_some() || evidence.heard.fatal.is_some() => None,
        Cause::BootTimeout(limit) => {
            let line = format!("the guest was not ready within {} (--boot-timeout)", span(*limit));
            Some(Outcome::failure(Fault::Guest, line).with_console())
        }
        Cause::Silence => None,
    }
}

fn by_guest(evidence: &Evidence) -> Option<Outcome> {
    if let Some(failure) = &evidence.heard.exec_failed {
        let status = match failure.kind {
            ExecFailureKind::NotFound => NOT_FOUND,
            ExecFailureKind::NotExecutable => NOT_EXECUTABLE,
            ExecFailureKind::Setup => HUSK_FAILED,
        };
        return Some(Outcome { status, ..Outcome::failure(Fault::Operator, failure.message.clone()) });
    }
    if let Some(exit) = evidence.heard.exit {
        return Some(Outcome::of_command(exit));
    }
    let fatal = evidence.heard.fatal.as_ref()?;
    Some(Outcome::failure(Fault::Guest, format!("guest-init cannot go on: {fatal}")))
}

fn by_cell(evidence: &Evidence) -> Option<Outcome> {
    if let Some((fault, line)) = &evidence.failed {
        // It may be hostile by then: what it says of its own end is an allegation.
        let line = match fault {
            Fault::Bug => {
                format!("the runtime says: {}", line.strip_prefix("husk-runtime: ").unwrap_or(line))
            }
            _ => line.clone(),
        };
        let outcome = Outcome::failure(*fault, line);
        return Some(if *fault == Fault::Guest { outcome.with_console() } else { outcome });
    }
    let ended = evidence.ended.as_ref()?;
    let panic =
        ended.console_tail.iter().rev().find_map(|line| line.find("Kernel panic").map(|at| &line[at..]));
    let line = match (panic, ended.reason, evidence.was_ready) {
        (Some(panic), ..) => format!("the guest kernel panicked: {}", crate::text::line(panic)),
        (None, EndReason::GuestReset | EndReason::GuestShutdown, true) => {
            "the guest reset itself before the command ended".to_owned()
        }
        (None, EndReason::GuestReset | EndReason::GuestShutdown, false) => {
            "the guest reset itself before it was ready".to_owned()
        }
        (None, EndReason::GuestFault, _) => "the guest did what no guest may do".to_owned(),
        (None, EndReason::Requested, _) => return None,
    };
    Some(Outcome::failure(Fault::Guest, line).with_console())
}

fn by_processes(evidence: &Evidence) -> Outcome {
    if let (true, Some(ChildExit::Signal(signal))) = (evidence.out_of_memory, evidence.runtime) {
        let limit =
            evidence.memory_limit.map_or(String::new(), |bytes| format!(" (memory.max is {bytes} bytes)"));
        let name = signal_name(signal);
        let line = format!(
            "the runtime was killed by {name}: its cgroup ran out of memory{limit}; --limit memory.max=SIZE gives it more"
        );
        return Outcome::failure(Fault::Host, line);
    }
    if evidence.cause == Some(Cause::Silence) {
        return Outcome::failure(Fault::Guest, "the guest fell silent before the command ended");
    }
    let said = evidence.jailer_said.as_ref().map_or(String::new(), |line| format!(": {line}"));
    match (evidence.jailer, evidence.runtime) {
        (Some(ChildExit::Signal(signal)), _) => {
            Outcome::failure(Fault::Host, format!("the jailer was killed by {}{said}", signal_name(signal)))
        }
        (Some(ChildExit::Status(status)), _) if status != 0 => {
            // The jailer's own line names the thing already.
            let line = evidence.jailer_said.clone();
            let line =
                line.unwrap_or_else(|| format!("the jailer ended with status {status} and said nothing"));
            Outcome::failure(Fault::Host, line)
        }
        (_, Some(ChildExit::Signal(signal))) => {
            Outcome::failure(Fault::Host, format!("the runtime was killed by {}", signal_name(signal)))
        }
        // It was still the jailer's clone, which could not tell husk so.
        (_, Some(ChildExit::Status(1))) if evidence.jailer_said.is_some() => {
            Outcome::failure(Fault::Host, evidence.jailer_said.clone().unwrap_or_default())
        }
        (_, Some(ChildExit::Status(status))) => {
            let line = format!("the runtime ended with status {status} before the command did");
            Outcome::failure(fault_of(status), line)
        }
        (_, None) => Outcome::failure(Fault::Bug, format!("the jailer ended without a runtime{said}")),
    }
}

/// Whom a runtime's exit status blames.
fn fault_of(status: i32) -> Fault {
    let is = |exit: RuntimeExit| status == i32::from(exit as u8);
    if is(RuntimeExit::Operator) {
        Fault::Operator
    } else if is(RuntimeExit::Host) {
        Fault::Host
    } else if is(RuntimeExit::Guest) || is(RuntimeExit::Ended) {
        Fault::Guest
    } else {
        Fault::Bug
    }
}

/// A time limit as it is written: `2s`, `250ms`.
fn span(limit: Duration) -> String {
    match limit.subsec_millis() {
        0 => format!("{}s", limit.as_secs()),
        _ => format!("{}ms", limit.as_millis()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use husk_protocol::exec::ExecFailure;

    fn heard(exit: Exit) -> Heard {
        Heard { exit: Some(exit), ..Heard::default() }
    }

    fn line(evidence: &Evidence) -> String {
        let outcome = judge(evidence);
        assert_eq!(outcome.status, HUSK_FAILED);
        outcome.error.unwrap()
    }

    #[test]
    fn the_commands_end_is_husks() {
        let outcome = judge(&Evidence { heard: heard(Exit::Status(3)), ..Evidence::default() });
        assert_eq!((outcome.status, outcome.error), (3, None));
        let outcome = judge(&Evidence { heard: heard(Exit::Signal(9)), ..Evidence::default() });
        assert_eq!((outcome.status, outcome.signal), (137, Some(9)));
        let outcome = judge(&Evidence { heard: heard(Exit::Signal(255)), ..Evidence::default() });
        assert_eq!(outcome.status, 255);
    }

    #[test]
    fn a_timeout_stands_over_the_exit_that_it_caused() {
        let cause = Some(Cause::Timeout(Duration::from_secs(2)));
        let outcome = judge(&Evidence { cause, heard: heard(Exit::Signal(9)), ..Evidence::default() });
        assert_eq!(outcome.status, TIMED_OUT);
        assert!(outcome.timed_out && outcome.error.unwrap().contains("2s"));
        assert_eq!(span(Duration::from_millis(1500)), "1500ms");
    }

    #[test]
    fn what_was_not_executed_is_as_in_a_shell() {
        for (kind, status) in [
            (ExecFailureKind::NotFound, 127),
            (ExecFailureKind::NotExecutable, 126),
            (ExecFailureKind::Setup, 125),
        ] {
            let exec_failed = Some(ExecFailure { kind, message: "x: no".into() });
            let outcome = judge(&Evidence {
                heard: Heard { exec_failed, ..heard(Exit::Status(0)) },
                ..Evidence::default()
            });
            assert_eq!((outcome.status, outcome.error.unwrap().as_str()), (status, "x: no"));
        }
    }

    #[test]
    fn a_panic_is_quoted() {
        let console_tail = vec!["[ 1.0] Kernel panic - not syncing: sysrq".into(), "---".into()];
        let ended = Some(Ended { reason: EndReason::GuestReset, console_tail });
        let evidence = Evidence { ended, was_ready: true, ..Evidence::default() };
        assert_eq!(line(&evidence), "the guest kernel panicked: Kernel panic - not syncing: sysrq");
        assert!(judge(&evidence).show_console);
        assert_eq!(judge(&evidence).fault, Some(Fault::Guest));
    }

    #[test]
    fn killed_processes_are_named() {
        let jailer = Some(ChildExit::Signal(9));
        assert!(line(&Evidence { jailer, ..Evidence::default() }).contains("jailer was killed by SIGKILL"));
        let (jailer, runtime) = (Some(ChildExit::Status(0)), Some(ChildExit::Signal(9)));
        let evidence = Evidence { jailer, runtime, ..Evidence::default() };
        assert!(line(&evidence).contains("runtime was killed by SIGKILL"));
        let evidence = Evidence { out_of_memory: true, memory_limit: Some(99), ..evidence };
        let said = line(&evidence);
        assert!(said.contains("out of memory (memory.max is 99 bytes); --limit memory.max=SIZE"), "{said}");
        let evidence = Evidence { runtime: Some(ChildExit::Status(6)), jailer, ..Evidence::default() };
        assert_eq!(judge(&evidence).fault, Some(Fault::Bug));
        let jailer = Some(ChildExit::Status(1));
        let said = Some("jail /x exists".to_owned());
        assert_eq!(line(&Evidence { jailer, jailer_said: said, ..Evidence::default() }), "jail /x exists");
    }

    #[test]
    fn what_a_runtime_says_of_its_own_end_is_an_allegation() {
        let said = "husk-runtime: a thread (role vcpu) made system call 59 (execve), which its filter denies";
        let evidence = Evidence { failed: Some((Fault::Bug, said.to_owned())), ..Evidence::default() };
        assert_eq!(line(&evidence), said.replace("husk-runtime:", "the runtime says:"));
    }

    #[test]
    fn the_cells_words_explain_a_boot_timeout_better() {
        let cause = Some(Cause::BootTimeout(Duration::from_secs(10)));
        let evidence = Evidence { cause: cause.clone(), ..Evidence::default() };
        assert!(line(&evidence).contains("not ready within 10s") && judge(&evidence).show_console);
        let failed = Some((Fault::Host, "KVM_RUN: no".to_owned()));
        assert_eq!(line(&Evidence { cause, failed, ..Evidence::default() }), "KVM_RUN: no");
    }
}
