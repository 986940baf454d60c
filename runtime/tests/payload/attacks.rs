//! The attacks, each a list of steps and what has to come of them. A chain that makes no sense comes back unused; a queue
//! that makes none costs its device a reset.

use crate::driver::{
    Descriptor, Device, IMAGE, INDIRECT, NEEDS_RESET, NEXT, NOTIFY, RAM, Ring, SIZE, STATUS, WRITE,
    descriptor,
};
use crate::guest::{Bus, Guest, register};
use crate::pci;

/// Adds its steps to a guest that has not started the device.
pub(crate) type Attack = fn(&mut Guest, &Device);

const SERIAL: u16 = 0x3f8;

/// Offers chains, kicks, and waits until all came back.
pub(crate) fn come_back(guest: &mut Guest, device: &Device, name: &str, chains: &[&[Descriptor]]) -> Ring {
    let ring = device.start(guest);
    let (mut descriptors, mut heads): (Vec<Descriptor>, Vec<u16>) = (Vec::new(), Vec::new());
    for chain in chains {
        let head = u16::try_from(descriptors.len()).unwrap();
        // Within a chain successors count from its head.
        descriptors.extend(chain.iter().map(|&(addr, len, flags, next)| {
            (addr, len, flags, if flags & NEXT != 0 { next.wrapping_add(head) } else { 0 })
        }));
        heads.push(head);
    }
    ring.describe(guest, &descriptors);
    ring.offer(guest, &heads);
    device.kick(guest);
    ring.wait(guest, name, u32::try_from(heads.len()).unwrap());
    ring
}

pub(crate) fn leading_nowhere(guest: &mut Guest, device: &Device) {
    let room = guest.place(&[0; 64]);
    let chains: [&[Descriptor]; 4] = [
        &[(room, 16, NEXT, 0)],
        &[(room, 16, NEXT, 1), (room, 16, NEXT, 0)],
        &[(room, 16, NEXT | WRITE, SIZE)],
        &[(room, 16, NEXT, 0x8000)],
    ];
    come_back(guest, device, "nowhere", &chains);
}

/// Starts the device, has `wrong` spoil the ring, kicks, and waits until the device asks for a reset.
fn fails(guest: &mut Guest, device: &Device, name: &str, wrong: impl FnOnce(&mut Guest, &Ring)) {
    let ring = device.start(guest);
    wrong(guest, &ring);
    device.kick(guest);
    device.wait_status(guest, name, 15 | NEEDS_RESET);
}

pub(crate) fn head_outside(guest: &mut Guest, device: &Device) {
    for head in [SIZE, u16::MAX] {
        fails(guest, device, "head", |guest, ring| ring.offer(guest, &[head]));
    }
}

pub(crate) fn index_jumps(guest: &mut Guest, device: &Device) {
    for index in [SIZE + 1, u16::MAX] {
        let wrong = |guest: &mut Guest, ring: &Ring| guest.store(2, ring.available + 2, index.into());
        fails(guest, device, "jump", wrong);
    }
    // Back to zero after a request that was answered.
    let ring = device.start(guest);
    device.ask(guest, &ring);
    guest.store(2, ring.available + 2, 0);
    device.kick(guest);
    device.wait_status(guest, "back", 15 | NEEDS_RESET);
}

pub(crate) fn outside_memory(guest: &mut Guest, device: &Device) {
    let places = [RAM - 8, RAM, 0xd000_0000, u64::MAX - 7, 1 << 63, 0xfee0_0000];
    for flags in [0, WRITE] {
        let chains = places.map(|place| [(place, 16, flags, 0)]);
        let chains: Vec<&[Descriptor]> = chains.iter().map(|chain| chain.as_slice()).collect();
        let ring = come_back(guest, device, "outside", &chains);
        for entry in 0..6 {
            guest.wait("outside length", ring.used + 8 + 8 * entry, u32::MAX, 0);
        }
    }
}

/// The device is to write into an image, and where its file has ended.
pub(crate) fn into_the_image(guest: &mut Guest, device: &Device) {
    let room = guest.place(&[0; 64]);
    let mut answer = device.request(guest);
    answer.iter_mut().filter(|it| it.2 & WRITE != 0).for_each(|it| it.0 = IMAGE);
    let chains: [&[Descriptor]; 4] = [
        &[(IMAGE, 16, WRITE, 0)],
        &[(IMAGE + 0x3000, 16, WRITE, 0)],
        &[(room, 16, NEXT, 1), (IMAGE + (2 << 20) - 8, 16, WRITE, 0)],
        &answer,
    ];
    come_back(guest, device, "image", &chains);
}

