//! The attempts. Each is one way to reach something outside; outside a jail, as root, each succeeds.

use rustix::io::Errno;
use std::io::{Error, Result};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};

/// What an attempt is: given its target, did it succeed?
pub(crate) type Attempt = fn(&str) -> Result<()>;

/// Every attempt by name.
pub(crate) const ALL: [(&str, Attempt); 18] = [
    ("open-file", |path| std::fs::File::open(path).map(drop)),
    ("list-root", |_| list_root()),
    ("create-file", |path| std::fs::write(path, b"x").and_then(|()| std::fs::remove_file(path))),
    ("stat-file", |path| std::fs::metadata(path).map(drop)),
    ("signal-process", |pid| call(libc::SYS_kill, [number(pid), 0, 0, 0])),
    ("trace-process", trace),
    ("read-process-memory", read_memory),
    ("see-processes", |_| std::fs::read_dir("/proc").map(drop)),
    ("connect-unix", |path| UnixStream::connect(path).map(drop)),
    ("connect-abstract", |name| {
        UnixStream::connect_addr(&SocketAddr::from_abstract_name(name.as_bytes())?).map(drop)
    }),
    ("connect-inet", connect_inet),
    ("make-inet-socket", |_| make_socket()),
    ("mount", |_| call(libc::SYS_unshare, [libc::CLONE_NEWNS.into(), 0, 0, 0]).and_then(|()| mount())),
    ("unshare", |_| call(libc::SYS_unshare, [libc::CLONE_NEWNET.into(), 0, 0, 0])),
    ("new-user-namespace", |_| call(libc::SYS_unshare, [libc::CLONE_NEWUSER.into(), 0, 0, 0])),
    ("become-root", |_| call(libc::SYS_setresuid, [0, 0, 0, 0])),
    ("execute", |path| std::process::Command::new(path).status().map(drop)),
    ("set-hostname", |_| set_hostname()),
];

/// The attempt of this name.
pub(crate) fn named(name: &str) -> Option<Attempt> {
    ALL.iter().find(|(known, _)| *known == name).map(|(_, attempt)| *attempt)
}

fn number(text: &str) -> i64 {
    text.parse().unwrap_or(-1)
}

/// A call whose arguments are numbers.
fn call(number: i64, arguments: [i64; 4]) -> Result<()> {
    let [a, b, c, d] = arguments;
    #[expect(unsafe_code, reason = "attempts are raw system calls")]
    // SAFETY: the calls made through here take integers, or null where they take a pointer.
    let result = unsafe { libc::syscall(number, a, b, c, d) };
    if result < 0 { Err(Error::last_os_error()) } else { Ok(()) }
}

/// The host's root has a directory `usr`; the cell's has nothing.
fn list_root() -> Result<()> {
    match std::fs::read_dir("/")?.next() {
        Some(_) => Ok(()),
        None => Err(Errno::NOENT.into()),
    }
}

fn trace(pid: &str) -> Result<()> {
    call(libc::SYS_ptrace, [libc::PTRACE_SEIZE.into(), number(pid), 0, 0])
}

fn read_memory(pid: &str) -> Result<()> {
    let mut byte = 0_u8;
    let local = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    // The first page of an executable that is not position-independent, or of none: then the error is EFAULT, which
    // says that the process was reached.
    let remote = libc::iovec { iov_base: 0x40_0000 as *mut _, iov_len: 1 };
    let pid = libc::pid_t::try_from(number(pid)).unwrap_or(-1);
    #[expect(unsafe_code, reason = "attempts are raw system calls")]
    // SAFETY: `local` names one byte of this stack frame; `remote` is another process's business.
    let result = unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) };
    let error = Error::last_os_error();
    if result >= 0 || error.raw_os_error() == Some(libc::EFAULT) { Ok(()) } else { Err(error) }
}

fn connect_inet(port: &str) -> Result<()> {
    let port = u16::try_from(number(port)).unwrap_or_default();
    TcpStream::connect(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)).map(drop)
}

fn make_socket() -> Result<()> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    // In an empty network namespace a socket can be made; nothing can be reached through it.
    let there = std::net::SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9);
    rustix::net::connect(&socket, &there).map_err(Error::from)
}

fn mount() -> Result<()> {
    #[expect(unsafe_code, reason = "attempts are raw system calls")]
    // SAFETY: the strings are literals that live for ever; the last argument may be null.
    let result =
        unsafe { libc::mount(c"none".as_ptr(), c"/".as_ptr(), c"tmpfs".as_ptr(), 0, std::ptr::null()) };
    if result < 0 { Err(Error::last_os_error()) } else { Ok(()) }
}

/// To the name that it has: harmless where it succeeds.
fn set_hostname() -> Result<()> {
    let name = rustix::system::uname();
    rustix::system::sethostname(name.nodename().to_bytes()).map_err(Error::from)
}
