//! From the guest to the host.
//!
//! Owns the way of a packet out of the guest's send queue. Refuses packets that lie about their length, come from
//! another context id or go to another than the host, are no streams, or belong to no connection. Invariant: data
//! goes from guest memory into the socket without a copy, and what the socket does not take at once fits into the
//! window that the guest was granted.

use super::connection::{Incoming, Phase};
use super::exchange::{Exchange, MOST_STRAYS, deserves_reset, flush, host_is_deaf, pass_on_shutdown, wrap};
use super::host::HostSide;
use super::packet::{HEADER_BYTES, HOST_CID, Header, Op, SHUT_RECEIVE, TYPE_STREAM};
use super::peers::{Peer, PeerId};
use crate::devices::virtio::guest_io::GuestIo;
use crate::devices::virtio::queue::{Chain, Popped, QueueError};
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use vm_memory::Permissions;

/// Most packets per event.
const PACKETS: u32 = 64;

impl Exchange {
    /// Takes packets from the guest until there are none, or others have to come first. The caller signals.
    pub(super) fn transmit(&mut self, host: &mut HostSide) -> Result<(), QueueError> {
        self.outbound.refuse_kicks()?;
        for _ in 0..PACKETS {
            self.held_up = self.strays.len() >= MOST_STRAYS;
            if self.held_up {
                // Whoever sends the strays kicks again.
                return Ok(());
            }
            match self.outbound.pop(&mut self.chain)? {
                Popped::Empty if self.outbound.want_kicks()? => {}
                Popped::Empty => return Ok(()),
                popped => {
                    let chain = std::mem::take(&mut self.chain);
                    if popped == Popped::Malformed || !self.packet(host, &chain) {
                        self.dropped.fetch_add(1, Ordering::Relaxed);
                    }
                    self.outbound.add_used(chain.head, 0)?;
                    self.chain = chain;
                }
            }
        }
        self.outbound.kick_again();
        Ok(())
    }

    /// Takes one packet; false if it is none.
    fn packet(&mut self, host: &mut HostSide, chain: &Chain) -> bool {
        let memory = self.memory.clone();
        let Ok(mut data) = GuestIo::new(memory.as_ref(), &chain.readable, Permissions::Read) else {
            return false;
        };
        let mut bytes = [0; HEADER_BYTES];
        if data.copy_into(&mut bytes) != HEADER_BYTES {
            return false;
        }
        let header = Header::decode(&bytes);
        if header.src_cid != host.guest_cid || header.dst_cid != HOST_CID {
            return false;
        }
        let len = if header.op() == Some(Op::Data) { header.len as usize } else { 0 };
        let honest = len <= data.len();
        data.truncate(len);
        match self.peers.find(header.key()).filter(|_| header.kind == TYPE_STREAM) {
            Some(id) if honest => self.packet_of(host, id, &header, data),
            Some(id) => self.abandon(id),
            None if honest && header.kind == TYPE_STREAM && header.op() == Some(Op::Request) => {
                self.open(host, &header)
            }
            None if deserves_reset(&header) => self.strays.push_back(header.reset()),
            None => {}
        }
        honest
    }

    /// Takes a packet of connection `id` with its data.
    fn packet_of(&mut self, host: &mut HostSide, id: PeerId, header: &Header, data: GuestIo<'_>) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        if peer.connection.phase() == Phase::Closed && header.op() == Some(Op::Request) {
            // What the guest sent before is still on its way to the host; the ports are not free yet.
            self.strays.push_back(header.reset());
            return;
        }
        match peer.connection.incoming(header) {
            Ok(Incoming::Counters) => {}
            Ok(Incoming::Established) => self.established(id),
            Ok(Incoming::Data(len)) => forward(host, id, peer, data, len),
            Ok(Incoming::Shut) => pass_on_shutdown(peer),
            Ok(Incoming::Reset) => self.guest_reset(host, id),
            Err(_) => {
                self.abandon(id);
                return;
            }
        }
        self.settle(id);
    }

    /// The guest ended the connection: what it sent before still goes to the host, then the socket is closed.
    fn guest_reset(&mut self, host: &mut HostSide, id: PeerId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        if peer.socket.is_none() {
            self.abandon(id);
        } else {
            flush(host, id, peer);
        }
    }
}

/// Sends `data` to the host's socket, and keeps what it does not take.
fn forward(host: &HostSide, id: PeerId, peer: &mut Peer, mut data: GuestIo<'_>, len: u32) {
    let Some(socket) = peer.socket.as_ref().filter(|_| peer.connection.host_shut() & SHUT_RECEIVE == 0)
    else {
        peer.connection.forwarded(len);
        return;
    };
    while peer.backlog.is_empty() && !data.is_empty() {
        match data.send(socket.as_fd()) {
            Ok(count) => peer.connection.forwarded(wrap(count)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(_) => {
                host_is_deaf(peer);
                peer.connection.forwarded(wrap(data.len()));
                return;
            }
        }
    }
    if !data.is_empty() {
        data.append_to(peer.backlog.tail());
        host.await_room(id, peer, true);
    }
}
