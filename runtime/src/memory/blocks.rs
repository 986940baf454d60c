//! A set of blocks, which one thread changes and all may ask.
//!
//! Refuses nothing; a block outside the set is not in it. Invariant: every look and every change is `SeqCst`, because who
//! reads and who takes a block away agree by the order of two variables (see [`super::Hotplug`]).

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// See the module.
#[derive(Debug)]
pub(super) struct Blocks {
    words: Vec<AtomicU64>,
    count: usize,
}

impl Blocks {
    /// None of `count` blocks.
    pub(super) fn none_of(count: usize) -> Self {
        let mut words = Vec::new();
        words.resize_with(count.div_ceil(64), AtomicU64::default);
        Self { words, count }
    }

    /// How many blocks there could be.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    pub(super) fn has(&self, block: usize) -> bool {
        let word = self.words.get(block / 64).map_or(0, |word| word.load(Ordering::SeqCst));
        word >> (block % 64) & 1 != 0
    }

    /// How many of `range` are in it.
    pub(super) fn within(&self, range: Range<usize>) -> usize {
        range.filter(|&block| self.has(block)).count()
    }

    /// Puts `range` in, or takes it out; says how many that changed.
    pub(super) fn set(&self, range: Range<usize>, there: bool) -> usize {
        let mut changed = 0;
        for block in range.start..range.end.min(self.count) {
            let (word, bit) = (&self.words[block / 64], 1 << (block % 64));
            let before = if there {
                word.fetch_or(bit, Ordering::SeqCst)
            } else {
                word.fetch_and(!bit, Ordering::SeqCst)
            };
            changed += usize::from((before & bit != 0) != there);
        }
        changed
    }
}
