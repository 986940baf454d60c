//! The change of the running machine that husk waits for, from its request to the one answer.
//!
//! Owns the request that is not answered yet, and its deadline. Refuses a second one meanwhile. Invariant: each request has one
//! answer, within [`CHANGE_PATIENCE_S`] and the time of a turn of the control loop; one that was refused has changed nothing,
//! and never will.

use crate::devices::virtio::block::ExchangeError;
use crate::machine::Drives;
use husk_protocol::control::{CHANGE_PATIENCE_S, Changed, DriveChange, Fault, FromCell};
use husk_protocol::spec::FileRef;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pending: Option<Pending>,
}

#[derive(Debug)]
struct Pending {
    request: u32,
    drive: String,
    /// None once the drive was asked in vain to forget it: its answer is on the way.
    deadline: Option<Instant>,
}

impl Changes {
    /// Begins what is asked for; an answer if there is one already.
    pub(super) fn begin(
        &mut self,
        drives: &Drives,
        request: u32,
        drive: DriveChange,
        descriptors: Vec<OwnedFd>,
    ) -> Option<FromCell> {
        let changed = self.begin_drive(drives, request, drive, descriptors).err()?;
        Some(FromCell::Changed { request, changed })
    }

    fn begin_drive(
        &mut self,
        drives: &Drives,
        request: u32,
        DriveChange { drive_id, path_on_host }: DriveChange,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(), Changed> {
        let id: String = drive_id.chars().take(64).collect();
        let refused = |message: String| Changed::refused(Fault::Operator, message);
        if self.pending.is_some() {
            return Err(refused(format!("drive {id:?}: another change is not done yet; ask again")));
        }
        let place = match path_on_host {
            FileRef::Fd(place) => usize::try_from(place).ok(),
            FileRef::Path(_) => None,
        };
        let file = place.and_then(|place| descriptors.into_iter().nth(place));
        let Some(file) = file else {
            return Err(refused(format!("drive {id:?}: path_on_host names no descriptor of the message")));
        };
        let Some(way) = drives.way(&drive_id) else {
            return Err(refused(format!("drive {id:?}: the sandbox has no such drive")));
        };
        way.wish(File::from(file), request, drives.answers()).map_err(|error| failed(&id, &error))?;
        let deadline = Some(Instant::now() + Duration::from_secs(CHANGE_PATIENCE_S));
        self.pending = Some(Pending { request, drive: drive_id, deadline });
        Ok(())
    }

    /// The drives have something to say: the answer, if it is that.
    pub(super) fn hear(&mut self, drives: &Drives) -> Option<FromCell> {
        let answers = drives.answers().take();
        let Pending { request, drive, .. } = self.pending.as_ref()?;
        let (_, result) = answers.into_iter().find(|(number, _)| number == request)?;
        let changed = result.map_or_else(|error| failed(drive, &error), |()| Changed::default());
        let answer = FromCell::Changed { request: *request, changed };
        self.pending = None;
        Some(answer)
    }

    /// Milliseconds until [`Self::expire`] has something to do; -1 for never.
    pub(super) fn wait_ms(&self) -> i32 {
        let Some(deadline) = self.pending.as_ref().and_then(|pending| pending.deadline) else { return -1 };
        let left = deadline.saturating_duration_since(Instant::now());
        // Rounded up, so that it has come then.
        i32::try_from(left.as_millis()).unwrap_or(i32::MAX - 1) + 1
    }

    /// Gives up what has taken too long, and takes it back; the answer, if that was in time.
    pub(super) fn expire(&mut self, drives: &Drives) -> Option<FromCell> {
        let pending = self.pending.as_mut()?;
        pending.deadline.take_if(|deadline| *deadline <= Instant::now())?;
        let withdrawn = drives.way(&pending.drive).is_some_and(|way| way.withdraw(pending.request));
        if !withdrawn {
            return None;
        }
        let Pending { request, drive, .. } = self.pending.take()?;
        let line = format!(
            "drive {drive:?}: its disk did not let go within {CHANGE_PATIENCE_S} s; nothing was changed"
        );
        Some(FromCell::Changed { request, changed: Changed::refused(Fault::Host, line) })
    }
}

fn failed(drive: &str, error: &ExchangeError) -> Changed {
    let fault = if matches!(error, ExchangeError::Look(_) | ExchangeError::Busy) {
        Fault::Host
    } else {
        Fault::Operator
    };
    Changed::refused(fault, format!("drive {drive:?}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::virtio::block::Block;
    use crate::devices::virtio::event_loop::EventLoop;
    use husk_protocol::spec::CacheType;

    fn file(bytes: usize) -> OwnedFd {
        let file = rustix::fs::memfd_create("disk", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, bytes as u64).unwrap();
        file
    }

    /// A machine's drives, one of which is "data", and that drive's loop.
    fn drives() -> (Drives, EventLoop, Block) {
        let (event_loop, handle) = EventLoop::new().unwrap();
        let block = Block::new(File::from(file(512)), "data", false, CacheType::Unsafe).unwrap();
        (Drives::of("data", block.exchange(handle)), event_loop, block)
    }

    fn change(drive_id: &str, path_on_host: FileRef) -> DriveChange {
        DriveChange { drive_id: drive_id.into(), path_on_host }
    }

    /// The request that is answered, and its refusal; empty if it was done.
    fn said(answer: Option<FromCell>) -> (u32, String) {
        let Some(FromCell::Changed { request, changed }) = answer else { panic!("{answer:?}") };
        (request, changed.refused.map_or_else(String::new, |refusal| refusal.message))
    }

    #[test]
    fn what_cannot_be_begun_is_answered_at_once() {
        let (drives, ..) = drives();
        let mut changes = Changes::default();
        let mut refused = |id, path, files| said(changes.begin(&drives, 9, change(id, path), files)).1;
        assert!(
            refused("x", FileRef::Fd(0), vec![file(512)])
                .contains("drive \"x\": the sandbox has no such drive")
        );
        for (path, count) in [(FileRef::Fd(0), 0), (FileRef::Fd(1), 1), (FileRef::Path("/x".into()), 1)] {
            let files = (0..count).map(|_| file(512)).collect();
            assert!(refused("data", path, files).contains("names no descriptor"));
        }
        assert_eq!(changes.wait_ms(), -1);
        assert!(changes.hear(&drives).is_none() && changes.expire(&drives).is_none());
    }

    #[test]
    fn each_request_has_one_answer_and_there_is_one_at_a_time() {
        let (drives, mut event_loop, _block) = drives();
        let mut changes = Changes::default();
        for (request, bytes) in [(1, 1024), (2, 100), (3, 2048)] {
            assert!(
                changes.begin(&drives, request, change("data", FileRef::Fd(0)), vec![file(bytes)]).is_none()
            );
            let second = changes.begin(&drives, 7, change("data", FileRef::Fd(0)), vec![file(512)]);
            assert!(said(second).1.contains("another change is not done yet"));
            assert!((1..=5001).contains(&changes.wait_ms()) && changes.expire(&drives).is_none());
            assert!(event_loop.turn(0).unwrap().is_continue());
            let (answered, line) = said(changes.hear(&drives));
            assert_eq!((answered, line.contains("has 100 bytes")), (request, bytes == 100), "{line}");
            assert_eq!(changes.wait_ms(), -1);
        }
    }

    #[test]
    fn what_takes_too_long_is_taken_back_or_was_done() {
        let (drives, mut event_loop, block) = drives();
        let mut changes = Changes::default();
        let late = |changes: &mut Changes| changes.pending.as_mut().unwrap().deadline = Some(Instant::now());
        assert!(changes.begin(&drives, 1, change("data", FileRef::Fd(0)), vec![file(1024)]).is_none());
        late(&mut changes);
        let (request, line) = said(changes.expire(&drives));
        assert!(request == 1 && line.contains("did not let go within 5 s; nothing was changed"), "{line}");
        assert!(event_loop.turn(0).unwrap().is_continue());
        assert!(changes.hear(&drives).is_none());
        use crate::devices::virtio::VirtioDevice;
        let mut sectors = [0; 8];
        block.read_config(0, &mut sectors);
        assert_eq!(u64::from_le_bytes(sectors), 1);
        assert!(changes.begin(&drives, 2, change("data", FileRef::Fd(0)), vec![file(1024)]).is_none());
        assert!(event_loop.turn(0).unwrap().is_continue());
        late(&mut changes);
        assert!(changes.expire(&drives).is_none(), "it is done, and says so");
        assert_eq!((changes.wait_ms(), said(changes.hear(&drives))), (-1, (2, String::new())));
    }
}
