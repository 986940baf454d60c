use super::*;
use std::io::Write;

/// A file that is gone at the end of the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str, bytes: &[u8]) -> Self {
        let path = std::env::temp_dir().join(format!("husk-image-{}-{name}", std::process::id()));
        File::create(&path).unwrap().write_all(bytes).unwrap();
        Self(path)
    }

    fn open(&self, access: Access) -> Result<Image, ImageError> {
        Image::open("kernel", &self.0, access)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).unwrap();
    }
}

/// An ELF file with one segment of 16 bytes at physical 16 MiB that takes 4 MiB.
fn elf() -> Vec<u8> {
    let mut bytes = vec![0; 64 + 56 + 16];
    bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
    bytes[18] = if cfg!(target_arch = "x86_64") { 62 } else { 183 };
    bytes[32] = 64;
    bytes[54] = 56;
    bytes[56] = 1;
    bytes[64] = 1;
    bytes[64 + 8..][..8].copy_from_slice(&120_u64.to_le_bytes());
    bytes[64 + 24..][..8].copy_from_slice(&(16_u64 << 20).to_le_bytes());
    bytes[64 + 32..][..8].copy_from_slice(&16_u64.to_le_bytes());
    bytes[64 + 40..][..8].copy_from_slice(&(4_u64 << 20).to_le_bytes());
    bytes
}

#[test]
fn an_elf_kernel_says_how_far_it_reaches() {
    let file = Scratch::new("elf", &elf());
    assert_eq!(file.open(Access::File).unwrap().check_kernel().unwrap(), 20 << 20);
}

#[test]
fn a_truncated_kernel_is_named() {
    let bytes = elf();
    for length in [64, 100, 121, bytes.len() - 1] {
        let file = Scratch::new("cut", &bytes[..length]);
        let error = file.open(Access::File).unwrap().check_kernel().unwrap_err();
        assert!(matches!(error, ImageError::Truncated { .. }), "{length}: {error}");
        assert!(error.to_string().contains("husk-image-"), "{error}");
    }
}

#[test]
fn what_is_no_kernel_is_refused() {
    let file = Scratch::new("text", b"#!/bin/sh\n");
    let error = file.open(Access::File).unwrap().check_kernel().unwrap_err();
    assert!(matches!(error, ImageError::Format { .. }), "{error}");
    let mut bytes = elf();
    bytes[18] = 3;
    let file = Scratch::new("other", &bytes);
    assert!(matches!(file.open(Access::File).unwrap().check_kernel(), Err(ImageError::Format { .. })));
}

#[test]
fn empty_files_directories_fifos_and_devices_are_told_apart() {
    let file = Scratch::new("empty", b"");
    assert!(matches!(file.open(Access::File), Err(ImageError::Empty { .. })));
    let open = |path: &str, access| Image::open("rootfs", Path::new(path), access).unwrap_err().to_string();
    assert!(open("/", Access::File).contains("is a directory; a plain file is needed"));
    assert!(open("/", Access::WritableDisk).contains("is a directory"));
    assert!(open("/dev/null", Access::Disk).contains("character device"));
    assert!(open("/no/such/file", Access::File).contains("rootfs /no/such/file: No such file"));
    let fifo = std::env::temp_dir().join(format!("husk-image-fifo-{}", std::process::id()));
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let error = open(fifo.to_str().unwrap(), Access::File);
    std::fs::remove_file(&fifo).unwrap();
    assert!(error.contains("is a FIFO"), "{error}");
}

#[test]
fn file_systems_are_known_and_whole() {
    let mut erofs = vec![0; 8192];
    erofs[1024..1028].copy_from_slice(&0xe0f5_e1e2_u32.to_le_bytes());
    erofs[1024 + 12] = 12;
    erofs[1024 + 36] = 2;
    let file = Scratch::new("erofs", &erofs);
    assert_eq!(file.open(Access::Disk).unwrap().check_file_system().unwrap(), "erofs");
    let file = Scratch::new("erofs-cut", &erofs[..4096]);
    let error = file.open(Access::Disk).unwrap().check_file_system().unwrap_err();
    assert!(matches!(error, ImageError::Truncated { has: 4096, needs: 8192, .. }), "{error}");
    let mut ext4 = vec![0; 4096];
    ext4[1024 + 0x38..][..2].copy_from_slice(&[0x53, 0xef]);
    ext4[1024 + 4] = 4;
    let file = Scratch::new("ext4", &ext4);
    assert_eq!(file.open(Access::Disk).unwrap().check_file_system().unwrap(), "ext4");
    ext4[1024 + 0x18] = 200;
    let file = Scratch::new("ext4-wild", &ext4);
    assert!(matches!(
        file.open(Access::Disk).unwrap().check_file_system(),
        Err(ImageError::Truncated { needs: u64::MAX, .. })
    ));
    let file = Scratch::new("qcow2", &[b"QFI\xfb".as_slice(), &[0; 4092]].concat());
    assert!(
        file.open(Access::Disk).unwrap().check_file_system().unwrap_err().to_string().contains("qemu-img")
    );
}

#[test]
fn a_writable_drive_belongs_to_one() {
    let file = Scratch::new("ragged", &[0; 700]);
    let error = file.open(Access::Disk).unwrap_err().to_string();
    assert!(error.contains("ragged has 700 bytes") && error.contains("512"), "{error}");
    let file = Scratch::new("lock", &[0; 512]);
    let (first, second) = (file.open(Access::WritableDisk).unwrap(), file.open(Access::Disk).unwrap());
    first.lock(true).unwrap();
    assert!(matches!(second.lock(false), Err(ImageError::Busy { .. })));
    drop(first);
    second.lock(false).unwrap();
    file.open(Access::Disk).unwrap().lock(false).unwrap();
}
