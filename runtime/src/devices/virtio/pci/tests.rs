use super::*;
use crate::devices::virtio::entropy::Entropy;
use crate::devices::virtio::event_loop::EventLoop;
use crate::devices::virtio::testkit::drive::{driver_ok, negotiate, set_queue, status, write};
use crate::devices::virtio::testkit::pci::{OverPci, WINDOWS};
use crate::devices::virtio::testkit::{HIGH, Ring, memory};
use vmm_sys_util::eventfd::EventFd;

/// An entropy device, its driver, and who hears its interrupts.
struct Rig {
    pci: OverPci,
    event_loop: EventLoop,
    ring: Ring,
    heard: EventFd,
}

impl Rig {
    fn new() -> Self {
        let (memory, heard) = (memory(), EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let (event_loop, handle) = EventLoop::new().unwrap();
        let far = Box::new(heard.try_clone().unwrap());
        let device = Box::new(Entropy::new(None));
        let function = PciTransport::new(device, memory.clone(), WINDOWS, far, handle).unwrap();
        Self { pci: OverPci::new(function), event_loop, ring: Ring::new(&memory, 0, 64), heard }
    }

    fn started() -> Self {
        let rig = Self::new();
        negotiate(&rig.pci);
        set_queue(&rig.pci, 0, &rig.ring.setup);
        driver_ok(&rig.pci);
        assert_eq!(status(&rig.pci), 15);
        rig
    }

    fn turn(&mut self) {
        for _ in 0..5 {
            assert!(self.event_loop.turn(0).unwrap().is_continue());
        }
    }

    /// A request is answered, and heard of.
    fn works(&mut self) {
        self.ring.offer(&[(HIGH, 8, true)]);
        write(&self.pci, 0x50, 0);
        self.turn();
        assert!(self.ring.take_used().is_some());
        assert_eq!(self.heard.read().ok(), Some(1));
    }

    fn read<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut data = [0xaa; N];
        self.pci.ports().read(offset, &mut data);
        data
    }
}

#[test]
fn a_kick_at_the_queues_port_reaches_the_worker_and_its_vector_is_heard() {
    let mut rig = Rig::started();
    rig.works();
    assert_eq!(rig.read(ISR), [0]);
    assert_eq!(rig.read(0x1a), 1_u16.to_le_bytes());
    assert_eq!((rig.read(0x12), rig.read(0x18), rig.read(0x1c)), ([1, 0], [64, 0], [1, 0]));
    rig.pci.function.function.msix.set_control(0);
    rig.ring.set_used_event(1);
    rig.ring.offer(&[(HIGH, 8, true)]);
    write(&rig.pci, 0x50, 0);
    rig.turn();
    assert!(rig.heard.read().is_err());
    assert_eq!((rig.read(ISR), rig.read(ISR)), ([1], [0]), "read once");
}

#[test]
fn item_15_wrong_widths_and_places_are_harmless() {
    let mut rig = Rig::started();
    for len in [0, 1, 2, 3, 4, 5, 8, 16] {
        for offset in 0..DEVICE {
            let known = common::field(offset, len).is_some() || (offset, len) == (ISR, 1);
            let mut data = vec![0xaa; len];
            rig.pci.ports().read(offset, &mut data);
            assert!(known || data.iter().all(|&byte| byte == 0), "{len} at {offset:#x}");
            if !known && offset != NOTIFY {
                rig.pci.ports().write(offset, &vec![0; len]);
            }
        }
    }
    assert_eq!(status(&rig.pci), 15);
    rig.works();
}

#[test]
fn item_9_kicks_of_queues_that_are_not_there_are_nothing() {
    let mut rig = Rig::started();
    rig.ring.offer(&[(HIGH, 8, true)]);
    for offset in (NOTIFY + 1)..DEVICE {
        rig.pci.ports().write(offset, &[0, 0]);
    }
    for wrong in [&[0][..], &[0; 4]] {
        rig.pci.ports().write(NOTIFY, wrong);
    }
    rig.turn();
    assert!(rig.ring.take_used().is_none());
    // Whatever is written: the port says which queue.
    rig.pci.ports().write(NOTIFY, &[0x7, 0x7]);
    rig.turn();
    assert!(rig.ring.take_used().is_some());
}

#[test]
fn item_7_selected_queues_that_are_not_there_read_as_nothing() {
    let mut rig = Rig::started();
    for queue in [1_u16, 2, 0x7fff, 0xffff] {
        rig.pci.ports().write(0x16, &queue.to_le_bytes());
        for field in [0x18, 0x1c, 0x1e] {
            assert_eq!(rig.read(field), [0, 0], "{field:#x} of {queue}");
        }
        assert_eq!(rig.read(0x1a), [0xff, 0xff]);
        rig.pci.ports().write(0x1a, &[0, 0]);
        assert_eq!(rig.read(0x1a), [0xff, 0xff]);
        rig.pci.ports().write(0x1c, &[1, 0]);
    }
    rig.pci.ports().write(0x16, &[0, 0]);
    // A queue is not taken back, nor set up anew, but by a reset.
    rig.pci.ports().write(0x1c, &[0, 0]);
    rig.pci.ports().write(0x20, &[0xff; 4]);
    assert_eq!(rig.read(0x1c), [1, 0]);
    rig.works();
}

