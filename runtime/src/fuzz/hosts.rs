//! What is on the devices' other sides: a file, a wire, memory.
//!
//! Owns it for one run. Refuses, by a panic, what a device did there against its rules: a disk that grew, a read-only one
//! that changed, a frame from another address than the card's, last words that could steer a terminal, more memory than it
//! was asked to take. Invariant: nothing here waits.

use super::input::Input;
use super::script::Host;
use crate::console::Console;
use crate::devices::virtio::block::Block;
use crate::devices::virtio::console::VirtioConsole;
use crate::devices::virtio::mem::{Mem, Requested};
use crate::devices::virtio::net::{Net, policy::Policy};
use crate::devices::virtio::{FEATURE_EVENT_IDX, FEATURE_INDIRECT};
use crate::memory::{BLOCK, Hotplug, Reader};
use husk_protocol::control::{CONSOLE_TAIL_LINE_BYTES, CONSOLE_TAIL_LINES};
use husk_protocol::spec::CacheType;
use rustix::fs::MemfdFlags;
use std::cell::RefCell;
use std::fs::File;
use std::io::{PipeReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::sync::Arc;
use virtio_bindings::virtio_net;
use vm_memory::GuestAddress;

/// Sectors of the disk.
const SECTORS: usize = 128;
const MAC: [u8; 6] = [2, 0xfc, 0, 0, 0, 1];
/// Bytes of the virtio header before a frame.
const HEADER: usize = 12;
/// Bytes of a virtio header and the longest frame.
const LONGEST: usize = HEADER + 14 + 65_535;

pub(super) struct Disk {
    file: File,
    bytes: u64,
    read_only: bool,
}

/// A disk: bit 0 read-only, bit 1 with a cache to flush, bits 2 and 3 its queues.
pub(super) fn disk(options: u8) -> (Block, Disk) {
    let file = File::from(rustix::fs::memfd_create("disk", MemfdFlags::CLOEXEC).unwrap());
    file.write_all_at(&[7; 512 * SECTORS], 0).unwrap();
    let (read_only, cache) = (options & 1 != 0, [CacheType::Unsafe, CacheType::Writeback]);
    let cache = cache[usize::from(options >> 1 & 1)];
    let block = Block::new(file.try_clone().unwrap(), "fuzz", read_only, cache).unwrap();
    let host = Disk { file, bytes: 512 * SECTORS as u64, read_only };
    (block.with_queues(1 + (options >> 2 & 3) % 3), host)
}

impl Host for Disk {
    /// The file shrinks or grows below the device.
    fn act(&mut self, input: &mut Input<'_>) {
        self.bytes = u64::from(input.u16());
        self.file.set_len(self.bytes).unwrap();
    }

    fn check(&mut self) {
        assert_eq!(self.file.metadata().unwrap().len(), self.bytes, "a guest changed the length of a disk");
        if self.read_only {
            let mut bytes = [0; 512 * SECTORS];
            let count = self.file.read_at(&mut bytes, 0).unwrap();
            // Zeros are where the file has shrunk and grown.
            let kept = bytes[..count].iter().all(|byte| matches!(byte, 7 | 0));
            assert!(kept, "a guest wrote to a read-only disk");
        }
    }
}

/// A tap's other side, a socket for each of its queues.
pub(super) struct Wire(Vec<UnixDatagram>);

fn policy() -> Policy {
    Policy::new(vec!["10.0.0.0/8:*".parse().unwrap()], Vec::new())
}

/// A card whose wire ends in datagram sockets, which keep frames apart as a tap does, one for each of `queues`.
pub(super) fn card(queues: usize) -> (Net, Wire) {
    let pair = |_| {
        let (wire, tap) = UnixDatagram::pair().unwrap();
        tap.set_nonblocking(true).unwrap();
        wire.set_nonblocking(true).unwrap();
        (wire, tap.into())
    };
    let (wires, mut taps): (Vec<_>, Vec<_>) = (0..queues).map(pair).unzip();
    let first = taps.remove(0);
    (Net::new(first, taps, MAC, 1500, policy()), Wire(wires))
}

/// The other end of a stream, and what came out of it and is no whole frame yet.
pub(super) struct Line(UnixStream, Vec<u8>);

/// A card whose wire is a stream.
pub(super) fn stream_card() -> (Net, Line) {
    let (line, socket) = UnixStream::pair().unwrap();
    line.set_nonblocking(true).unwrap();
    (Net::over_stream(socket.into(), MAC, 65_535, policy()).unwrap(), Line(line, Vec::new()))
}

impl Host for Line {
    /// Bytes arrive: a frame as on a wire, or, where the number of those given is odd, those alone, whatever they say.
    fn act(&mut self, input: &mut Input<'_>) {
        let (length, given) = (input.u16(), input.u8());
        let mut bytes = input.bytes(given.into()).to_vec();
        if given & 1 == 0 {
            bytes.resize(length.into(), 0);
            bytes.splice(..0, u32::from(length).to_be_bytes());
        }
        // A line that is full, or whose other end is gone, takes some or none.
        drop(self.0.write(&bytes));
    }

    fn check(&mut self) {
        let mut piece = vec![0; 1 << 16];
        while let Ok(count @ 1..) = self.0.read(&mut piece) {
            self.1.extend_from_slice(&piece[..count]);
        }
        while let Some(prefix) = self.1.first_chunk() {
            let length = u32::from_be_bytes(*prefix) as usize;
            assert!((14..=LONGEST - HEADER).contains(&length), "a frame of {length} bytes was sent");
            let Some(frame) = self.1.get(4..4 + length) else { return };
            assert_eq!(frame[6..12], MAC, "a frame was sent from another address");
            self.1.drain(..4 + length);
        }
    }
}

/// The features that the bits of `choice` take away. Those that change the tap stay: a socket has none.
pub(super) fn without(choice: u8) -> u64 {
    let features = [
        FEATURE_EVENT_IDX,
        FEATURE_INDIRECT,
        1 << virtio_net::VIRTIO_NET_F_MRG_RXBUF,
        1 << virtio_net::VIRTIO_NET_F_CSUM,
        1 << virtio_net::VIRTIO_NET_F_HOST_TSO4,
        1 << virtio_net::VIRTIO_NET_F_HOST_TSO6,
    ];
    let chosen = |bit: usize| if choice >> bit & 1 != 0 { features[bit] } else { 0 };
    (0..features.len()).map(chosen).fold(0, |all, feature| all | feature)
}

impl Host for Wire {
    /// A frame arrives: its length, so many bytes of it, and zeros for the rest.
    fn act(&mut self, input: &mut Input<'_>) {
        let (length, given) = (input.u16(), input.u8());
        let mut frame = input.bytes(given.into()).to_vec();
        frame.resize(length.into(), 0);
        // A wire that is full loses frames.
        drop(self.0[usize::from(length) % self.0.len()].send(&frame));
    }

    fn check(&mut self) {
        let mut frame = vec![0; LONGEST + 1];
        for wire in &self.0 {
            while let Ok(length) = wire.recv(&mut frame) {
                assert!((HEADER + 14..=LONGEST).contains(&length), "a frame of {length} bytes was sent");
                assert_eq!(frame[HEADER + 6..HEADER + 12], MAC, "a frame was sent from another address");
            }
        }
    }
}

/// Blocks of the region, from [`REGION_START`] on.
const REGION_BLOCKS: u64 = 16;
pub(super) const REGION_START: u64 = 4 << 30;

pub(super) struct Memory {
    hotplug: Hotplug,
    requested: Option<Requested>,
    /// The most that was asked for so far, in blocks.
    most: u64,
    /// A drive's thread, and whether it is at guest memory.
    reader: Option<Reader>,
    reading: bool,
}

thread_local! {
    /// Regions that nobody has: one is never unmapped.
    static IDLE: RefCell<Vec<(Hotplug, Reader)>> = const { RefCell::new(Vec::new()) };
}

/// The memory of a device, and the device's host.
pub(super) fn memory() -> (Memory, Hotplug) {
    let (hotplug, reader) = IDLE.with_borrow_mut(Vec::pop).unwrap_or_else(|| {
        let hotplug = Hotplug::map(REGION_BLOCKS * BLOCK, GuestAddress(REGION_START)).unwrap();
        let reader = hotplug.reader();
        (hotplug, reader)
    });
    let reader = Some(reader);
    (Memory { hotplug: hotplug.clone(), requested: None, most: 0, reader, reading: false }, hotplug)
}

/// The same, with its device.
pub(super) fn memory_device() -> (Mem, Memory) {
    let (mut host, region) = memory();
    let device = Mem::new(&region);
    host.asked_of(&device);
    (device, host)
}

impl Memory {
    /// `device` is to take 8 blocks.
    pub(super) fn asked_of(&mut self, device: &Mem) {
        self.requested = Some(device.requested());
        self.ask(8);
    }

    fn ask(&mut self, blocks: u64) {
        self.most = self.most.max(blocks);
        self.requested.iter().for_each(|requested| requested.set(blocks * BLOCK));
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let Some(reader) = self.reader.take() else { return };
        if self.reading {
            reader.leave();
        }
        self.hotplug.unplug_all();
        self.hotplug.take_away();
        // What is still open, somebody holds: then this one is not as new.
        if self.hotplug.open_bytes() == 0 {
            IDLE.with_borrow_mut(|idle| idle.push((self.hotplug.clone(), reader)));
        }
    }
}

impl Host for Memory {
    /// So many blocks are asked for; or a thread comes to guest memory, or leaves it.
    fn act(&mut self, input: &mut Input<'_>) {
        match input.u8() {
            blocks @ 0..=16 => self.ask(blocks.into()),
            _ => {
                let Some(reader) = &self.reader else { return };
                if self.reading {
                    reader.leave();
                } else {
                    reader.enter();
                }
                self.reading = !self.reading;
            }
        }
    }

    fn check(&mut self) {
        let (plugged, open) = (self.hotplug.plugged_bytes(), self.hotplug.open_bytes());
        let blocks = (0..REGION_BLOCKS).filter(|block| self.hotplug.allows(REGION_START + block * BLOCK, 1));
        assert_eq!(blocks.count() as u64 * BLOCK, plugged, "the number of blocks is not that of the blocks");
        assert!(plugged <= open && open <= self.most * BLOCK, "{plugged} plugged and {open} open bytes");
    }
}

pub(super) struct Terminal {
    console: Arc<Console>,
    reader: Option<PipeReader>,
}

/// A console that prints to a pipe.
pub(super) fn console() -> (VirtioConsole, Terminal) {
    let (reader, writer) = std::io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&reader, true).unwrap();
    let console = Arc::new(Console::new(Some(writer.into())));
    let device = VirtioConsole::new(Arc::clone(&console), |_| b"before\n".to_vec()).unwrap();
    (device, Terminal { console, reader: Some(reader) })
}

impl Host for Terminal {
    /// The reader takes so many bytes; or, of none, leaves.
    fn act(&mut self, input: &mut Input<'_>) {
        let mut bytes = vec![0; input.u16().into()];
        if bytes.is_empty() {
            self.reader = None;
        }
        // Where there is nothing, nothing is taken.
        drop(self.reader.as_mut().map(|reader| reader.read(&mut bytes)));
    }

    fn check(&mut self) {
        let lines = self.console.tail();
        assert!(lines.len() <= CONSOLE_TAIL_LINES, "{} last lines", lines.len());
        for line in lines {
            let printable = line.bytes().all(|byte| matches!(byte, b' '..=b'~'));
            assert!(printable && line.len() <= CONSOLE_TAIL_LINE_BYTES, "{line:?}");
        }
    }
}
