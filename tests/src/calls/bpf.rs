//! Maps, and a program at the tracepoint of all system calls: bpf(2) and perf_event_open(2). Source: linux/bpf.h,
//! linux/perf_event.h.

use std::io::Error;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Where the tracepoint says its number.
const TRACEPOINT: &str = "/sys/kernel/tracing/events/raw_syscalls/sys_enter/id";

/// bpf(2)'s commands.
const MAP_CREATE: i32 = 0;
const LOOKUP: i32 = 1;
const UPDATE: i32 = 2;
const NEXT_KEY: i32 = 4;
const PROG_LOAD: i32 = 5;

/// `BPF_PROG_TYPE_TRACEPOINT`.
const FOR_A_TRACEPOINT: u32 = 5;
/// `PERF_TYPE_TRACEPOINT`, and the size of the first version of its structure.
const TYPE_TRACEPOINT: u32 = 2;
const ATTRIBUTE_BYTES: u32 = 64;
/// `_IOW('$', 8, __u32)` and `_IO('$', 0)`.
const SET_BPF: u32 = 0x4004_2408;
const ENABLE: u32 = 0x2400;
/// `PERF_FLAG_FD_CLOEXEC`.
const CLOEXEC: u64 = 8;

/// `union bpf_attr`, as far as it is used here, and zeros.
#[repr(C, align(8))]
struct Attribute([u8; 128]);

impl Attribute {
    fn new() -> Self {
        Self([0; 128])
    }

    fn word(mut self, at: usize, value: u32) -> Self {
        self.0[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        self
    }

    fn address<T: ?Sized>(mut self, at: usize, of: *const T) -> Self {
        let address = of.cast::<u8>().addr() as u64;
        self.0[at..at + 8].copy_from_slice(&address.to_ne_bytes());
        self
    }
}

fn bpf(command: i32, attribute: &Attribute) -> Result<i64, Error> {
    #[expect(unsafe_code, reason = "bpf(2) has no safe wrapper")]
    // SAFETY: the attribute is whole and zero where nothing is said; the addresses in it are of buffers of the sizes that
    // the map was made with, and live through the call, as the callers below see to.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const attribute.0, attribute.0.len()) };
    if result < 0 { Err(Error::last_os_error()) } else { Ok(result) }
}

fn owned(number: i64) -> OwnedFd {
    let number = i32::try_from(number).unwrap_or(-1);
    #[expect(unsafe_code, reason = "the kernel gave a number")]
    // SAFETY: the call that has just succeeded made it, for whoever made the call.
    unsafe {
        OwnedFd::from_raw_fd(number)
    }
}

/// Kinds of maps.
#[derive(Clone, Copy)]
pub(super) enum MapKind {
    Hash = 1,
    Array = 2,
    LruHash = 9,
}

/// A map.
pub(super) struct Map {
    fd: OwnedFd,
    key_bytes: u32,
    value_bytes: u32,
}

impl Map {
    pub(super) fn new(kind: MapKind, key_bytes: u32, value_bytes: u32, entries: u32) -> Result<Self, String> {
        let attribute =
            Attribute::new().word(0, kind as u32).word(4, key_bytes).word(8, value_bytes).word(12, entries);
        let fd = bpf(MAP_CREATE, &attribute).map_err(|error| format!("BPF_MAP_CREATE: {error}"))?;
        Ok(Self { fd: owned(fd), key_bytes, value_bytes })
    }

    pub(super) fn number(&self) -> i32 {
        self.fd.as_raw_fd()
    }

    fn attribute(&self) -> Attribute {
        Attribute::new().word(0, self.number().cast_unsigned())
    }

    pub(super) fn set(&self, key: &[u8], value: &[u8]) -> Result<(), String> {
        self.check(key);
        assert_eq!(value.len(), self.value_bytes as usize);
        let attribute = self.attribute().address(8, key).address(16, value);
        bpf(UPDATE, &attribute).map(drop).map_err(|error| format!("BPF_MAP_UPDATE_ELEM: {error}"))
    }

