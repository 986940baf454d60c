//! What a request does: a function of memory, chain and region.
//!
//! Owns the rules of virtio 1.2, 5.15.6. Refuses, as an error that the driver hears, blocks that are not whole, not of the
//! region or not as the request takes them, and more than the host asks for; as no request at all what is shorter than one.
//! Invariant: a request is carried out only if its answer can be written.

use super::Requested;
use crate::devices::virtio::Memory;
use crate::devices::virtio::guest_io::GuestIo;
use crate::devices::virtio::queue::Chain;
use crate::devices::virtio::service::Answer;
use crate::memory::{BLOCK, Blockwise, Hotplug, NotNow};
use vm_memory::Permissions;

/// Bytes of a request (`struct virtio_mem_req`): type, padding, and for all but `UNPLUG_ALL` address, number of blocks, padding.
const REQUEST_BYTES: usize = 24;
/// Bytes of a response (`struct virtio_mem_resp`): type, padding, and a state.
const RESPONSE_BYTES: usize = 10;

/// What taking a block away costs, in blocks that are looked at.
const TAKING: u64 = 64;

const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;

/// What a request comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
enum Response {
    /// It is done.
    Ack = 0,
    /// Not wanted: more than the host asks for.
    Nack = 1,
    /// Not now.
    Busy = 2,
    /// It makes no sense.
    Error = 3,
}

impl From<Result<(), NotNow>> for Response {
    fn from(done: Result<(), NotNow>) -> Self {
        if done.is_ok() { Self::Ack } else { Self::Busy }
    }
}

/// Answers the request in `chain`. `None`: it is none.
pub(super) fn answer(
    memory: &Memory,
    chain: &Chain,
    hotplug: &Hotplug,
    requested: &Requested,
) -> Option<Answer> {
    let mut asked = GuestIo::new(memory, &chain.readable, Permissions::Read).ok()?;
    let mut told = GuestIo::new(memory, &chain.writable, Permissions::Write).ok()?;
    let mut request = [0; REQUEST_BYTES];
    if told.len() < RESPONSE_BYTES || asked.copy_into(&mut request) != REQUEST_BYTES {
        return None;
    }
    let mut cost = cost(&request, hotplug);
    let (response, state) = carry_out(&request, hotplug, requested, &mut cost);
    let mut bytes = [0; RESPONSE_BYTES];
    bytes[..2].copy_from_slice(&(response as u16).to_le_bytes());
    bytes[8..].copy_from_slice(&state.to_le_bytes());
    // Ten bytes.
    let written = u32::try_from(told.fill_from(&bytes)).unwrap_or(u32::MAX);
    Some(Answer { written, cost })
}

/// Blocks that are looked at, more or less.
fn cost(request: &[u8; REQUEST_BYTES], hotplug: &Hotplug) -> u64 {
    let all = u16::from_le_bytes([request[0], request[1]]) == UNPLUG_ALL;
    if all { hotplug.bytes() / BLOCK } else { u16::from_le_bytes([request[16], request[17]]).into() }
}

/// The response, and the state that goes with it.
fn carry_out(
    request: &[u8; REQUEST_BYTES],
    hotplug: &Hotplug,
    requested: &Requested,
    cost: &mut u64,
) -> (Response, u16) {
    let word = |at: usize| u16::from_le_bytes([request[at], request[at + 1]]);
    let (kind, count) = (word(0), u64::from(word(16)));
    if kind == UNPLUG_ALL {
        hotplug.unplug_all();
        return (Response::Ack, 0);
    }
    let mut address = [0; 8];
    address.copy_from_slice(&request[8..16]);
    let Some(blocks) = hotplug.blocks(u64::from_le_bytes(address), count * BLOCK) else {
        return (Response::Error, 0);
    };
    match (kind, hotplug.state(blocks.clone())) {
        (PLUG, Blockwise::Unplugged) => (plug(blocks, hotplug, requested, cost), 0),
        (UNPLUG, Blockwise::Plugged) => (hotplug.unplug(blocks).into(), 0),
        (STATE, Blockwise::Plugged) => (Response::Ack, 0),
        (STATE, Blockwise::Unplugged) => (Response::Ack, 1),
        (STATE, Blockwise::Mixed) => (Response::Ack, 2),
        _ => (Response::Error, 0),
    }
}

fn plug(
    blocks: std::ops::Range<usize>,
    hotplug: &Hotplug,
    requested: &Requested,
    cost: &mut u64,
) -> Response {
    let more = blocks.len() as u64 * BLOCK;
    if hotplug.plugged_bytes() + more > requested.get() {
        return Response::Nack;
    }
    // What was unplugged and can still be touched counts, or a guest would have more of the host's memory than it was granted.
    if hotplug.open_bytes() + more > requested.get() {
        // Taking memory away is the dearest of all: an event does it a few times at most.
        *cost += hotplug.take_away() as u64 * TAKING;
        if hotplug.open_bytes() + more > requested.get() {
            return Response::Busy;
        }
    }
    hotplug.plug(blocks).into()
}
