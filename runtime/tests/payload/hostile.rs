//! What a guest without an operating system can do to the runtime through the registers of its devices: items 1 to 9 and 14
//! to 16 of the hostile list, each on every device that it is about.
//!
//! Pass rule: the runtime still answers the guest, through every device, or ends with a fault that names the guest; and
//! another sandbox, which reads from its disk all the while, goes on.

use crate::attacks::{self, Attack};
use crate::cell::{Cell, start_humbly, start_with};
use crate::driver::{DEVICES, Device};
use crate::guest::Guest;
use husk_protocol::control::{EndReason, FromCell};
use husk_protocol::exit::RuntimeExit;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const SPEC: &str = r#"{
    "boot-source": {"kernel_image_path": {"fd": 1}, "boot_args": ""},
    "machine-config": {"mem_size_mib": 32},
    "drives": [{"drive_id": "vda", "path_on_host": {"fd": 2}, "is_read_only": READ_ONLY}],
    "entropy": {}, "balloon": {"amount_mib": 1, "deflate_on_oom": true},
    "exec": {"channel": {"fd": 3}, "port": 1024},
    "console": {"output": {"fd": 4}}
}"#;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A runtime, and what is at the other ends of its devices.
struct Sandbox {
    cell: Cell,
    printed: Arc<AtomicU64>,
    reader: Option<JoinHandle<()>>,
    /// The exec channel: nobody talks, but it is open.
    _exec: UnixStream,
}

/// Starts a runtime with a specification and descriptors.
type Start = fn(&str, &[OwnedFd]) -> Cell;

/// `None` where there is no KVM.
fn sandbox(guest: Guest, read_only: bool) -> Option<Sandbox> {
    started(start_with, guest, read_only)
}

/// The neighbour never rests: it gets what processor time the attacked one leaves, or the tests would wait for it.
fn neighbour() -> Option<Sandbox> {
    started(start_humbly, reader(), false)
}

fn started(start: Start, guest: Guest, read_only: bool) -> Option<Sandbox> {
    let kvm = match File::options().read(true).write(true).open("/dev/kvm") {
        Ok(kvm) => kvm,
        Err(error) => {
            println!("HUSK-SKIP /dev/kvm: {error}");
            return None;
        }
    };
    let disk = rustix::fs::memfd_create("disk", rustix::fs::MemfdFlags::empty()).unwrap();
    File::from(disk.try_clone().unwrap()).write_all(&[7; 64 << 10]).unwrap();
    let (exec, channel) = UnixStream::pair().unwrap();
    let (mut console, output) = std::io::pipe().unwrap();
    let spec = SPEC.replace("READ_ONLY", &read_only.to_string());
    let descriptors: [OwnedFd; 5] = [kvm.into(), guest.kernel(), disk, channel.into(), output.into()];
    let cell = start(&spec, &descriptors);
    drop(descriptors);
    let printed = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&printed);
    // The console's reader is never slow, or the runtime would give the console up.
    #[allow(clippy::disallowed_methods, reason = "tests have no thread policy")]
    let reader = std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(1..) = console.read(&mut bytes).inspect(|&read| {
            count.fetch_add(read as u64, Ordering::SeqCst);
        }) {}
    });
    Some(Sandbox { cell, printed, reader: Some(reader), _exec: exec })
}

impl Sandbox {
    /// Waits until the guest prints something more.
    fn prints(&self) {
        let (before, start) = (self.printed.load(Ordering::SeqCst), Instant::now());
        while self.printed.load(Ordering::SeqCst) == before {
            assert!(start.elapsed() < PATIENCE, "the other sandbox stands still");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// How it ended, the last line that it printed, and the process's status.
    fn finish(mut self) -> (Option<EndReason>, String, Option<i32>, Vec<FromCell>) {
        let (messages, status) = self.cell.finish();
        self.reader.take().unwrap().join().unwrap();
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
    let (mut guest, disk) = (Guest::new(), DEVICES[0]);
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

/// Runs `attack` on each of `devices` while a neighbour works; afterwards all devices answer.
fn stands(devices: &[Device], read_only: bool, attack: Attack) {
    let Some(neighbour) = neighbour() else { return };
    neighbour.prints();
    for device in devices {
        let mut guest = Guest::new();
        attack(&mut guest, device);
        DEVICES.iter().for_each(|device| device.sound(&mut guest));
        guest.print("ok\n");
        guest.reset();
        let attacked = sandbox(guest, read_only).unwrap();
        let (reason, last, status, messages) = attacked.finish();
        assert_eq!(
            (reason, last.as_str()),
            (Some(EndReason::GuestReset), "ok"),
            "{}: {messages:?}",
            device.name
        );
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
    let sandbox = sandbox(guest, false).unwrap();
    if stop {
        while sandbox.printed.load(Ordering::SeqCst) < 5 {
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
    stands(&DEVICES[..1], false, |_, _| {});
}

#[test]
fn item_1_descriptors_that_lead_nowhere() {
    stands(&DEVICES, false, attacks::leading_nowhere);
}

#[test]
fn item_1_a_head_outside_the_table() {
    stands(&DEVICES, false, attacks::head_outside);
}

#[test]
fn item_2_an_index_that_jumps_or_goes_back() {
    stands(&DEVICES, false, attacks::index_jumps);
}

#[test]
fn item_3_buffers_outside_memory() {
    stands(&DEVICES, false, attacks::outside_memory);
}

#[test]
fn item_4_chains_of_nothing_of_everything_and_the_wrong_way_round() {
    stands(&DEVICES, false, attacks::wrong_lengths);
}

#[test]
fn item_5_tables_of_descriptors_that_are_none() {
    stands(&DEVICES, false, attacks::indirect);
}

#[test]
fn item_6_queues_that_are_not_sound() {
    stands(&DEVICES, false, attacks::unsound_queues);
}

#[test]
fn item_7_registers_rewritten_and_status_out_of_order() {
    stands(&DEVICES, false, attacks::registers_rewritten);
}

#[test]
fn item_7_a_storm_of_resets_with_requests_in_flight() {
    stands(&DEVICES, false, attacks::reset_storm);
}

#[test]
fn item_8_features_that_were_not_offered() {
    stands(&DEVICES, false, attacks::features);
}

#[test]
fn item_8_a_write_to_a_read_only_disk() {
    stands(&DEVICES[..1], true, attacks::write_to_read_only);
}

#[test]
fn item_9_kicks_of_no_queue_and_a_storm_of_them() {
    stands(&DEVICES, false, attacks::kicks);
}

#[test]
fn item_14_many_requests_for_4_gib_of_random_bytes() {
    stands(&DEVICES[2..3], false, attacks::greed);
}

#[test]
fn item_15_registers_at_the_wrong_width_and_place() {
    stands(&DEVICES, false, attacks::wrong_widths);
}

#[test]
fn item_15_ports_at_the_wrong_width_and_a_flood_of_the_serial_port() {
    stands(&DEVICES[..1], false, attacks::ports);
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
    assert_eq!(sandbox(guest, false).unwrap().finish().0, Some(EndReason::GuestReset));
    ends(neighbour);
}

#[test]
fn item_16_cpuid_leaves_that_do_not_exist() {
    stands(&DEVICES[..1], false, attacks::cpuid);
}
