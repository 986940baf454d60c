//! Requests to a volume's server across a pause, a save and a load.

use super::*;
use crate::devices::virtio::testkit::rig::Rig;

fn device() -> (Box<Fs>, UnixStream) {
    let (ours, server) = UnixStream::pair().unwrap();
    server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    (Box::new(Fs::new("data", ours.into()).unwrap()), server)
}

fn offer(rig: &mut Rig, place: u64) -> u32 {
    let (at, bytes) = (SAID + place * 4096, request(LOOKUP, place, 44, b"abc\0"));
    rig.write(at, &bytes);
    let head = rig.rings[1].offer(&[(at, 44, false), (ROOM + place * 4096, 64, true)]);
    rig.kick(1);
    head.into()
}

/// The tag of the request that the server hears next.
fn hears(server: &mut UnixStream) -> u64 {
    let mut bytes = [0; 44];
    server.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes[4..8], LOOKUP.to_le_bytes());
    u64::from_le_bytes(bytes[8..16].try_into().unwrap())
}

fn nothing(server: &mut UnixStream) {
    server.set_nonblocking(true).unwrap();
    assert!(server.read(&mut [0]).is_err(), "the server hears of it once");
    server.set_nonblocking(false).unwrap();
}

#[test]
fn fs_saves_and_loads_with_requests_in_flight() {
    let (first, mut server) = device();
    let mut rig = Rig::start(first);
    let mut heads = vec![offer(&mut rig, 0)];
    rig.settle();
    let tag = hears(&mut server);
    rig.transport.pause();
    heads.extend([offer(&mut rig, 1), offer(&mut rig, 2)]);
    rig.settle();
    assert!(!rig.is_paused(), "a request that the server has is waited for");
    server.write_all(&answer(20, 0, tag, b"done")[..7]).unwrap();
    rig.settle();
    assert!(!rig.is_paused());
    server.write_all(&answer(20, 0, tag, b"done")[7..]).unwrap();
    rig.until(|rig| rig.is_paused());
    nothing(&mut server);
    assert_eq!(rig.rings[1].take_all_used(), [(heads[0], 20)]);

    let (second, mut server) = device();
    let mut rig = rig.restore(second);
    rig.settle();
    for (place, head) in (0..).zip(heads).skip(1) {
        let tag = hears(&mut server);
        server.write_all(&answer(20, 0, tag, b"more")).unwrap();
        rig.settle();
        assert_eq!(rig.rings[1].take_all_used(), [(head, 20)]);
        assert_eq!(
            rig.read(ROOM + 4096 * u64::from(place) + 8, 12),
            [&[place, 0, 0, 0, 0, 0, 0, 0], &b"more"[..]].concat()
        );
    }
    nothing(&mut server);
    rig.is_well();
}

/// Whoever pauses has no time left: nothing is given up, and the volume goes on once the server has answered.
#[test]
fn a_pause_that_takes_too_long_is_taken_back() {
    let (device, mut server) = device();
    let mut rig = Rig::start(device);
    let head = offer(&mut rig, 0);
    rig.settle();
    let tag = hears(&mut server);
    rig.transport.pause();
    rig.settle();
    assert!(!rig.is_paused());
    rig.transport.resume();
    let next = offer(&mut rig, 1);
    rig.settle();
    nothing(&mut server);
    server.write_all(&answer(20, 0, tag, b"late")).unwrap();
    rig.settle();
    assert_eq!(rig.rings[1].take_all_used(), [(head, 20)]);
    let tag = hears(&mut server);
    server.write_all(&answer(16, -2, tag, b"")).unwrap();
    rig.settle();
    assert_eq!(rig.rings[1].take_all_used(), [(next, 16)]);
    assert!(!rig.is_paused());
    rig.is_well();
}

/// The server has not heard of any end: what the driver has open stays open.
#[test]
fn a_pause_is_no_reset() {
    let (device, mut server) = device();
    let mut rig = Rig::start(device);
    for place in 0..3 {
        let head = offer(&mut rig, place);
        rig.settle();
        let tag = hears(&mut server);
        server.write_all(&answer(16, 0, tag, b"")).unwrap();
        rig.settle();
        assert_eq!(rig.rings[1].take_all_used(), [(head, 16)]);
        rig.pause();
        rig.transport.resume();
    }
    rig.is_well();
}

crate::devices::virtio::testkit::rig::over_pci!(
    fs_saves_and_loads_with_requests_in_flight,
    a_pause_that_takes_too_long_is_taken_back,
    a_pause_is_no_reset,
);
