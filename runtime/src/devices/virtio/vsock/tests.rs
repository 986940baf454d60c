//! The whole device with a driver in the same thread.

mod guest;
mod hostile;
mod many;
mod state;

use super::packet::{Op, SHUT_BOTH, SHUT_SEND};
use super::*;
use crate::devices::virtio::testkit::Bench;
use guest::{CID, EXEC, GUEST_WINDOW, Guest, PORTS, exec, guest};
use packet::Header;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

#[test]
fn the_exec_channel_carries_bytes_both_ways() {
    let (mut guest, mut far) = exec();
    guest.say_data(PORTS, b"from the guest");
    let mut bytes = [0; 14];
    far.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"from the guest");
    far.write_all(b"from the host").unwrap();
    let (header, data) = guest.one();
    assert_eq!((header.op(), data.as_slice()), (Some(Op::Data), b"from the host".as_slice()));
    assert_eq!(header.fwd_cnt, 14);
}

#[test]
fn what_husk_wrote_before_the_guest_booted_arrives_after_the_response() {
    let (near, mut far) = UnixStream::pair().unwrap();
    far.write_all(b"hello").unwrap();
    let (mut guest, _) = guest(VsockHost { exec: Some((EXEC, near.into())), ..VsockHost::default() });
    guest.nothing();
    guest.say(Op::Request, PORTS);
    guest.nothing();
    guest.post(4);
    guest.run();
    let ops: Vec<_> = guest.inbox.iter().map(|(header, _)| header.op().unwrap()).collect();
    assert_eq!(ops, [Op::Response, Op::Data]);
    assert_eq!(guest.inbox[1].1, b"hello");
}

#[test]
fn the_exec_channel_is_bound_once() {
    let (mut guest, _far) = exec();
    guest.say(Op::Request, (5001, EXEC));
    let (header, _) = guest.one();
    assert_eq!((header.op(), header.dst_port), (Some(Op::Reset), 5001));
}

#[test]
fn half_closed_streams_carry_on_the_other_way() {
    let (mut guest, mut far) = exec();
    let header = Header { flags: SHUT_SEND, ..guest.packet(Op::Shutdown, PORTS) };
    guest.say_data(PORTS, b"last");
    guest.send(&header, &[]);
    let mut rest = Vec::new();
    far.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"last");
    far.write_all(b"answer").unwrap();
    assert_eq!(guest.one().1, b"answer");
    drop(far);
    let (header, _) = guest.one();
    assert_eq!((header.op(), header.flags), (Some(Op::Shutdown), SHUT_BOTH));
    guest.say(Op::Reset, PORTS);
    guest.nothing();
}

#[test]
fn the_hosts_half_close_is_told_after_its_data() {
    let (mut guest, mut far) = exec();
    far.write_all(&[1; 100]).unwrap();
    far.shutdown(std::net::Shutdown::Write).unwrap();
    guest.run();
    assert_eq!(guest.inbox[0].1, [1; 100]);
    assert_eq!((guest.inbox[1].0.op(), guest.inbox[1].0.flags), (Some(Op::Shutdown), SHUT_SEND));
    guest.inbox.clear();
    guest.say_data(PORTS, b"still");
    let mut bytes = [0; 5];
    far.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"still");
    drop(far);
    assert_eq!(guest.one().0.flags, SHUT_BOTH, "later it is gone altogether");
}

#[test]
fn a_guest_that_closes_is_answered_by_a_reset() {
    let (mut guest, mut far) = exec();
    guest.say_data(PORTS, b"bye");
    let header = Header { flags: SHUT_BOTH, ..guest.packet(Op::Shutdown, PORTS) };
    guest.send(&header, &[]);
    assert_eq!(guest.one().0.op(), Some(Op::Reset));
    let mut rest = Vec::new();
    far.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"bye");
}

