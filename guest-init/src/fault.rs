//! Why PID 1 cannot go on. Owns the one list of reasons, as the host and the kernel's log are told; refuses nothing.
//! Invariant: nothing that a command does is in it.

use crate::channel::ChannelError;
use crate::identity::IdentityError;
use crate::network::NetworkError;
use crate::root::RootError;
use crate::stream::Overrun;
use husk_protocol::exec::{EncodeError, Frame};
use rustix::io::Errno;

/// The guest cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The connection.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The host sent what it had no credit for.
    #[error("the host broke the exec protocol: {0}")]
    Overrun(#[from] Overrun),
    /// The host said something out of order.
    #[error("the host broke the exec protocol: {frame} {why}")]
    Order {
        /// What it said.
        frame: &'static str,
        /// What is wrong with that.
        why: &'static str,
    },
    /// The root or a drive.
    #[error(transparent)]
    Root(#[from] RootError),
    /// The network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The event loop.
    #[error("PID 1 cannot wait for events: {0}")]
    Loop(Errno),
}

impl From<EncodeError> for ServeError {
    fn from(error: EncodeError) -> Self {
        Self::Channel(error.into())
    }
}

impl ServeError {
    /// The host said something that it may not say now.
    pub(crate) fn order(frame: &Frame, why: &'static str) -> Self {
        Self::Order { frame: frame.name(), why }
    }
}
