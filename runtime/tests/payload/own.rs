//! The attacks that only one device knows: requests that are no such device's, and floods.

use crate::attacks::come_back;
use crate::driver::{Descriptor, Device, IMAGE, NEXT, RAM, SIZE, WRITE, frame, packet};
use crate::guest::Guest;
use crate::peers::MAC;

/// Results of a disk (5.2.6).
const IO_ERROR: u32 = 1;
const UNSUPPORTED: u32 = 2;

pub(crate) fn sectors(guest: &mut Guest, device: &Device) {
    let data = guest.place(&[0; 1024]);
    let range = |sector: u64, count: u32| [&sector.to_le_bytes()[..], &count.to_le_bytes(), &[0; 4]].concat();
    let (wraps, beyond) = (guest.place(&range(u64::MAX, 2)), guest.place(&range(127, 2)));
    // What is asked, of which sector, with which bytes, and whether the device writes them; and the answer.
    let cases = [
        (0, 128, (data, 512, WRITE), IO_ERROR),
        (0, u64::MAX, (data, 512, WRITE), IO_ERROR),
        (1, 1 << 55, (data, 512, 0), IO_ERROR),
        (1, 127, (data, 1024, 0), IO_ERROR),
        (0, 0, (data, 511, WRITE), IO_ERROR),
        (11, 0, (wraps, 16, 0), IO_ERROR),
        (13, 0, (beyond, 16, 0), IO_ERROR),
        (99, 0, (data, 512, WRITE), UNSUPPORTED),
    ];
    for (kind, sector, (data, len, flags), answer) in cases {
        let header = [&u64::to_le_bytes(kind)[..], &u64::to_le_bytes(sector)].concat();
        let (header, status) = (guest.place(&header), guest.place(&[0xff; 4]));
        let chain = [(header, 16, NEXT, 1), (data, len, flags | NEXT, 2), (status, 1, WRITE, 0)];
        come_back(guest, device, "sectors", &[&chain]);
        guest.wait(&format!("kind {kind} of sector {sector}"), status, 0xff, answer);
    }
}

pub(crate) fn frames(guest: &mut Guest, device: &Device) {
    let mut other = MAC;
    other[5] = 9;
    let (sound, spoofed) = (guest.place(&frame(MAC)), guest.place(&frame(other)));
    let mut bad = frame(MAC);
    // A checksum outside of the frame, and segments of a kind that nobody knows.
    bad[..12].copy_from_slice(&[1, 9, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]);
    let bad = guest.place(&bad);
    let chains: [&[Descriptor]; 7] = [
        &[(spoofed, 66, 0, 0)],
        &[(bad, 66, 0, 0)],
        &[(sound, 11, 0, 0)],
        &[(sound, 12, 0, 0)],
        &[(sound, 66, NEXT, 1), (0x80_0000, 16 << 20, 0, 0)],
        &[(sound, 12, NEXT, 1), (spoofed + 12, 54, 0, 0)],
        &[(sound, 66, 0, 0)],
    ];
    come_back(guest, device, "frames", &chains);
}

/// The host's network floods; the driver takes nothing for a while, and then wants to see a frame.
pub(crate) fn late_receiver(guest: &mut Guest, device: &Device) {
    let rings = device.start_all(guest);
    let receive = rings[0];
    let room = guest.place(&[0; 4096]);
    guest.repeat(500, |guest| {
        device.write(guest, crate::driver::NOTIFY, 0);
        guest.input(1, 0x61);
    });
    device.ask(guest, &rings[1]);
    // Buffers that are too small for a header, then one that is large enough for all.
    receive.describe(guest, &[(room, 4, WRITE, 0), (room, 4096, WRITE, 0)]);
    receive.offer(guest, &[0, 0, 1, 1]);
    device.write(guest, crate::driver::NOTIFY, 0);
    receive.wait(guest, "a frame after the flood", 4);
}

