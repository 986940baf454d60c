//! One sandbox, from what is asked for to its end: the library's front.
//!
//! Owns the order: prepare, register, start, pump, tear down. Refuses nothing itself. Invariant: whatever was
//! registered is torn down on every way out, and [`Sandbox::run`] always has a report.

mod builder;
mod error;
mod place;

use crate::cgroup::Hierarchies;
use crate::change::Desk;
use crate::control;
use crate::gc;
use crate::isolation::Isolation;
use crate::limits::Ordered;
use crate::options::Options;
use crate::passt::{self, Passt};
use crate::plan;
use crate::pool::{Pool, Refill};
use crate::prepare::{Manner, PrepareError, Prepared, Told, prepare};
use crate::pump::{self, Cell, Pump};
use crate::report::Report;
use crate::rootless;
use crate::session::{SESSION, Session, Stdio};
use crate::signals::Signals;
use crate::spawn::{self, JailerOrder, VolumeOrder};
use crate::state::{DriveRecord, Record, State, StateError, check_id, random, random_id};
use crate::terminal::{self, RawTerminal, TerminalError};
use crate::timeline::{Timeline, now_ns, realtime_ns};
use crate::volume::{Start, Volumes};
use error::SandboxError;
use husk_protocol::control::{Stage, ToCell};
use husk_protocol::exec::{Frame, Hello, Identity, VERSION, WindowSize};
use husk_protocol::spec::RawDrive;
use place::Place;
use std::ffi::OsString;
use std::os::fd::AsFd;
use std::path::Path;

/// Bytes of the command that `husk ps` shows.
const SHOWN_COMMAND: usize = 1024;

/// A sandbox that is not started yet.
///
/// ```no_run
/// use husk::{Sandbox, Stdio};
/// use std::os::fd::AsFd;
///
/// let (stdout, stderr) = (std::io::stdout(), std::io::stderr());
/// let stdio = Stdio { stdin: None, stdout: stdout.as_fd(), stderr: stderr.as_fd() };
/// let report = Sandbox::builder().memory_mib(256).command(["echo", "hi"]).run(&stdio);
/// assert_eq!(report.outcome.status, 0);
/// ```
#[derive(Debug)]
pub struct Sandbox<'a> {
    options: Options,
    signals: Option<&'a Signals>,
    talkative: bool,
    start_ns: u64,
}

