//! Streams across a pause, and across a save and a load.

use super::guest::{BUFFER, RECEIVE_BUFFERS, SEND_BUFFER};
use super::packet::{HEADER_BYTES, HOST_CID, TYPE_STREAM};
use super::*;
use crate::devices::virtio::testkit::rig::Rig;
use std::collections::BTreeSet;

const EVENTS: u64 = 0x60_0000;

fn device(exec: UnixStream) -> (Box<Vsock>, VsockAnswers) {
    let ask: Ask = Box::new(|_, _| true);
    let host = VsockHost { exec: Some((EXEC, exec.into())), ask: Some(ask), ..VsockHost::default() };
    let (device, answers) = Vsock::new(CID, host).unwrap();
    (Box::new(device), answers)
}

fn packet(op: Op, guest_port: u32, data: &[u8]) -> Vec<u8> {
    let header = Header {
        src_cid: CID,
        dst_cid: HOST_CID,
        src_port: guest_port,
        dst_port: EXEC,
        len: u32::try_from(data.len()).unwrap(),
        kind: TYPE_STREAM,
        raw_op: op as u16,
        buf_alloc: GUEST_WINDOW,
        ..Header::default()
    };
    [&header.encode(), data].concat()
}

/// Puts a packet into place `place`, and the queue; kicks.
fn send(rig: &mut Rig, place: u64, bytes: &[u8]) -> u32 {
    let at = SEND_BUFFER + 4096 * place;
    rig.write(at, bytes);
    let head = rig.rings[1].offer(&[(at, u32::try_from(bytes.len()).unwrap(), false)]);
    rig.kick(1);
    head.into()
}

fn post(rig: &mut Rig, count: u64) {
    for _ in 0..count {
        let at = RECEIVE_BUFFERS + u64::from(rig.rings[0].available % 128) * 4096;
        rig.rings[0].offer(&[(at, BUFFER, true)]);
    }
    rig.kick(0);
}

/// What has arrived: operation, the guest's port, data.
fn arrived(rig: &mut Rig) -> Vec<(Op, u32, Vec<u8>)> {
    rig.settle();
    let used = rig.rings[0].take_all_used();
    let packet = |(head, length): (u32, u32)| {
        let bytes = rig.read(RECEIVE_BUFFERS + 4096 * u64::from(head), length as usize);
        let header = Header::decode(bytes[..HEADER_BYTES].try_into().unwrap());
        (header.op().unwrap(), header.dst_port, bytes[HEADER_BYTES..].to_vec())
    };
    used.into_iter().map(packet).collect()
}

#[test]
fn vsock_saves_and_loads_with_requests_in_flight() {
    let (near, mut far) = UnixStream::pair().unwrap();
    let (first, _answers) = device(near);
    let mut rig = Rig::start(first);
    let events: BTreeSet<u32> =
        (0..8).map(|place| rig.rings[2].offer(&[(EVENTS + 8 * place, 4, true)]).into()).collect();
    post(&mut rig, 100);
    let mut sent = vec![send(&mut rig, 0, &packet(Op::Request, 5000, &[]))];
    assert_eq!(arrived(&mut rig), [(Op::Response, 5000, vec![])]);
    // A question to husk that it never gets to answer.
    let mut question = packet(Op::Request, 6000, &[]);
    question[20..24].copy_from_slice(&80_u32.to_le_bytes());
    sent.push(send(&mut rig, 1, &question));
    far.write_all(&[3; 10_000]).unwrap();
    sent.extend((2..12).map(|place| send(&mut rig, place, &packet(Op::Data, 5000, &[4; 500]))));
    let got: usize = arrived(&mut rig).iter().map(|(_, _, data)| data.len()).sum();
    assert_eq!(got, 10_000);
    rig.pause();
    far.write_all(&[5; 10_000]).unwrap();
    sent.extend((12..22).map(|place| send(&mut rig, place, &packet(Op::Data, 5000, &[6; 500]))));
    assert!(rig.rings[0].take_used().is_none());

    let (near, mut new_far) = UnixStream::pair().unwrap();
    let (second, _answers) = device(near);
    let mut rig = rig.restore(second);
    let mut rest = Vec::new();
    // With the process its streams end, and not a byte was made up.
    let _reset = far.read_to_end(&mut rest);
    assert_eq!(rest, [4; 5000]);
    let got = arrived(&mut rig);
    let event = rig.rings[2].take_all_used();
    assert!(event.len() == 1 && event[0].1 == 4 && events.contains(&event[0].0), "told once: {event:?}");
    assert_eq!(rig.read(EVENTS, 4), [0; 4], "the transport was reset");
    assert_eq!(got, vec![(Op::Reset, 5000, vec![]); 10], "nobody knows the stream");
    sent.push(send(&mut rig, 30, &packet(Op::Request, 5001, &[])));
    assert_eq!(arrived(&mut rig), [(Op::Response, 5001, vec![])]);
    sent.push(send(&mut rig, 31, &packet(Op::Data, 5001, b"again")));
    new_far.write_all(b"hello").unwrap();
    assert_eq!(arrived(&mut rig), [(Op::Data, 5001, b"hello".to_vec())]);
    let mut said = [0; 5];
    new_far.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"again");
    let used: Vec<u32> = rig.rings[1].take_all_used().into_iter().map(|(head, _)| head).collect();
    assert_eq!(used, sent, "each packet was taken once");
    rig.is_well();
}