pub(crate) fn packets(guest: &mut Guest, device: &Device) {
    let wrong: Vec<u64> = [
        packet((9, 2), (7, 1024), (0, 1, 1)),
        packet((3, 9), (7, 1024), (0, 1, 1)),
        packet((3, 2), (7, 1024), (0, 7, 1)),
        packet((3, 2), (7, 1024), (0, 1, 99)),
        packet((3, 2), (7, 1024), (u32::MAX, 1, 5)),
        packet((3, 2), (7, 1024), (0, 1, 5)),
    ]
    .iter()
    .map(|packet| guest.place(packet))
    .collect();
    let chains: Vec<[Descriptor; 1]> = wrong.iter().map(|&packet| [(packet, 44, 0, 0)]).collect();
    let mut chains: Vec<&[Descriptor]> = chains.iter().map(|chain| chain.as_slice()).collect();
    let short = [(wrong[5], 43, 0, 0)];
    chains.push(&short);
    come_back(guest, device, "packets", &chains);
    // Connections that nobody will take, without a buffer to say so: the device stops taking more.
    let ring = device.start(guest);
    let flood: Vec<Descriptor> = (0..u32::from(SIZE))
        .map(|port| (guest.place(&packet((3, 2), (port, 1024), (0, 1, 1))), 44, 0, 0))
        .collect();
    ring.describe(guest, &flood);
    ring.offer(guest, &(0..SIZE).collect::<Vec<_>>());
    guest.repeat(2000, |guest| device.kick(guest));
}

pub(crate) fn pages(guest: &mut Guest, device: &Device) {
    let spare = 24 << 8;
    let ram = u32::try_from(RAM >> 12).unwrap();
    let image = u32::try_from(IMAGE >> 12).unwrap();
    let list = |pages: &[u32]| pages.iter().flat_map(|page| page.to_le_bytes()).collect::<Vec<u8>>();
    let chains: Vec<[Descriptor; 1]> =
        [list(&[spare, ram]), list(&[u32::MAX]), list(&[image]), list(&[spare; 200]), list(&[0xd_0000])]
            .iter()
            .map(|pages| [(guest.place(pages), u32::try_from(pages.len()).unwrap(), 0, 0)])
            .collect();
    let chains: Vec<&[Descriptor]> = chains.iter().map(|chain| chain.as_slice()).collect();
    come_back(guest, device, "pages", &chains);
    // The driver gives its own queue away, whose page has nothing of others: it loses the request, and nobody anything else.
    guest.place(&[0; 4096]);
    let ring = device.start(guest);
    guest.place(&[0; 4096]);
    let queue = guest.place(&u32::try_from(ring.used >> 12).unwrap().to_le_bytes());
    ring.describe(guest, &[(queue, 4, 0, 0)]);
    ring.offer(guest, &[0; 4]);
    device.kick(guest);
    guest.repeat(1000, |guest| guest.input(1, 0x61));
}

/// A flood of as much as one request may hold, and of what is no text.
pub(crate) fn prints(guest: &mut Guest, device: &Device) {
    let ring = device.start(guest);
    let text = 0x80_0000;
    ring.describe(guest, &[(text, 0x1_0000, 0, 0), (text, 16 << 20, 0, 0), (IMAGE, 4096, 0, 0)]);
    ring.offer(guest, &[0, 1, 2, 0, 1, 2, 0, 0]);
    device.kick(guest);
    ring.wait(guest, "flood", 8);
    guest.repeat(200, |guest| {
        guest.increment(ring.available + 2);
        device.kick(guest);
        guest.wait_same(ring.available + 2, ring.used + 2);
    });
    guest.print("\n");
}

/// Asks, and does not wait for the answer.
pub(crate) fn unanswered(guest: &mut Guest, device: &Device) {
    let ring = device.start(guest);
    let request = device.request(guest);
    ring.describe(guest, &request);
    ring.offer(guest, &[0; 8]);
    device.kick(guest);
}
