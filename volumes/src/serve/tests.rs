//! The server as its guest sees it: raw messages on a socket, and what became of the directory.

use super::*;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

const LOOKUP: u32 = 1;
const GETATTR: u32 = 3;
const READLINK: u32 = 5;
const MKDIR: u32 = 9;
const UNLINK: u32 = 10;
const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;
const RELEASE: u32 = 18;
const INIT: u32 = 26;
const CREATE: u32 = 35;
const BATCH_FORGET: u32 = 42;
const ROOT: u64 = 1;

/// A guest, its server, and the directory between them, which is removed in the end.
struct Guest {
    socket: UnixStream,
    server: Option<JoinHandle<Result<(), ServeError>>>,
    directory: PathBuf,
    unique: u64,
}

impl Guest {
    fn new(name: &str, writable: bool) -> Self {
        let directory = std::env::temp_dir().join(format!("husk-fs-{name}-{}", std::process::id()));
        fs::create_dir_all(directory.join("inner")).unwrap();
        fs::write(directory.join("file"), "what the host wrote").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", directory.join("absolute")).unwrap();
        std::os::unix::fs::symlink("../..", directory.join("up")).unwrap();
        let (socket, theirs) = UnixStream::pair().unwrap();
        socket.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
        let volume = Volume::new(directory.to_str().unwrap(), writable).unwrap();
        let server = Some(std::thread::spawn(move || serve(theirs, volume)));
        let mut guest = Self { socket, server, directory, unique: 0 };
        let offered = [7_u32, 31, 1 << 20, u32::MAX].map(u32::to_le_bytes).concat();
        let answer = guest.ask(INIT, 0, &[&offered[..], &[0; 48]].concat()).unwrap();
        assert_eq!(word(&answer, 0), 7);
        guest
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn message(&mut self, opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
        self.unique += 1;
        let length = u32::try_from(HEADER + body.len()).unwrap();
        let mut message = [length, opcode].map(u32::to_le_bytes).concat();
        message.extend([self.unique, node].map(u64::to_le_bytes).concat());
        message.extend([0; 16]);
        message.extend(body);
        message
    }

    fn ask(&mut self, opcode: u32, node: u64, body: &[u8]) -> Result<Vec<u8>, i32> {
        let message = self.message(opcode, node, body);
        self.socket.write_all(&message).unwrap();
        self.answer()
    }

    fn answer(&mut self) -> Result<Vec<u8>, i32> {
        let mut head = [0; OUT_HEADER];
        self.socket.read_exact(&mut head).unwrap();
        assert_eq!(head[8..], self.unique.to_le_bytes());
        let mut body = vec![0; word(&head, 0) as usize - OUT_HEADER];
        self.socket.read_exact(&mut body).unwrap();
        match word(&head, 4).cast_signed() {
            0 => Ok(body),
            error => Err(-error),
        }
    }

    fn lookup(&mut self, parent: u64, name: &str) -> Result<u64, i32> {
        let entry = self.ask(LOOKUP, parent, &[name.as_bytes(), b"\0"].concat())?;
        Ok(u64::from_le_bytes(entry[..8].try_into().unwrap()))
    }

    fn open(&mut self, node: u64, flags: i32) -> Result<u64, i32> {
        let opened = self.ask(OPEN, node, &[flags, 0].map(i32::to_le_bytes).concat())?;
        Ok(u64::from_le_bytes(opened[..8].try_into().unwrap()))
    }

    fn read(&mut self, node: u64, handle: u64, size: u32) -> Result<Vec<u8>, i32> {
        self.ask(READ, node, &[&transfer(handle, size)[..]].concat())
    }

    fn end(mut self) -> Result<(), ServeError> {
        self.socket.shutdown(std::net::Shutdown::Both).unwrap();
        self.server.take().unwrap().join().unwrap()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// `fuse_read_in` and `fuse_write_in`: handle, offset 0, size, and nothing.
fn transfer(handle: u64, size: u32) -> Vec<u8> {
    let mut body = [handle, 0].map(u64::to_le_bytes).concat();
    body.extend(size.to_le_bytes());
    body.extend([0; 20]);
    body
}

#[test]
fn a_file_of_the_host_is_read_and_the_end_is_no_error() {
    let mut guest = Guest::new("read", false);
    let node = guest.lookup(ROOT, "file").unwrap();
    let handle = guest.open(node, libc::O_RDONLY).unwrap();
    assert_eq!(guest.read(node, handle, 4096).unwrap(), b"what the host wrote");
    assert_eq!(guest.read(node, handle, 4).unwrap(), b"what");
    assert_eq!(guest.lookup(ROOT, "none"), Err(libc::ENOENT));
    guest.end().unwrap();
}

#[test]
fn a_read_only_volume_refuses_each_change_by_itself() {
    let mut guest = Guest::new("ro", false);
    let node = guest.lookup(ROOT, "file").unwrap();
    for flags in [libc::O_WRONLY, libc::O_RDWR, libc::O_TRUNC, libc::O_TMPFILE, libc::O_CREAT] {
        assert_eq!(guest.open(node, flags), Err(libc::EROFS), "{flags:#o}");
    }
    let handle = guest.open(node, libc::O_RDONLY).unwrap();
    let write = [transfer(handle, 1), b"x".to_vec()].concat();
    let create = [&[0; 16][..], b"new\0"].concat();
    let rename = [&ROOT.to_le_bytes()[..], b"file\0other\0"].concat();
    let link = [&node.to_le_bytes()[..], b"other\0"].concat();
    let setattr = [0; 88];
    let changes: [(u32, u64, &[u8]); 11] = [
        (4, node, &setattr),
        (6, ROOT, b"new\0target\0"),
        (8, ROOT, &create),
        (MKDIR, ROOT, &[&[0; 8][..], b"new\0"].concat()),
        (UNLINK, ROOT, b"file\0"),
        (11, ROOT, b"inner\0"),
        (12, ROOT, &rename),
        (13, ROOT, &link),
        (WRITE, node, &write),
        (CREATE, ROOT, &create),
        (43, node, &[0; 32]),
    ];
    for (opcode, node, body) in changes {
        assert_eq!(guest.ask(opcode, node, body), Err(libc::EROFS), "opcode {opcode}");
    }
    let mut names: Vec<_> =
        fs::read_dir(&guest.directory).unwrap().map(|it| it.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["absolute", "file", "inner", "up"]);
    assert_eq!(fs::read(guest.path("file")).unwrap(), b"what the host wrote");
}

#[test]
fn a_writable_volume_is_seen_from_both_sides() {
    let mut guest = Guest::new("rw", true);
    let flags = libc::O_RDWR.cast_unsigned();
    let create = [&[flags, 0o100_640, 0, 0].map(u32::to_le_bytes).concat()[..], b"new\0"].concat();
    let created = guest.ask(CREATE, ROOT, &create).unwrap();
    let node = u64::from_le_bytes(created[..8].try_into().unwrap());
    let handle = u64::from_le_bytes(created[128..136].try_into().unwrap());
    guest.ask(WRITE, node, &[transfer(handle, 5), b"guest".to_vec()].concat()).unwrap();
    assert_eq!(fs::read(guest.path("new")).unwrap(), b"guest");
    fs::write(guest.path("new"), "from the host").unwrap();
    assert_eq!(guest.read(node, handle, 4096).unwrap(), b"from the host");
    guest.ask(UNLINK, ROOT, b"new\0").unwrap();
    assert!(!guest.path("new").exists());
}

#[test]
fn no_guest_makes_a_file_that_is_executed_as_its_owner() {
    let mut guest = Guest::new("suid", true);
    let bits = 0o6755_u32;
    let create = [&[0, 0o100_000 | bits, 0, 0].map(u32::to_le_bytes).concat()[..], b"created\0"].concat();
    guest.ask(CREATE, ROOT, &create).unwrap();
    let node = [&[0o100_000 | bits, 0, 0, 0].map(u32::to_le_bytes).concat()[..], b"node\0"].concat();
    guest.ask(8, ROOT, &node).unwrap();
    let directory = [&[bits, 0].map(u32::to_le_bytes).concat()[..], b"directory\0"].concat();
    guest.ask(MKDIR, ROOT, &directory).unwrap();
    let file = guest.lookup(ROOT, "file").unwrap();
    let mut setattr = [0; 88];
    setattr[0] = 1;
    setattr[68..72].copy_from_slice(&(0o100_000 | bits).to_le_bytes());
    guest.ask(4, file, &setattr).unwrap();
    for name in ["created", "node", "directory", "file"] {
        let mode = fs::metadata(guest.path(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o755, "{name}");
    }
}

#[test]
fn no_name_leads_out() {
    let mut guest = Guest::new("out", true);
    let inner = guest.lookup(ROOT, "inner").unwrap();
    for parent in [ROOT, inner] {
        for name in ["..", ".", "", "../..", "/etc", "inner/..", "../husk"] {
            assert_eq!(guest.lookup(parent, name), Err(libc::EINVAL), "{name:?}");
        }
    }
    for (name, target) in [("absolute", "/etc/passwd"), ("up", "../..")] {
        let link = guest.lookup(ROOT, name).unwrap();
        assert_eq!(guest.ask(READLINK, link, &[]).unwrap(), target.as_bytes());
        // The link is a thing of its own: neither opened nor walked through.
        assert_eq!(guest.open(link, libc::O_RDONLY), Err(libc::EBADF), "{name}");
        assert_eq!(guest.lookup(link, "passwd"), Err(libc::ENOTDIR), "{name}");
    }
    let rename = [&inner.to_le_bytes()[..], b"file\0../stolen\0"].concat();
    assert_eq!(guest.ask(12, ROOT, &rename), Err(libc::EINVAL));
    assert!(Path::new(&guest.directory).join("file").exists());
}

#[test]
fn a_message_that_lies_is_answered_and_the_next_one_served() {
    let mut guest = Guest::new("lies", true);
    let node = guest.lookup(ROOT, "file").unwrap();
    let handle = guest.open(node, libc::O_RDONLY).unwrap();
    // More than a message may carry, and more than there is memory.
    for size in [256 << 10, u32::MAX] {
        assert!(guest.read(node, handle, size).is_err(), "{size}");
    }
    for (opcode, body) in [(OPEN, 0), (READ, 3), (WRITE, 20), (LOOKUP, 0), (GETATTR, 1), (INIT, 2)] {
        assert!(guest.ask(opcode, ROOT, &vec![0xff; body]).is_err(), "opcode {opcode}");
        // Whether it was refused once or twice: what comes for the next is told by its number.
        let mut more = [0; OUT_HEADER];
        guest.socket.set_nonblocking(true).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(50));
        let _ = guest.socket.read(&mut more);
        guest.socket.set_nonblocking(false).unwrap();
    }
    for opcode in [0, 7, 22, 33, 39, 47, 48, 4096, u32::MAX] {
        assert!(guest.ask(opcode, node, &[0; 64]).is_err(), "opcode {opcode}");
    }
    let forgets = guest.message(BATCH_FORGET, 0, &[0xff; 8]);
    guest.socket.write_all(&forgets).unwrap();
    assert_eq!(guest.ask(GETATTR, 12345, &[0; 16]), Err(libc::EBADF));
    assert_eq!(guest.read(node, handle, 4).unwrap(), b"what");
    guest.end().unwrap();
}

#[test]
fn a_length_that_is_none_ends_the_server() {
    for length in [0, 39, u32::try_from(LONGEST).unwrap() + 1, u32::MAX] {
        let mut guest = Guest::new(&format!("length-{length}"), false);
        let mut message = guest.message(GETATTR, ROOT, &[0; 16]);
        message[..4].copy_from_slice(&length.to_le_bytes());
        guest.socket.write_all(&message).unwrap();
        let ended = guest.server.take().unwrap().join().unwrap();
        assert!(matches!(ended, Err(ServeError::Length(it)) if it == length as usize), "{ended:?}");
    }
}

#[test]
fn too_many_open_files_are_an_error_and_the_server_goes_on() {
    const FEW: &str = "HUSK_TEST_OF_FEW_FILES";
    // The limit is a process's, so this test has one of its own.
    if std::env::var_os(FEW).is_none() {
        let test = "serve::tests::too_many_open_files_are_an_error_and_the_server_goes_on";
        let script = format!("ulimit -n 64 && exec \"$0\" --exact {test}");
        let program = std::env::current_exe().unwrap();
        let output =
            std::process::Command::new("sh").args(["-c", &script]).arg(program).env(FEW, "1").output();
        let said = String::from_utf8(output.unwrap().stdout).unwrap();
        assert!(said.contains("1 passed"), "{said}");
        return;
    }
    let mut guest = Guest::new("many", false);
    let node = guest.lookup(ROOT, "file").unwrap();
    let mut handles = Vec::new();
    let refused = loop {
        match guest.open(node, libc::O_RDONLY) {
            Ok(handle) => handles.push(handle),
            Err(error) => break error,
        }
        assert!(handles.len() < 64, "more files than the limit allows");
    };
    assert_eq!((refused, guest.lookup(ROOT, "inner")), (libc::EMFILE, Err(libc::EMFILE)));
    assert_eq!(guest.read(node, handles[0], 4).unwrap(), b"what");
    let release = [&handles[0].to_le_bytes()[..], &[0; 16]].concat();
    guest.ask(RELEASE, node, &release).unwrap();
    guest.open(node, libc::O_RDONLY).unwrap();
    guest.end().unwrap();
}