pub(crate) fn wrong_lengths(guest: &mut Guest, device: &Device) {
    let room = guest.place(&[0; 64]);
    let all = (0x80_0000, 0x7fff_ffff, WRITE | NEXT);
    let chains: [&[Descriptor]; 5] = [
        &[(room, 0, 0, 0)],
        &[(room, 0, WRITE, 0)],
        &[(all.0, all.1, all.2, 1), (all.0, all.1, all.2, 2), (all.0, all.1, WRITE, 0)],
        &[(room, 16, WRITE | NEXT, 1), (room, 16, 0, 0)],
        &[(room, 16, 0, 0)],
    ];
    // What is a request of another device's is one too many here, and the other way round; none may do harm.
    come_back(guest, device, "lengths", &chains);
    let mut swapped = device.request(guest);
    swapped.iter_mut().for_each(|it| it.2 ^= WRITE);
    come_back(guest, device, "swapped", &[&swapped]);
}

pub(crate) fn indirect(guest: &mut Guest, device: &Device) {
    let room = guest.place(&[0; 64]);
    let nested = guest.place(&[0; 64]);
    guest.poke(nested, &descriptor((nested, 32, INDIRECT, 0)));
    let cycle = guest.place(&descriptor((room, 16, NEXT, 0)));
    let long = guest.place(&descriptor((room, 16, NEXT, 1)).repeat(64));
    let chains: [&[Descriptor]; 7] = [
        &[(nested, 32, INDIRECT, 0)],
        &[(cycle, 15, INDIRECT, 0)],
        &[(cycle, 0, INDIRECT, 0)],
        &[(cycle, 16, INDIRECT, 0)],
        &[(cycle + 1, 16, INDIRECT | NEXT, 0)],
        &[(long, 0x400, INDIRECT, 0)],
        &[(RAM - 8, 64, INDIRECT | WRITE, 0)],
    ];
    come_back(guest, device, "indirect", &chains);
}

pub(crate) fn unsound_queues(guest: &mut Guest, device: &Device) {
    let ring = Ring::new(guest);
    let size = u32::from(SIZE);
    let wrong = [
        (0, ring),
        (size - 1, ring),
        (1 << 15, ring),
        (u32::MAX, ring),
        (size, Ring { available: ring.table + 16, ..ring }),
        (size, Ring { used: ring.available, ..ring }),
        (size, Ring { used: RAM - 8, ..ring }),
        (size, Ring { table: ring.table + 8, ..ring }),
        (size, Ring { table: 0xd000_0000, ..ring }),
        (size, Ring { table: !15, ..ring }),
    ];
    for (size, ring) in wrong {
        device.negotiate(guest);
        device.set_queue(guest, device.queue, size, &ring);
        device.write(guest, STATUS, 15);
        device.wait_status(guest, "unsound", 15 | NEEDS_RESET);
        device.kick(guest);
    }
}

pub(crate) fn registers_rewritten(guest: &mut Guest, device: &Device) {
    let ring = device.start(guest);
    // Nothing of this reaches the worker that has the queue.
    let other = Ring { table: RAM - 16, available: 0xd000_0000, used: !3 };
    device.set_queue(guest, device.queue, 4, &other);
    device.write(guest, 0x24, 0);
    device.write(guest, 0x20, u32::MAX);
    for status in [1, 8, 3, 14, 15] {
        device.write(guest, STATUS, status);
    }
    device.ask(guest, &ring);
    // Bits out of order, from the beginning; and given up by the driver.
    device.write(guest, STATUS, 0);
    device.wait_status(guest, "order", 0);
    for status in [8, 4, 2, 12] {
        device.write(guest, STATUS, status);
    }
    device.wait_status(guest, "out of order", 0);
    device.write(guest, STATUS, 128 | 1);
    device.write(guest, STATUS, 128 | 15);
    device.kick(guest);
}

pub(crate) fn reset_storm(guest: &mut Guest, device: &Device) {
    let ring = device.start(guest);
    let request = device.request(guest);
    ring.describe(guest, &request);
    ring.offer(guest, &[0; 16]);
    guest.repeat(100, |guest| {
        device.kick(guest);
        device.write(guest, STATUS, 0);
        device.write(guest, STATUS, 15);
        device.set_queue(guest, device.queue, SIZE.into(), &ring);
        device.kick(guest);
        device.negotiate(guest);
        device.set_queue(guest, device.queue, SIZE.into(), &ring);
        device.write(guest, STATUS, 15);
    });
}

pub(crate) fn features(guest: &mut Guest, device: &Device) {
    for (half, value) in [(0, u32::MAX), (1, u32::MAX), (2, 1), (u32::MAX, 1)] {
        device.negotiate(guest);
        device.write(guest, STATUS, 0);
        device.wait_status(guest, "again", 0);
        for (offset, value) in [(STATUS, 3), (0x24, 1), (0x20, 1), (0x24, half), (0x20, value), (STATUS, 11)]
        {
            device.write(guest, offset, value);
        }
        device.wait_status(guest, "not offered", 3);
        device.write(guest, STATUS, 15);
        device.wait_status(guest, "not started", 3);
    }
}

