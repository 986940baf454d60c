mod state;

use super::*;
use crate::devices::virtio::testkit::{Bench, HIGH, LOW_END};
use std::io::Read;
use std::time::{Duration, Instant};

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// Where text is put.
const TEXT: u64 = 0x10_0000;

fn bench(output: Option<std::io::PipeWriter>) -> (Bench, Arc<Console>) {
    let console = Arc::new(Console::new(output.map(Into::into)));
    let bench = Bench::start(&mut VirtioConsole::new(Arc::clone(&console), |_| Vec::new()).unwrap());
    (bench, console)
}

fn print(bench: &mut Bench, text: &[u8]) -> u16 {
    bench.write(TEXT, text);
    let head = bench.rings[TRANSMIT].offer(&[(TEXT, u32::try_from(text.len()).unwrap(), false)]);
    bench.kick(TRANSMIT);
    bench.settle();
    head
}

#[test]
fn what_is_transmitted_is_printed() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let (mut bench, console) = bench(Some(writer));
    let head = print(&mut bench, b"Linux\r\n");
    assert_eq!(bench.rings[TRANSMIT].take_all_used(), [(head.into(), 0)]);
    bench.write(TEXT, b"in two");
    bench.rings[TRANSMIT].offer(&[(TEXT, 2, false), (TEXT + 2, 4, false)]);
    bench.kick(TRANSMIT);
    bench.settle();
    assert_eq!((console.tail(), bench.dropped()), (vec!["Linux".into(), "in two".into()], 0));
    let mut text = [0; 13];
    reader.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"Linux\r\nin two");
}

#[test]
fn what_the_guest_printed_elsewhere_comes_first_and_once() {
    let earlier = |memory: &Memory| {
        let mut text = vec![0; 6];
        vm_memory::Bytes::read_slice(memory, &mut text, vm_memory::GuestAddress(HIGH)).unwrap();
        text
    };
    let console = Arc::new(Console::new(None));
    let mut device = VirtioConsole::new(Arc::clone(&console), earlier).unwrap();
    for _ in 0..2 {
        let mut bench = Bench::start(&mut device);
        bench.write(HIGH, b"early\n");
        print(&mut bench, b"hvc0\n");
        print(&mut bench, b"more\n");
    }
    assert_eq!(console.tail(), ["early", "hvc0", "more", "hvc0", "more"]);
}

#[test]
fn there_is_no_input_and_nothing_to_configure() {
    let (mut bench, console) = bench(None);
    bench.rings[RECEIVE].offer(&[(TEXT, 4096, true)]);
    bench.kick(RECEIVE);
    assert_eq!(bench.round().unwrap(), 0, "nobody listens");
    let device = VirtioConsole::new(console, |_| Vec::new()).unwrap();
    let mut data = [9; 16];
    device.read_config(0, &mut data);
    assert_eq!((data, device.features()), ([0; 16], FEATURE_EVENT_IDX));
    assert_eq!(bench.worker.drain(Instant::now()).unwrap().len(), 2);
}

#[test]
fn items_4_and_15_what_is_no_text_is_dropped() {
    let (mut bench, console) = bench(None);
    let most = u32::try_from(REQUEST_BYTES).unwrap();
    let wrong: [&[(u64, u32, bool)]; 8] = [
        &[(TEXT, 0, false)],
        &[(TEXT, 4, true)],
        &[(TEXT, 4, false), (TEXT, 4, true)],
        &[(TEXT, most + 1, false)],
        &[(TEXT, u32::MAX, false)],
        &[(HIGH, 8 << 20, false); 32],
        &[(LOW_END - 2, 4, false)],
        &[(u64::MAX - 1, 4, false)],
    ];
    for buffers in wrong {
        bench.rings[TRANSMIT].offer(buffers);
        bench.kick(TRANSMIT);
        bench.settle();
        assert_eq!(bench.rings[TRANSMIT].take_all_used().len(), 1, "{buffers:?}");
    }
    assert_eq!((bench.dropped(), console.tail()), (8, vec![]));
    // As much as is allowed.
    bench.write(TEXT, &vec![b'x'; REQUEST_BYTES]);
    bench.rings[TRANSMIT].offer(&[(TEXT, most, false)]);
    bench.kick(TRANSMIT);
    bench.settle();
    assert_eq!((bench.dropped(), console.tail().len()), (8, 1));
}

#[test]
fn item_15_a_flood_that_nobody_reads_is_answered_at_once_and_bounded() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let (mut bench, console) = bench(Some(writer));
    let began = Instant::now();
    for _ in 0..100 {
        print(&mut bench, &[b'f'; REQUEST_BYTES]);
        assert_eq!(bench.rings[TRANSMIT].take_all_used().len(), 1);
    }
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    print(&mut bench, b"\nthe end\n");
    assert_eq!(console.tail().last().unwrap(), "the end", "the ring has it all the same");
    // A reader that comes back gets what waited, and hears how much he missed.
    let mut text = Vec::new();
    let mut bytes = vec![0; 1 << 20];
    while console.waits() {
        let count = reader.read(&mut bytes).unwrap();
        text.extend(&bytes[..count]);
        bench.settle();
    }
    print(&mut bench, b"and on");
    while !text.ends_with(b"and on") {
        let count = reader.read(&mut bytes).unwrap();
        text.extend(&bytes[..count]);
    }
    let kept = text.iter().filter(|&&byte| byte == b'f').count();
    assert!(kept < 100 * REQUEST_BYTES / 10, "{kept} bytes waited");
    assert!(String::from_utf8(text).unwrap().contains(" bytes of the console are lost"), "{kept}");
}

#[test]
fn one_event_prints_a_bounded_amount() {
    let (mut bench, _console) = bench(None);
    let most = u32::try_from(REQUEST_BYTES).unwrap();
    let head = bench.rings[TRANSMIT].offer(&[(TEXT, most, false)]);
    for _ in 1..QUEUE_SIZE {
        bench.rings[TRANSMIT].offer_head(head);
    }
    bench.kick(TRANSMIT);
    assert_eq!(bench.round().unwrap(), 1);
    assert_eq!(bench.rings[TRANSMIT].take_all_used().len(), 4);
    bench.settle();
    assert_eq!(bench.rings[TRANSMIT].take_all_used().len(), usize::from(QUEUE_SIZE) - 4);
}

#[test]
fn a_reader_that_is_gone_is_given_up_and_the_ring_goes_on() {
    let (reader, writer) = std::io::pipe().unwrap();
    let (mut bench, console) = bench(Some(writer));
    for _ in 0..4 {
        print(&mut bench, &[b'f'; REQUEST_BYTES]);
    }
    assert!(console.waits());
    drop(reader);
    bench.settle();
    assert!(!console.waits());
    print(&mut bench, b"\nlast words\n");
    assert_eq!(console.tail().last().unwrap(), "last words");
}

#[test]
fn items_1_2_a_corrupt_queue_is_an_error_of_the_device() {
    let (mut bench, _console) = bench(None);
    bench.rings[TRANSMIT].set_available(500);
    bench.kick(TRANSMIT);
    assert!(bench.round().unwrap_err().to_string().starts_with("queue 1: "));
}