#[test]
fn a_deaf_host_is_told_and_its_last_words_arrive() {
    let (mut guest, mut far) = exec();
    far.write_all(b"last words").unwrap();
    drop(far);
    guest.bench.settle();
    guest.say_data(PORTS, b"nobody hears");
    guest.run();
    let data: Vec<u8> = guest.inbox.iter().flat_map(|(_, data)| data.clone()).collect();
    assert_eq!(data, b"last words");
    let (last, _) = guest.inbox.last().unwrap();
    assert_eq!((last.op(), last.flags), (Some(Op::Shutdown), SHUT_BOTH));
}

/// 8 MiB each way at once, checked byte by byte, with a guest that grants 256 KiB and posts 64 buffers.
#[test]
fn streams_are_whole_in_both_directions() {
    let (mut guest, mut far) = exec();
    far.set_nonblocking(true).unwrap();
    let pattern: Vec<u8> = (0..8u32 << 20).map(|n| (n ^ n >> 8 ^ n >> 16).to_le_bytes()[0]).collect();
    let (mut fed, mut taken, mut sent) = (0, Vec::<u8>::new(), 0);
    let mut got: Vec<u8> = Vec::new();
    let (mut window, mut forwarded) = (1u32 << 20, 0);
    while got.len() < pattern.len() || taken.len() < pattern.len() {
        if let Ok(count) = far.write(&pattern[fed..]) {
            fed += count;
        }
        let mut piece = vec![0; 300_000];
        if let Ok(count) = far.read(&mut piece) {
            taken.extend(&piece[..count]);
        }
        let in_flight = u32::try_from(sent).unwrap() - forwarded;
        let len = (pattern.len() - sent).min(65536).min((window - in_flight) as usize);
        if len > 0 {
            guest.say_data(PORTS, &pattern[sent..sent + len]);
            sent += len;
        }
        guest.run();
        let count = guest.inbox.len();
        for (header, data) in guest.inbox.drain(..) {
            got.extend(data);
            (window, forwarded) = (header.buf_alloc, header.fwd_cnt);
        }
        guest.consumed = u32::try_from(got.len()).unwrap();
        guest.post(count);
        if len == 0 && count > 0 {
            guest.say(Op::CreditUpdate, PORTS);
        }
    }
    assert!(got == pattern, "to the guest");
    assert!(taken == pattern, "to the host");
    assert_eq!(guest.bench.dropped(), 0);
}

#[test]
fn a_host_that_does_not_read_is_bounded_by_credit_and_costs_nothing() {
    let (mut guest, mut far) = exec();
    let mut sent = 0;
    while sent < 1 << 20 {
        guest.say_data(PORTS, &[9; 65536]);
        sent += 65536;
    }
    // All of the window, beyond the credit that came back meanwhile.
    guest.run();
    let reported = guest.inbox.last().map_or(0, |(header, _)| header.fwd_cnt as usize);
    while sent - reported < 1 << 20 {
        guest.say_data(PORTS, &[9; 65536]);
        sent += 65536;
    }
    assert_eq!(guest.bench.round().unwrap(), 0, "nobody spins");
    guest.inbox.clear();
    far.set_nonblocking(true).unwrap();
    let mut read = 0;
    let mut piece = vec![0; 1 << 20];
    while read < sent {
        read += far.read(&mut piece).unwrap();
        guest.run();
    }
    assert_eq!(read, sent);
    let (last, _) = guest.inbox.last().unwrap();
    assert!(sent - last.fwd_cnt as usize <= 512 << 10, "most of the credit is back");
    guest.say_data(PORTS, b"x");
    assert_eq!(far.read(&mut piece).unwrap(), 1);
}

