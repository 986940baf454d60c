//! One vsock connection as the protocol sees it: phases, credit both ways, and what the guest has yet to be told.
//!
//! Owns counters and flags, no bytes and no socket: it is tested without either. Refuses, as [`Violation`], packets
//! that the phase does not allow, data beyond the window that was granted, and credit for bytes that were never sent.
//! Invariant: bytes received from the guest and not yet forwarded are at most `window`; bytes sent to it and not yet
//! consumed are at most what it granted.
//!
//! ```text
//! Asked ──host agrees──► Open ◄──guest answers── Requested
//!   └─────────reset──────► Closed ◄──────reset──────┘
//! ```

use super::packet::{HOST_CID, Header, Key, Op, SHUT_BOTH, SHUT_RECEIVE, SHUT_SEND, TYPE_STREAM};

/// How far a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The guest asked; the host has not answered.
    Asked,
    /// The host asked; the guest has not answered.
    Requested,
    /// Data flows.
    Open,
    /// The guest was or is about to be told of the end; what it sent may still be on its way to the host.
    Closed,
}

/// What a packet of the guest's comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Incoming {
    /// Only counters changed.
    Counters,
    /// The guest agreed to the host's request.
    Established,
    /// So many bytes are to be forwarded.
    Data(u32),
    /// The guest will not send, or not receive, any more; see [`Connection::guest_shut`].
    Shut,
    /// The guest ended the connection.
    Reset,
}

/// The guest broke the protocol: the connection is reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Violation;

/// What the guest has to be told, beside data.
#[derive(Debug, Clone, Copy, Default)]
struct Untold {
    request: bool,
    response: bool,
    credit: bool,
    reset: bool,
}

#[derive(Debug)]
pub(super) struct Connection {
    key: Key,
    guest_cid: u64,
    phase: Phase,
    untold: Untold,
    /// Bytes sent to the guest, modulo 2^32 as all counters.
    sent: u32,
    guest_forwarded: u32,
    guest_window: u32,
    received: u32,
    forwarded: u32,
    /// The value of `forwarded` that the guest knows.
    reported: u32,
    window: u32,
    guest_shut: u32,
    host_shut: u32,
    host_shut_told: u32,
}

impl Connection {
    /// A connection that the guest asked for with `request`; the host will buffer up to `window` bytes.
    pub(super) fn asked(request: &Header, window: u32) -> Self {
        let mut connection = Self::new(request.key(), request.src_cid, Phase::Asked, window);
        connection.guest_window = request.buf_alloc;
        connection
    }

    /// A connection that the host asks for.
    pub(super) fn requested(key: Key, guest_cid: u64, window: u32) -> Self {
        let mut connection = Self::new(key, guest_cid, Phase::Requested, window);
        connection.untold.request = true;
        connection
    }

    fn new(key: Key, guest_cid: u64, phase: Phase, window: u32) -> Self {
        Self {
            key,
            guest_cid,
            phase,
            untold: Untold::default(),
            sent: 0,
            guest_forwarded: 0,
            guest_window: 0,
            received: 0,
            forwarded: 0,
            reported: 0,
            window,
            guest_shut: 0,
            host_shut: 0,
            host_shut_told: 0,
        }
    }

    pub(super) fn key(&self) -> Key {
        self.key
    }

    pub(super) fn phase(&self) -> Phase {
        self.phase
    }

    pub(super) fn window(&self) -> u32 {
        self.window
    }

    /// The host agrees to the guest's request.
    pub(super) fn agree(&mut self) {
        if self.phase == Phase::Asked {
            self.phase = Phase::Open;
            self.untold.response = true;
        }
    }

    /// Ends the connection; the guest will be told.
    pub(super) fn reset(&mut self) {
        if self.phase != Phase::Closed {
            self.phase = Phase::Closed;
            self.untold = Untold { reset: true, ..Untold::default() };
        }
    }

    /// What the guest has shut: [`SHUT_SEND`], [`SHUT_RECEIVE`].
    pub(super) fn guest_shut(&self) -> u32 {
        self.guest_shut
    }

    /// What the host has shut.
    pub(super) fn host_shut(&self) -> u32 {
        self.host_shut
    }

    /// The host will not send (or not receive) any more; the guest will be told, after the data.
    pub(super) fn shut_by_host(&mut self, flags: u32) {
        self.host_shut |= flags;
    }

