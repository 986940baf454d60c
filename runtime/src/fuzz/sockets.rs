//! The other side of a socket device: streams of the host's, and a guest that sends packets.
//!
//! Owns every end that is not the device's. Refuses, by a panic, a packet to the guest that the standard does not know, and
//! more data than the guest gave credit for. Invariant: nothing here waits, and no more than [`MOST_STREAMS`] are open.

use super::input::{HIGH, Input};
use super::script::{Host, memory};
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::testkit::Bench;
use crate::devices::virtio::vsock::{Ask, Vsock, VsockAnswers, VsockHost};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::atomic::{AtomicU64, Ordering};

/// The guest's context id, the host's, and the port of the exec channel.
pub(super) const CID: u64 = 3;
pub(super) const HOST_CID: u64 = 2;
pub(super) const EXEC: u32 = 1024;
/// Bytes of a packet's header.
pub(super) const HEADER: u32 = 44;
const MOST_STREAMS: usize = 64;

static RUNS: AtomicU64 = AtomicU64::new(0);

pub(super) struct Sockets {
    address: SocketAddr,
    answers: VsockAnswers,
    streams: Vec<UnixStream>,
    /// Streams that were ever opened.
    opened: usize,
}

pub(super) fn device() -> (Vsock, Sockets) {
    let name = format!("husk-fuzz-{}-{}", std::process::id(), RUNS.fetch_add(1, Ordering::Relaxed));
    let address = SocketAddr::from_abstract_name(name).unwrap();
    let listener = UnixListener::bind_addr(&address).unwrap();
    let (near, far) = UnixStream::pair().unwrap();
    far.set_nonblocking(true).unwrap();
    // Every question can be asked but each fourth.
    let ask: Ask = Box::new(|request, _| request % 4 != 3);
    let host = VsockHost { exec: Some((EXEC, near.into())), listener: Some(listener.into()), ask: Some(ask) };
    let (device, answers) = Vsock::new(CID, host).unwrap();
    (device, Sockets { address, answers, streams: vec![far], opened: 1 })
}

impl Sockets {
    fn open(&mut self, stream: UnixStream) {
        stream.set_nonblocking(true).unwrap();
        self.streams.push(stream);
        self.opened += 1;
    }

    fn stream(&mut self, input: &mut Input<'_>) -> Option<&mut UnixStream> {
        let count = self.streams.len();
        (count > 0).then(|| &mut self.streams[input.below(count)])
    }
}

impl Host for Sockets {
    // What a stream does not take, or does not have, is no matter here.
    fn act(&mut self, input: &mut Input<'_>) {
        match input.below(7) {
            0 if self.opened < MOST_STREAMS => {
                let mut stream = UnixStream::connect_addr(&self.address).unwrap();
                let count = input.u8();
                drop(stream.write_all(input.bytes(count.into())));
                self.open(stream);
            }
            1 if self.opened < MOST_STREAMS => {
                let (near, far) = UnixStream::pair().unwrap();
                self.open(far);
                self.answers.connected(input.u8().into(), Some(near.into()));
            }
            2 => self.answers.connected(input.u8().into(), None),
            3 => {
                let bytes = vec![5; input.u16().into()];
                drop(self.stream(input).map(|stream| stream.write(&bytes)));
            }
            4 => drop(self.stream(input).map(|stream| stream.read(&mut [0; 0x1_0000]))),
            5 if !self.streams.is_empty() => {
                let place = input.below(self.streams.len());
                drop(self.streams.swap_remove(place));
            }
            _ => self.answers.reset_transport(),
        }
    }
}

/// What an operation of [`packets`] is; its operands follow.
pub(super) mod op {
    pub(crate) const SEND: u8 = 0;
    pub(crate) const POST: u8 = 1;
    pub(crate) const HOST: u8 = 2;
    pub(super) const COUNT: u8 = HOST + 1;
}

/// Where the guest puts what it sends.
const OUT: u64 = 0x1000;
/// Longest data of a packet, header aside.
const LONGEST: usize = 0x8000;
const BUFFER: u32 = 4096;
const BUFFERS: u16 = 32;

