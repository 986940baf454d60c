use super::*;
use crate::console::Console;
use crate::devices::BusDevice;
use crate::devices::virtio::block::Block;
use crate::devices::virtio::entropy::Entropy;
use crate::devices::virtio::event_loop::{EventLoop, LoopHandle};
use crate::devices::virtio::fs::Fs;
use crate::devices::virtio::mmio::MmioTransport;
use crate::devices::virtio::testkit::drive::{driver_ok, negotiate, set_queue, until, write};
use crate::devices::virtio::testkit::{HIGH, Ring, memory};
use crate::devices::virtio::{Memory, VirtioDevice};
use crate::state;
use husk_protocol::spec::CacheType;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;
use std::time::Duration;
use vmm_sys_util::eventfd::EventFd;

/// A machine's devices, with a disk on a thread of its own, a volume and random bytes, each with a driver if it has started.
struct Machine {
    devices: Devices,
    memory: Memory,
    serial: Arc<Serial>,
    rings: Vec<Vec<Ring>>,
    transports: Vec<Arc<MmioTransport>>,
    loops: Vec<(LoopHandle, JoinHandle<()>)>,
    server: UnixStream,
}

impl Drop for Machine {
    fn drop(&mut self) {
        for (handle, thread) in self.loops.drain(..) {
            handle.stop();
            thread.join().unwrap();
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "tests have no thread policy")]
fn machine(memory: Memory, file: &File) -> Machine {
    let line = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let serial = Arc::new(Serial::new(line, Arc::new(Console::new(None))));
    let (event_loop, handle) = EventLoop::new().unwrap();
    let (other, drive) = EventLoop::new().unwrap();
    let watched = handle.watching(drive.clone()).unwrap();
    let (ours, server) = UnixStream::pair().unwrap();
    let disk = Block::new(file.try_clone().unwrap(), "vda", false, CacheType::Unsafe).unwrap();
    let all: [(&str, Box<dyn VirtioDevice>, LoopHandle); 3] = [
        ("drive", Box::new(disk), watched),
        ("volume", Box::new(Fs::new("data", ours.into()).unwrap()), handle.clone()),
        ("entropy", Box::new(Entropy::new(None)), handle.clone()),
    ];
    let mut devices = Devices::new(Arc::clone(&serial));
    let (mut transports, mut rings) = (Vec::new(), Vec::new());
    for ((name, device, handle), first) in all.into_iter().zip([0, 1, 3]) {
        let sizes = device.queue_sizes().to_vec();
        rings.push((first..).zip(sizes).map(|(place, size)| Ring::new(&memory, place, size)).collect());
        let line = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let transport = MmioTransport::new(device, memory.clone(), Box::new(line), handle).unwrap();
        devices.add(name, Arc::clone(transport.transport()));
        transports.push(transport);
    }
    let loops = [(handle, event_loop), (drive, other)];
    let run = |(handle, it): (_, EventLoop)| (handle, std::thread::spawn(|| it.run().unwrap()));
    Machine { devices, memory, serial, rings, transports, loops: loops.map(run).into(), server }
}

fn started(file: &File) -> Machine {
    let machine = machine(memory(), file);
    for (transport, rings) in machine.transports.iter().zip(&machine.rings) {
        negotiate(transport);
        (0..).zip(rings).for_each(|(index, ring)| set_queue(transport, index, &ring.setup));
        driver_ok(transport);
    }
    machine
}

fn file(sectors: u64) -> File {
    let file = File::from(rustix::fs::memfd_create("disk", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    file.set_len(512 * sectors).unwrap();
    file
}

impl Machine {
    /// Asks for random bytes; returns the chain's head.
    fn ask(&mut self) -> u32 {
        let head = self.rings[2][0].offer(&[(HIGH, 8, true)]);
        write(&self.transports[2], 0x50, 0);
        head.into()
    }

    fn asks_and_is_answered(&mut self) {
        let head = self.ask();
        until(|| self.rings[2][0].take_used() == Some((head, 8)));
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

/// Memory is shared here: the first machine never runs again.
#[test]
fn a_machines_devices_go_on_in_another_machine() {
    let file = file(8);
    let mut first = started(&file);
    first.asks_and_is_answered();
    first.serial.write(7, &[0x5a]);
    assert_eq!(first.devices.save(), Err(NotPaused));
    first.devices.pause(soon()).unwrap();
    let asked = first.ask();
    let bytes = state::to_bytes(&first.devices.save().unwrap());
    let mut second = machine(first.memory.clone(), &file);
    let sections = state::from_bytes(&bytes).unwrap();
    second.devices.load(&sections).unwrap();
    assert_eq!(second.devices.save().unwrap(), sections);
    second.rings = std::mem::take(&mut first.rings);
    second.devices.resume();
    until(|| second.rings[2][0].take_used() == Some((asked, 8)));
    second.asks_and_is_answered();
    let mut scratch = [0];
    second.serial.read(7, &mut scratch);
    assert_eq!(scratch, [0x5a]);
}

#[test]
fn a_volume_that_hangs_stops_no_device_for_good() {
    let mut machine = started(&file(8));
    let said = [40_u32, 1].map(u32::to_le_bytes).concat();
    vm_memory::Bytes::write_slice(&machine.memory, &said, vm_memory::GuestAddress(HIGH + 64)).unwrap();
    machine.rings[1][1].offer(&[(HIGH + 64, 40, false), (HIGH + 128, 64, true)]);
    write(&machine.transports[1], 0x50, 1);
    let mut request = [0; 40];
    machine.server.read_exact(&mut request).unwrap();
    let error = machine.devices.pause(Instant::now() + Duration::from_millis(50)).unwrap_err();
    let said = "volume: the host has not answered its requests in time for a pause";
    assert_eq!(error.to_string(), said);
    machine.asks_and_is_answered();
    let answer = [&16_u32.to_le_bytes()[..], &[0; 4], &request[8..16]].concat();
    machine.server.write_all(&answer).unwrap();
    until(|| machine.rings[1][1].take_used().is_some());
    machine.devices.pause(soon()).unwrap();
    machine.devices.resume();
    machine.asks_and_is_answered();
}

#[test]
fn another_machines_sections_are_refused() {
    let machine_ = machine(memory(), &file(8));
    machine_.devices.pause(soon()).unwrap();
    let sections = machine_.devices.save().unwrap();
    let load = |sections: &[Section]| machine(memory(), &file(8)).devices.load(sections);
    assert_eq!(load(&sections), Ok(()));
    assert_eq!(load(&sections[..3]), Err(LoadError::Count { found: 3, expected: 4 }));
    assert_eq!(load(&[]), Err(LoadError::Count { found: 0, expected: 4 }));
    let mut swapped = sections.clone();
    swapped.swap(1, 3);
    let error = load(&swapped).unwrap_err().to_string();
    assert_eq!(error, r#"drive: virtio: name is "entropy"; drive is allowed"#);
    swapped.swap(0, 1);
    assert!(matches!(load(&swapped), Err(LoadError::Id { .. })));
    let other = machine(memory(), &file(9));
    let error = other.devices.load(&sections).unwrap_err().to_string();
    assert_eq!(error, "drive: virtio-block: capacity is 8; 9, as the drive's file has is allowed");
}
