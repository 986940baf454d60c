//! A file, as the spec names it.
//!
//! Owns both ways of saying it in JSON. Refuses an object of any key but `fd`. Invariant: what is written reads back.

use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;

/// A file: by path, or by its place among the descriptors that came along.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileRef {
    /// To be opened, by whoever may.
    Path(String),
    /// Opened already.
    Fd(u32),
}

impl Default for FileRef {
    fn default() -> Self {
        Self::Path(String::new())
    }
}

impl fmt::Display for FileRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => f.write_str(path),
            Self::Fd(index) => write!(f, "descriptor {index} of the message"),
        }
    }
}

impl Serialize for FileRef {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;
        match self {
            Self::Path(path) => serializer.serialize_str(path),
            Self::Fd(index) => {
                let mut map = serializer.serialize_map(Some(1))?;
                map.serialize_entry("fd", index)?;
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for FileRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FileRefVisitor;

        impl<'de> Visitor<'de> for FileRefVisitor {
            type Value = FileRef;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a path, or {\"fd\": N}")
            }

            fn visit_str<E: de::Error>(self, path: &str) -> Result<FileRef, E> {
                Ok(FileRef::Path(path.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<FileRef, A::Error> {
                match map.next_key::<String>()?.as_deref() {
                    Some("fd") => {}
                    Some(other) => return Err(de::Error::unknown_field(other, &["fd"])),
                    None => return Err(de::Error::missing_field("fd")),
                }
                let index = map.next_value()?;
                match map.next_key::<String>()? {
                    None => Ok(FileRef::Fd(index)),
                    Some(other) => Err(de::Error::unknown_field(&other, &["fd"])),
                }
            }
        }

        deserializer.deserialize_any(FileRefVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_a_path_or_a_descriptor() {
        assert_eq!(serde_json::from_str::<FileRef>(r#"{"fd": 3}"#).unwrap(), FileRef::Fd(3));
        assert_eq!(serde_json::to_string(&FileRef::Fd(3)).unwrap(), r#"{"fd":3}"#);
        assert!(serde_json::from_str::<FileRef>(r#"{"fd": 3, "path": "x"}"#).is_err());
        assert!(serde_json::from_str::<FileRef>("{}").is_err());
        assert!(serde_json::from_str::<FileRef>("3").is_err());
    }
}
