//! The attacks that only a PCI bus knows: configuration space, address registers, MSI-X.
//!
//! Each leaves the function as it found it, so that a driver can come; what the device has of it, a driver's reset mends.

use crate::driver::{
    APIC, CONFIG_VECTOR, Device, INTERRUPT, NOTIFY, QUEUE_VECTOR, RAM, Ring, SIZE, STATUS, VECTORS_ON,
    devices,
};
use crate::function::{COMMAND, Found, PORTS_BAR, Place, TABLE_BAR, cell, space};
use crate::guest::{Guest, WINDOWS_ADDRESS};
use std::iter::StepBy;
use std::ops::Range;

const ALL: u64 = u64::MAX;
/// Bytes of a window of ports, and of configuration space.
const SPACE: u32 = 0x100;
/// Where in the table's window the pending bits are.
const PENDING: u32 = 0x800;
const ALL_MASKED: u16 = 1 << 14;
const NO_VECTOR: u32 = 0xffff;
/// Memory that no request is about, and what is in it.
const UNTOUCHED: (u64, u32) = (28 << 20, 0x5aa5_5aa5);
/// Fields of the common configuration.
const QUEUE_SELECT: u32 = 0x16;
const QUEUE_SIZE: u32 = 0x18;
const QUEUE_ENABLE: u32 = 0x1c;

impl Device {
    /// Each place of `places`; of functions past the first, whose registers are the same code's, every fifth, which is at each
    /// alignment as well: an emulated machine takes its time for an access.
    fn some(&self, places: Range<u32>) -> StepBy<Range<u32>> {
        places.step_by(if self.slot == 0 { 1 } else { 5 })
    }

    fn table(&self, offset: u32) -> Place {
        Place::Window(cell(self.slot, Found::Table), offset)
    }

    /// The function as it was; the device is the next driver's.
    fn put_back(&self, guest: &mut Guest) {
        guest.put_function_back(self.slot);
        self.set_vectors(guest);
    }
}

/// Reads and writes of a place, at each width: nothing, everything.
fn pound(guest: &mut Guest, place: Place, widths: &[u8]) {
    for &width in widths {
        guest.get(place, width);
        guest.put(place, width, ALL);
        guest.put(place, width, 0);
    }
}

/// Configuration space, with accesses across its registers, while the device runs.
pub(crate) fn every_register(guest: &mut Guest, device: &Device) {
    device.start(guest);
    for offset in device.some(0..SPACE) {
        pound(guest, space(device.slot, offset), &[1, 2, 4]);
    }
    // What cannot be written is as it was; the address registers say how large the windows are.
    guest.wait_bits("vendor", space(device.slot, 0), 0xffff, 0x1af4);
    for (bar, size) in [(PORTS_BAR, 0xffff_ff01), (TABLE_BAR, 0xffff_f000)] {
        guest.put(space(device.slot, bar), 4, ALL);
        guest.wait_at("size of a window", space(device.slot, bar), 4, size);
    }
    for bar in [0x18, 0x1c, 0x20, 0x24, 0x30] {
        guest.put(space(device.slot, bar), 4, ALL);
        guest.wait_at("no window", space(device.slot, bar), 4, 0);
    }
    device.put_back(guest);
}

/// Functions, devices and buses that are not there, the bridge, and the address register at each width and place.
pub(crate) fn everywhere_else(guest: &mut Guest, device: &Device) {
    let ring = device.start(guest);
    let own = u32::try_from(device.slot + 1).unwrap() << 11;
    let nobody = [1 << 8, 7 << 8, 31 << 11, 1 << 16, 0xff << 16].map(|other| 1 << 31 | own | other);
    // Bus, function and register, but not turned on; bits that are reserved are none.
    for address in nobody.into_iter().chain([own, 0x7fff_fffc]) {
        for register in [0, COMMAND, PORTS_BAR, TABLE_BAR, 0x3c, 0xfc] {
            let place = Place::Space(address | register);
            pound(guest, place, &[1, 2, 4]);
            guest.wait_at("nobody", place, 4, u32::MAX);
        }
    }
    for offset in 0..SPACE {
        guest.put(Place::Space(1 << 31 | offset), 4, ALL);
    }
    guest.wait_at("the bridge", Place::Space(1 << 31), 4, 0x0008_1b36);
    for port in 0xcf5..0xd04 {
        for width in [1, 2, 4] {
            guest.input(width, port);
            guest.out(width, port, u32::MAX);
            guest.out(width, port, 0);
        }
    }
    device.wait_status(guest, "elsewhere", 15);
    device.ask(guest, &ring);
}

