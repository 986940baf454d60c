//! What a guest without an operating system can do to the runtime through the registers of its devices.
//!
//! Pass rule: the runtime still answers the guest, through every device, or ends with a fault that names the guest; and
//! another sandbox, which reads from its disk all the while, goes on. Each test is named after an item of the list of what
//! a guest may do, and does it to every device that the item is about, over MMIO and over PCI; what only a PCI bus has is in
//! [`over_pci`](crate::over_pci):
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

use crate::attacks;
use crate::guest::{Bus, Guest};
use crate::own;
use crate::peers::Host;
use crate::sandbox::{ends, neighbour, sandbox, stands, stands_alone};
use husk_protocol::control::EndReason;
use husk_protocol::exit::RuntimeExit;
use std::time::Duration;

/// Runs `code` to the end of its machine; with `stop` husk ends it once it has printed its last word.
fn dies(code: &[u8], stop: bool) -> EndReason {
    let mut guest = Guest::new(Bus::Mmio);
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
    let Some(neighbour) = neighbour(Bus::Mmio) else { return };
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
    let mut guest = Guest::new(Bus::Mmio);
    (0..=0xfe).for_each(|command| guest.out(1, 0x64, command));
    guest.code(b"\xeb\xfe");
    assert_eq!(sandbox(guest, Host::Sound).unwrap().finish().0, Some(EndReason::GuestReset));
    ends(neighbour);
}

#[test]
fn item_16_cpuid_leaves_that_do_not_exist() {
    stands_alone("block", Host::Sound, attacks::cpuid);
}
