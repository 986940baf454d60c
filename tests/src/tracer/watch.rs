//! The deadline of all that is traced.
//!
//! Owns a thread that sleeps until then. Invariant: after [`Watch::end`] there is no such thread.

use super::tracee::kill;
use std::collections::BTreeSet;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Kills everything once the deadline has passed.
pub(super) struct Watch {
    pub(super) processes: Arc<Mutex<BTreeSet<libc::pid_t>>>,
    over: Option<Sender<()>>,
    thread: Option<JoinHandle<bool>>,
}

impl Watch {
    pub(super) fn new(deadline: Duration) -> Self {
        let processes = Arc::<Mutex<BTreeSet<_>>>::default();
        let (over, watched) = channel();
        let condemned = Arc::clone(&processes);
        let thread = std::thread::spawn(move || {
            if watched.recv_timeout(deadline) != Err(RecvTimeoutError::Timeout) {
                return false;
            }
            // Again and again: what they make meanwhile is killed too.
            while watched.recv_timeout(Duration::from_millis(50)) == Err(RecvTimeoutError::Timeout) {
                condemned.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().for_each(kill);
            }
            true
        });
        Self { processes, over: Some(over), thread: Some(thread) }
    }

    /// Whether it had to kill.
    pub(super) fn end(&mut self) -> bool {
        drop(self.over.take());
        self.thread.take().is_some_and(|thread| thread.join().unwrap_or(true))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.end();
    }
}