/// Both windows, at each width and place.
pub(crate) fn wrong_widths(guest: &mut Guest, device: &Device) {
    device.start(guest);
    for offset in device.some(0..SPACE) {
        pound(guest, device.field(offset), &[1, 2, 4]);
    }
    let table = device.some(0..0x50).chain(device.some(PENDING - 8..PENDING + 16)).chain(0xff8..0x1000);
    for offset in table {
        pound(guest, device.table(offset), &[1, 2, 4, 8]);
    }
    device.put_back(guest);
}

/// Address registers over memory, another device's windows, the processor's own, at nothing and at the end.
pub(crate) fn moved_windows(guest: &mut Guest, device: &Device) {
    device.start(guest);
    guest.put(Place::Memory(UNTOUCHED.0), 4, UNTOUCHED.1.into());
    let all = devices(device.bus);
    let other = all[(usize::try_from(device.slot).unwrap() + 1) % all.len()];
    let tables = [0, 0x10_0000, UNTOUCHED.0, RAM - 0x1000, 0xd001_0000, 0xfec0_0000, APIC, 0xffff_f000, ALL];
    for table in tables {
        guest.put(space(device.slot, TABLE_BAR), 4, table);
        guest.wait_at("a table that moved", device.table(0), 4, u32::MAX);
        guest.put(device.table(0), 4, ALL);
    }
    for ports in [0, 0x3f8, 0x64, 0xcf8, 0xff00, 0xffff_ff00, ALL] {
        guest.put(space(device.slot, PORTS_BAR), 4, ports);
        guest.wait_at("ports that moved", device.field(0x14), 1, 0xff);
        guest.put(device.field(0x14), 1, 0);
        guest.put(device.notify(device.queue), 2, 0);
    }
    // Over the other's: that one goes on where it is.
    guest.put_back(space(device.slot, PORTS_BAR), cell(other.slot, Found::Ports));
    guest.put_back(space(device.slot, TABLE_BAR), cell(other.slot, Found::Memory));
    other.sound(guest);
    guest.wait("memory under a window", UNTOUCHED.0, u32::MAX, UNTOUCHED.1);
    device.put_back(guest);
    // Nor does it answer when it is turned off, though its kicks are still the host kernel's.
    guest.put(space(device.slot, COMMAND), 2, 0);
    guest.wait_at("a table that is off", device.table(0), 4, u32::MAX);
    guest.repeat(100, |guest| {
        guest.put(device.notify(device.queue), 2, 0);
        guest.put(device.field(0x14), 1, 0);
    });
    guest.wait_at("ports that are off", device.field(0x14), 1, 0xff);
    device.put_back(guest);
    device.wait_status(guest, "moved", 15);
}

