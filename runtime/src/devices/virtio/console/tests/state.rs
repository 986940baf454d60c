//! What is printed across a save and a load.

use super::*;
use crate::devices::virtio::testkit::rig::Rig;
use std::io::{PipeReader, pipe};

fn device() -> (Box<VirtioConsole>, PipeReader) {
    let (reader, writer) = pipe().unwrap();
    let console = Arc::new(Console::new(Some(writer.into())));
    (Box::new(VirtioConsole::new(console, |_| b"early\n".to_vec()).unwrap()), reader)
}

fn offer(rig: &mut Rig, number: u64) -> u16 {
    let (at, line) = (TEXT + 64 * number, format!("line {number:02}\n"));
    rig.write(at, line.as_bytes());
    rig.rings[TRANSMIT].offer(&[(at, u32::try_from(line.len()).unwrap(), false)])
}

#[test]
fn console_saves_and_loads_with_requests_in_flight() {
    let (device_, mut first) = device();
    let mut rig = Rig::start(device_);
    let mut heads: Vec<_> = (0..20).map(|number| (u32::from(offer(&mut rig, number)), 0)).collect();
    rig.rings[RECEIVE].offer(&[(HIGH, 64, true)]);
    rig.kick(1);
    rig.settle();
    let mut used = rig.rings[TRANSMIT].take_all_used();
    assert_eq!(used.len(), 20);
    rig.pause();
    heads.extend((20..50).map(|number| (u32::from(offer(&mut rig, number)), 0)));
    rig.kick(1);
    let (device_, mut second) = device();
    let mut rig = rig.restore(device_);
    rig.settle();
    used.extend(rig.rings[TRANSMIT].take_all_used());
    assert_eq!(used, heads);
    assert!(rig.rings[RECEIVE].take_used().is_none(), "there is still no input");
    rig.is_well();
    drop(rig);
    let mut printed = String::new();
    first.read_to_string(&mut printed).unwrap();
    second.read_to_string(&mut printed).unwrap();
    let lines: Vec<_> = (0..50).map(|number| format!("line {number:02}")).collect();
    assert_eq!(printed.lines().collect::<Vec<_>>(), [&["early".to_owned()], &lines[..]].concat());
}

crate::devices::virtio::testkit::rig::over_pci!(console_saves_and_loads_with_requests_in_flight,);
