//! A guest of the vsock device: what Linux does, and what it would never do.

use super::super::packet::{HEADER_BYTES, HOST_CID, Header, Op, TYPE_STREAM};
use super::super::*;
use crate::devices::virtio::testkit::Bench;
use std::os::unix::net::UnixStream;

pub(super) const CID: u64 = 3;
pub(super) const EXEC: u32 = 1024;
/// What Linux grants, and how large its receive buffers are.
pub(super) const GUEST_WINDOW: u32 = 256 << 10;
pub(super) const BUFFER: u32 = 3776;
pub(super) const RECEIVE_BUFFERS: u64 = 0x10_0000;
pub(super) const SEND_BUFFER: u64 = 0x40_0000;

/// A guest that keeps to the protocol unless told otherwise.
pub(super) struct Guest {
    pub(super) bench: Bench,
    /// Packets that arrived.
    pub(super) inbox: Vec<(Header, Vec<u8>)>,
    /// Addresses of the receive buffers by head.
    pub(super) buffers: Vec<u64>,
    pub(super) consumed: u32,
}

pub(super) fn guest(host: VsockHost) -> (Guest, VsockAnswers) {
    let (mut device, answers) = Vsock::new(CID, host).unwrap();
    let bench = Bench::start(&mut device);
    (Guest { bench, inbox: Vec::new(), buffers: vec![0; 128], consumed: 0 }, answers)
}

impl Guest {
    /// Posts receive buffers: `count` of them, of the usual size.
    pub(super) fn post(&mut self, count: usize) {
        for _ in 0..count {
            let addr = RECEIVE_BUFFERS + u64::from(self.bench.rings[0].available % 128) * 4096;
            let head = self.bench.rings[0].offer(&[(addr, BUFFER, true)]);
            self.buffers[usize::from(head)] = addr;
        }
        self.bench.kick(0);
    }

    pub(super) fn send(&mut self, header: &Header, data: &[u8]) {
        self.bench.write(SEND_BUFFER, &header.encode());
        let header_len = u32::try_from(HEADER_BYTES).unwrap();
        if data.is_empty() {
            self.bench.rings[1].offer(&[(SEND_BUFFER, header_len, false)]);
        } else {
            self.bench.write(SEND_BUFFER + 4096, data);
            let len = u32::try_from(data.len()).unwrap();
            self.bench.rings[1].offer(&[(SEND_BUFFER, header_len, false), (SEND_BUFFER + 4096, len, false)]);
        }
        self.bench.kick(1);
        self.run();
        assert!(self.bench.rings[1].take_used().is_some());
    }

    pub(super) fn packet(&self, op: Op, (guest_port, host_port): (u32, u32)) -> Header {
        Header {
            src_cid: CID,
            dst_cid: HOST_CID,
            src_port: guest_port,
            dst_port: host_port,
            kind: TYPE_STREAM,
            raw_op: op as u16,
            buf_alloc: GUEST_WINDOW,
            fwd_cnt: self.consumed,
            ..Header::default()
        }
    }

    pub(super) fn say(&mut self, op: Op, ports: (u32, u32)) {
        let header = self.packet(op, ports);
        self.send(&header, &[]);
    }

    pub(super) fn say_data(&mut self, ports: (u32, u32), data: &[u8]) {
        let header = Header { len: u32::try_from(data.len()).unwrap(), ..self.packet(Op::Data, ports) };
        self.send(&header, data);
    }

    /// Lets the device work, and takes what arrives. Buffers are not posted again.
    pub(super) fn run(&mut self) {
        self.bench.settle();
        for (head, len) in self.bench.rings[0].take_all_used() {
            let addr = self.buffers[head as usize];
            let bytes = self.bench.read(addr, len as usize);
            let (header, data) = bytes.split_first_chunk().unwrap();
            let header = Header::decode(header);
            assert_eq!(header.len as usize, data.len());
            assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, CID));
            self.inbox.push((header, data.to_vec()));
        }
    }

    /// The one packet that has arrived.
    pub(super) fn one(&mut self) -> (Header, Vec<u8>) {
        self.run();
        assert_eq!(
            self.inbox.len(),
            1,
            "{:?}",
            self.inbox.iter().map(|(header, _)| header).collect::<Vec<_>>()
        );
        self.inbox.remove(0)
    }

    pub(super) fn nothing(&mut self) {
        self.run();
        assert!(self.inbox.is_empty(), "{:?}", self.inbox);
    }
}

/// A guest that is connected to the exec port, and the host's end.
pub(super) fn exec() -> (Guest, UnixStream) {
    let (near, far) = UnixStream::pair().unwrap();
    let (mut guest, _) = guest(VsockHost { exec: Some((EXEC, near.into())), ..VsockHost::default() });
    guest.post(64);
    guest.say(Op::Request, (5000, EXEC));
    let (header, _) = guest.one();
    assert_eq!((header.op(), header.src_port, header.dst_port), (Some(Op::Response), EXEC, 5000));
    assert!(header.buf_alloc >= 64 << 10);
    (guest, far)
}

pub(super) const PORTS: (u32, u32) = (5000, EXEC);
