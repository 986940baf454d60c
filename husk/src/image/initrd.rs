//! The initrd: a cpio archive, plain or compressed.
//!
//! Refuses what no Linux kernel unpacks, and a plain archive that ends before its trailer: the guest would say that it
//! has no root, and name no file. Invariant: looks at headers only, and at no more than [`MOST_ENTRIES`].

use super::{Image, ImageError};

/// Entries that are looked at; the rest of a larger archive is the guest's to judge.
const MOST_ENTRIES: u32 = 65_536;
/// Bytes of a header of the "newc" format (Linux, Documentation/driver-api/early-userspace/buffer-format.rst).
const HEADER: u64 = 110;
/// How compressed archives begin: gzip, bzip2, lzma, xz, lzo, lz4, zstd.
const COMPRESSED: [&[u8]; 7] = [
    &[0x1f, 0x8b],
    b"BZh",
    &[0x5d, 0, 0],
    &[0xfd, b'7', b'z', b'X', b'Z'],
    &[0x89, b'L', b'Z', b'O'],
    &[2, 0x21, 0x4c, 0x18],
    &[0x28, 0xb5, 0x2f, 0xfd],
];

impl Image {
    /// Checks an initrd.
    pub(crate) fn check_initrd(&self) -> Result<(), ImageError> {
        let start = self.bytes::<6>(0)?;
        if COMPRESSED.iter().any(|magic| start.starts_with(magic)) {
            return Ok(());
        }
        let mut at = 0;
        for _ in 0..MOST_ENTRIES {
            let header = self.bytes::<110>(at)?;
            let known = header.starts_with(b"070701") || header.starts_with(b"070702");
            if known || at > 0 {
                self.whole(at + HEADER)?;
            }
            let (Some(size), Some(name)) = (field(&header, 54).filter(|_| known), field(&header, 94)) else {
                return Err(self.format("a cpio archive (newc), plain or compressed"));
            };
            // Names and contents are padded to four bytes.
            let content = (at + HEADER + name).next_multiple_of(4);
            self.whole(content)?;
            if name == 11 && &self.bytes::<10>(at + HEADER)? == b"TRAILER!!!" {
                return Ok(());
            }
            at = (content + size).next_multiple_of(4);
        }
        Ok(())
    }
}

/// The eight hexadecimal digits at `at`.
fn field(header: &[u8], at: usize) -> Option<u64> {
    let digits = std::str::from_utf8(header.get(at..at + 8)?).ok()?;
    u64::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Access;

    fn entry(name: &str, content: &[u8]) -> Vec<u8> {
        let mut bytes = b"070701".to_vec();
        for number in [1, 0o100_644, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0] {
            bytes.extend(format!("{number:08x}").bytes());
        }
        bytes.extend(name.bytes());
        bytes.push(0);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes.extend(content);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn check(bytes: &[u8]) -> Result<(), String> {
        let path = std::env::temp_dir().join(format!(
            "husk-initrd-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        std::fs::write(&path, bytes).unwrap();
        let checked = Image::open("initrd", &path, Access::File).and_then(|image| image.check_initrd());
        std::fs::remove_file(&path).unwrap();
        checked.map_err(|error| error.to_string())
    }

    #[test]
    fn archives_pass_plain_and_compressed() {
        let plain = [entry("init", b"hello"), entry("TRAILER!!!", b"")].concat();
        check(&plain).unwrap();
        check(&[plain.as_slice(), &[0; 400]].concat()).unwrap();
        check(&[&[0x1f, 0x8b], [0; 100].as_slice()].concat()).unwrap();
    }

    #[test]
    fn what_is_cut_or_something_else_is_named() {
        let plain = [entry("init", &[7; 3000]), entry("TRAILER!!!", b"")].concat();
        for length in [6, 109, 112, 2000, plain.len() - 20] {
            let error = check(&plain[..length]).unwrap_err();
            assert!(error.contains("initrd /") && error.contains("truncated"), "{length}: {error}");
        }
        let error = check(&[b'x'; 5000]).unwrap_err();
        assert!(error.contains("initrd /") && error.contains("not a cpio archive"), "{error}");
        let huge = [b"070701".as_slice(), &[b'f'; 104], &[0; 20]].concat();
        assert!(check(&huge).unwrap_err().contains("truncated"));
    }
}
