//! What a guest without an operating system can do to the runtime through the registers of its devices.
//!
//! Pass rule: the runtime still answers the guest, through every device, or ends with a fault that names the guest; and
//! another sandbox, which reads from its disk all the while, goes on. Each test is named after an item of the list of what
//! a guest may do, and does it to every device that the item is about:
//!
//! | item | here | in process (`husk-runtime`, `fuzz::tests::items` and each device's own tests) | a Linux guest |
//! | --- | --- | --- | --- |
//! | 1 to 7, 9: chains, indexes, queues, registers, resets, kicks | all eight devices | all eight devices | |
//! | 8: features; what is read-only | all eight; block, images | all eight; block, images | |
//! | 10: sectors and ranges | block | block | |
//! | 11: frames, floods | net | net | |
//! | 12: packets, credit, floods | vsock | vsock | |
//! | 13: pages, statistics | balloon (pages) | balloon | |
//! | 14: gigabytes of random bytes | entropy | entropy | |
//! | 15: widths and offsets; floods of text | all eight, ports; serial port, console | all eight; console | |
//! | 16: triple fault, halt, loop, reset, MSRs, CPUID | the processor | | |
//! | 17: out of memory, fork bomb | | | `faults` |
//! | 18: guest-init is the guest | | `husk`, `session::tests::hostile`, `pump::tests`, `fuzz` | |
//! | a volume's server that is not the host's any more | fs | fs | `volumes` |

use crate::attacks::{self, Attack};
use crate::cell::{Cell, start_humbly, start_with};
use crate::driver::{Device, device, devices};
use crate::guest::Guest;
use crate::own;
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
struct Sandbox {
    cell: Cell,
    peers: Peers,
}

/// Starts a runtime with a specification and descriptors.
type Start = fn(&str, &[OwnedFd]) -> Cell;

/// `None` where there is no KVM.
fn sandbox(guest: Guest, host: Host) -> Option<Sandbox> {
    started(start_with, guest, host)
}

/// The neighbour never rests: it gets what processor time the attacked one leaves, or the tests would wait for it.
fn neighbour() -> Option<Sandbox> {
    started(start_humbly, reader(), Host::Sound)
}

fn started(start: Start, guest: Guest, host: Host) -> Option<Sandbox> {
    let kvm = match File::options().read(true).write(true).open("/dev/kvm") {
        Ok(kvm) => kvm,
        Err(error) => {
            println!("HUSK-SKIP /dev/kvm: {error}");
            return None;
        }
    };
    let (spec, descriptors, peers) = Peers::new(host, kvm, guest.kernel());
    Some(Sandbox { cell: start(&spec, &descriptors), peers })
}

