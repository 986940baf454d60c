mod state;
mod statistics;

use super::*;
use crate::devices::virtio::testkit::{Bench, HIGH, HIGH_END, IMAGE, LOW_END};
use vm_memory::{Bytes, GuestAddress};

/// Where lists of page numbers are put.
const LIST: u64 = 0x10_0000;
/// Pages that may go.
const PAGES: u64 = 0x20_0000;
const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const REPORTING: usize = 2;

fn bench() -> Bench {
    Bench::start(&mut Balloon::new(4, false, true))
}

fn page(address: u64) -> u32 {
    u32::try_from(address / PAGE_BYTES).unwrap()
}

/// Writes a list of page numbers and asks for them to be taken.
fn inflate(bench: &mut Bench, pages: &[u32]) -> u16 {
    let bytes: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
    bench.write(LIST, &bytes);
    bench.rings[INFLATE].offer(&[(LIST, u32::try_from(bytes.len()).unwrap(), false)])
}

fn fill(bench: &Bench, pages: u64) {
    bench.write(PAGES, &vec![7; usize::try_from(pages * PAGE_BYTES).unwrap()]);
}

/// Which of the pages from `PAGES` read as zero.
fn gone(bench: &Bench, pages: u64) -> Vec<u64> {
    (0..pages).filter(|page| bench.read(PAGES + page * PAGE_BYTES, 4096) == [0; 4096]).collect()
}

#[test]
fn the_configuration_says_how_much_and_takes_the_guests_word() {
    let mut balloon = Balloon::new(64, true, false);
    let read = |balloon: &Balloon, offset| {
        let mut data = [0; 4];
        balloon.read_config(offset, &mut data);
        u32::from_le_bytes(data)
    };
    assert_eq!((read(&balloon, 0), read(&balloon, 4), read(&balloon, 8)), (16_384, 0, 0));
    balloon.write_config(4, &u32::MAX.to_le_bytes());
    for offset in [0, 1, 2, 3, 5, 8, 1 << 40, u64::MAX] {
        balloon.write_config(offset, &[9; 4]);
    }
    for wrong in [&[9; 8][..], &[9; 3], &[]] {
        balloon.write_config(4, wrong);
    }
    assert_eq!((read(&balloon, 0), read(&balloon, 4)), (16_384, u32::MAX));
}

#[test]
fn features_and_queues_are_those_that_were_asked_for() {
    let offers = |balloon: &Balloon| (balloon.features() & 0x3f, balloon.queue_sizes().len());
    assert_eq!(offers(&Balloon::new(0, false, false)), (0, 2));
    assert_eq!(offers(&Balloon::new(0, true, false)), (4, 2));
    assert_eq!(offers(&Balloon::new(0, true, true)), (0x24, 3));
}

#[test]
fn a_driver_that_does_not_report_needs_no_queue_for_it() {
    let mut balloon = Balloon::new(4, false, true);
    let mut bench = Bench::start_with(&mut balloon, FEATURE_EVENT_IDX);
    assert_eq!(bench.worker.events().len(), 2);
    assert_eq!(bench.worker.drain(std::time::Instant::now()).unwrap().len(), 2);
}

#[test]
fn inflated_pages_are_gone_and_no_others() {
    let mut bench = bench();
    fill(&bench, 8);
    let first = page(PAGES);
    let one = inflate(&mut bench, &[first + 5, first + 1, first + 2, first + 1, first + 5]);
    bench.kick(INFLATE);
    bench.settle();
    assert_eq!(bench.rings[INFLATE].take_all_used(), [(one.into(), 0)]);
    assert_eq!(gone(&bench, 8), [1, 2, 5]);
    // Twice is once; the page that was touched in between goes again.
    bench.write(PAGES + PAGE_BYTES, &[1]);
    inflate(&mut bench, &[first + 1]);
    bench.kick(INFLATE);
    bench.settle();
    assert_eq!(gone(&bench, 8), [1, 2, 5]);
    assert_eq!(bench.dropped(), 0);
}

