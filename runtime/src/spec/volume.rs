//! Volumes as they are asked for.
//!
//! Invariant: as for the other parts: private fields, one constructor, which is where the rules are.

use super::{LimiterSpec, SpecError, name};
use crate::devices::virtio::fs::TAG_BYTES;
use husk_protocol::spec::{FileRef, MAX_VOLUMES, RawVolume};
use std::collections::HashSet;

/// One directory of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeSpec {
    tag: String,
    socket: FileRef,
    limiter: Option<LimiterSpec>,
}

/// All of them; each tag once.
pub(super) fn all(raw: Vec<RawVolume>) -> Result<Vec<VolumeSpec>, SpecError> {
    if raw.len() > MAX_VOLUMES {
        let (value, allowed) = (raw.len() as u64, format!("0 to {MAX_VOLUMES} volumes"));
        return Err(SpecError::OutOfRange { key: "volumes".into(), value, allowed });
    }
    let mut seen = HashSet::new();
    let mut volumes = Vec::with_capacity(raw.len());
    for (index, RawVolume { tag, socket, rate_limiter }) in raw.into_iter().enumerate() {
        let key = format!("volumes[{index}].tag");
        if !name::is_plain(&tag, TAG_BYTES) {
            return Err(SpecError::malformed(key, &tag, "1 to 36 of A-Z, a-z, 0-9, '_', '-' and '.'"));
        }
        if !seen.insert(tag.clone()) {
            return Err(SpecError::Duplicate { key, value: tag });
        }
        let limiter = LimiterSpec::new(rate_limiter, &format!("volumes[{index}].rate_limiter"))?;
        volumes.push(VolumeSpec { tag, socket, limiter });
    }
    Ok(volumes)
}

impl VolumeSpec {
    /// By what the guest mounts it: 1 to 36 bytes of letters, digits, `_`, `-` and `.`; distinct in a machine.
    #[must_use]
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// The connected stream to its server.
    #[must_use]
    pub fn socket(&self) -> &FileRef {
        &self.socket
    }

    /// How much may go to and from its server; of what comes back, the bytes only.
    #[must_use]
    pub fn limiter(&self) -> Option<LimiterSpec> {
        self.limiter
    }
}
