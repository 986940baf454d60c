//! The keys of an image in memory.

use super::{FileRef, is_false};
use serde::{Deserialize, Serialize};

/// An image that the guest sees as memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawPmem {
    /// Its name, for messages.
    pub id: String,
    /// The raw file behind it.
    pub path_on_host: FileRef,
    /// Whether the guest kernel is told `root=` this image.
    #[serde(default, skip_serializing_if = "is_false")]
    pub root_device: bool,
    /// `false` is refused: an image is never written. Absent: `true`, unlike Firecracker's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_only: Option<bool>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn firecrackers_keys_are_understood() {
        let text = r#"{"id": "pmem0", "path_on_host": "/img", "root_device": true, "read_only": true}"#;
        let pmem: RawPmem = serde_json::from_str(text).unwrap();
        assert_eq!((pmem.id.as_str(), pmem.root_device, pmem.read_only), ("pmem0", true, Some(true)));
        let least: RawPmem = serde_json::from_str(r#"{"id": "a", "path_on_host": "/img"}"#).unwrap();
        assert_eq!((least.root_device, least.read_only), (false, None));
        assert_eq!(serde_json::to_string(&least).unwrap(), r#"{"id":"a","path_on_host":"/img"}"#);
        let error = serde_json::from_str::<RawPmem>(r#"{"id": "a"}"#).unwrap_err().to_string();
        assert!(error.contains("missing field `path_on_host`"), "{error}");
    }
}
