//! What may be asked for when.
//!
//! Invariant: [`admit`] is a pure function of state and request; nothing else decides.

use crate::control::Received;
use husk_protocol::control::{Change, ToCell};
use husk_protocol::spec::RawSpec;
use std::os::fd::OwnedFd;

/// Where a sandbox is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Nothing is known of the machine.
    Waiting,
    /// The machine is built and its guest runs.
    Running,
    /// It is over.
    Ended,
}

/// Everything that can be asked of the runtime.
#[derive(Debug)]
pub enum Request {
    /// Be this machine.
    Start {
        /// Which.
        spec: Box<RawSpec>,
        /// The files that it names.
        descriptors: Vec<OwnedFd>,
    },
    /// End it.
    Stop,
    /// Change it while it runs.
    Change {
        /// Which request.
        request: u32,
        /// What.
        change: Change,
        /// The files that it names.
        descriptors: Vec<OwnedFd>,
    },
    /// The answer about a guest's connection to the host.
    VsockConnected {
        /// Which connection.
        request: u32,
        /// The stream; `None`: refused.
        stream: Option<OwnedFd>,
    },
}

impl From<Received> for Request {
    /// Descriptors that a request has no use for are closed.
    fn from(received: Received) -> Self {
        let Received { message, descriptors } = received;
        match message {
            ToCell::Start { spec } => Self::Start { spec, descriptors },
            ToCell::Stop => Self::Stop,
            ToCell::Change { request, change } => Self::Change { request, change, descriptors },
            ToCell::VsockConnected { request, connected } => {
                let stream = descriptors.into_iter().next().filter(|_| connected);
                Self::VsockConnected { request, stream }
            }
        }
    }
}

/// A request at the wrong time.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// A machine starts once.
    #[error("start: the machine is {0:?} already; it is started once")]
    Started(State),
    /// There is no machine yet.
    #[error("{0}: no machine runs")]
    NoMachine(&'static str),
}

/// The state that `request` leads to from `state`.
///
/// # Errors
/// It may not be asked for now; the state stays.
pub fn admit(state: State, request: &Request) -> Result<State, Refused> {
    match (state, request) {
        (State::Waiting, Request::Start { .. }) => Ok(State::Running),
        (_, Request::Start { .. }) => Err(Refused::Started(state)),
        (_, Request::Stop) => Ok(State::Ended),
        (State::Running, Request::VsockConnected { .. } | Request::Change { .. }) => Ok(State::Running),
        (_, Request::VsockConnected { .. }) => Err(Refused::NoMachine("vsock_connected")),
        (_, Request::Change { .. }) => Err(Refused::NoMachine("change")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use husk_protocol::control::DriveChange;
    use husk_protocol::spec::FileRef;

    fn start() -> Request {
        Request::Start { spec: Box::default(), descriptors: Vec::new() }
    }

    fn answer() -> Request {
        Request::VsockConnected { request: 1, stream: None }
    }

    fn change() -> Request {
        let drive = DriveChange { drive_id: "data".into(), path_on_host: FileRef::Fd(0) };
        Request::Change { request: 1, change: Change::Drive(drive), descriptors: Vec::new() }
    }

    #[test]
    fn every_request_in_every_state() {
        use State::{Ended, Running, Waiting};
        assert_eq!(admit(Waiting, &start()), Ok(Running));
        assert_eq!(admit(Running, &start()), Err(Refused::Started(Running)));
        assert_eq!(admit(Ended, &start()), Err(Refused::Started(Ended)));
        for state in [Waiting, Running, Ended] {
            assert_eq!(admit(state, &Request::Stop), Ok(Ended));
        }
        for (name, request) in [("vsock_connected", answer()), ("change", change())] {
            assert_eq!(admit(Waiting, &request), Err(Refused::NoMachine(name)));
            assert_eq!(admit(Running, &request), Ok(Running));
            assert_eq!(admit(Ended, &request), Err(Refused::NoMachine(name)));
        }
    }

    #[test]
    fn an_answer_without_a_stream_is_a_refusal() {
        let null = || vec![OwnedFd::from(std::fs::File::open("/dev/null").unwrap())];
        let stream = |connected, descriptors| {
            let message = ToCell::VsockConnected { request: 1, connected };
            match Request::from(Received { message, descriptors }) {
                Request::VsockConnected { stream, .. } => stream.is_some(),
                other => panic!("{other:?}"),
            }
        };
        assert!(stream(true, null()));
        assert!(!stream(true, Vec::new()));
        assert!(!stream(false, null()));
    }
}
