use super::*;
use std::sync::Mutex;

/// A function of 256 bytes that remembers what was written.
struct Plain(Mutex<ConfigSpace>);

impl PciFunction for Plain {
    fn read_space(&self, offset: u8, data: &mut [u8]) {
        self.0.lock().unwrap().read(offset, data);
    }
    fn write_space(&self, offset: u8, data: &[u8]) {
        self.0.lock().unwrap().write(offset, data);
    }
}

fn bus() -> Arc<PciBus> {
    let mut space = ConfigSpace::new((0x1af4, 0x1041), 0x02_0000, (0x1af4, 0x1041));
    space.allow(0x3c, &[0xff]);
    PciBus::new(vec![Arc::new(Plain(Mutex::new(space)))])
}

fn select(bus: &PciBus, bus_number: u32, device: u32, function: u32, register: u32) {
    let address = ENABLE | bus_number << 16 | device << 11 | function << 8 | register;
    bus.write(0, &address.to_le_bytes());
}

fn read<const N: usize>(bus: &PciBus, offset: u64) -> [u8; N] {
    let mut data = [0xaa; N];
    bus.read(offset, &mut data);
    data
}

#[test]
fn a_kernel_finds_the_bridge_and_the_devices() {
    let bus = bus();
    // As Linux finds out whether there is a bus at all.
    bus.write(3, &[1]);
    bus.write(0, &ENABLE.to_le_bytes());
    assert_eq!(read(&bus, 0), ENABLE.to_le_bytes());
    assert_eq!(read(&bus, DATA), [0x36, 0x1b, 0x08, 0x00]);
    select(&bus, 0, 0, 0, 8);
    assert_eq!(read(&bus, DATA + 2), [0x00, 0x06], "a host bridge");
    select(&bus, 0, 1, 0, 0);
    assert_eq!(read(&bus, DATA), [0xf4, 0x1a]);
    assert_eq!(read(&bus, DATA + 2), [0x41, 0x10]);
    assert_eq!(read(&bus, DATA + 1), [0x1a]);
}

#[test]
fn nobody_is_where_nothing_is() {
    let bus = bus();
    let beyond = [(0, 2, 0), (0, 31, 0), (0, 1, 1), (0, 0, 7), (1, 0, 0), (255, 1, 0)];
    for (number, device, function) in beyond {
        select(&bus, number, device, function, 0);
        assert_eq!(read(&bus, DATA), [0xff; 4], "{number}:{device}.{function}");
        bus.write(DATA, &[0; 4]);
    }
    bus.write(0, &(1_u32 << 11).to_le_bytes());
    assert_eq!(read(&bus, DATA), [0xff; 4], "not enabled");
    // The bridge has nothing to be written.
    select(&bus, 0, 0, 0, 0);
    bus.write(DATA, &[0; 4]);
    assert_eq!(read(&bus, DATA), [0x36, 0x1b, 0x08, 0x00]);
}

#[test]
fn item_15_accesses_of_wrong_width_and_place_are_an_open_bus() {
    let bus = bus();
    select(&bus, 0, 1, 0, 0x3c);
    for (offset, len) in [
        (0, 1),
        (0, 2),
        (0, 8),
        (1, 4),
        (2, 4),
        (3, 4),
        (5, 2),
        (5, 4),
        (6, 4),
        (7, 2),
        (4, 3),
        (4, 8),
        (4, 0),
    ] {
        let mut data = vec![0xaa; len];
        bus.write(offset, &data);
        bus.read(offset, &mut data);
        assert!(data.iter().all(|&byte| byte == 0xff), "{len} at {offset}");
    }
    assert_eq!(read(&bus, DATA), [0; 4], "none of them was a write");
    for offset in [8, 0x1000, u64::MAX] {
        bus.write(offset, &[0; 4]);
        assert_eq!(read(&bus, offset), [0xff; 4]);
    }
    bus.write(DATA, &[7]);
    assert_eq!(read(&bus, DATA), [7, 0, 0, 0]);
}

#[test]
fn only_bits_of_the_mask_are_written() {
    let mut space = ConfigSpace::new((1, 2), 3, (4, 5));
    let before = *space.bytes();
    for offset in 0..=255 {
        space.write(offset, &[0xff; 4]);
    }
    assert_eq!(*space.bytes(), before);
    space.allow(0x10, &0xffff_ff00_u32.to_le_bytes());
    space.write(0x10, &[0xff; 4]);
    assert_eq!(space.get(0x10), 0xffff_ff00_u32.to_le_bytes());
    let mut data = [0; 4];
    space.read(0xfe, &mut data);
    assert_eq!(data, [0, 0, 0xff, 0xff], "past the end");
}

#[test]
fn what_the_guest_has_selected_is_saved() {
    let (first, second) = (bus(), bus());
    select(&first, 0, 1, 0, 0x3c);
    second.load(&first.save()).unwrap();
    second.write(DATA, &[9]);
    assert_eq!(read(&second, DATA), [9]);
    let error = second.load(&FORMAT.section(&3_u32)).unwrap_err().to_string();
    assert!(error.contains("address is 0x3; enable, bus, device"), "{error}");
}
