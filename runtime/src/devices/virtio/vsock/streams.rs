//! What a driver has with the host, while no worker has it.
//!
//! Owns the connections and what the guest is owed, between the worker that was drained and the next one. Refuses nothing.
//! Invariant: what stood in line stands in line, in its order; deadlines are as far away as they were.

use super::packet::Header;
use super::peers::{PeerId, Peers};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// See the module.
#[derive(Default)]
pub(super) struct Streams {
    pub(super) peers: Peers,
    /// Resets owed to packets of no connection.
    pub(super) strays: VecDeque<Header>,
    /// Questions to husk, and the connection that waits for the answer.
    pub(super) questions: BTreeMap<u32, PeerId>,
    /// The guest has to hear that the transport was reset.
    pub(super) reset_untold: bool,
}

impl Streams {
    /// None of the driver's is left, and it has yet to hear of that.
    pub(super) fn after_load() -> Self {
        Self { reset_untold: true, ..Self::default() }
    }

    /// So much time has passed that counts for nothing.
    pub(super) fn put_off(&mut self, pause: Duration) {
        self.peers.put_off(pause);
    }
}