/// As after a start, and however often it is saved before the driver has offered a buffer for it.
#[test]
fn the_reset_is_told_as_soon_as_it_can_be() {
    let channel = || device(UnixStream::pair().unwrap().0).0;
    let mut rig = Rig::start(channel());
    for _ in 0..2 {
        rig.pause();
        rig = rig.restore(channel());
        rig.settle();
    }
    rig.pause();
    rig.transport.resume();
    rig.write(EVENTS, &[9; 4]);
    let head = u32::from(rig.rings[2].offer(&[(EVENTS, 4, true)]));
    rig.kick(2);
    rig.settle();
    assert_eq!(rig.rings[2].take_all_used(), [(head, 4)]);
    assert_eq!(rig.read(EVENTS, 4), [0; 4]);
    rig.rings[2].offer(&[(EVENTS, 4, true)]);
    rig.kick(2);
    rig.settle();
    assert_eq!(rig.rings[2].take_used(), None, "once");
}

/// 2 MiB each way, checked byte by byte, with a pause after each step.
#[test]
fn streams_outlive_a_pause() {
    let (near, mut far) = UnixStream::pair().unwrap();
    far.set_nonblocking(true).unwrap();
    let (mut device, _answers) = device(near);
    let bench = Bench::start(&mut *device);
    let mut guest = Guest { bench, inbox: Vec::new(), buffers: vec![0; 128], consumed: 0 };
    guest.post(64);
    guest.say(Op::Request, PORTS);
    assert_eq!(guest.one().0.op(), Some(Op::Response));
    let pattern: Vec<u8> = (0..2u32 << 20).map(|n| (n ^ n >> 8 ^ n >> 16).to_le_bytes()[0]).collect();
    let (mut fed, mut taken, mut sent, mut got) = (0, Vec::<u8>::new(), 0, Vec::<u8>::new());
    let (mut window, mut forwarded, mut pauses) = (1_u32 << 20, 0, 0);
    while got.len() < pattern.len() || taken.len() < pattern.len() {
        fed += far.write(&pattern[fed..]).unwrap_or(0);
        let mut piece = vec![0; 100_000];
        let count = far.read(&mut piece).unwrap_or(0);
        taken.extend(&piece[..count]);
        let in_flight = u32::try_from(sent).unwrap() - forwarded;
        let len = (pattern.len() - sent).min(65536).min((window - in_flight) as usize);
        if len > 0 {
            guest.say_data(PORTS, &pattern[sent..sent + len]);
            sent += len;
        }
        // Some events are handled and some are not.
        let _ = guest.bench.round().unwrap();
        guest.bench.pause_and_resume(&mut *device);
        pauses += 1;
        (0..3).for_each(|queue| guest.bench.kick(queue));
        guest.run();
        let count = guest.inbox.len();
        for (header, data) in guest.inbox.drain(..) {
            got.extend(data);
            (window, forwarded) = (header.buf_alloc, header.fwd_cnt);
        }
        guest.consumed = u32::try_from(got.len()).unwrap();
        guest.post(count);
        if len == 0 {
            guest.say(Op::CreditUpdate, PORTS);
        }
    }
    assert!(got == pattern && taken == pattern, "both ways");
    assert!(pauses > 5);
    assert_eq!(guest.bench.dropped(), 0);
}

/// A program whose `CONNECT` the guest has not answered, and one that is in the middle of its line.
#[test]
fn handshakes_outlive_a_pause_longer_than_their_patience() {
    let path = std::env::temp_dir().join(format!("husk-vsock-pause-{}", std::process::id()));
    let listener = UnixListener::bind(&path).unwrap();
    let host = VsockHost { listener: Some(listener.into()), ..VsockHost::default() };
    let (mut device, _answers) = Vsock::new(CID, host).unwrap();
    let bench = Bench::start(&mut device);
    let mut guest = Guest { bench, inbox: Vec::new(), buffers: vec![0; 128], consumed: 0 };
    guest.post(16);
    let mut asking = UnixStream::connect(&path).unwrap();
    let mut slow = UnixStream::connect(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    asking.write_all(b"CONNECT 52\n").unwrap();
    slow.write_all(b"CONNE").unwrap();
    let (request, _) = guest.one();
    guest.bench.pause_for(&mut device, host::PATIENCE + std::time::Duration::from_millis(100));
    guest.run();
    slow.write_all(b"CT 53\n").unwrap();
    assert_eq!(guest.one().0.dst_port, 53);
    guest.say(Op::Response, (52, request.src_port));
    let mut line = vec![0; format!("OK {}\n", request.src_port).len()];
    asking.read_exact(&mut line).unwrap();
    assert_eq!(&line[..3], b"OK ");
}

crate::devices::virtio::testkit::rig::over_pci!(
    vsock_saves_and_loads_with_requests_in_flight,
    the_reset_is_told_as_soon_as_it_can_be,
    streams_outlive_a_pause,
    handshakes_outlive_a_pause_longer_than_their_patience,
);