#[test]
fn a_deflated_page_is_acknowledged_and_can_be_written() {
    let mut bench = bench();
    fill(&bench, 1);
    inflate(&mut bench, &[page(PAGES)]);
    bench.kick(INFLATE);
    bench.settle();
    let head = bench.rings[DEFLATE].offer(&[(LIST, 4, false)]);
    bench.kick(DEFLATE);
    bench.settle();
    assert_eq!(bench.rings[DEFLATE].take_all_used(), [(head.into(), 0)]);
    assert_eq!((gone(&bench, 1), bench.dropped()), (vec![0], 0));
    bench.write(PAGES, &[3; 16]);
    assert_eq!(bench.read(PAGES, 16), [3; 16]);
}

#[test]
fn item_13_pages_outside_ram_are_refused_with_the_whole_request() {
    let mut bench = bench();
    fill(&bench, 2);
    let good = page(PAGES);
    for wrong in [page(LOW_END), page(HIGH) - 1, page(HIGH_END), u32::MAX, u32::MAX / 2] {
        inflate(&mut bench, &[good, wrong, good + 1]);
        bench.kick(INFLATE);
        bench.settle();
    }
    assert_eq!(bench.dropped(), 5);
    assert!(gone(&bench, 2).is_empty());
    inflate(&mut bench, &[page(LOW_END) - 1, page(HIGH), page(HIGH_END) - 1]);
    bench.kick(INFLATE);
    bench.settle();
    assert_eq!(bench.dropped(), 5, "the last and first pages of RAM are RAM");
}

#[test]
fn item_13_a_request_has_a_bound_and_whole_numbers() {
    for queue in [INFLATE, DEFLATE] {
        let mut bench = bench();
        fill(&bench, 1);
        let dropped = requests_of_wrong_sizes(&mut bench, queue);
        assert_eq!((bench.dropped(), gone(&bench, 1)), (dropped, vec![]));
    }
    let mut bench = bench();
    fill(&bench, 1);
    // As many as are allowed, in two pieces that split a number.
    let most = u32::try_from(pages::REQUEST_PAGES).unwrap();
    let numbers = vec![page(PAGES); pages::REQUEST_PAGES];
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    bench.write(LIST, &bytes);
    bench.rings[INFLATE].offer(&[(LIST, 6, false), (LIST + 6, 4 * most - 6, false)]);
    bench.kick(INFLATE);
    bench.settle();
    assert_eq!((bench.dropped(), gone(&bench, 1)), (0, vec![0]));
}

/// Has lists answered that are none; returns how many.
fn requests_of_wrong_sizes(bench: &mut Bench, queue: usize) -> u64 {
    let most = u32::try_from(pages::REQUEST_PAGES).unwrap();
    let ring = &mut bench.rings[queue];
    // Too many; 3 bytes; nothing; room to write; 8 MiB; outside RAM; 4 GiB.
    ring.offer(&[(LIST, 4 * most + 4, false)]);
    ring.offer(&[(LIST, 3, false)]);
    ring.offer(&[(LIST, 0, false)]);
    ring.offer(&[(LIST, 4, false), (LIST, 4, true)]);
    ring.offer(&[(HIGH, 8 << 20, false)]);
    ring.offer(&[(LOW_END, 4, false)]);
    ring.offer(&[(LIST, u32::MAX, false)]);
    bench.kick(queue);
    bench.settle();
    assert_eq!(bench.rings[queue].take_all_used().len(), 7);
    7
}

#[test]
fn item_13_one_event_gives_a_bounded_number_of_pages_back() {
    let mut bench = bench();
    let most = u32::try_from(pages::REQUEST_PAGES).unwrap();
    // Every other page: nothing to coalesce, a system call each.
    let numbers: Vec<u32> = (0..most).map(|index| page(PAGES) + 2 * (index % 700)).collect();
    let head = inflate(&mut bench, &numbers);
    for _ in 1..8 {
        bench.rings[INFLATE].offer_head(head);
    }
    bench.kick(INFLATE);
    assert_eq!(bench.round().unwrap(), 1);
    assert_eq!(bench.rings[INFLATE].take_all_used().len(), 1);
    assert_eq!(bench.round().unwrap(), 1, "it comes back for the rest by itself");
    bench.settle();
    assert_eq!(bench.rings[INFLATE].take_all_used().len(), 7);
}

