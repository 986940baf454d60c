//! Changes of a machine that runs: what may be asked, and what is answered.
//!
//! The same words go from `husk update` to the husk that waits for the sandbox, over the socket in its state directory, and
//! from there to the cell. One message asks for one change, of all or nothing: what is refused has changed nothing.

use super::Fault;
use crate::spec::FileRef;
use serde::{Deserialize, Serialize};

/// Longest message about a change in bytes, either way.
pub const MAX_CHANGE: usize = 4096;
/// How long the cell may take for a change in seconds; what has not come about then does not come about any more.
pub const CHANGE_PATIENCE_S: u64 = 5;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Change {
    /// Another file behind a drive; Firecracker's `PATCH /drives/{id}`.
    Drive(DriveChange),
    /// Another amount of memory beside what the guest booted in; Firecracker's `PATCH /hotplug/memory`. Done means that the
    /// guest was asked: memory comes and goes as its kernel can.
    Memory(MemoryChange),
}

/// Another amount of the memory that is plugged in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryChange {
    /// In MiB, of `memory-hotplug`'s `total_size_mib`; a multiple of its block.
    pub requested_size_mib: u64,
}

/// Another file behind a drive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DriveChange {
    /// Which.
    pub drive_id: String,
    /// The file, open as the drive needs it: the first descriptor of the message.
    pub path_on_host: FileRef,
}

/// Why a change was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refusal {
    /// Who is to blame.
    pub fault: Fault,
    /// One line that names the thing, the value and what is allowed.
    pub message: String,
}

/// The answer to a [`Change`]: done, if nothing refused it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Changed {
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Refusal>,
}

impl Changed {
    /// It was not done.
    pub fn refused(fault: Fault, message: impl Into<String>) -> Self {
        Self { refused: Some(Refusal { fault, message: message.into() }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_reads_as_it_is_written() {
        let drive = DriveChange { drive_id: "data".into(), path_on_host: FileRef::Fd(0) };
        let text = serde_json::to_string(&Change::Drive(drive.clone())).unwrap();
        assert_eq!(text, r#"{"drive":{"drive_id":"data","path_on_host":{"fd":0}}}"#);
        assert_eq!(serde_json::from_str::<Change>(&text).unwrap(), Change::Drive(drive));
        assert_eq!(serde_json::to_string(&Changed::default()).unwrap(), "{}");
        let refused = Changed::refused(Fault::Operator, "no");
        let text = r#"{"refused":{"fault":"operator","message":"no"}}"#;
        assert_eq!(serde_json::from_str::<Changed>(text).unwrap(), refused);
        let error = serde_json::from_str::<Change>(r#"{"vcpus": 1}"#).unwrap_err().to_string();
        assert!(error.contains("unknown variant `vcpus`"), "{error}");
        let text = r#"{"memory":{"requested_size_mib":4}}"#;
        let memory = Change::Memory(MemoryChange { requested_size_mib: 4 });
        assert_eq!(serde_json::from_str::<Change>(text).unwrap(), memory);
    }
}