impl Sandbox<'_> {
    /// Runs the sandbox to its end; nothing of it is left then.
    #[must_use]
    pub fn run(self, stdio: &Stdio<'_>) -> Report {
        let mut report = Report::new(Timeline::starting_at(self.start_ns));
        if let Err(error) = self.try_run(stdio, &mut report) {
            report.outcome = error.outcome();
        }
        report
    }

    fn try_run(&self, stdio: &Stdio<'_>, report: &mut Report) -> Result<(), SandboxError> {
        if let Some(id) = &self.options.id {
            check_id(id)?;
            report.id.clone_from(id);
        }
        let size = match (self.options.terminal, stdio.stdin) {
            (false, _) => None,
            (true, Some(stdin)) => Some(terminal::size(stdin)?),
            (true, None) => return Err(TerminalError::None.into()),
        };
        let manner = Manner { signals: self.signals, talkative: self.talkative };
        let prepared = prepare(&self.options, manner)?;
        report.isolation = self.options.isolation;
        report.walls.rootless = !rootless::is_root();
        let state = State::usual();
        let hierarchies = Hierarchies::of(&state)?;
        if report.walls.rootless
            && let Err(error) = rootless::divide(hierarchies.unified())
        {
            if self.options.isolation == Isolation::Strict {
                return Err(error.into());
            }
            report.walls.miss("cgroup", &error.to_string());
        }
        gc::collect(&state, &hierarchies, false);
        let id = self.options.id.clone().map_or_else(random_id, Ok)?;
        let registration = match state.register(&id) {
            // A dead one's, which was not among those that were looked at.
            Err(StateError::Taken(_)) if !state.lives(&id) => {
                gc::collect(&state, &hierarchies, true);
                state.register(&id)?
            }
            other => other?,
        };
        report.id.clone_from(&registration.id);
        let place = Place { state, hierarchies, registration };
        let result = self.live(prepared, &place, Streams { stdio, size }, report);
        place.tear_down(report);
        result
    }

    /// From the registration to the end of all processes.
    fn live(
        &self,
        mut prepared: Prepared,
        place: &Place,
        streams: Streams<'_, '_>,
        report: &mut Report,
    ) -> Result<(), SandboxError> {
        let desk = open_desk(place.registration.directory())?;
        let ordered = place.limits(&prepared, report)?;
        let record = self.publish(&mut prepared, place, &ordered)?;
        let order = place.order(&prepared, ordered.words, self.options.isolation);
        let start = volumes(&mut prepared, &order);
        let (mut control, theirs) = control::pair()?;
        // Asked for once the guest is ready: making memory its own costs it time, which its boot is not to take.
        let hotplug = prepared.spec.memory_hotplug.as_mut();
        let memory = hotplug.map(|hotplug| std::mem::take(&mut hotplug.requested_size_mib));
        let files: Vec<_> = prepared.files.iter().map(AsFd::as_fd).collect();
        control.start(&ToCell::Start { spec: Box::new(prepared.spec) }, &files)?;
        // The cell has them now. A copy kept here would keep channels open whose end is to be seen.
        drop(files);
        drop(prepared.files);
        let mut session = Session::new(prepared.channel, streams.stdio, prepared.console.is_some())?;
        self.say_everything(&mut session, &place.registration.id, streams.size, prepared.told)?;
        let terminal = match (streams.size, streams.stdio.stdin) {
            (Some(_), Some(stdin)) => Some(RawTerminal::new(stdin)?),
            _ => None,
        };
        report.timeline.mark(Stage::Planned);
        let passt = prepared.passt.map(|parts| passt::Start::new(parts, prepared.jailer.clone(), &order));
        let (jailer, stderr) = spawn::jailer(&prepared.jailer, order.arguments(), vec![theirs])?;
        let cell = Cell { jailer, jailer_stderr: Some(stderr), runtime: None };
        let writable = plan::writable_drives(&self.options);
        let limits = pump::Limits {
            boot: self.options.boot_timeout,
            total: self.options.timeout,
            unmounts: !writable.is_empty(),
        };
        let mut pump = Pump::new(session, control, cell, limits, report.timeline.clone());
        pump.signals = self.signals;
        pump.terminal = terminal;
        pump.console = prepared.console;
        pump.vsock = prepared.vsock;
        pump.memory = memory.filter(|&mib| mib > 0);
        pump.desk = Some(desk);
        pump.live = Some(place.keep(record, ordered.limits, prepared.limits));
        pump.volumes = Volumes::new(prepared.volumes, start);
        pump.passt = Passt::new(passt);
        pump.refill = Refill::new(Pool::of(&place.state), prepared.jailer.clone());
        pump.run();
        report.degraded.extend(std::mem::take(&mut pump.volumes).finish());
        report.degraded.extend(std::mem::take(&mut pump.passt).finish());
        report.timeline = pump.timeline;
        let runtime = pump.cell.runtime.take();
        for (part, why) in &pump.evidence.missing {
            report.walls.miss(part, why);
        }
        place.take_stock(runtime.as_ref(), &mut pump.evidence, &writable, report);
        prepared.names.explain(&mut report.outcome, pump.evidence.was_ready);
        drop(prepared.listener);
        Ok(())
    }

    /// All that the guest is told; it hears it when it is there.
    fn say_everything(
        &self,
        session: &mut Session<'_>,
        id: &str,
        terminal: Option<WindowSize>,
        told: Told,
    ) -> Result<(), SandboxError> {
        let mut entropy = [0; 32];
        random(&mut entropy).map_err(StateError::Random)?;
        let identity = Identity { hostname: id.to_owned(), realtime_ns: realtime_ns(), entropy };
        let term = std::env::var("TERM").ok();
        session.say(&Frame::Hello(Hello { version: VERSION, features: 0 }))?;
        session.say(&Frame::Mounts(told.mounts))?;
        if let Some(network) = told.network {
            session.say(&Frame::Network(network))?;
        }
        session.say(&Frame::Identity(identity))?;
        session.say(&Frame::Exec(SESSION, plan::exec(&self.options, terminal, term.as_deref())))?;
        Ok(())
    }

    /// Puts the sandbox on record, and makes vsock's socket. On record before and after: a husk that is killed between leaves a name
    /// that is known.
    fn publish(
        &self,
        prepared: &mut Prepared,
        place: &Place,
        ordered: &Ordered,
    ) -> Result<Record, SandboxError> {
        let mut record = self.record(prepared, place, ordered);
        place.registration.publish(&record)?;
        if let Some(listener) = &mut prepared.listener {
            listener.listen().map_err(PrepareError::from)?;
            record = self.record(prepared, place, ordered);
            place.registration.publish(&record)?;
        }
        Ok(record)
    }

    fn record(&self, prepared: &Prepared, place: &Place, ordered: &Ordered) -> Record {
        let registration = &place.registration;
        let mut room = SHOWN_COMMAND;
        let mut shown = |argument: &OsString| {
            let text: String = argument.to_string_lossy().chars().take(room).collect();
            room -= text.chars().count();
            text
        };
        Record {
            id: registration.id.clone(),
            pid: i32::try_from(std::process::id()).unwrap_or(0),
            uid: registration.uid,
            started_ms: realtime_ns() / 1_000_000,
            vcpus: prepared.spec.machine_config.vcpu_count,
            memory_mib: plan::most_memory_mib(&prepared.spec),
            booted_mib: prepared.spec.machine_config.mem_size_mib,
            command: self.options.command.iter().take(SHOWN_COMMAND).map(&mut shown).collect(),
            drives: prepared.spec.drives.iter().map(drive_record).collect(),
            cgroup: (!rootless::is_root()).then(|| place.hierarchies.parent().to_owned()),
            vsock: prepared.listener.as_ref().map(|listener| listener.name().clone()),
            limits: ordered.limits.texts(),
        }
    }
}

impl From<Options> for Sandbox<'_> {
    fn from(options: Options) -> Self {
        Self { options, signals: None, talkative: false, start_ns: now_ns() }
    }
}

/// Standard streams, and the terminal's size if the command gets one.
#[derive(Clone, Copy)]
struct Streams<'s, 'a> {
    stdio: &'s Stdio<'a>,
    size: Option<WindowSize>,
}

fn drive_record(drive: &RawDrive) -> DriveRecord {
    DriveRecord { id: drive.drive_id.clone(), writable: !drive.is_read_only, part: drive.part.is_some() }
}

/// The volumes' servers, to be started beside the cell that `order` is for.
fn volumes(prepared: &mut Prepared, order: &JailerOrder) -> Option<Start> {
    let server = prepared.volume_server.take()?;
    let order = VolumeOrder {
        id: order.id.clone(),
        server,
        pool: order.pool_beside(),
        parent_cgroup: order.parent_cgroup.clone(),
        limits: order.limits.clone(),
        writable: false,
        rootless: order.uid.is_none(),
        isolation: order.isolation,
    };
    Some(Start { jailer: prepared.jailer.clone(), order })
}

fn open_desk(directory: &Path) -> Result<Desk, StateError> {
    Desk::open(directory).map_err(|source| StateError::Io { path: directory.to_owned(), source })
}
