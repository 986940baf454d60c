//! Items 1 to 15 of the hostile list against every device by name: `item_N_…::DEVICE`.
//!
//! Each attack is a seed; while it runs the device is judged as in fuzzing. Then the driver starts it anew and asks for
//! something sound, which has to be answered.

use crate::fuzz::script::op;
use crate::fuzz::{TARGETS, registers, seeds};

/// The devices, in the order in which [`registers`] has them.
const DEVICES: [&str; 9] = ["block", "entropy", "balloon", "net", "vsock", "pmem", "fs", "console", "mem"];

fn attacks(target: &str, item: &str) -> Vec<(String, Vec<u8>)> {
    let mut attacks = seeds::of(target);
    attacks.retain(|(name, _)| name.split('-').next() == Some(item));
    attacks
}

/// Operations of a driver at the queues of `device`.
fn at_the_queues(device: &str, item: &str) {
    let (_, target) = TARGETS.into_iter().find(|target| target.0 == device).unwrap();
    let (_, sound) = seeds::of(device).into_iter().find(|(name, _)| name == "sound").unwrap();
    let attacks = attacks(device, item);
    assert!(!attacks.is_empty(), "no attack of item {item}");
    for (name, mut attack) in attacks {
        println!("{name}");
        attack.push(op::RESTART);
        let before = target(&attack);
        attack.extend(&sound[seeds::prefix(device)..]);
        assert!(target(&attack) > before, "{device} answers nothing after {name}");
    }
}

/// Accesses to the registers of `device`; what was asked of another's is asked of this one's.
fn at_the_registers(device: &str, item: &str) {
    let index = DEVICES.iter().position(|it| *it == device).unwrap();
    let attacks = attacks("registers", item);
    assert!(!attacks.is_empty(), "no attack of item {item}");
    for (name, mut attack) in attacks {
        println!("{name}");
        attack[0] = u8::try_from(index).unwrap();
        assert!(registers(&attack) > 0, "{device} answers nothing after {name}");
    }
}

macro_rules! item {
    ($name:ident, $how:ident, $item:literal, $($device:ident),*) => {
        mod $name {
            $(#[test] fn $device() { super::$how(stringify!($device), $item); })*
        }
    };
    ($name:ident, $how:ident, $item:literal) => {
        item!($name, $how, $item, block, net, vsock, entropy, balloon, pmem, fs, console, mem);
    };
}

item!(item_1_chains_that_lead_nowhere, at_the_queues, "01");
item!(item_2_an_index_that_jumps_or_goes_back, at_the_queues, "02");
item!(item_3_buffers_outside_memory_and_in_an_image, at_the_queues, "03");
item!(item_4_chains_of_nothing_of_everything_and_the_wrong_way_round, at_the_queues, "04");
item!(item_5_tables_of_descriptors_that_are_none, at_the_queues, "05");
item!(item_6_queues_that_are_not_sound, at_the_registers, "06");
item!(item_7_registers_rewritten_and_a_storm_of_resets, at_the_registers, "07");
item!(item_7_restarts_with_requests_in_flight, at_the_queues, "07");
item!(item_8_features_that_were_not_offered, at_the_registers, "08");
item!(item_8_writes_to_what_is_read_only, at_the_queues, "08", block);
item!(item_9_a_full_queue_and_a_storm_of_kicks, at_the_queues, "09");
item!(item_9_kicks_of_queues_that_do_not_exist, at_the_registers, "09");
item!(item_10_sectors_and_ranges_that_are_not_there, at_the_queues, "10", block);
item!(item_11_frames_that_are_none_and_floods, at_the_queues, "11", net);
item!(item_12_packets_that_lie_and_a_peer_that_never_reads, at_the_queues, "12", vsock);
item!(item_13_pages_that_are_not_the_guests, at_the_queues, "13", balloon);
item!(item_14_requests_for_gigabytes, at_the_queues, "14", entropy);
item!(item_15_registers_at_the_wrong_width_and_place, at_the_registers, "15");
item!(item_15_a_flood_that_nobody_reads, at_the_queues, "15", console);
