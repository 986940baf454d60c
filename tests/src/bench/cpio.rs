//! A newc cpio archive, as the kernel unpacks it for an initramfs (`Documentation/driver-api/early-userspace/buffer-format.rst`).
//!
//! Owns the archive's bytes only. Refuses nothing: names and contents are the benchmark's own. Invariant: every header
//! starts at a multiple of four.

/// An archive under construction.
#[derive(Default)]
pub struct Cpio {
    bytes: Vec<u8>,
    inode: u32,
}

impl Cpio {
    /// Adds a directory, mode 0755.
    #[must_use]
    pub fn directory(self, name: &str) -> Self {
        self.entry(name, 0o040_755, (0, 0), &[])
    }

    /// Adds a file that can be executed.
    #[must_use]
    pub fn program(self, name: &str, content: &[u8]) -> Self {
        self.entry(name, 0o100_755, (0, 0), content)
    }

    /// Adds a character device, mode 0600, by its numbers.
    #[must_use]
    pub fn device(self, name: &str, major: u32, minor: u32) -> Self {
        self.entry(name, 0o020_600, (major, minor), &[])
    }

    /// Closes the archive.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]).bytes
    }

    fn entry(mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) -> Self {
        self.inode += 1;
        let fields = [
            u64::from(self.inode),
            u64::from(mode),
            0, // uid
            0, // gid
            1, // links
            0, // mtime
            content.len() as u64,
            0, // device that holds the file
            0,
            u64::from(device.0),
            u64::from(device.1),
            name.len() as u64 + 1,
            0, // checksum, of another format
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
        self
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_aligned_and_the_trailer_ends_it() {
        let archive =
            Cpio::default().directory("dev").program("init", b"12345").device("dev/null", 1, 3).finish();
        assert_eq!(archive.len() % 4, 0);
        let headers = archive.chunks(4).filter(|four| four == b"0707").count();
        assert_eq!(headers, 4);
        assert!(archive.windows(10).any(|name| name == b"TRAILER!!!"));
    }

    #[test]
    fn a_header_is_110_bytes_with_size_and_name_length() {
        let archive = Cpio::default().program("init", b"12345").finish();
        assert_eq!(&archive[54..62], b"00000005");
        assert_eq!(&archive[94..102], b"00000005");
        assert_eq!(&archive[110..115], b"init\0");
        assert_eq!(&archive[116..121], b"12345");
    }
}
