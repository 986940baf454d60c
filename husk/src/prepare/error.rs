//! Why a sandbox cannot be prepared, and whose fault that is.
//!
//! Owns the judgement, not the words: each part has its own. Invariant: every variant has one fault.

use crate::assets::AssetError;
use crate::config::ConfigError;
use crate::doctor::Refusal;
use crate::host::HostError;
use crate::image::ImageError;
use crate::limits::OrderError;
use crate::memfile::MemoryFileError;
use crate::pack::PackError;
use crate::passt::PasstError;
use crate::plan::PlanError;
use crate::tap::TapError;
use crate::volume::VolumeError;
use crate::vsock::VsockError;
use husk_protocol::control::Fault;

/// The sandbox cannot be prepared.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PrepareError {
    /// What is asked for makes no sense.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The configuration file.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The machine.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The machine keeps strangers apart badly, and that matters.
    #[error(transparent)]
    Unsafe(#[from] Refusal),
    /// A file of Husk's own.
    #[error(transparent)]
    Asset(#[from] AssetError),
    /// A file of the operator's.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A directory as the root.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// A file in memory.
    #[error(transparent)]
    Memory(#[from] MemoryFileError),
    /// A tap.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The network's passt.
    #[error(transparent)]
    Passt(#[from] PasstError),
    /// A directory of the host.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The vsock socket.
    #[error(transparent)]
    Vsock(#[from] VsockError),
    /// A limit of the cgroup.
    #[error(transparent)]
    Limit(#[from] OrderError),
    /// No descriptors.
    #[error("no pipe, socket or random number can be had: {0}")]
    Descriptors(std::io::Error),
}

impl PrepareError {
    /// Who is at fault.
    #[must_use]
    pub(crate) fn fault(&self) -> Fault {
        match self {
            Self::Plan(_) | Self::Config(_) | Self::Vsock(_) | Self::Volume(_) => Fault::Operator,
            Self::Host(error) => error.fault(),
            Self::Tap(error) => error.fault(),
            Self::Limit(error) => error.fault(),
            Self::Image(error) => error.fault(),
            Self::Pack(error) => error.fault(),
            Self::Unsafe(_) | Self::Asset(_) | Self::Memory(_) | Self::Passt(_) | Self::Descriptors(_) => {
                Fault::Host
            }
        }
    }
}

impl From<rustix::io::Errno> for PrepareError {
    fn from(errno: rustix::io::Errno) -> Self {
        Self::Descriptors(errno.into())
    }
}
