//! Two sandboxes: one whose guest attacks its devices, and its neighbour, which reads from its disk all the while.
//!
//! Invariant: after each attack all devices answer, and the neighbour, over the same bus, does.

use crate::attacks::Attack;
use crate::cell::{Cell, start_humbly, start_with};
use crate::driver::{Device, device, devices};
use crate::guest::{Bus, Guest};
use crate::peers::{Host, Peers};
use crate::tap;
use husk_protocol::control::{EndReason, FromCell};
use husk_protocol::exit::RuntimeExit;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A runtime, and what is at the other ends of its devices.
pub(crate) struct Sandbox {
    pub(crate) cell: Cell,
    pub(crate) peers: Peers,
}

/// Starts a runtime with a specification and descriptors.
type Start = fn(&str, &[OwnedFd]) -> Cell;

/// `None` where there is no KVM.
pub(crate) fn sandbox(guest: Guest, host: Host) -> Option<Sandbox> {
    started(start_with, guest, host)
}

/// The neighbour never rests: it gets what processor time the attacked one leaves, or the tests would wait for it.
pub(crate) fn neighbour(bus: Bus) -> Option<Sandbox> {
    started(start_humbly, reader(bus), Host::Sound)
}

fn started(start: Start, guest: Guest, host: Host) -> Option<Sandbox> {
    let kvm = match File::options().read(true).write(true).open("/dev/kvm") {
        Ok(kvm) => kvm,
        Err(error) => {
            println!("HUSK-SKIP /dev/kvm: {error}");
            return None;
        }
    };
    let (spec, descriptors, peers) = Peers::new((host, guest.bus), kvm, guest.kernel());
    Some(Sandbox { cell: start(&spec, &descriptors), peers })
}

impl Sandbox {
    /// Waits until the guest prints something more.
    pub(crate) fn prints(&self) {
        let (before, start) = (self.peers.printed(), Instant::now());
        while self.peers.printed() == before {
            assert!(start.elapsed() < PATIENCE, "the other sandbox stands still");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// How it ended, the last line that it printed, and the process's status.
    pub(crate) fn finish(self) -> (Option<EndReason>, String, Option<i32>, Vec<FromCell>) {
        let (messages, status) = self.cell.finish();
        self.peers.end();
        let ended = messages.iter().find_map(|message| match message {
            FromCell::Ended(ended) => Some(ended.clone()),
            _ => None,
        });
        let last = ended.as_ref().and_then(|ended| ended.console_tail.last().cloned()).unwrap_or_default();
        (ended.map(|ended| ended.reason), last, status, messages)
    }
}

/// A guest that reads from its disk for ever and prints a dot for each answer.
fn reader(bus: Bus) -> Guest {
    let (mut guest, disk) = (Guest::new(bus), devices(bus)[0]);
    disk.find(&mut guest);
    let ring = disk.start(&mut guest);
    let request = disk.request(&mut guest);
    ring.describe(&mut guest, &request);
    guest.repeat(u32::MAX, |guest| {
        guest.increment(ring.available + 2);
        disk.kick(guest);
        guest.wait_same(ring.available + 2, ring.used + 2);
        guest.print(".");
    });
    guest
}

/// Has `attack` done to each device over each bus while a neighbour works; afterwards all devices answer.
pub(crate) fn stands(attack: Attack) {
    Bus::BOTH.into_iter().for_each(|bus| stands_at(devices(bus), Host::Sound, attack));
}

/// The same, over one bus.
pub(crate) fn stands_over(bus: Bus, attack: Attack) {
    stands_at(devices(bus), Host::Sound, attack);
}

/// The same over each bus with one device only, or none where there is no such device.
pub(crate) fn stands_alone(name: &str, host: Host, attack: Attack) {
    for bus in Bus::BOTH {
        let Some(device) = device(bus, name) else {
            println!("HUSK-SKIP a tap: {}", tap::missing().unwrap_or_default());
            return;
        };
        stands_at(vec![device], host, attack);
    }
}

fn stands_at(attacked: Vec<Device>, host: Host, attack: Attack) {
    let bus = attacked[0].bus;
    let Some(neighbour) = neighbour(bus) else { return };
    neighbour.prints();
    for device in attacked {
        let mut guest = Guest::new(bus);
        devices(bus).iter().for_each(|device| device.find(&mut guest));
        attack(&mut guest, &device);
        // A volume whose server is silent keeps its driver waiting, and no other.
        let answers = |it: &&Device| host != Host::IsSilent || it.name != "fs";
        devices(bus).iter().filter(answers).for_each(|device| device.sound(&mut guest));
        guest.print("ok\n");
        guest.reset();
        let (reason, last, status, messages) = sandbox(guest, host).unwrap().finish();
        let expected = (Some(EndReason::GuestReset), "ok");
        assert_eq!((reason, last.as_str()), expected, "{} over {bus:?}: {messages:?}", device.name);
        assert_eq!(status, Some(RuntimeExit::Ended as i32), "{} over {bus:?}", device.name);
        neighbour.prints();
    }
    ends(neighbour);
}

/// The neighbour still answers husk too.
pub(crate) fn ends(neighbour: Sandbox) {
    neighbour.cell.say("\"stop\"");
    let (reason, _, status, messages) = neighbour.finish();
    assert_eq!(
        (reason, status),
        (Some(EndReason::Requested), Some(RuntimeExit::Ended as i32)),
        "{messages:?}"
    );
}
