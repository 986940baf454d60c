//! Reads a machine in Firecracker's JSON.
//!
//! Owns nothing. Refuses files over [`LONGEST`], and whatever the types refuse, by key. Invariant: what leaves here has
//! only keys that Husk knows.

use crate::image::{Access, Image, ImageError};
use husk_protocol::spec::RawSpec;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Largest file in bytes.
const LONGEST: u64 = 1 << 20;

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// It cannot be read.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Too long.
    #[error("config {} has {size} bytes; at most {LONGEST} are allowed", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Bytes.
        size: u64,
    },
    /// Not what it should be.
    #[error("config {}: {key}: {message}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where in it.
        key: String,
        /// What is wrong.
        message: String,
    },
}

/// Reads `path`.
pub(crate) fn read(path: &Path) -> Result<RawSpec, ConfigError> {
    let image = Image::open("config", path, Access::File)?;
    let too_long = |size| ConfigError::TooLong { path: path.to_owned(), size };
    if image.size > LONGEST {
        return Err(too_long(image.size));
    }
    let mut text = Vec::new();
    (&image.file).take(LONGEST + 1).read_to_end(&mut text).map_err(|source| ImageError::Open {
        what: "config",
        path: path.to_owned(),
        source,
    })?;
    parse(&text).map_err(|(key, message)| ConfigError::Json { path: path.to_owned(), key, message })
}

/// The machine, or the key and what is wrong there.
fn parse(text: &[u8]) -> Result<RawSpec, (String, String)> {
    // serde would take a list for an object whose keys may all be absent.
    if text.trim_ascii_start().first() == Some(&b'[') {
        return Err(("top level".to_owned(), "a list; an object, {…}, is needed".to_owned()));
    }
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let spec: RawSpec = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let key = match error.path().to_string() {
            top if top == "." => "top level".to_owned(),
            key => crate::text::line(&key),
        };
        (key, crate::text::line(&error.inner().to_string()))
    })?;
    deserializer.end().map_err(|error| ("after the object".to_owned(), error.to_string()))?;
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(text: &str) -> String {
        let (key, message) = parse(text.as_bytes()).unwrap_err();
        format!("{key}: {message}")
    }

    #[test]
    fn the_key_and_the_value_are_named() {
        let boot = r#""boot-source": {"kernel_image_path": "k"}"#;
        let text = wrong(&format!(r#"{{{boot}, "machine-config": {{"vcpu_count": "two"}}}}"#));
        assert!(text.starts_with("machine-config.vcpu_count: ") && text.contains("two"), "{text}");
        let text = wrong(&format!(r#"{{{boot}, "machine-confg": {{}}}}"#));
        assert!(text.contains("machine-confg"), "{text}");
        let text = wrong(&format!(r#"{{{boot}, {boot}}}"#));
        assert!(text.contains("duplicate field `boot-source`"), "{text}");
        let text = wrong(&format!(r#"{{{boot}}} x"#));
        assert!(text.starts_with("after the object"), "{text}");
        for nonsense in ["", "[]", "{", "\u{0}", &"[".repeat(100_000)] {
            wrong(nonsense);
        }
        parse(format!("{{{boot}}}").as_bytes()).unwrap();
    }
}