#[test]
fn item_7_a_reset_is_over_when_the_worker_is_gone() {
    let mut rig = Rig::started();
    write(&rig.pci, 0x70, 0);
    assert_eq!(rig.read(0x14), [15]);
    assert_eq!(rig.read(0x1c), [0, 0], "no queue is on");
    rig.pci.ports().write(0x1a, &[0, 0]);
    assert_eq!(rig.read(0x1a), 1_u16.to_le_bytes(), "a reset under way takes nothing");
    rig.turn();
    assert_eq!((rig.read(0x14), rig.read(0x1a), rig.read(0x10)), ([0], [0xff, 0xff], [0xff, 0xff]));
    rig.ring = Ring::new(&rig.ring.memory, 1, 64);
    negotiate(&rig.pci);
    set_queue(&rig.pci, 0, &rig.ring.setup);
    driver_ok(&rig.pci);
    rig.works();
}

#[test]
fn item_15_windows_that_are_moved_or_off_answer_nowhere() {
    let mut rig = Rig::started();
    let space = |offset: u8, value: u32| rig.pci.function.write_space(offset, &value.to_le_bytes());
    let answers = |rig: &Rig| {
        let mut table = [0; 4];
        rig.pci.table().read(0, &mut table);
        rig.pci.ports().write(0x14, &[0]);
        (rig.read(0x14) != [0xff], table != [0xff; 4])
    };
    // Over RAM, over another device, to nowhere.
    for wrong in [0, 0x10_0000, 0xd000_1000, 0xfee0_0000, 0xffff_f000, u32::MAX] {
        space(0x10, wrong);
        space(0x14, wrong);
        assert_eq!(answers(&rig), (false, false), "{wrong:#x}");
    }
    space(0x10, 0x1000);
    assert_eq!(answers(&rig), (true, false), "and that was a reset");
    space(0x14, 0xd000_0000);
    space(4, 0);
    assert_eq!(answers(&rig), (false, false));
    space(4, 2);
    assert_eq!(answers(&rig), (false, true));
    space(4, u32::MAX);
    let mut command = [0; 4];
    rig.pci.function.read_space(4, &mut command);
    assert_eq!(command, [0x07, 0x04, 0x10, 0x00], "command and status");
    rig.turn();
    assert_eq!(status(&rig.pci), 0);
}

#[test]
fn item_15_configuration_space_leads_to_the_ports_and_nowhere_else() {
    let mut rig = Rig::started();
    let function = Arc::clone(&rig.pci.function);
    let access = u8::try_from(function.function.layout.access).unwrap();
    let go = |window: u8, offset: u32, length: u32| {
        function.write_space(access + 4, &[window]);
        function.write_space(access + 8, &offset.to_le_bytes());
        function.write_space(access + 12, &length.to_le_bytes());
    };
    let read = || {
        let mut data = [0; 4];
        function.read_space(access + 16, &mut data);
        u32::from_le_bytes(data)
    };
    // As a driver without windows: they may be off.
    function.write_space(4, &[0, 0]);
    go(0, 0x14, 1);
    assert_eq!(read() & 0xff, 15);
    go(0, 0x12, 2);
    assert_eq!(read() & 0xffff, 1);
    rig.ring.offer(&[(HIGH, 8, true)]);
    go(0, 0x40, 2);
    function.write_space(access + 16, &[0, 0]);
    rig.turn();
    assert!(rig.ring.take_used().is_some(), "a kick");
    for (window, offset, length) in [
        (1, 0, 4),
        (0xff, 0x14, 1),
        (0, 0x14, 0),
        (0, 0x14, 3),
        (0, 0xfe, 4),
        (0, 0x15, 2),
        (0, u32::MAX, 1),
        (0, 0, u32::MAX),
        (0, 0x100, 1),
    ] {
        go(window, offset, length);
        function.write_space(access + 16, &[0; 4]);
        assert_eq!(read(), 0, "{window} {offset:#x} {length}");
    }
    go(0, 0x14, 1);
    assert_eq!(read() & 0xff, 15, "none of them was a reset");
}

#[test]
fn what_cannot_be_written_is_not_loaded() {
    let rig = Rig::new();
    let face: &Function = &rig.pci.function.function;
    let section = face.save();
    face.loaded(&section).map(|take_over| take_over()).unwrap();
    let spoilt = |at: usize| {
        let mut saved: Saved = FORMAT.parse(&section).unwrap();
        saved.space[at] ^= 0x80;
        let section = FORMAT.section(&saved);
        face.loaded(&section).map(drop).map_err(|error| error.to_string())
    };
    assert!(spoilt(0).unwrap_err().contains("is 0x0; none is allowed"));
    assert!(spoilt(0x3d).unwrap_err().contains("is 0x3d"));
    assert_eq!(spoilt(0x3c), Ok(()));
}
