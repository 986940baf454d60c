//! What a guest without an operating system can do to the runtime through a PCI bus: as in [`hostile`](crate::hostile), with what
//! only this bus has. The items of the list that are about both are there, for both.
//!
//! The guest finds the functions in configuration space, the structures by their capabilities, and sends each queue's interrupts
//! as messages.

use crate::attacks::Attack;
use crate::driver::{APIC, device};
use crate::guest::{Bus, Guest};
use crate::pci;
use crate::peers::Host;
use crate::sandbox::{ends, neighbour, sandbox, stands_over};
use husk_protocol::control::EndReason;
use husk_protocol::exit::RuntimeExit;
use std::time::{Duration, Instant};

/// How long a processor that was interrupted may take to say that it goes on.
const ALIVE: Duration = Duration::from_secs(3);

fn stands(attack: Attack) {
    stands_over(Bus::Pci, attack);
}

#[test]
fn items_6_and_7_queues_that_are_not_there_and_a_start_before_its_time() {
    stands(pci::nonsense);
}

#[test]
fn item_7_a_storm_of_every_status_with_requests_in_flight() {
    stands(pci::status_storm);
}

#[test]
fn item_9_kicks_at_every_place_and_a_storm_of_them() {
    stands(pci::kicks);
}

#[test]
fn item_15_configuration_space_at_every_width_and_place() {
    stands(pci::every_register);
}

#[test]
fn item_15_functions_and_buses_that_are_not_there() {
    stands(pci::everywhere_else);
}

#[test]
fn item_15_windows_moved_over_memory_and_over_other_devices() {
    stands(pci::moved_windows);
}

#[test]
fn item_15_the_way_through_configuration_space_leads_nowhere_else() {
    stands(pci::access);
}

#[test]
fn item_15_messages_to_nobody_and_of_no_kind() {
    stands(pci::messages_to_nobody);
}

#[test]
fn item_15_a_storm_of_masks_with_messages_pending() {
    stands(pci::masks);
}

/// How a machine ends, and its runtime's status, whose disk's answer comes with message `data` to its only processor.
fn interrupted(data: u32) -> (Option<EndReason>, Option<i32>) {
    let (mut guest, disk) = (Guest::new(Bus::Pci), device(Bus::Pci, "block").unwrap());
    disk.find(&mut guest);
    let ring = disk.start(&mut guest);
    let request = disk.request(&mut guest);
    ring.describe(&mut guest, &request);
    guest.set_vector(disk.slot, disk.queue + 1, (APIC, data, false));
    guest.print("here\n");
    // Not before: a device looks at its queues when it starts.
    guest.increment(ring.available + 2);
    disk.kick(&mut guest);
    ring.wait(&mut guest, "answer", 1);
    guest.print("answered\n");
    // An endless loop, if the processor ever gets to it.
    guest.code(b"\xeb\xfe");
    let sandbox = sandbox(guest, Host::Sound).unwrap();
    let start = Instant::now();
    while sandbox.peers.printed() < 14 && start.elapsed() < ALIVE {
        std::thread::sleep(Duration::from_millis(1));
    }
    // The message comes with the answer, or right behind it.
    std::thread::sleep(Duration::from_millis(200));
    sandbox.cell.say_if_there("\"stop\"");
    let (reason, last, status, messages) = sandbox.finish();
    assert!(["here", "answered"].contains(&last.as_str()), "{messages:?}");
    println!("{data:#x}: {reason:?}");
    (reason, status)
}

#[test]
fn item_16_messages_that_end_a_processor_end_its_machine_only() {
    let Some(neighbour) = neighbour(Bus::Pci) else { return };
    neighbour.prints();
    // A non-maskable interrupt, of which there is no table; the processor's reset; system management, of which it has no code.
    // What becomes of them is KVM's to say.
    for data in [0x400, 0x500, 0x200] {
        let (reason, status) = interrupted(data);
        let expected = match reason {
            Some(EndReason::GuestShutdown | EndReason::Requested) => RuntimeExit::Ended,
            Some(EndReason::GuestFault) => RuntimeExit::Guest,
            other => panic!("{data:#x}: {other:?}"),
        };
        assert_eq!(status, Some(expected as i32), "{data:#x}");
        neighbour.prints();
    }
    ends(neighbour);
}
