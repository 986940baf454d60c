//! A process that serves a sandbox from a cell of its own beside the runtime's: a volume's server, a network.
//!
//! Owns jailer and server, and what both said. Refuses nothing. Invariant: neither is left after [`Serving::finish`].

use crate::control::{self, Control, Received};
use crate::spawn::{self, Process};
use crate::sys::ChildExit;
use husk_protocol::control::FromCell;
use std::ffi::OsString;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

/// How long a jailer, and then a server without a guest, may take to end by itself.
const PATIENCE: Duration = Duration::from_secs(2);
/// Bytes of standard error that are looked at.
const WORDS: u64 = 4096;

/// See the module.
#[derive(Debug)]
pub(crate) struct Serving {
    control: Control,
    jailer: Process,
    stderr: OwnedFd,
    server: Option<Process>,
    failed: Option<String>,
}

/// What became of it.
#[derive(Debug)]
pub(crate) struct Served {
    /// What jailer or server reported; a jailer that made no server always has.
    pub(crate) failed: Option<String>,
    /// How the server ended, unless it was husk that ended it.
    pub(crate) exit: Option<ChildExit>,
    /// The beginning of what was said on standard error.
    pub(crate) words: Vec<u8>,
}

impl Serving {
    /// Starts `jailer`, which finds the control socket and then `files` from descriptor 3 on. Nobody waits for it.
    pub(crate) fn start(
        jailer: &Path,
        arguments: Vec<OsString>,
        files: Vec<OwnedFd>,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let (control, theirs) = control::pair()?;
        let files = std::iter::once(theirs).chain(files).collect();
        let (jailer, stderr) = spawn::jailer(jailer, arguments, files)?;
        Ok(Self { control, jailer, stderr, server: None, failed: None })
    }

    fn hear(&mut self) {
        while let Ok(Received::Message(message)) = self.control.receive() {
            match message {
                FromCell::Cloned { pid } if self.server.is_none() => self.server = Process::child(pid),
                FromCell::Failed { message, .. } => {
                    self.failed.get_or_insert(message);
                }
                _ => {}
            }
        }
    }

    /// Ends and reaps both, after the runtime has ended.
    pub(crate) fn finish(mut self) -> Served {
        end(&mut self.jailer);
        self.hear();
        let mut exit = None;
        if let Some(server) = &mut self.server {
            if end(server) {
                exit = server.end().map(|end| end.how);
            }
            self.hear();
        }
        let mut words = Vec::new();
        let _ = std::fs::File::from(self.stderr).take(WORDS).read_to_end(&mut words);
        if self.failed.is_none() && self.server.is_none() {
            let said = crate::text::last_line(&words).unwrap_or_else(|| "the jailer says nothing".into());
            self.failed = Some(format!("no server was started; {said}"));
        }
        Served { failed: self.failed, exit, words }
    }
}

/// Waits for its end, brings it about if it takes too long, and reaps; whether it ended by itself.
fn end(process: &mut Process) -> bool {
    let by_itself = process.wait(PATIENCE);
    if !by_itself {
        process.kill();
        process.wait(PATIENCE);
    }
    let _ = process.reap();
    by_itself
}