#[test]
fn a_guest_that_does_not_read_stops_its_connection_only() {
    let (near, mut far) = UnixStream::pair().unwrap();
    let (other_near, mut other_far) = UnixStream::pair().unwrap();
    let ask: Ask = Box::new(|_, _| true);
    let host = VsockHost { exec: Some((EXEC, near.into())), ask: Some(ask), ..VsockHost::default() };
    let (mut guest, answers) = guest(host);
    guest.post(120);
    guest.say(Op::Request, PORTS);
    guest.say(Op::Request, (6000, 80));
    answers.connected(0, Some(other_near.into()));
    guest.run();
    assert_eq!(guest.inbox.len(), 2);
    guest.inbox.clear();
    far.set_nonblocking(true).unwrap();
    let mut written = 0;
    while let Ok(count) = far.write(&[5; 65536]) {
        written += count;
        guest.run();
        let count = guest.inbox.len();
        guest.post(count);
        written -= guest.inbox.drain(..).map(|(_, data)| data.len()).sum::<usize>();
    }
    assert!(written > 0, "the socket is full and the guest has had its window");
    guest.nothing();
    assert_eq!(guest.bench.round().unwrap(), 0, "nobody spins");
    other_far.write_all(b"me too").unwrap();
    assert_eq!(guest.one().1, b"me too");
    guest.consumed = GUEST_WINDOW;
    guest.say(Op::CreditUpdate, PORTS);
    guest.run();
    assert!(guest.inbox.iter().map(|(_, data)| data.len()).sum::<usize>() > 0, "credit starts it again");
}

#[test]
fn without_buffers_everything_waits_and_nothing_is_lost() {
    let (mut guest, mut far) = exec();
    far.set_nonblocking(true).unwrap();
    let mut written = Vec::new();
    while let Ok(count) = far.write(&[u8::try_from(written.len() % 251).unwrap(); 1000]) {
        written.extend(vec![u8::try_from(written.len() % 251).unwrap(); count]);
    }
    let mut got: Vec<u8> = Vec::new();
    while got.len() < written.len() {
        guest.run();
        assert_eq!(guest.bench.round().unwrap(), 0);
        got.extend(guest.inbox.drain(..).flat_map(|(_, data)| data));
        guest.consumed = u32::try_from(got.len()).unwrap();
        guest.say(Op::CreditUpdate, PORTS);
        guest.post(1);
    }
    assert!(got == written);
}

#[test]
fn the_host_connects_by_name_of_port() {
    let dir = std::env::temp_dir().join(format!("husk-vsock-{}", std::process::id()));
    let listener = UnixListener::bind(&dir).unwrap();
    let (mut guest, _) = guest(VsockHost { listener: Some(listener.into()), ..VsockHost::default() });
    guest.post(16);
    let mut program = UnixStream::connect(&dir).unwrap();
    let mut hasty = UnixStream::connect(&dir).unwrap();
    std::fs::remove_file(&dir).unwrap();
    guest.nothing();
    program.write_all(b"CONNECT 52\n").unwrap();
    let (request, _) = guest.one();
    assert_eq!((request.op(), request.dst_port), (Some(Op::Request), 52));
    let ports = (52, request.src_port);
    guest.say(Op::Response, ports);
    let mut line = [0; 14];
    program.read_exact(&mut line).unwrap();
    assert_eq!(line.as_slice(), format!("OK {}\n", request.src_port).as_bytes());
    guest.say_data(ports, b"welcome");
    program.read_exact(&mut line[..7]).unwrap();
    assert_eq!(&line[..7], b"welcome");
    // One that does not wait for its answer, and whose port nobody listens on.
    hasty.write_all(b"CONNECT 53\nGET /").unwrap();
    let (request, _) = guest.one();
    assert_eq!(request.dst_port, 53);
    guest.say(Op::Reset, (53, request.src_port));
    assert_eq!(hasty.read(&mut line).unwrap_or(0), 0);
}

