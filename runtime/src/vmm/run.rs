//! The control loop: waits for husk, for the vCPUs and for the guest's reset, until one of them ends the machine.
//!
//! Invariant: it makes no call that can wait but the one `epoll` (and a report to husk).

use super::change::Changes;
use super::{Refused, Request, State, VmmError, admit};
use crate::control;
use crate::machine::Machine;
use crate::report::Reporter;
use crate::vcpu::VcpuEnd;
use husk_protocol::control::{Change, Changed, EndReason, Fault, FromCell, MemoryChange, Stage};
use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

const CONTROL: u64 = 0;
const EXITS: u64 = 1;
const RESET: u64 = 2;
const DRIVES: u64 = 3;

/// How it went: a failure to report before the end, and the end; no end if husk has gone.
type End = (Option<FromCell>, Option<EndReason>);

/// What the loop waits on; made before the thread's last filter.
pub(super) fn queue(machine: &Machine, reporter: &Reporter) -> Result<Epoll, VmmError> {
    let queue = Epoll::new().map_err(VmmError::Wait)?;
    let (control, exits) = (reporter.as_fd().as_raw_fd(), machine.exits().event().as_raw_fd());
    let fds = [control, exits, machine.reset().as_raw_fd(), machine.drives().bell()];
    for (token, fd) in [CONTROL, EXITS, RESET, DRIVES].into_iter().zip(fds) {
        let event = EpollEvent::new(EventSet::IN, token);
        queue.ctl(ControlOperation::Add, fd, event).map_err(VmmError::Wait)?;
    }
    Ok(queue)
}

/// Waits until the machine ends.
pub(super) fn until_end(queue: &Epoll, machine: &Machine, reporter: &Reporter) -> Result<End, VmmError> {
    let mut events = [EpollEvent::default(); 4];
    let mut changes = Changes::default();
    loop {
        let count = match queue.wait(changes.wait_ms(), &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => 0,
            Err(error) => return Err(VmmError::Wait(error)),
        };
        for event in events.iter().take(count) {
            let end = match event.data() {
                CONTROL => on_message(machine, reporter, &mut changes)?,
                EXITS => on_vcpus(machine, reporter),
                DRIVES => {
                    answer(changes.hear(machine.drives()), reporter);
                    None
                }
                _ => Some((None, Some(EndReason::GuestReset))),
            };
            if let Some(end) = end {
                return Ok(end);
            }
        }
        answer(changes.expire(machine.drives()), reporter);
    }
}

/// Tells husk how a change went.
fn answer(answer: Option<FromCell>, reporter: &Reporter) {
    if let Some(answer) = answer {
        let _gone = reporter.send(&answer);
    }
}

/// Begins a change; an answer if there is one already.
fn begin(
    machine: &Machine,
    changes: &mut Changes,
    (request, change): (u32, Change),
    descriptors: Vec<OwnedFd>,
) -> Option<FromCell> {
    match change {
        Change::Drive(drive) => changes.begin(machine.drives(), request, drive, descriptors),
        Change::Memory(MemoryChange { requested_size_mib }) => {
            let asked = machine.request_memory(requested_size_mib);
            let changed = asked.err().map(|line| Changed::refused(Fault::Operator, line)).unwrap_or_default();
            Some(FromCell::Changed { request, changed })
        }
    }
}

fn on_message(
    machine: &Machine,
    reporter: &Reporter,
    changes: &mut Changes,
) -> Result<Option<End>, VmmError> {
    let received = match control::receive(reporter, true) {
        Ok(Some(received)) => received,
        // husk has gone, and the sandbox with it.
        Ok(None) => return Ok(Some((None, None))),
        Err(control::ControlError::Receive(error)) if error.kind() == ErrorKind::WouldBlock => {
            return Ok(None);
        }
        Err(error) => return Err(error.into()),
    };
    let request = Request::from(received);
    match (admit(State::Running, &request)?, request) {
        (State::Ended, _) => Ok(Some((None, Some(EndReason::Requested)))),
        (_, Request::VsockConnected { request, stream }) => {
            machine.answer_vsock(request, stream);
            Ok(None)
        }
        (_, Request::Change { request, change, descriptors }) => {
            answer(begin(machine, changes, (request, change), descriptors), reporter);
            Ok(None)
        }
        (_, Request::Start { .. }) => Err(Refused::Started(State::Running).into()),
        (_, Request::Stop) => Ok(None),
    }
}

fn on_vcpus(machine: &Machine, reporter: &Reporter) -> Option<End> {
    // Counted down before the reports are taken, so that a later one makes it readable again.
    let _count = machine.exits().event().read();
    if let Some(at_ns) = machine.exits().take_entered() {
        let _gone = reporter.send(&FromCell::Stage { stage: Stage::KernelEntry, at_ns });
    }
    Some(match machine.exits().take()? {
        VcpuEnd::Shutdown => (None, Some(EndReason::GuestShutdown)),
        VcpuEnd::Reset => (None, Some(EndReason::GuestReset)),
        VcpuEnd::Fault { fault, message } => {
            (Some(FromCell::Failed { fault, message }), Some(EndReason::GuestFault))
        }
    })
}
