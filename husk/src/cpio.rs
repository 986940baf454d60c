//! Writes the "newc" cpio format that Linux unpacks as its initial RAM file system
//! (Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! Owns the running inode number and offset. Refuses names and files that the format's 32-bit fields cannot hold.
//! Invariant: after each entry the output is aligned to four bytes.

use std::io::{self, Read, Write};

const MAGIC: &str = "070701";
const TRAILER: &str = "TRAILER!!!";
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// An archive under way.
#[derive(Debug)]
pub(crate) struct Archive<W> {
    out: W,
    inode: u32,
}

/// What an entry's header says beside its name.
#[derive(Default)]
struct Entry {
    mode: u32,
    size: u32,
    device: (u32, u32),
}

impl<W: Write> Archive<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { out, inode: 0 }
    }

    /// A directory, `name` without a leading slash, parents first.
    pub(crate) fn directory(&mut self, name: &str, permissions: u32) -> io::Result<()> {
        self.header(name, &Entry { mode: DIRECTORY | permissions, ..Entry::default() })
    }

    /// A character device.
    pub(crate) fn character_device(
        &mut self,
        name: &str,
        permissions: u32,
        device: (u32, u32),
    ) -> io::Result<()> {
        self.header(name, &Entry { mode: CHARACTER_DEVICE | permissions, size: 0, device })
    }

    /// A file of exactly `size` bytes from `content`.
    pub(crate) fn file(
        &mut self,
        name: &str,
        permissions: u32,
        size: u64,
        content: impl Read,
    ) -> io::Result<()> {
        let short = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, format!("{name} {what}"));
        let size32 = u32::try_from(size).map_err(|_| short("is over 4 GiB"))?;
        self.header(name, &Entry { mode: REGULAR | permissions, size: size32, device: (0, 0) })?;
        let copied = io::copy(&mut content.take(size), &mut self.out)?;
        if copied != size {
            return Err(short("shrank while it was read"));
        }
        self.pad(size)
    }

    /// The end of the archive.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.header(TRAILER, &Entry::default())?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn header(&mut self, name: &str, entry: &Entry) -> io::Result<()> {
        self.inode += 1;
        let links = 1 + u32::from(entry.mode & DIRECTORY != 0);
        let name_size = name.len() + 1;
        let fields = [
            u64::from(self.inode),
            u64::from(entry.mode),
            0,
            0,
            u64::from(links),
            0,
            u64::from(entry.size),
            0,
            0,
            u64::from(entry.device.0),
            u64::from(entry.device.1),
            name_size as u64,
            0,
        ];
        // One write an entry: the output is not buffered, so that a file's content goes over without a detour.
        let mut header = String::from(MAGIC);
        for field in fields {
            use std::fmt::Write;
            let _ = write!(header, "{field:08X}");
        }
        header.push_str(name);
        header.push('\0');
        while header.len() % 4 != 0 {
            header.push('\0');
        }
        self.out.write_all(header.as_bytes())
    }

    fn pad(&mut self, written: u64) -> io::Result<()> {
        let padding = [0_u8; 3];
        let missing = usize::try_from((4 - written % 4) % 4).unwrap_or(0);
        self.out.write_all(padding.get(..missing).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    fn sample() -> Vec<u8> {
        let mut archive = Archive::new(Vec::new());
        archive.directory("dev", 0o755).unwrap();
        archive.character_device("dev/console", 0o600, (5, 1)).unwrap();
        archive.file("init", 0o755, 5, &b"hello"[..]).unwrap();
        archive.finish().unwrap()
    }

    #[test]
    fn cpio_lists_what_was_written() {
        let Ok(mut child) = Command::new("cpio")
            .args(["-tv", "--quiet"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
        else {
            // The format is checked below by hand too; cpio is not installed everywhere.
            return;
        };
        child.stdin.take().unwrap().write_all(&sample()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success());
        assert!(
            text.contains("crw-------") && text.contains("5,   1") && text.contains("dev/console"),
            "{text}"
        );
        assert!(text.contains("-rwxr-xr-x") && text.contains("init"), "{text}");
    }

    #[test]
    fn entries_are_aligned_and_the_trailer_is_last() {
        let bytes = sample();
        assert_eq!(bytes.len() % 4, 0);
        assert!(bytes.starts_with(b"070701"));
        let end = bytes.windows(TRAILER.len()).position(|window| window == TRAILER.as_bytes()).unwrap();
        assert!(bytes.len() - end < 16);
        // The second field is the mode, in hexadecimal.
        assert_eq!(&bytes[14..22], format!("{:08X}", 0o040_755).as_bytes());
    }

    #[test]
    fn a_file_that_shrinks_is_noticed() {
        let error = Archive::new(Vec::new()).file("init", 0o755, 6, &b"hello"[..]).unwrap_err();
        assert!(error.to_string().contains("init shrank"), "{error}");
    }
}
