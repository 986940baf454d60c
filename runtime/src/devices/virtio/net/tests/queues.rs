//! Several pairs of queues, and the driver's say in how many it uses.

use super::super::frames::{MAC, tcp};
use super::*;

const COMMAND: u64 = 0x10_0000;
const STATUS: u64 = 0x10_8000;
const PAIRS: usize = 3;
/// The control queue's place.
const CONTROL: usize = 2 * PAIRS;

struct Rig {
    bench: Bench,
    wires: Vec<UnixDatagram>,
    net: Net,
}

fn several() -> (Net, Vec<UnixDatagram>) {
    let (mut wires, mut taps) = (Vec::new(), Vec::new());
    for _ in 0..PAIRS {
        let (wire, tap) = UnixDatagram::pair().unwrap();
        tap.set_nonblocking(true).unwrap();
        wire.set_nonblocking(true).unwrap();
        wires.push(wire);
        taps.push(tap.into());
    }
    let allow = vec!["10.0.0.0/8:*".parse().unwrap()];
    let policy = Policy::new(allow, Vec::new());
    let first = taps.remove(0);
    (Net::new(first, taps, MAC, 1500, policy), wires)
}

fn rig() -> Rig {
    let (mut net, wires) = several();
    Rig { bench: Bench::start(&mut net), wires, net }
}

impl Rig {
    /// Sends a command; the status that came back, and how many bytes were written.
    fn command(&mut self, bytes: &[u8]) -> (u8, u32) {
        self.bench.write(COMMAND, bytes);
        self.bench.write(STATUS, &[0xff]);
        let length = u32::try_from(bytes.len()).unwrap();
        self.bench.rings[CONTROL].offer(&[(COMMAND, length, false), (STATUS, 1, true)]);
        self.bench.kick(CONTROL);
        self.bench.settle();
        let (_, written) = self.bench.rings[CONTROL].take_used().unwrap();
        (self.bench.read(STATUS, 1)[0], written)
    }

    fn set_pairs(&mut self, count: u16) -> u8 {
        let [low, high] = count.to_le_bytes();
        self.command(&[4, 0, low, high]).0
    }

    fn post(&mut self, pair: usize, count: u64) {
        for index in 0..count {
            let at = ROOM + 0x10_0000 * pair as u64 + 0x1000 * index;
            self.bench.rings[2 * pair].offer(&[(at, 2048, true)]);
        }
        self.bench.kick(2 * pair);
    }

    /// Frames that each pair got.
    fn received(&mut self) -> [usize; PAIRS] {
        self.bench.settle();
        [0, 1, 2].map(|pair| self.bench.rings[2 * pair].take_all_used().len())
    }

    fn send_into_all(&self) {
        for wire in &self.wires {
            wire.send(&[7; 200]).unwrap();
        }
    }
}

#[test]
fn pairs_and_a_control_queue_are_offered_where_the_tap_has_several() {
    let (net, _wires) = several();
    assert_eq!(net.queue_sizes(), [QUEUE_SIZE; CONTROL + 1]);
    let both = bit(net::VIRTIO_NET_F_MQ) | bit(net::VIRTIO_NET_F_CTRL_VQ);
    assert_eq!(net.features() & both, both);
    let mut config = [0; 4];
    net.read_config(6, &mut config);
    assert_eq!(config, [0, 0, 3, 0]);
    let single = card(UnixDatagram::unbound().unwrap());
    assert_eq!((single.features() & both, single.queue_sizes().len()), (0, 2));
}

#[test]
fn one_pair_gets_everything_until_more_are_asked_for() {
    let mut rig = rig();
    (0..PAIRS).for_each(|pair| rig.post(pair, 20));
    rig.send_into_all();
    assert_eq!(rig.received(), [3, 0, 0]);
    assert_eq!(rig.set_pairs(3), 0);
    rig.send_into_all();
    assert_eq!(rig.received(), [1, 1, 1]);
    assert_eq!(rig.set_pairs(2), 0);
    rig.send_into_all();
    assert_eq!(rig.received(), [2, 1, 0]);
    assert_eq!(rig.bench.dropped(), 0);
}

#[test]
fn a_pair_sends_into_its_own_queue_of_the_tap() {
    let mut rig = rig();
    let frame = with_header(&tcp("10.0.0.2", "10.0.0.1", 80));
    rig.bench.write(FRAME, &frame);
    for pair in 0..PAIRS {
        let length = u32::try_from(frame.len()).unwrap();
        rig.bench.rings[2 * pair + 1].offer(&[(FRAME, length, false)]);
        rig.bench.kick(2 * pair + 1);
        rig.bench.settle();
        let mut heard = vec![0; 2000];
        for (place, wire) in rig.wires.iter().enumerate() {
            assert_eq!(wire.recv(&mut heard).is_ok(), place == pair, "pair {pair}, queue {place}");
        }
        assert_eq!(rig.bench.rings[2 * pair + 1].take_all_used().len(), 1);
    }
}

