//! What no driver should do to the device (items 1 to 4 and 12 of the hostile list).

use super::super::packet::{HOST_CID, Header, Op};
use super::super::{Ask, VsockHost, exchange, greeting};
use super::guest::{EXEC, GUEST_WINDOW, Guest, PORTS, RECEIVE_BUFFERS, SEND_BUFFER, exec, guest};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

#[test]
fn item_12_the_half_open_are_bounded() {
    let dir = std::env::temp_dir().join(format!("husk-vsock-flood-{}", std::process::id()));
    let listener = UnixListener::bind(&dir).unwrap();
    let (mut guest, _) = guest(VsockHost { listener: Some(listener.into()), ..VsockHost::default() });
    let mut programs: Vec<_> =
        (0..greeting::MOST_GREETINGS + 20).map(|_| UnixStream::connect(&dir).unwrap()).collect();
    guest.post(16);
    guest.nothing();
    assert_eq!(guest.bench.round().unwrap(), 0, "those that wait to be accepted cost nothing");
    programs.last_mut().unwrap().write_all(b"CONNECT 1\n").unwrap();
    guest.nothing();
    programs.drain(..30);
    guest.run();
    assert_eq!(guest.inbox.len(), 1, "places became free");
    std::fs::remove_file(&dir).unwrap();
}

#[test]
fn item_12_questions_are_bounded() {
    let asked = Arc::new(AtomicU32::new(0));
    let count = asked.clone();
    let ask: Ask = Box::new(move |_, _| count.fetch_add(1, Ordering::SeqCst) < u32::MAX);
    let (mut guest, answers) = guest(VsockHost { ask: Some(ask), ..VsockHost::default() });
    for port in 0..200 {
        guest.say(Op::Request, (port, 80));
        guest.post(usize::from(port >= 64));
        guest.run();
    }
    assert_eq!(asked.load(Ordering::SeqCst), u32::try_from(exchange::MOST_QUESTIONS).unwrap());
    guest.run();
    let resets = guest.inbox.drain(..).filter(|(header, _)| header.op() == Some(Op::Reset)).count();
    assert_eq!(resets, 200 - exchange::MOST_QUESTIONS);
    for request in 0..64 {
        answers.connected(request, None);
        guest.post(1);
        assert_eq!(guest.one().0.op(), Some(Op::Reset));
    }
}

#[test]
fn item_12_wrong_packets_are_reset_or_dropped() {
    let (mut guest, _far) = exec();
    let fine = guest.packet(Op::Data, PORTS);
    let dropped = [
        Header { src_cid: 4, ..fine },
        Header { src_cid: HOST_CID, ..fine },
        Header { dst_cid: 1, ..fine },
        Header { dst_cid: u64::MAX, ..fine },
    ];
    for header in dropped {
        guest.send(&header, &[]);
        guest.nothing();
    }
    assert_eq!(guest.bench.dropped(), 4);
    let reset = [
        Header { dst_port: 99, ..fine },
        Header { src_port: 99, ..fine },
        Header { kind: 2, ..fine },
        Header { kind: 0, raw_op: 1, src_port: 99, ..fine },
        Header { raw_op: 0, src_port: 99, ..fine },
        Header { raw_op: 8, src_port: 99, ..fine },
    ];
    for header in reset {
        guest.send(&header, &[]);
        let (answer, _) = guest.one();
        assert_eq!((answer.op(), answer.kind), (Some(Op::Reset), header.kind), "{header:?}");
    }
    guest.send(&Header { raw_op: Op::Reset as u16, src_port: 99, ..fine }, &[]);
    guest.nothing();
    assert_eq!(guest.bench.dropped(), 4);
}

#[test]
fn item_12_a_packet_that_lies_about_its_length_costs_its_connection() {
    let (mut guest, mut far) = exec();
    let header = Header { len: 100, ..guest.packet(Op::Data, PORTS) };
    guest.send(&header, b"only this");
    assert_eq!(guest.one().0.op(), Some(Op::Reset));
    assert_eq!(guest.bench.dropped(), 1);
    assert_eq!(far.read(&mut [0; 100]).unwrap(), 0, "not a byte of it was forwarded");
}

#[test]
fn item_12_breaking_the_protocol_costs_the_connection() {
    type Break = fn(&Guest) -> Header;
    let breaks: [Break; 4] = [
        |guest| guest.packet(Op::Request, PORTS),
        |guest| guest.packet(Op::Response, PORTS),
        |guest| Header { fwd_cnt: 1, ..guest.packet(Op::CreditUpdate, PORTS) },
        |guest| Header { raw_op: 77, ..guest.packet(Op::Data, PORTS) },
    ];
    for wrong in breaks {
        let (mut guest, mut far) = exec();
        let header = wrong(&guest);
        guest.send(&header, &[]);
        assert_eq!(guest.one().0.op(), Some(Op::Reset), "{header:?}");
        assert_eq!(far.read(&mut [0]).unwrap(), 0);
    }
}