    /// Takes a packet of the guest's; its addresses are this connection's.
    pub(super) fn incoming(&mut self, header: &Header) -> Result<Incoming, Violation> {
        let op = header.op().ok_or(Violation)?;
        if op == Op::Reset {
            self.phase = Phase::Closed;
            self.untold = Untold::default();
            return Ok(Incoming::Reset);
        }
        match (self.phase, op) {
            (Phase::Closed, _) => return Ok(Incoming::Counters),
            (Phase::Requested, Op::Response) => self.phase = Phase::Open,
            (Phase::Open, Op::Data | Op::Shutdown | Op::CreditUpdate | Op::CreditRequest) => {}
            _ => return Err(Violation),
        }
        self.take_credit(header)?;
        match op {
            Op::Response => Ok(Incoming::Established),
            Op::Data => self.take_data(header.len),
            Op::Shutdown => {
                self.guest_shut |= header.flags & SHUT_BOTH;
                Ok(Incoming::Shut)
            }
            Op::CreditRequest => {
                self.untold.credit = true;
                Ok(Incoming::Counters)
            }
            _ => Ok(Incoming::Counters),
        }
    }

    fn take_credit(&mut self, header: &Header) -> Result<(), Violation> {
        let in_flight = self.sent.wrapping_sub(self.guest_forwarded);
        let consumed = header.fwd_cnt.wrapping_sub(self.guest_forwarded);
        if consumed > in_flight {
            return Err(Violation);
        }
        self.guest_forwarded = header.fwd_cnt;
        self.guest_window = header.buf_alloc;
        Ok(())
    }

    fn take_data(&mut self, len: u32) -> Result<Incoming, Violation> {
        let unforwarded = self.received.wrapping_sub(self.forwarded);
        if len > self.window.saturating_sub(unforwarded) || self.guest_shut & SHUT_SEND != 0 {
            return Err(Violation);
        }
        self.received = self.received.wrapping_add(len);
        Ok(Incoming::Data(len))
    }

    /// `count` bytes of the guest's were forwarded (or dropped, because the host receives no more).
    pub(super) fn forwarded(&mut self, count: u32) {
        self.forwarded = self.forwarded.wrapping_add(count);
        // Told late, so that few packets go; told before the guest's view of the window closes, so that it never stops
        // while the host reads. Any packet tells it too. A Linux guest sends no more than its own buffer's size ahead,
        // however large the window is.
        let ahead = self.window.min(self.guest_window);
        if self.forwarded.wrapping_sub(self.reported) >= (ahead / 2).max(1) {
            self.untold.credit = true;
        }
    }

    /// Bytes that may be sent to the guest now.
    pub(super) fn credit(&self) -> u32 {
        if self.phase != Phase::Open || self.guest_shut & SHUT_RECEIVE != 0 || self.host_shut & SHUT_SEND != 0
        {
            return 0;
        }
        self.guest_window.saturating_sub(self.sent.wrapping_sub(self.guest_forwarded))
    }

    /// Whether [`Self::next_control`] has something, other than what has to wait for data.
    pub(super) fn has_control(&self) -> bool {
        let Untold { request, response, credit, reset } = self.untold;
        let open = self.phase == Phase::Open;
        request || response || reset || open && (credit || self.host_shut != self.host_shut_told)
    }

    /// The next packet without data that the guest has to get.
    pub(super) fn next_control(&mut self) -> Option<Header> {
        if !self.has_control() {
            return None;
        }
        let op = if std::mem::take(&mut self.untold.reset) {
            Op::Reset
        } else if std::mem::take(&mut self.untold.request) {
            Op::Request
        } else if std::mem::take(&mut self.untold.response) {
            Op::Response
        } else if self.host_shut != self.host_shut_told {
            self.host_shut_told = self.host_shut;
            let header = self.header(Op::Shutdown, 0);
            return Some(Header { flags: self.host_shut, ..header });
        } else {
            Op::CreditUpdate
        };
        Some(self.header(op, 0))
    }

    /// The header of a packet with `len` bytes of data, at most [`Self::credit`].
    pub(super) fn next_data(&mut self, len: u32) -> Header {
        self.sent = self.sent.wrapping_add(len);
        self.header(Op::Data, len)
    }

    fn header(&mut self, op: Op, len: u32) -> Header {
        self.reported = self.forwarded;
        self.untold.credit = false;
        Header {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid,
            src_port: self.key.host_port,
            dst_port: self.key.guest_port,
            len,
            kind: TYPE_STREAM,
            raw_op: op as u16,
            flags: 0,
            buf_alloc: self.window,
            fwd_cnt: self.forwarded,
        }
    }
}

#[cfg(test)]
mod tests;