/// Queues that are not there, what cannot be taken back, and each status with requests in flight.
pub(crate) fn nonsense(guest: &mut Guest, device: &Device) {
    let ring = device.start(guest);
    for queue in [device.queues, 0x40, 0x7fff, 0xffff] {
        guest.put(device.field(QUEUE_SELECT), 2, queue.into());
        for field in [QUEUE_SIZE, QUEUE_VECTOR, QUEUE_ENABLE, 0x1e] {
            guest.put(device.field(field), 2, 1);
            let nothing = if field == QUEUE_VECTOR { NO_VECTOR } else { 0 };
            guest.wait_at("no queue", device.field(field), 2, nothing);
        }
        (0x20..0x38).step_by(4).for_each(|field| guest.put(device.field(field), 4, ALL));
    }
    guest.put(device.field(QUEUE_SELECT), 2, device.queue.into());
    guest.put(device.field(QUEUE_ENABLE), 2, 0);
    guest.wait_at("a queue taken back", device.field(QUEUE_ENABLE), 2, 1);
    device.ask(guest, &ring);
    device.write(guest, STATUS, 0);
    device.wait_status(guest, "reset", 0);
    for status in [4, 8, 12] {
        device.write(guest, STATUS, status);
    }
    device.wait_status(guest, "too early", 0);
    for status in [1, 3, 7, 15] {
        device.write(guest, STATUS, status);
        device.kick(guest);
    }
    device.wait_status(guest, "DRIVER_OK before FEATURES_OK", 3);
}

/// Every status in turn, each time on a device with requests in flight.
pub(crate) fn status_storm(guest: &mut Guest, device: &Device) {
    let request = device.request(guest);
    let ring = Ring::new(guest);
    ring.describe(guest, &request);
    ring.offer(guest, &[0; 16]);
    for round in 0..8 {
        device.negotiate(guest);
        device.set_queue(guest, device.queue, SIZE.into(), &ring);
        device.write(guest, STATUS, 15);
        device.kick(guest);
        for status in (0..=255).skip(round * 32).take(32) {
            device.write(guest, STATUS, status);
            guest.get(device.field(0x14), 1);
            device.kick(guest);
        }
    }
    // And as fast as a loop can.
    guest.repeat(200, |guest| {
        for status in [0, 1, 3, 11, 15, 0, 255] {
            device.write(guest, STATUS, status);
        }
    });
}

/// Answers the next of many requests, whatever becomes of its message.
struct Asked {
    ring: Ring,
    count: u32,
}

impl Asked {
    fn new(guest: &mut Guest, device: &Device) -> Self {
        let ring = device.start(guest);
        let request = device.request(guest);
        ring.describe(guest, &request);
        Self { ring, count: 0 }
    }

    fn again(&mut self, guest: &mut Guest, device: &Device, name: &str) {
        self.count += 1;
        guest.increment(self.ring.available + 2);
        device.kick(guest);
        self.ring.wait(guest, name, self.count);
    }
}

/// Messages to memory, to devices, to processors that are not there, of kinds that are none; vectors that do not exist.
pub(crate) fn messages_to_nobody(guest: &mut Guest, device: &Device) {
    guest.put(Place::Memory(UNTOUCHED.0), 4, UNTOUCHED.1.into());
    let mut asked = Asked::new(guest, device);
    let vector = device.queue + 1;
    let addresses = [
        0,
        UNTOUCHED.0,
        WINDOWS_ADDRESS,
        APIC | 0xf_f000,
        APIC | 0x5_000c,
        APIC + 0xf_fffc,
        0xfec0_0000,
        1 << 32 | APIC,
        ALL,
    ];
    // Of the APIC's own exceptions, of the lowest priority, of a reserved kind, a start, another controller's; by level.
    for data in [0, 0x0f, 0x130, 0x330, 0x610, 0x730, 0xc030, u32::MAX] {
        for address in addresses {
            guest.set_vector(device.slot, vector, (address, data, false));
            asked.again(guest, device, &format!("{data:#x} to {address:#x}"));
        }
    }
    guest.wait("a message to memory", UNTOUCHED.0, u32::MAX, UNTOUCHED.1);
    for none in [device.queues + 1, 0x7ff, 0x8000, 0xfffe] {
        for field in [CONFIG_VECTOR, QUEUE_VECTOR] {
            guest.put(device.field(field), 2, none.into());
            guest.wait_at("a vector that is none", device.field(field), 2, NO_VECTOR);
        }
        asked.again(guest, device, "no vector");
    }
    device.set_vectors(guest);
}

