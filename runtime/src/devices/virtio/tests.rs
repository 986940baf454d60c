//! Real devices behind the real transport on the real loop, with a driver that resets whenever it likes.

use super::block::Block;
use super::event_loop::{EventLoop, LoopHandle};
use super::mmio::MmioTransport;
use super::testkit::drive::{driver_ok, negotiate, set_queue, status, until, write};
use super::testkit::{Bench, Ring, memory};
use super::vsock::{Vsock, VsockHost};
use super::{DeviceKind, Memory, VirtioDevice};
use husk_protocol::spec::CacheType;
use std::fs::File;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

const HEADER: u64 = 0x10_0000;
const DATA: u64 = 0x20_0000;

struct Rig {
    memory: Memory,
    handle: LoopHandle,
    /// The disk's own.
    disk: LoopHandle,
    threads: Vec<JoinHandle<()>>,
}

impl Rig {
    #[allow(clippy::disallowed_methods, reason = "tests have no thread policy")]
    fn new() -> Self {
        let (event_loop, handle) = EventLoop::new().unwrap();
        let (disk_loop, disk) = EventLoop::new().unwrap();
        let threads = [event_loop, disk_loop].map(|it| std::thread::spawn(|| it.run().unwrap())).into();
        Self { memory: memory(), handle, disk, threads }
    }

    fn add(&self, device: Box<dyn VirtioDevice>) -> Arc<MmioTransport> {
        let line = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let workers = match device.kind() {
            DeviceKind::Block => self.handle.watching(self.disk.clone()).unwrap(),
            _ => self.handle.clone(),
        };
        MmioTransport::new(device, self.memory.clone(), Box::new(line), workers).unwrap()
    }

    /// A driver's start: fresh rings, numbered from `first`.
    fn start(&self, transport: &MmioTransport, first: u16, sizes: &[u16]) -> Vec<Ring> {
        negotiate(transport);
        let mut rings = Vec::new();
        for (index, &size) in (0..).zip(sizes) {
            let ring = Ring::new(&self.memory, first + index, size);
            for addr in [ring.setup.available, ring.setup.used] {
                self.memory.write_slice(&[0; 1030], GuestAddress(addr)).unwrap();
            }
            set_queue(transport, index.into(), &ring.setup);
            rings.push(ring);
        }
        driver_ok(transport);
        assert_eq!(status(transport), 15);
        rings
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.handle.stop();
        self.disk.stop();
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
    }
}

fn disk() -> Block {
    let mut file = File::from(rustix::fs::memfd_create("disk", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    file.write_all(&vec![7; 1 << 20]).unwrap();
    Block::new(file, "vda", false, CacheType::Unsafe).unwrap()
}

#[test]
fn item_7_devices_under_load_stand_a_storm_of_resets() {
    let rig = Rig::new();
    let block = rig.add(Box::new(disk()));
    let (near, mut far) = UnixStream::pair().unwrap();
    far.set_nonblocking(true).unwrap();
    let host = VsockHost { exec: Some((1024, near.into())), ..VsockHost::default() };
    let vsock = rig.add(Box::new(Vsock::new(3, host).unwrap().0));
    rig.memory.write_slice(&[0; 16], GuestAddress(HEADER)).unwrap();
    for _ in 0..200 {
        let mut disk_rings = rig.start(&block, 0, &[128]);
        let mut vsock_rings = rig.start(&vsock, 1, &[128, 128, 8]);
        for _ in 0..40 {
            disk_rings[0].offer(&[(HEADER, 16, false), (DATA, 65536, true), (DATA + 65536, 1, true)]);
            vsock_rings[0].offer(&[(DATA + 0x2_0000, 4096, true)]);
            vsock_rings[1].offer(&[(HEADER, 44, false)]);
        }
        write(&block, 0x50, 0);
        write(&vsock, 0x50, 1);
        let _ = far.write(&[1; 4096]);
        write(&block, 0x70, 0);
        write(&vsock, 0x70, 0);
        until(|| status(&block) == 0 && status(&vsock) == 0);
    }
    let mut rings = rig.start(&block, 0, &[128]);
    rings[0].offer(&[(HEADER, 16, false), (DATA, 512, true), (DATA + 512, 1, true)]);
    write(&block, 0x50, 0);
    until(|| rings[0].take_used() == Some((0, 513)));
    assert_eq!(block.faults().failures + vsock.faults().failures, 0);
}

#[test]
fn items_1_to_5_random_descriptors_break_nothing() {
    let mut device = disk();
    let mut bench = Bench::start(&mut device);
    let mut seed = 0x0dd_ba11u64;
    let mut random = move |limit: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % limit
    };
    let pick = |number| usize::try_from(number).unwrap();
    for _ in 0..20_000 {
        for _ in 0..4 {
            let addr = [random(0x80_0000), HEADER, DATA, random(u64::MAX), 0x7f_fff0][pick(random(5))];
            let len = [16, 1, 512, u32::MAX, 0, 4096, 17][pick(random(7))];
            let index = u16::try_from(random(8)).unwrap();
            let flags = u16::try_from(random(8)).unwrap();
            bench.rings[0].describe(index, (addr, len, flags, u16::try_from(random(10)).unwrap()));
        }
        let sector = [0, random(3000), random(u64::MAX)][pick(random(3))];
        bench.write(HEADER, &u32::try_from(random(12)).unwrap().to_le_bytes());
        bench.write(HEADER + 8, &sector.to_le_bytes());
        let head = u16::try_from(random(8)).unwrap();
        bench.rings[0].offer_head(head);
        bench.kick(0);
        if bench.round().is_err() {
            // The random buffers hit the rings themselves: the driver starts over.
            bench = Bench::start(&mut device);
        } else {
            bench.rings[0].take_all_used();
        }
    }
}