#[test]
fn a_command_that_makes_no_sense_is_an_error_and_changes_nothing() {
    let mut rig = rig();
    (0..PAIRS).for_each(|pair| rig.post(pair, 20));
    assert_eq!(rig.set_pairs(2), 0);
    for count in [0, 4, 8, 0x8000, u16::MAX] {
        assert_eq!(rig.set_pairs(count), 1, "{count} pairs");
    }
    // Of other classes and commands, too short and too long.
    for bytes in
        [&[0, 0, 1][..], &[4, 1, 1, 0], &[5, 0, 1, 0], &[4, 0, 1], &[4], &[4, 0, 1, 0, 0], &[0xff; 64]]
    {
        assert_eq!(rig.command(bytes), (1, 1), "{bytes:?}");
    }
    rig.send_into_all();
    assert_eq!(rig.received(), [2, 1, 0]);
    assert_eq!(rig.bench.dropped(), 0);
}

#[test]
fn a_control_chain_without_room_for_its_status_goes_back() {
    let mut rig = rig();
    rig.bench.write(COMMAND, &[4, 0, 3, 0]);
    let ring = &mut rig.bench.rings[CONTROL];
    ring.offer(&[(COMMAND, 4, false)]);
    ring.offer(&[(COMMAND, 4, false), (IMAGE, 1, true)]);
    ring.offer(&[(COMMAND, 4, false), (LOW_END, 1, true)]);
    ring.offer(&[(LOW_END - 1, 4, false), (STATUS, 1, true)]);
    ring.offer(&[(COMMAND, 0, false)]);
    ring.offer(&[(STATUS, 1, true)]);
    rig.bench.kick(CONTROL);
    rig.bench.settle();
    let used: Vec<u32> = rig.bench.rings[CONTROL].take_all_used().into_iter().map(|used| used.1).collect();
    // The last has room, and says nothing.
    assert_eq!(used, [0, 0, 0, 0, 0, 1]);
    assert_eq!((rig.bench.dropped(), rig.bench.read(STATUS, 1)[0]), (5, 1));
    rig.post(0, 5);
    rig.send_into_all();
    assert_eq!(rig.received(), [3, 0, 0]);
}

#[test]
fn a_driver_without_the_features_has_one_pair_and_gets_every_queue_back() {
    let without = [net::VIRTIO_NET_F_MQ, net::VIRTIO_NET_F_CTRL_VQ];
    for choice in 1..4_u32 {
        let (mut net, wires) = several();
        let off =
            (0..2).filter(|place| choice >> place & 1 != 0).map(|place| bit(without[place])).sum::<u64>();
        let features = net.features() & !off;
        let bench = Bench::start_with(&mut net, features);
        let mut rig = Rig { bench, wires, net };
        rig.post(0, 10);
        rig.send_into_all();
        rig.bench.settle();
        assert_eq!(rig.bench.rings[0].take_all_used().len(), 3);
        if choice == 1 {
            // The control queue is right behind the pair then, and there is no class that it knows.
            rig.bench.write(COMMAND, &[4, 0, 2, 0]);
            rig.bench.rings[2].offer(&[(COMMAND, 4, false), (STATUS, 1, true)]);
            rig.bench.kick(2);
            rig.bench.settle();
            assert_eq!(rig.bench.rings[2].take_used(), Some((0, 1)));
            assert_eq!(rig.bench.read(STATUS, 1), [1]);
        }
        let queues = rig.bench.worker.drain(std::time::Instant::now()).unwrap();
        let mut indexes: Vec<u16> = queues.into_iter().map(|(index, _)| index).collect();
        indexes.sort_unstable();
        assert_eq!(indexes, [0, 1, 2, 3, 4, 5, 6], "choice {choice}");
    }
}

#[test]
fn the_flood_of_one_queue_leaves_the_others_their_turn() {
    let mut rig = rig();
    (0..PAIRS).for_each(|pair| rig.post(pair, 100));
    assert_eq!(rig.set_pairs(3), 0);
    while rig.wires[0].send(&[7; 200]).is_ok() {}
    rig.wires[2].send(&[8; 200]).unwrap();
    rig.bench.round().unwrap();
    let used = [0, 2].map(|pair: usize| rig.bench.rings[2 * pair].take_all_used().len());
    assert!(used[0] <= 64 && used[1] == 1, "{used:?}");
    // A pair whose driver posts nothing is not listened to, and comes back with its kick.
    rig.bench.settle();
    rig.received();
    while rig.wires[1].send(&[7; 200]).is_ok() {}
    rig.bench.settle();
    rig.received();
    rig.bench.settle();
    rig.post(1, 5);
    assert_eq!(rig.received()[1], 5);
    let _ = &rig.net;
}
