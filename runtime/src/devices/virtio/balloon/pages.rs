//! What a balloon's requests do: functions of memory and chain.
//!
//! Owns the meaning of page numbers and of reported buffers. Refuses, whole and before anything is given back, a request
//! with a page that is not guest memory, and one that names more than a driver can mean. Invariant: what goes to
//! [`discard`] has been found in guest memory, and its size is bounded by [`REQUEST_PAGES`] or [`REPORT_BYTES`].

use super::PAGE_BYTES;
use crate::devices::virtio::Memory;
use crate::devices::virtio::guest_io::GuestIo;
use crate::devices::virtio::queue::{Buffer, Chain};
use crate::devices::virtio::service::Answer;
use crate::memory::{HUGE_PAGE, Pages, discard, prefer};
use vm_memory::{GuestAddress, GuestMemory, Permissions};

/// Most page numbers in one request, four times what Linux sends. Each may cost a system call.
pub(super) const REQUEST_PAGES: usize = 1024;
/// Most bytes in one report: Linux sends up to 32 blocks of 4 MiB.
pub(super) const REPORT_BYTES: u64 = 256 << 20;
/// Pages of the balloon in a huge page of the host.
const HUGE_PAGE_PAGES: u64 = HUGE_PAGE as u64 / PAGE_BYTES;
/// Bytes of a page number (5.5.6).
const NUMBER_BYTES: usize = 4;

/// Gives the pages whose numbers `chain` holds back to the host (5.5.6). `None`: the request makes no sense.
pub(super) fn inflate(memory: &Memory, chain: &Chain) -> Option<Answer> {
    let mut numbers = [0; REQUEST_PAGES];
    let pages = listed(memory, chain, &mut numbers)?;
    for run in pages.chunk_by(|one, next| next - one <= 1) {
        let count = run.last().map_or(0, |last| last - run[0] + 1);
        give_back(memory, run[0] * PAGE_BYTES, count * PAGE_BYTES);
    }
    Some(Answer { written: 0, cost: pages.len() as u64 })
}

/// The guest uses the pages again whose numbers `chain` holds (5.5.6): they come back when they are touched, and huge pages
/// may stand there again. `None`: the request makes no sense.
pub(super) fn deflate(memory: &Memory, chain: &Chain) -> Option<Answer> {
    let mut numbers = [0; REQUEST_PAGES];
    let pages = listed(memory, chain, &mut numbers)?;
    for place in pages.chunk_by(|one, next| one / HUGE_PAGE_PAGES == next / HUGE_PAGE_PAGES) {
        prefer(memory.ram(), GuestAddress(place[0] * PAGE_BYTES), Pages::Huge);
    }
    Some(Answer { written: 0, cost: pages.len() as u64 })
}

/// The page numbers in `chain`, ascending, put into `numbers`. `None`: one of them is not guest memory, or it is no such list.
fn listed<'a>(memory: &Memory, chain: &Chain, numbers: &'a mut [u64; REQUEST_PAGES]) -> Option<&'a [u64]> {
    let mut readable = GuestIo::new(memory, &chain.readable, Permissions::Read).ok()?;
    let bytes = readable.len();
    let fits = (1..=REQUEST_PAGES * NUMBER_BYTES).contains(&bytes) && bytes.is_multiple_of(NUMBER_BYTES);
    if !fits || !chain.writable.is_empty() {
        return None;
    }
    // Copied before they are looked at: the guest may write to the list meanwhile.
    let mut raw = [0; REQUEST_PAGES * NUMBER_BYTES];
    let (raw, _) = raw[..bytes].as_chunks_mut::<NUMBER_BYTES>();
    if readable.copy_into(raw.as_flattened_mut()) != bytes {
        return None;
    }
    let pages = &mut numbers[..raw.len()];
    for (page, number) in pages.iter_mut().zip(raw) {
        *page = u64::from(u32::from_le_bytes(*number));
    }
    pages.sort_unstable();
    pages.iter().all(|page| is_memory(memory, page * PAGE_BYTES, PAGE_BYTES)).then_some(pages)
}

/// Gives the buffers of `chain`, which are free pages of the guest, back to the host (5.5.6). `None`: the request makes
/// no sense.
pub(super) fn report(memory: &Memory, chain: &Chain) -> Option<Answer> {
    let bytes = chain.writable_bytes();
    let whole = |buffer: &Buffer| {
        let (start, length) = (buffer.addr.0, u64::from(buffer.len));
        start.is_multiple_of(PAGE_BYTES)
            && length.is_multiple_of(PAGE_BYTES)
            && is_memory(memory, start, length)
    };
    let sensible = (1..=REPORT_BYTES).contains(&bytes) && chain.writable.iter().all(whole);
    if !sensible || !chain.readable.is_empty() {
        return None;
    }
    for buffer in &chain.writable {
        give_back(memory, buffer.addr.0, buffer.len.into());
    }
    Some(Answer { written: 0, cost: bytes })
}

fn is_memory(memory: &Memory, start: u64, length: u64) -> bool {
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    GuestMemory::check_range(memory, GuestAddress(start), length, Permissions::Write)
}

fn give_back(memory: &Memory, start: u64, length: u64) {
    // A host that keeps the pages loses by it, not the guest: it was told nothing of their content.
    let _ = discard(memory.ram(), GuestAddress(start), length);
}
