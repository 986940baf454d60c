//! Sections: the only currency between live objects and what is saved of them.
//!
//! Owns how a section is written (postcard, behind an id and a version) and how a list of them becomes bytes. Refuses, as
//! [`LoadError`], another id than the loader's, a version that it does not know, bytes that end early, that are too many, or
//! that go on behind the end, lengths that do not fit what they count, and more sections than a machine has. Invariant: what
//! comes out of [`Section::parse`] has the right form and nothing else: every value in it is an allegation until its owner
//! has checked it, as if a driver had written it.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fmt::Display;

/// Longest id, in bytes.
pub const LONGEST_ID: usize = 32;
/// Most bytes of one section's content: many times what any object has.
pub const LONGEST_SECTION: usize = 64 << 10;
/// Most sections in a list: 19 virtio devices, the others, and room.
pub const MOST_SECTIONS: usize = 64;
/// Most bytes of a list.
pub const LONGEST_LIST: usize = 256 << 10;

/// What is saved of one object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Section {
    id: String,
    version: u16,
    bytes: Vec<u8>,
}

/// Saved state that cannot be loaded. Host's fault, or of whoever handed the state over: a guest cannot make one that was
/// saved here so. What was loaded before it is of no use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// Another object's.
    #[error("{section}: there is a section {found:?}; {section:?} is expected")]
    Id {
        /// The loader's.
        section: String,
        /// What there is.
        found: String,
    },
    /// From a later, or a forgotten, Husk.
    #[error("{section}: version {version} is unknown; {known} can be loaded")]
    Version {
        /// Which section.
        section: String,
        /// What it says.
        version: u16,
        /// The one that is known.
        known: u16,
    },
    /// More than it can be.
    #[error("{section}: {bytes} bytes; at most {most} are allowed")]
    TooLong {
        /// Which section.
        section: String,
        /// How many there are.
        bytes: usize,
        /// How many there may be.
        most: usize,
    },
    /// It ends too early, or a length or a tag in it is none.
    #[error("{section}: the bytes end early, or are not those of such a section: {reason}")]
    Malformed {
        /// Which section.
        section: String,
        /// What postcard says.
        reason: String,
    },
    /// Something follows the end.
    #[error("{section}: {bytes} bytes follow the end; none are allowed")]
    Trailing {
        /// Which section.
        section: String,
        /// How many.
        bytes: usize,
    },
    /// The form is right, a value is not.
    #[error("{section}: {key} is {value}; {allowed} is allowed")]
    Value {
        /// Which section.
        section: String,
        /// Which value.
        key: &'static str,
        /// What it is.
        value: String,
        /// What it may be.
        allowed: String,
    },
    /// Not as many sections as the machine has objects.
    #[error("there are {found} sections; {expected} are expected")]
    Count {
        /// How many there are.
        found: usize,
        /// How many there have to be.
        expected: usize,
    },
    /// The object has started already.
    #[error("{section}: the object has started; only one at reset can be loaded")]
    Started {
        /// Which section.
        section: String,
    },
}

impl LoadError {
    /// The same error, of a section inside of `outer`.
    #[must_use]
    pub fn inside(mut self, outer: &str) -> Self {
        match &mut self {
            Self::Id { section, .. }
            | Self::Version { section, .. }
            | Self::TooLong { section, .. }
            | Self::Malformed { section, .. }
            | Self::Trailing { section, .. }
            | Self::Value { section, .. }
            | Self::Started { section } => *section = format!("{outer}: {section}"),
            Self::Count { .. } => {}
        }
        self
    }
}

/// What an object's sections are called, and the one version of them that is written and read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    /// At most [`LONGEST_ID`] bytes.
    pub id: &'static str,
    /// Goes up by one whenever the content changes its form or its meaning.
    pub version: u16,
}

impl Format {
    /// The section of such an object with `state`. For an object without any state: `&()`.
    pub fn section<T: Serialize>(&self, state: &T) -> Section {
        // It fails only where a length is unknown or memory is out; neither is so of the plain structures here. An empty
        // section would be refused at the load.
        let bytes = postcard::to_allocvec(state).unwrap_or_default();
        Section { id: self.id.to_owned(), version: self.version, bytes }
    }

    /// The state in `section`.
    ///
    /// # Errors
    /// See [`LoadError`]; all but [`LoadError::Value`], [`LoadError::Count`] and [`LoadError::Started`].
    pub fn parse<T: DeserializeOwned>(&self, section: &Section) -> Result<T, LoadError> {
        let name = || self.id.to_owned();
        if section.id != self.id {
            return Err(LoadError::Id { section: name(), found: section.id.clone() });
        }
        if section.version != self.version {
            let (version, known) = (section.version, self.version);
            return Err(LoadError::Version { section: name(), version, known });
        }
        whole(self.id, &section.bytes, LONGEST_SECTION)
    }

    /// For a state without content.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn parse_empty(&self, section: &Section) -> Result<(), LoadError> {
        self.parse(section)
    }

    /// An error in the section's value `key`, unless `sound`.
    ///
    /// # Errors
    /// [`LoadError::Value`].
    pub fn check(
        &self,
        sound: bool,
        key: &'static str,
        value: impl Display,
        allowed: impl Display,
    ) -> Result<(), LoadError> {
        if sound {
            return Ok(());
        }
        let (section, value, allowed) = (self.id.to_owned(), value.to_string(), allowed.to_string());
        Err(LoadError::Value { section, key, value, allowed })
    }
}

/// Writes a list of sections.
#[must_use]
pub fn to_bytes(sections: &[Section]) -> Vec<u8> {
    // See `Format::section`.
    postcard::to_allocvec(sections).unwrap_or_default()
}

/// Reads a list of sections.
///
/// # Errors
/// See [`LoadError`].
pub fn from_bytes(bytes: &[u8]) -> Result<Vec<Section>, LoadError> {
    let sections: Vec<Section> = whole("the list of sections", bytes, LONGEST_LIST)?;
    if sections.len() > MOST_SECTIONS {
        return Err(LoadError::Count { found: sections.len(), expected: MOST_SECTIONS });
    }
    for section in &sections {
        // As much of the id as fits into a line: it is whatever somebody wrote.
        let name: String = section.id.chars().take(LONGEST_ID).collect();
        for (bytes, most) in [(section.id.len(), LONGEST_ID), (section.bytes.len(), LONGEST_SECTION)] {
            if bytes > most {
                return Err(LoadError::TooLong { section: name, bytes, most });
            }
        }
    }
    Ok(sections)
}

/// All of `bytes` as one value.
fn whole<T: DeserializeOwned>(name: &str, bytes: &[u8], most: usize) -> Result<T, LoadError> {
    if bytes.len() > most {
        return Err(LoadError::TooLong { section: name.to_owned(), bytes: bytes.len(), most });
    }
    let malformed =
        |error: postcard::Error| LoadError::Malformed { section: name.to_owned(), reason: error.to_string() };
    let (value, rest) = postcard::take_from_bytes(bytes).map_err(malformed)?;
    if !rest.is_empty() {
        return Err(LoadError::Trailing { section: name.to_owned(), bytes: rest.len() });
    }
    Ok(value)
}

#[cfg(test)]
mod tests;