#[test]
fn item_12_resets_that_nobody_takes_hold_the_guest_up() {
    let (mut guest, _) = guest(VsockHost::default());
    // No receive buffers: what has to be answered piles up, to its bound.
    for port in 0..1000 {
        let header = guest.packet(Op::Data, (port, 1));
        guest.bench.write(SEND_BUFFER, &header.encode());
        guest.bench.rings[1].offer(&[(SEND_BUFFER, 44, false)]);
        guest.bench.kick(1);
        guest.bench.settle();
        if guest.bench.rings[1].take_used().is_none() {
            assert_eq!(usize::try_from(port).unwrap(), exchange::MOST_STRAYS);
            guest.post(10);
            guest.run();
            assert_eq!(guest.inbox.len(), 10);
            assert!(guest.bench.rings[1].take_used().is_some(), "it goes on by itself");
            return;
        }
    }
    panic!("nothing held the guest up");
}

#[test]
fn items_3_4_useless_receive_buffers_go_back_empty() {
    let (near, mut far) = UnixStream::pair().unwrap();
    let (mut guest, _) = guest(VsockHost { exec: Some((EXEC, near.into())), ..VsockHost::default() });
    guest.say(Op::Request, PORTS);
    for buffer in [
        (RECEIVE_BUFFERS, 43, true),
        (RECEIVE_BUFFERS, 4096, false),
        (u64::MAX - 50, 100, true),
        (0, 0, true),
    ] {
        guest.bench.rings[0].offer(&[buffer]);
    }
    guest.bench.kick(0);
    guest.bench.settle();
    assert_eq!(guest.bench.rings[0].take_all_used(), [(0, 0), (1, 0), (2, 0), (3, 0)]);
    guest.post(1);
    assert_eq!(guest.one().0.op(), Some(Op::Response));
    far.write_all(&[3; 5000]).unwrap();
    // Room for a header only, then a bad one between good ones, then a split one.
    guest.bench.rings[0].offer(&[(RECEIVE_BUFFERS, 44, true)]);
    guest.bench.kick(0);
    guest.bench.settle();
    assert_eq!(guest.bench.rings[0].take_all_used(), [(5, 0)]);
    guest.bench.rings[0].offer(&[(RECEIVE_BUFFERS, 1044, true)]);
    guest.bench.rings[0].offer(&[(1 << 40, 1044, true)]);
    guest.bench.rings[0]
        .offer(&[(RECEIVE_BUFFERS + 0x2000, 20, true), (RECEIVE_BUFFERS + 0x3000, 8000, true)]);
    guest.bench.kick(0);
    guest.bench.settle();
    let used = guest.bench.rings[0].take_all_used();
    assert_eq!(used, [(6, 1044), (7, 0), (8, 4044)]);
    assert_eq!(guest.bench.dropped(), 6);
}

#[test]
fn items_1_2_corrupt_queues_are_errors_of_the_device() {
    for queue in [0, 1] {
        let (mut guest, mut far) = exec();
        guest.bench.rings[queue].set_available(60_000);
        far.write_all(b"x").unwrap();
        guest.bench.kick(queue);
        let mut result = Ok(1);
        while result.as_ref().is_ok_and(|&count| count > 0) {
            result = guest.bench.round();
        }
        assert!(result.unwrap_err().to_string().starts_with(&format!("queue {queue}: ")));
    }
}

#[test]
fn random_packets_break_nothing() {
    let (near, _far) = UnixStream::pair().unwrap();
    let ask: Ask = Box::new(|request, _| request % 3 != 0);
    let host = VsockHost { exec: Some((EXEC, near.into())), ask: Some(ask), ..VsockHost::default() };
    let (mut guest, answers) = guest(host);
    let mut seed = 0x1234_5678_9abc_def1u64;
    let mut random = move |limit: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        u32::try_from(seed % limit).unwrap()
    };
    for round in 0..20_000 {
        let len = [0, 0, 1, 100, 5000][random(5) as usize];
        let header = Header {
            len: if random(20) == 0 { random(1 << 20) } else { len },
            raw_op: u16::try_from(random(9)).unwrap(),
            flags: random(5),
            buf_alloc: [0, 10, GUEST_WINDOW, u32::MAX][random(4) as usize],
            fwd_cnt: if random(10) == 0 { random(1 << 31) } else { 0 },
            kind: u16::from(random(30) != 0),
            ..guest.packet(Op::Data, (random(8), [EXEC, 80, 81][random(3) as usize]))
        };
        guest.send(&header, &vec![7; len as usize]);
        if random(7) == 0 {
            let socket = UnixStream::pair().unwrap().0;
            answers.connected(round / 4, (random(2) == 0).then(|| socket.into()));
        }
        guest.run();
        let count = guest.inbox.drain(..).count();
        guest.post(count.max(usize::from(round < 100)));
    }
}
