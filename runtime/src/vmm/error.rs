//! Failures of the runtime: who is at fault, and with which status it exits.

use super::state::Refused;
use crate::boot::BootError;
use crate::confine::ConfineError;
use crate::control::ControlError;
use crate::kvm::KvmError;
use crate::machine::MachineError;
use crate::resources::ResourceError;
use crate::spec::SpecError;
use husk_protocol::control::{Fault, FromCell};
use husk_protocol::exit::RuntimeExit;
use std::io;

/// The sandbox cannot be, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// A message cannot be taken.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// A message came at the wrong time.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The request is not a machine.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The files are not what the machine needs.
    #[error(transparent)]
    Resource(#[from] ResourceError),
    /// KVM refused.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The machine cannot be composed.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The kernel cannot be booted.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The process cannot be confined.
    #[error(transparent)]
    Confine(#[from] ConfineError),
    /// Signal handlers cannot be installed.
    #[error("signal handlers: {0}")]
    Handlers(#[source] io::Error),
    /// The control loop cannot wait.
    #[error("the control loop: {0}")]
    Wait(#[source] io::Error),
}

impl VmmError {
    /// Who is to blame.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::Control(ControlError::Receive(_)) | Self::Handlers(_) | Self::Wait(_) => Fault::Host,
            Self::Control(_) | Self::Refused(_) | Self::Spec(_) | Self::Resource(_) => Fault::Operator,
            Self::Kvm(error) | Self::Machine(MachineError::Kvm(error)) => kvm_fault(error),
            Self::Machine(_) => Fault::Host,
            Self::Boot(BootError::Read { .. }) => Fault::Host,
            Self::Boot(BootError::Tables(_)) => Fault::Bug,
            Self::Boot(_) => Fault::Operator,
            Self::Confine(ConfineError::Cpu { .. }) => Fault::Operator,
            Self::Confine(_) => Fault::Host,
        }
    }

    /// The status that the process ends with.
    #[must_use]
    pub fn exit(&self) -> RuntimeExit {
        status(self.fault())
    }
}

fn kvm_fault(error: &KvmError) -> Fault {
    match error {
        KvmError::NotKvm { .. } | KvmError::TooMany { .. } => Fault::Operator,
        KvmError::Capability(_) | KvmError::Call { .. } => Fault::Host,
    }
}

/// The status for what the machine's end reported.
pub(super) fn exit_of(failed: Option<&FromCell>) -> RuntimeExit {
    match failed {
        Some(FromCell::Failed { fault, .. }) => status(*fault),
        _ => RuntimeExit::Ended,
    }
}

fn status(fault: Fault) -> RuntimeExit {
    match fault {
        Fault::Guest => RuntimeExit::Guest,
        Fault::Host => RuntimeExit::Host,
        Fault::Operator => RuntimeExit::Operator,
        Fault::Bug => RuntimeExit::Bug,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blame_goes_where_it_belongs() {
        let kvm = VmmError::Kvm(KvmError::NotKvm { version: -1 });
        assert_eq!((kvm.fault(), kvm.exit()), (Fault::Operator, RuntimeExit::Operator));
        let boot = VmmError::Boot(BootError::NoPvh);
        assert_eq!(boot.fault(), Fault::Operator);
        let receive = VmmError::Control(ControlError::Receive(io::ErrorKind::Other.into()));
        assert_eq!(receive.exit(), RuntimeExit::Host);
        assert_eq!(exit_of(None), RuntimeExit::Ended);
        let failed = FromCell::Failed { fault: Fault::Guest, message: String::new() };
        assert_eq!(exit_of(Some(&failed)), RuntimeExit::Guest);
    }
}
