//! Thousands of streams at once.

use super::*;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Streams that each side asks for.
const EACH: u32 = 2048;
/// The port that the guest listens on, and the one that it asks for.
const GUEST_PORT: u32 = 52;
const HOST_PORT: u32 = 80;

/// Whether this process may have `count` descriptors and a few more; as many as it may have it has from now on.
pub(super) fn may_open(count: u64) -> bool {
    let most = getrlimit(Resource::Nofile).maximum;
    let raised = setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most });
    let enough = raised.is_ok() && most.is_none_or(|most| most > count + 4000);
    if !enough {
        println!("HUSK-SKIP the limit of open files is {most:?}");
    }
    enough
}

/// A stream from both sides: its ports as the guest sees them, the host's end, and how much the guest has had of it.
struct Stream {
    ports: (u32, u32),
    far: UnixStream,
    had: u32,
}

/// Says so many bytes on `stream`, from the guest.
fn say(guest: &mut Guest, stream: &Stream, bytes: &[u8]) {
    guest.consumed = stream.had;
    guest.say_data(stream.ports, bytes);
}

/// The one packet of data that has arrived.
fn data(guest: &mut Guest) -> ((u32, u32), Vec<u8>) {
    guest.post(1);
    let (header, data) = guest.one();
    assert_eq!(header.op(), Some(Op::Data));
    ((header.dst_port, header.src_port), data)
}

fn ask_from_the_guest(guest: &mut Guest, answers: &VsockAnswers, number: u32) -> Stream {
    let (near, far) = UnixStream::pair().unwrap();
    let ports = (10_000 + number, HOST_PORT);
    guest.consumed = 0;
    guest.say(Op::Request, ports);
    answers.connected(number, Some(near.into()));
    guest.post(1);
    assert_eq!(guest.one().0.op(), Some(Op::Response));
    Stream { ports, far, had: 0 }
}

fn ask_from_the_host(guest: &mut Guest, path: &std::path::Path) -> Stream {
    let mut far = UnixStream::connect(path).unwrap();
    far.write_all(format!("CONNECT {GUEST_PORT}\n").as_bytes()).unwrap();
    guest.post(1);
    let (request, _) = guest.one();
    let ports = (GUEST_PORT, request.src_port);
    guest.consumed = 0;
    guest.say(Op::Response, ports);
    let mut line = vec![0; format!("OK {}\n", request.src_port).len()];
    far.read_exact(&mut line).unwrap();
    Stream { ports, far, had: 0 }
}

/// Half of them asked for by either side; each carries bytes both ways, alone and while all others have some.
#[test]
fn four_thousand_streams_are_served_at_once() {
    if !may_open(4 * u64::from(EACH)) {
        return;
    }
    let path = std::env::temp_dir().join(format!("husk-vsock-many-{}", std::process::id()));
    let listener = UnixListener::bind(&path).unwrap();
    let ask: Ask = Box::new(|_, _| true);
    let host = VsockHost { listener: Some(listener.into()), ask: Some(ask), ..VsockHost::default() };
    let (mut guest, answers) = guest(host);
    let mut streams: Vec<Stream> = Vec::new();
    for number in 0..EACH {
        streams.push(ask_from_the_guest(&mut guest, &answers, number));
        streams.push(ask_from_the_host(&mut guest, &path));
    }
    std::fs::remove_file(&path).unwrap();
    assert_eq!(guest.bench.round().unwrap(), 0, "idle streams cost nothing");
    // One of many: as few events as of one alone.
    let one = &mut streams[1234];
    one.far.write_all(b"one").unwrap();
    guest.post(1);
    let mut events = 0;
    while let count @ 1.. = guest.bench.round().unwrap() {
        events += count;
    }
    assert!(events <= 3, "{events} events for one packet");
    guest.run();
    assert_eq!(guest.inbox.drain(..).map(|(_, data)| data).collect::<Vec<_>>(), [b"one"]);
    one.had += 3;
    // Each in turn.
    for (stream, number) in streams.iter_mut().zip(0_u32..) {
        let bytes = number.to_le_bytes();
        say(&mut guest, stream, &bytes);
        let mut heard = [0; 4];
        stream.far.read_exact(&mut heard).unwrap();
        assert_eq!(heard, bytes);
    }
    // All at once, to a guest that has few buffers.
    for (stream, number) in streams.iter_mut().zip(0_u32..) {
        stream.far.write_all(&number.to_be_bytes()).unwrap();
    }
    let place: std::collections::BTreeMap<_, _> = streams.iter().map(|it| it.ports).zip(0_u32..).collect();
    let mut seen = vec![false; streams.len()];
    for _ in 0..streams.len() {
        let (ports, bytes) = data(&mut guest);
        assert_eq!(bytes, place[&ports].to_be_bytes());
        assert!(!std::mem::replace(&mut seen[place[&ports] as usize], true), "once");
    }
    guest.nothing();
    drop(streams.split_off(8));
    guest.post(100);
    guest.run();
    assert!(guest.inbox.iter().all(|(header, _)| header.op() == Some(Op::Shutdown)));
}

/// What an idle connection takes, but for its socket: the slot that it has, and its places in tables and lines.
#[test]
fn an_idle_connection_is_small() {
    let slot = peers::BYTES_EACH;
    println!("{slot} bytes each, {} KiB for {}", (slot * peers::MOST_PEERS) >> 10, peers::MOST_PEERS);
    assert!(slot <= 320, "{slot}");
}

/// The bound, with programs that are gone at once: their connections stay until the guest says so.
#[test]
fn item_12_connections_are_bounded() {
    if !may_open(peers::MOST_PEERS as u64) {
        return;
    }
    let asked = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let count = asked.clone();
    let ask: Ask = Box::new(move |_, _| {
        count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        true
    });
    let (mut guest, answers) = guest(VsockHost { ask: Some(ask), ..VsockHost::default() });
    let most = u32::try_from(peers::MOST_PEERS).unwrap();
    let mut refused = 0;
    for port in 0..most + 100 {
        guest.post(2);
        guest.say(Op::Request, (port, 80));
        let (near, _) = UnixStream::pair().unwrap();
        let asked = asked.load(std::sync::atomic::Ordering::SeqCst);
        answers.connected(asked - 1, Some(near.into()));
        guest.run();
        refused += guest.inbox.drain(..).filter(|(header, _)| header.op() == Some(Op::Reset)).count();
    }
    assert_eq!(refused, 100);
}