pub(crate) fn write_to_read_only(guest: &mut Guest, device: &Device) {
    let header = guest.place(&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let (data, status) = (guest.place(&[9; 512]), guest.place(&[0xff; 4]));
    let chain = [(header, 16, NEXT, 1), (data, 512, NEXT, 2), (status, 1, WRITE, 0)];
    come_back(guest, device, "read-only", &[&chain]);
    // VIRTIO_BLK_S_IOERR
    guest.wait("an error", status, 0xff, 1);
}

pub(crate) fn kicks(guest: &mut Guest, device: &Device) {
    let ring = device.start(guest);
    for queue in [7, 19, 0xffff, 0x1_0000, u32::MAX] {
        device.write(guest, NOTIFY, queue);
    }
    match device.bus {
        Bus::Mmio => [2, 1].iter().for_each(|&width| guest.store(width, register(device.slot, NOTIFY), 0)),
        Bus::Pci => [4, 1].iter().for_each(|&width| guest.put(device.notify(device.queue), width, 0)),
    }
    guest.repeat(2000, |guest| device.kick(guest));
    device.ask(guest, &ring);
}

pub(crate) fn greed(guest: &mut Guest, device: &Device) {
    let ring = device.start(guest);
    // All descriptors in one chain: the same 16 MiB each.
    let chain: Vec<Descriptor> = (1..=SIZE)
        .map(|next| (0x80_0000, 16 << 20, if next < SIZE { NEXT | WRITE } else { WRITE }, next % SIZE))
        .collect();
    ring.describe(guest, &chain);
    ring.offer(guest, &[0; 16]);
    device.kick(guest);
    ring.wait(guest, "greed", 16);
    for entry in 0..16 {
        guest.wait("64 KiB", ring.used + 8 + 8 * entry, u32::MAX, 64 << 10);
    }
}

pub(crate) fn wrong_widths(guest: &mut Guest, device: &Device) {
    if device.bus == Bus::Pci {
        return pci::wrong_widths(guest, device);
    }
    let ring = device.start(guest);
    for offset in
        [0, 1, 2, 0x30, 0x33, 0x44, 0x50, 0x51, 0x70, 0x71, 0x72, 0xfc, 0xff, 0x100, 0x101, 0x200, 0xffc]
    {
        let address = register(device.slot, offset);
        for width in [1, 2, 4, 8] {
            guest.load(width, address);
            // Four bytes where a register is would be no mistake.
            if width != 4 || !offset.is_multiple_of(4) || offset == 0xfc || offset > 0x200 {
                guest.store(width, address, 0);
            }
        }
    }
    // The end of the window, and windows of no device.
    for address in [register(device.slot, 0xfff), register(18, 0), register(300, 0x70)] {
        guest.load(4, address);
        guest.store(4, address, u64::MAX);
    }
    device.wait_status(guest, "widths", 15);
    device.ask(guest, &ring);
}

pub(crate) fn ports(guest: &mut Guest, _device: &Device) {
    for port in
        [0x20, 0x40, 0x60, 0x61, 0x63, 0x64, 0x65, 0x70, 0xcf8, SERIAL - 1, SERIAL + 5, SERIAL + 7, 0xffff]
    {
        for width in [1, 2, 4] {
            guest.input(width, port);
            guest.out(width, port, 0);
        }
    }
    for offset in 0..8 {
        for width in [2, 4] {
            guest.input(width, SERIAL + offset);
            guest.out(width, SERIAL + offset, 0xffff_ffff);
        }
    }
    // The port as it was: the divisor closed, no loop.
    guest.out(1, SERIAL + 3, 3);
    guest.out(1, SERIAL + 4, 0);
    // Interrupts for each byte that nobody takes, then a flood of bytes.
    guest.out(1, SERIAL + 1, 0x0f);
    guest.repeat(20_000, |guest| guest.print("x"));
    guest.print("\n");
}

pub(crate) fn cpuid(guest: &mut Guest, _device: &Device) {
    for leaf in [0_u32, 2, 4, 7, 11, 0x1f, 0x4000_0000, 0x4000_0001, 0x8000_0008, 0xdead_beef, u32::MAX] {
        for subleaf in [0_u32, 1, u32::MAX] {
            // mov eax, leaf; mov ecx, subleaf; cpuid
            guest.code(&[0xb8]);
            guest.code(&leaf.to_le_bytes());
            guest.code(&[0xb9]);
            guest.code(&subleaf.to_le_bytes());
            guest.code(&[0x0f, 0xa2]);
        }
    }
}
