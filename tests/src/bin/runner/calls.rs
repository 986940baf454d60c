//! The system calls of sandboxes' threads, on disk, so that a machine that dies takes none of those of ended tests along.

use husk_tests::calls::{Recorder, Seen};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::path::Path;

/// A recording; without a file, or where nothing can be recorded, none.
pub(crate) struct Calls {
    to: Option<(Recorder, File)>,
    written: BTreeSet<Seen>,
}

impl Calls {
    /// Begins one; why it cannot be done here goes to the file.
    pub(crate) fn record(path: Option<&Path>) -> Result<Self, String> {
        let mut calls = Self { to: None, written: BTreeSet::new() };
        let Some(path) = path else { return Ok(calls) };
        let fail = |error| format!("{}: {error}", path.display());
        let mut file = File::create(path).map_err(fail)?;
        match Recorder::start() {
            Ok(recorder) => calls.to = Some((recorder, file)),
            Err(why) => writeln!(file, "# {}", why.replace('\n', " ")).map_err(fail)?,
        }
        Ok(calls)
    }

    /// Writes what is new.
    pub(crate) fn note(&mut self) -> Result<(), String> {
        let Some((recorder, file)) = &mut self.to else { return Ok(()) };
        let seen = recorder.seen()?;
        let new: String = seen.difference(&self.written).map(|call| call.line() + "\n").collect();
        file.write_all(new.as_bytes()).map_err(|error| format!("the file of calls: {error}"))?;
        self.written = seen;
        Ok(())
    }
}
