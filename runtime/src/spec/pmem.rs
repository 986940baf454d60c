//! Images that the guest sees as memory, and their rules.
//!
//! Invariant: an image is never written; a spec that says otherwise is refused.

use super::{SpecError, name};
use husk_protocol::spec::{FileRef, RawPmem};
use std::collections::HashSet;

/// One image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PmemSpec {
    id: String,
    file: FileRef,
    root: bool,
}

impl PmemSpec {
    fn new(raw: RawPmem, index: usize) -> Result<Self, SpecError> {
        name::check(|| format!("pmem[{index}].id"), &raw.id)?;
        if raw.read_only == Some(false) {
            let allowed = "true (or no such key): a pmem image is never written";
            return Err(SpecError::malformed(format!("pmem[{index}].read_only"), "false", allowed));
        }
        Ok(Self { id: raw.id, file: raw.path_on_host, root: raw.root_device })
    }

    /// Its name: 1 to 64 bytes of letters, digits, `_`, `-` and `.`; no other image has it.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The raw file behind it.
    #[must_use]
    pub fn file(&self) -> &FileRef {
        &self.file
    }

    /// Whether the kernel is told `root=` this image; then no other image is the root, and no drive.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.root
    }
}

/// All images; `rooted`: a drive is the root already.
pub(super) fn all(raw: Vec<RawPmem>, mut rooted: bool) -> Result<Vec<PmemSpec>, SpecError> {
    let mut ids = HashSet::with_capacity(raw.len());
    let mut images = Vec::with_capacity(raw.len());
    for (index, image) in raw.into_iter().enumerate() {
        let image = PmemSpec::new(image, index)?;
        let twice = |key: &str, value: &str| {
            Err(SpecError::Duplicate { key: format!("pmem[{index}].{key}"), value: value.into() })
        };
        if !ids.insert(image.id.clone()) {
            return twice("id", &image.id);
        }
        if image.root && std::mem::replace(&mut rooted, true) {
            return twice("root_device", "true");
        }
        images.push(image);
    }
    Ok(images)
}