    pub(super) fn has(&self, key: &[u8]) -> bool {
        self.check(key);
        let value = vec![0_u8; self.value_bytes as usize];
        bpf(LOOKUP, &self.attribute().address(8, key).address(16, value.as_ptr())).is_ok()
    }

    /// All keys. Nothing may be taken out meanwhile.
    pub(super) fn keys(&self) -> Result<Vec<Vec<u8>>, String> {
        let mut keys: Vec<Vec<u8>> = Vec::new();
        loop {
            let mut next = vec![0_u8; self.key_bytes as usize];
            let attribute = self.attribute().address(16, next.as_mut_ptr());
            let attribute = match keys.last() {
                Some(last) => attribute.address(8, last.as_ptr()),
                None => attribute,
            };
            match bpf(NEXT_KEY, &attribute) {
                Ok(_) => keys.push(next),
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(keys),
                Err(error) => return Err(format!("BPF_MAP_GET_NEXT_KEY: {error}")),
            }
        }
    }

    fn check(&self, key: &[u8]) {
        assert_eq!(key.len(), self.key_bytes as usize);
    }
}

/// A program at its tracepoint; gone when dropped.
pub(super) struct Attached {
    _event: OwnedFd,
    _program: OwnedFd,
}

/// Has the kernel check `code` and run it at each system call.
pub(super) fn attach(code: &[u64]) -> Result<Attached, String> {
    let text = std::fs::read_to_string(TRACEPOINT).map_err(|error| format!("{TRACEPOINT}: {error}"))?;
    let tracepoint: u32 = text.trim().parse().map_err(|_| format!("{TRACEPOINT}: {text:?}"))?;
    let program = load(code)?;
    let attribute = Attribute::new().word(0, TYPE_TRACEPOINT).word(4, ATTRIBUTE_BYTES).word(8, tracepoint);
    #[expect(unsafe_code, reason = "perf_event_open(2) has no safe wrapper")]
    // SAFETY: the attribute lives through the call and is as long as it says. All processes, by the first CPU's event: its
    // program runs on all of them.
    let event =
        unsafe { libc::syscall(libc::SYS_perf_event_open, &raw const attribute.0, -1, 0, -1, CLOEXEC) };
    if event < 0 {
        return Err(format!("perf_event_open: {}", Error::last_os_error()));
    }
    let event = owned(event);
    for (request, value) in [(SET_BPF, program.as_raw_fd()), (ENABLE, 0)] {
        #[expect(unsafe_code, reason = "perf's requests have no safe wrapper")]
        // SAFETY: both take a number.
        let result = unsafe { libc::syscall(libc::SYS_ioctl, event.as_raw_fd(), request, value) };
        if result < 0 {
            return Err(format!("the program at its tracepoint: {}", Error::last_os_error()));
        }
    }
    Ok(Attached { _event: event, _program: program })
}

fn load(code: &[u64]) -> Result<OwnedFd, String> {
    let mut said = vec![0_u8; 1 << 16];
    let count = u32::try_from(code.len()).unwrap_or(u32::MAX);
    let attribute = Attribute::new()
        .word(0, FOR_A_TRACEPOINT)
        .word(4, count)
        .address(8, code.as_ptr())
        .address(16, c"Apache-2.0".as_ptr())
        .word(24, 1)
        .word(28, 1 << 16)
        .address(32, said.as_mut_ptr());
    match bpf(PROG_LOAD, &attribute) {
        Ok(program) => Ok(owned(program)),
        Err(error) => {
            let text = String::from_utf8_lossy(&said);
            let end =
                text.trim_end_matches(['\0', '\n']).lines().rev().take(4).collect::<Vec<_>>().join(" | ");
            Err(format!("BPF_PROG_LOAD: {error}: {end}"))
        }
    }
}