impl Sandbox {
    /// Waits until the guest prints something more.
    fn prints(&self) {
        let (before, start) = (self.peers.printed(), Instant::now());
        while self.peers.printed() == before {
            assert!(start.elapsed() < PATIENCE, "the other sandbox stands still");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// How it ended, the last line that it printed, and the process's status.
    fn finish(self) -> (Option<EndReason>, String, Option<i32>, Vec<FromCell>) {
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
fn reader() -> Guest {
    let (mut guest, disk) = (Guest::new(), devices()[0]);
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

/// Has `attack` done to each device while a neighbour works; afterwards all devices answer.
fn stands(attack: Attack) {
    stands_at(devices(), Host::Sound, attack);
}

/// The same, with one device only, or none where there is no such device.
fn stands_alone(name: &str, host: Host, attack: Attack) {
    let Some(device) = device(name) else {
        println!("HUSK-SKIP a tap: {}", tap::missing().unwrap_or_default());
        return;
    };
    stands_at(vec![device], host, attack);
}

fn stands_at(attacked: Vec<Device>, host: Host, attack: Attack) {
    let Some(neighbour) = neighbour() else { return };
    neighbour.prints();
    for device in attacked {
        let mut guest = Guest::new();
        attack(&mut guest, &device);
        // A volume whose server is silent keeps its driver waiting, and no other.
        let answers = |it: &&Device| host != Host::IsSilent || it.name != "fs";
        devices().iter().filter(answers).for_each(|device| device.sound(&mut guest));
        guest.print("ok\n");
        guest.reset();
        let (reason, last, status, messages) = sandbox(guest, host).unwrap().finish();
        let expected = (Some(EndReason::GuestReset), "ok");
        assert_eq!((reason, last.as_str()), expected, "{}: {messages:?}", device.name);
        assert_eq!(status, Some(RuntimeExit::Ended as i32), "{}", device.name);
        neighbour.prints();
    }
    ends(neighbour);
}

/// The neighbour still answers husk too.
fn ends(neighbour: Sandbox) {
    neighbour.cell.say("\"stop\"");
    let (reason, _, status, messages) = neighbour.finish();
    assert_eq!(
        (reason, status),
        (Some(EndReason::Requested), Some(RuntimeExit::Ended as i32)),
        "{messages:?}"
    );
}

/// Runs `code` to the end of its machine; with `stop` husk ends it once it has printed its last word.
fn dies(code: &[u8], stop: bool) -> EndReason {
    let mut guest = Guest::new();
    guest.print("here\n");
    guest.code(code);
    let sandbox = sandbox(guest, Host::Sound).unwrap();
    if stop {
        while sandbox.peers.printed() < 5 {
            std::thread::sleep(Duration::from_millis(1));
        }
        sandbox.cell.say("\"stop\"");
    }
    let (reason, _, status, messages) = sandbox.finish();
    assert_eq!(status, Some(RuntimeExit::Ended as i32), "{messages:?}");
    reason.unwrap()
}

#[test]
fn every_device_answers_a_driver_without_an_operating_system() {
    stands_alone("block", Host::Sound, |_, _| {});
}

#[test]
fn item_1_descriptors_that_lead_nowhere() {
    stands(attacks::leading_nowhere);
}

#[test]
fn item_1_a_head_outside_the_table() {
    stands(attacks::head_outside);
}

#[test]
fn item_2_an_index_that_jumps_or_goes_back() {
    stands(attacks::index_jumps);
}

#[test]
fn item_3_buffers_outside_memory() {
    stands(attacks::outside_memory);
}

#[test]
fn items_3_and_8_an_image_is_not_written_by_a_device() {
    stands(attacks::into_the_image);
}

#[test]
fn item_4_chains_of_nothing_of_everything_and_the_wrong_way_round() {
    stands(attacks::wrong_lengths);
}

#[test]
fn item_5_tables_of_descriptors_that_are_none() {
    stands(attacks::indirect);
}

#[test]
fn item_6_queues_that_are_not_sound() {
    stands(attacks::unsound_queues);
}

#[test]
fn item_7_registers_rewritten_and_status_out_of_order() {
    stands(attacks::registers_rewritten);
}

#[test]
fn item_7_a_storm_of_resets_with_requests_in_flight() {
    stands(attacks::reset_storm);
}

#[test]
fn item_8_features_that_were_not_offered() {
    stands(attacks::features);
}

#[test]
fn item_8_a_write_to_a_read_only_disk() {
    stands_alone("block", Host::ReadOnly, attacks::write_to_read_only);
}

#[test]
fn item_9_kicks_of_no_queue_and_a_storm_of_them() {
    stands(attacks::kicks);
}

#[test]
fn item_10_sectors_and_ranges_that_are_not_there() {
    stands_alone("block", Host::Sound, own::sectors);
}

#[test]
fn item_11_frames_that_are_none_and_from_others() {
    stands_alone("net", Host::Sound, own::frames);
}

#[test]
fn item_11_a_flood_that_nobody_takes_does_not_freeze_the_card() {
    stands_alone("net", Host::Floods, own::late_receiver);
}

#[test]
fn item_12_packets_that_lie_and_a_flood_of_connections() {
    stands_alone("vsock", Host::Sound, own::packets);
}

#[test]
fn item_13_pages_that_are_not_there_and_its_own_queue() {
    stands_alone("balloon", Host::Sound, own::pages);
}

#[test]
fn item_14_many_requests_for_4_gib_of_random_bytes() {
    stands_alone("entropy", Host::Sound, attacks::greed);
}

#[test]
fn item_15_registers_at_the_wrong_width_and_place() {
    stands(attacks::wrong_widths);
}

#[test]
fn item_15_ports_at_the_wrong_width_and_a_flood_of_the_serial_port() {
    stands_alone("block", Host::Sound, attacks::ports);
}

#[test]
fn item_15_a_flood_of_the_console() {
    stands_alone("console", Host::Sound, own::prints);
}

#[test]
fn a_server_of_files_that_lies_or_leaves_harms_its_volume_only() {
    for host in [Host::Lies, Host::Leaves, Host::IsSilent] {
        stands_alone("fs", host, own::unanswered);
    }
}

#[test]
fn item_16_what_ends_a_processor_ends_its_machine_only() {
    let Some(neighbour) = neighbour() else { return };
    neighbour.prints();
    // An empty interrupt table and an invalid instruction; a model-specific register that does not exist; a write to one.
    let no_table = b"\x6a\x00\x6a\x00\x0f\x01\x1c\x24";
    for code in [&b"\x0f\x0b"[..], b"\xb9\xef\xbe\xad\xde\x0f\x32", b"\xb9\xef\xbe\xad\xde\x0f\x30"] {
        // A stack for the table, then the instruction, then a loop.
        let code =
            [b"\x48\xbc\x00\x00\x20\x00\x00\x00\x00\x00".as_slice(), no_table, code, b"\xeb\xfe"].concat();
        assert_eq!(dies(&code, false), EndReason::GuestShutdown, "{code:x?}");
        neighbour.prints();
    }
    // A halt without interrupts; an endless loop.
    for code in [b"\xfa\xf4\xeb\xfd".as_slice(), b"\xeb\xfe"] {
        assert_eq!(dies(code, true), EndReason::Requested, "{code:x?}");
        neighbour.prints();
    }
    // The keyboard controller's reset, from a storm of its other commands.
    let mut guest = Guest::new();
    (0..=0xfe).for_each(|command| guest.out(1, 0x64, command));
    guest.code(b"\xeb\xfe");
    assert_eq!(sandbox(guest, Host::Sound).unwrap().finish().0, Some(EndReason::GuestReset));
    ends(neighbour);
}

#[test]
fn item_16_cpuid_leaves_that_do_not_exist() {
    stands_alone("block", Host::Sound, attacks::cpuid);
}