#[test]
fn item_13_an_inflate_that_lies_costs_the_guest_its_rings_and_nobody_else() {
    let mut bench = bench();
    fill(&bench, 1);
    // The rings themselves, and the list that names them.
    let setup = bench.rings[INFLATE].setup;
    inflate(&mut bench, &[page(setup.descriptors), page(setup.available), page(setup.used), page(LIST)]);
    bench.kick(INFLATE);
    let error = bench.round().unwrap_err().to_string();
    assert!(error.starts_with("queue 0: "), "{error}");
    assert!(gone(&bench, 1).is_empty());
    // Its other queues were not touched.
    let head = bench.rings[DEFLATE].offer(&[(LIST + 64, 4, false)]);
    bench.kick(DEFLATE);
    bench.worker.ready(crate::devices::virtio::Token(1)).unwrap();
    assert_eq!(bench.rings[DEFLATE].take_all_used(), [(head.into(), 0)]);
}

#[test]
fn reported_pages_are_gone() {
    let mut bench = bench();
    fill(&bench, 8);
    let head = bench.rings[REPORTING]
        .offer(&[(PAGES + PAGE_BYTES, 8192, true), (PAGES + 6 * PAGE_BYTES, 4096, true)]);
    bench.kick(REPORTING);
    bench.settle();
    assert_eq!(bench.rings[REPORTING].take_all_used(), [(head.into(), 0)]);
    assert_eq!(gone(&bench, 8), [1, 2, 6]);
}

#[test]
fn item_13_a_report_of_what_is_not_whole_pages_of_ram_is_refused() {
    let mut bench = bench();
    fill(&bench, 4);
    let good = (PAGES, 4096, true);
    for wrong in [
        (PAGES + 1, 4096, true),
        (PAGES, 4095, true),
        (PAGES, 4096, false),
        (LOW_END - 4096, 8192, true),
        (LOW_END, 4096, true),
        (HIGH_END - 4096, 8192, true),
        (u64::MAX - 4095, 4096, true),
        (PAGES, u32::MAX - 4095, true),
    ] {
        let readable_first = if wrong.2 { [good, wrong] } else { [wrong, good] };
        bench.rings[REPORTING].offer(&readable_first);
        bench.kick(REPORTING);
        bench.settle();
    }
    assert_eq!(bench.dropped(), 8);
    assert!(gone(&bench, 4).is_empty());
}

#[test]
fn item_13_a_report_is_bounded_in_bytes() {
    let mut bench = bench();
    bench.memory.write_obj(7_u64, GuestAddress(HIGH)).unwrap();
    // The same 8 MiB 32 times is as much as a report may have.
    let head = bench.rings[REPORTING].offer(&[(HIGH, 8 << 20, true); 32]);
    for _ in 1..4 {
        bench.rings[REPORTING].offer_head(head);
    }
    bench.kick(REPORTING);
    bench.round().unwrap();
    assert_eq!(bench.rings[REPORTING].take_all_used().len(), 1, "one event is one such report");
    bench.settle();
    assert_eq!(bench.memory.read_obj::<u64>(GuestAddress(HIGH)).unwrap(), 0);
    assert_eq!((bench.rings[REPORTING].take_all_used().len(), bench.dropped()), (3, 0));
}

#[test]
fn items_1_2_corrupt_queues_are_errors_of_the_device() {
    for queue in [INFLATE, DEFLATE, REPORTING] {
        let mut bench = bench();
        bench.rings[queue].set_available(500);
        bench.kick(queue);
        assert!(bench.round().unwrap_err().to_string().starts_with(&format!("queue {queue}: ")));
    }
}

#[test]
fn a_page_of_an_image_is_no_memory_of_the_balloons() {
    let mut bench = bench();
    fill(&bench, 1);
    let list = inflate(&mut bench, &[page(PAGES), page(IMAGE)]);
    bench.kick(INFLATE);
    bench.settle();
    let report = bench.rings[REPORTING].offer(&[(PAGES, 4096, true), (IMAGE, 4096, true)]);
    bench.kick(REPORTING);
    bench.settle();
    assert_eq!(bench.rings[INFLATE].take_all_used(), [(list.into(), 0)]);
    assert_eq!(bench.rings[REPORTING].take_all_used(), [(report.into(), 0)]);
    assert_eq!(bench.dropped(), 2);
    assert!(gone(&bench, 1).is_empty(), "refused whole");
    assert_eq!(bench.read(IMAGE, 4096), [0xda; 4096]);
}
