//! Why a sandbox cannot be started, and whose fault that is.
//!
//! Owns the judgement of what went wrong before the pump ran. Refuses to word anything itself: each part has said it. Invariant: every
//! variant has one fault.

use crate::control::ControlError;
use crate::limits::OrderError;
use crate::outcome::Outcome;
use crate::pack::PackError;
use crate::prepare::PrepareError;
use crate::rootless::DelegationError;
use crate::session::SessionError;
use crate::spawn::SpawnError;
use crate::state::StateError;
use crate::terminal::TerminalError;
use husk_protocol::control::Fault;

/// A sandbox cannot be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SandboxError {
    /// Something that it needs is not as it must be.
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The cgroup of somebody who is not root.
    #[error(transparent)]
    Delegation(#[from] DelegationError),
    /// The terminal.
    #[error(transparent)]
    Terminal(#[from] TerminalError),
    /// A limit that this host's cgroups do not have.
    #[error(transparent)]
    Limit(#[from] OrderError),
    /// The control socket.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The exec channel.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The jailer.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
}

impl SandboxError {
    /// Who is at fault.
    #[must_use]
    pub(crate) fn fault(&self) -> Fault {
        match self {
            Self::Prepare(error) => error.fault(),
            Self::State(error) => error.fault(),
            Self::Limit(error) => error.fault(),
            Self::Terminal(_) => Fault::Operator,
            Self::Session(SessionError::TooLong(_))
            | Self::Control(ControlError::TooLong(_) | ControlError::TooManyFiles(_)) => Fault::Operator,
            Self::Delegation(_) | Self::Control(_) | Self::Session(_) | Self::Spawn(_) => Fault::Host,
        }
    }

    pub(super) fn outcome(&self) -> Outcome {
        match self {
            Self::Prepare(PrepareError::Pack(PackError::Interrupted(signal))) => Outcome::of_signal(*signal),
            _ => Outcome::failure(self.fault(), self.to_string()),
        }
    }
}