struct Guest {
    bench: Bench,
    sockets: Sockets,
    /// Buffers that the device has.
    posted: u16,
    received: u32,
    /// By head.
    buffers: [u64; 128],
    /// By host's port and guest's: how far the device may send, and how far it has.
    credit: BTreeMap<(u32, u32), (u64, u64)>,
}

/// Sends what `input` says; returns how many packets came back.
pub(super) fn packets(mut input: Input<'_>) -> u32 {
    let (mut device, sockets) = device();
    let features = device.features();
    let bench = Bench::start_in(memory(), &mut device, features);
    let mut guest =
        Guest { bench, sockets, posted: 0, received: 0, buffers: [0; 128], credit: BTreeMap::new() };
    while !input.is_empty() {
        match input.u8() % op::COUNT {
            op::SEND => guest.send(&mut input),
            op::POST => guest.post(input.u8().into()),
            _ => guest.sockets.act(&mut input),
        }
        guest.settle();
    }
    guest.received
}

impl Guest {
    /// A packet: ports from a few, the rest as it comes.
    fn send(&mut self, input: &mut Input<'_>) {
        let (op, kind, flags) = (input.u8() % 10, input.u8(), input.u8() & 7);
        let (guest_port, host_port) = (u32::from(input.u8() & 7), [EXEC, 80, 0x8000_0000, 7][input.below(4)]);
        let (allocated, forwarded) = (input.u32(), input.u32());
        let (claimed, real) = (input.u32(), usize::from(input.u16()).min(LONGEST));
        let source = if kind & 0x80 != 0 { input.u64() } else { CID };
        let mut header = source.to_le_bytes().to_vec();
        header.extend(HOST_CID.to_le_bytes());
        for word in [guest_port, host_port, claimed] {
            header.extend(word.to_le_bytes());
        }
        // Mostly a stream.
        header.extend(u16::from(kind & 7 != 7).to_le_bytes());
        header.extend(u16::from(op).to_le_bytes());
        for word in [flags.into(), allocated, forwarded] {
            header.extend(word.to_le_bytes());
        }
        self.bench.write(OUT, &header);
        let chain = [(OUT, HEADER, false), (OUT + 0x100, real as u32, false)];
        self.bench.rings[1].offer(&chain[..1 + usize::from(real > 0)]);
        self.bench.kick(1);
        let limit = u64::from(allocated) + u64::from(forwarded);
        let credit = self.credit.entry((host_port, guest_port)).or_default();
        credit.0 = credit.0.max(limit);
    }

    fn post(&mut self, count: u16) {
        for _ in 0..count.min(BUFFERS - self.posted) {
            let ring = &mut self.bench.rings[0];
            let addr = HIGH + u64::from(BUFFER) * u64::from(ring.available % BUFFERS);
            let head = ring.offer(&[(addr, BUFFER, true)]);
            self.buffers[usize::from(head)] = addr;
            self.posted += 1;
        }
        self.bench.kick(0);
    }

    fn settle(&mut self) {
        self.bench.settle();
        for (head, len) in self.bench.rings[0].take_all_used() {
            self.posted -= 1;
            self.received += 1;
            assert!((HEADER..=BUFFER).contains(&len), "a packet of {len} bytes");
            let addr = self.buffers[head as usize];
            let packet = self.bench.read(addr, HEADER as usize);
            self.judge(&packet, len - HEADER);
        }
    }

    fn judge(&mut self, packet: &[u8], data: u32) {
        let word = |at: usize| u32::from_le_bytes(packet[at..at + 4].try_into().unwrap());
        assert_eq!((word(0), word(8)), (HOST_CID as u32, CID as u32), "a packet between others");
        assert_eq!(word(24), data, "a packet that lies about its length");
        let operation = u16::from_le_bytes([packet[30], packet[31]]);
        assert!((1..=7).contains(&operation), "operation {operation}");
        let credit = self.credit.entry((word(16), word(20))).or_default();
        match operation {
            3 => credit.1 = 0,
            _ => credit.1 += u64::from(data),
        }
        assert!(credit.1 <= credit.0, "{} bytes were sent and {} allowed", credit.1, credit.0);
    }
}