#[test]
fn other_ports_are_asked_for() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = asked.clone();
    let ask: Ask = Box::new(move |request, port| {
        log.lock().unwrap().push((request, port));
        port != 666
    });
    let (mut guest, answers) = guest(VsockHost { ask: Some(ask), ..VsockHost::default() });
    guest.post(16);
    guest.say(Op::Request, (7000, 80));
    guest.say(Op::Request, (7001, 81));
    guest.nothing();
    assert_eq!(*asked.lock().unwrap(), [(0, 80), (1, 81)]);
    let (near, mut far) = UnixStream::pair().unwrap();
    answers.connected(1, Some(near.into()));
    answers.connected(0, None);
    answers.connected(9, None);
    guest.run();
    let told: Vec<_> =
        guest.inbox.drain(..).map(|(header, _)| (header.op().unwrap(), header.dst_port)).collect();
    assert_eq!(told, [(Op::Response, 7001), (Op::Reset, 7000)]);
    guest.say_data((7001, 81), b"GET");
    let mut bytes = [0; 3];
    far.read_exact(&mut bytes).unwrap();
    guest.say(Op::Request, (7002, 666));
    assert_eq!(guest.one().0.op(), Some(Op::Reset), "could not be asked");
}

#[test]
fn an_answer_after_the_guest_gave_up_is_closed() {
    let ask: Ask = Box::new(|_, _| true);
    let (mut guest, answers) = guest(VsockHost { ask: Some(ask), ..VsockHost::default() });
    guest.post(16);
    guest.say(Op::Request, (7000, 80));
    guest.say(Op::Reset, (7000, 80));
    let (near, mut far) = UnixStream::pair().unwrap();
    answers.connected(0, Some(near.into()));
    guest.nothing();
    assert_eq!(far.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_transport_reset_ends_everything_and_is_told_when_it_can_be() {
    let (near, mut far) = UnixStream::pair().unwrap();
    let (mut guest, answers) = guest(VsockHost { exec: Some((EXEC, near.into())), ..VsockHost::default() });
    guest.post(16);
    guest.say(Op::Request, PORTS);
    guest.run();
    guest.inbox.clear();
    answers.reset_transport();
    guest.nothing();
    assert_eq!(far.read(&mut [0]).unwrap(), 0);
    guest.bench.write(0x60_0000, &[0xff; 4]);
    guest.bench.rings[2].offer(&[(0x60_0000, 4, true)]);
    guest.bench.kick(2);
    guest.nothing();
    assert_eq!(guest.bench.rings[2].take_used(), Some((0, 4)));
    assert_eq!(guest.bench.read(0x60_0000, 4), [0; 4]);
    guest.say_data(PORTS, b"who?");
    assert_eq!(guest.one().0.op(), Some(Op::Reset));
}

#[test]
fn a_device_that_is_reset_closes_connections_and_serves_its_next_driver() {
    let dir = std::env::temp_dir().join(format!("husk-vsock-drain-{}", std::process::id()));
    let listener = UnixListener::bind(&dir).unwrap();
    let (near, mut far) = UnixStream::pair().unwrap();
    let host = VsockHost { exec: Some((EXEC, near.into())), listener: Some(listener.into()), ask: None };
    let (mut device, _answers) = Vsock::new(CID, host).unwrap();
    let bench = Bench::start(&mut device);
    let mut first = Guest { bench, inbox: Vec::new(), buffers: vec![0; 128], consumed: 0 };
    first.post(4);
    first.say(Op::Request, PORTS);
    let queues = first.bench.worker.drain(std::time::Instant::now()).unwrap();
    assert_eq!(queues.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [0, 1, 2]);
    device.reset();
    assert_eq!(far.read(&mut [0]).unwrap(), 0);
    let bench = Bench::start(&mut device);
    let mut second = Guest { bench, inbox: Vec::new(), buffers: vec![0; 128], consumed: 0 };
    second.post(4);
    let mut program = UnixStream::connect(&dir).unwrap();
    std::fs::remove_file(&dir).unwrap();
    program.write_all(b"CONNECT 9\n").unwrap();
    assert_eq!(second.one().0.op(), Some(Op::Request));
}