/// Masks on and off, one vector's and all's, with messages pending; bits that only the device sets.
pub(crate) fn masks(guest: &mut Guest, device: &Device) {
    let mut asked = Asked::new(guest, device);
    let (vector, sound) = (device.queue + 1, (APIC, INTERRUPT));
    let pending = |guest: &mut Guest, name: &str, is: bool| {
        let bit = 1 << vector;
        guest.wait_bits(name, device.table(PENDING), bit, if is { bit } else { 0 });
    };
    guest.set_vector(device.slot, vector, (sound.0, sound.1, true));
    asked.again(guest, device, "masked");
    pending(guest, "pending", true);
    [0, ALL].iter().for_each(|&bits| guest.put(device.table(PENDING), 8, bits));
    pending(guest, "pending bits are not written", true);
    guest.set_vector(device.slot, vector, (sound.0, sound.1, false));
    pending(guest, "unmasked", false);
    guest.control_vectors(device.slot, VECTORS_ON | ALL_MASKED);
    asked.again(guest, device, "all masked");
    pending(guest, "pending with all", true);
    // Off and on again: what is pending waits.
    guest.control_vectors(device.slot, ALL_MASKED);
    guest.control_vectors(device.slot, VECTORS_ON);
    guest.repeat(100, |guest| {
        guest.put(device.table(16 * vector + 12), 4, 1);
        device.kick(guest);
        guest.put(device.table(16 * vector + 12), 4, ALL - 1);
        for control in [u16::MAX, 0, VECTORS_ON | ALL_MASKED, VECTORS_ON] {
            guest.control_vectors(device.slot, control);
        }
    });
    asked.again(guest, device, "after the storm");
}

/// Kicks of queues that are not there and at places that are no queue's, by each way, and a storm of them.
pub(crate) fn kicks(guest: &mut Guest, device: &Device) {
    let mut asked = Asked::new(guest, device);
    for offset in 0..64 {
        let place = Place::Port(cell(device.slot, Found::Notify), offset);
        for width in [1, 2, 4] {
            guest.put(place, width, 0xffff_ffff);
            guest.get(place, width);
        }
    }
    guest.repeat(2000, |guest| (0..3).for_each(|queue| device.write(guest, NOTIFY, queue)));
    asked.again(guest, device, "after the kicks");
}

/// Configuration space as a way into the windows (4.1.4.9): to windows that are none, beyond their ends, at odd widths.
pub(crate) fn access(guest: &mut Guest, device: &Device) {
    let mut asked = Asked::new(guest, device);
    let at = |offset| Place::Capability(cell(device.slot, Found::Access), offset);
    let go = |guest: &mut Guest, window: u64, offset: u32, length: u32| {
        guest.put(at(4), 1, window);
        guest.put(at(8), 4, offset.into());
        guest.put(at(12), 4, length.into());
    };
    let nonsense = [
        (1, 0, 4),
        (0xff, 0x14, 1),
        (0, 0x14, 0),
        (0, 0x14, 3),
        (0, 0x15, 2),
        (0, 0xfe, 4),
        (0, SPACE, 1),
        (0, u32::MAX, 1),
        (0, u32::MAX - 3, 4),
        (0, 0, u32::MAX),
    ];
    for (window, offset, length) in nonsense {
        go(guest, window, offset, length);
        for (byte, width) in [(0, 4), (0, 1), (1, 2), (3, 4)] {
            guest.get(at(16 + byte), width);
            guest.put(at(16 + byte), width, 0);
        }
    }
    go(guest, 0, 0x14, 1);
    guest.wait_at("status", at(16), 1, 15);
    // Its own kick, and each byte of the window, by this way.
    asked.again(guest, device, "after nonsense");
    for offset in device.some(0..SPACE) {
        for length in [1, 2, 4] {
            go(guest, 0, offset, length);
            pound(guest, at(16), &[4]);
        }
    }
}
