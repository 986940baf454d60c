//! Says, in one JSON object on descriptor 3, what a program sees from inside a cell. With `--wait` it then waits for
//! the end of that socket; the tests of the jailer execute it.

#![expect(unsafe_code, reason = "asks the kernel what no safe function asks")]

use serde_json::{Value, json};
use std::os::fd::{AsRawFd, BorrowedFd};

fn main() {
    let seen = json!({
        "arguments": std::env::args().collect::<Vec<_>>(),
        "environment": std::env::vars_os().count(),
        "descriptors": (0..4096).filter(|&fd| is_open(fd)).collect::<Vec<_>>(),
        "standard": (0..3).map(device).collect::<Vec<_>>(),
        "uids": ids(libc::getresuid),
        "gids": ids(libc::getresgid),
        "groups": rustix::process::getgroups().map(|groups| groups.len()).unwrap_or(99),
        "capabilities": capabilities(),
        "bounding": (0..64).filter(|&number| in_bounding_set(number)).count(),
        "no_new_privs": rustix::thread::no_new_privs().ok(),
        "dies_with_parent": rustix::process::parent_process_death_signal().ok().flatten().map(|signal| signal.as_raw()),
        "pid": std::process::id(),
        "parent": rustix::process::getppid().map(rustix::process::Pid::as_raw_pid),
        "session_is_own": rustix::process::getsid(None).ok() == Some(rustix::process::getpid()),
        "host": rustix::system::uname().nodename().to_string_lossy(),
        "core": rustix::process::getrlimit(rustix::process::Resource::Core).current,
        "files": rustix::process::getrlimit(rustix::process::Resource::Nofile).current,
        "umask": rustix::process::umask(rustix::fs::Mode::empty()).as_raw_mode(),
        "root": std::fs::read_dir("/").map(Iterator::count).unwrap_or(99),
        "above": std::fs::read_dir("..").map(Iterator::count).unwrap_or(99),
        "directory": std::env::current_dir().ok(),
        "volume": std::fs::read("/volume/file").ok().map(|bytes| bytes.len()),
        "volume_write": std::fs::write("/volume/new", "x").map_err(|error| error.raw_os_error()).err(),
        "write": std::fs::write("/x", "x").map_err(|error| error.raw_os_error()).err(),
        "make": std::fs::create_dir("/x").map_err(|error| error.raw_os_error()).err(),
        "mount": format!("{:?}", rustix::fs::statvfs("/").map(|status| status.f_flag)),
        "interfaces": interfaces(),
        "signals_not_default": signals_not_default(),
        "signals_blocked": signals_blocked(),
    });
    // SAFETY: descriptor 3 is the control socket by contract and stays open to the end.
    let control = unsafe { BorrowedFd::borrow_raw(3) };
    let text = seen.to_string();
    let _ = rustix::net::send(control, text.as_bytes(), rustix::net::SendFlags::NOSIGNAL);
    if std::env::args().any(|word| word == "--wait") {
        let _ = rustix::net::recv(control, &mut [0_u8; 16][..], rustix::net::RecvFlags::empty());
    }
}

fn is_open(fd: i32) -> bool {
    // SAFETY: asks for flags only.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
}

/// Major and minor number of the device behind a descriptor.
fn device(fd: i32) -> Value {
    // SAFETY: 0 to 2 are open in any process of std.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let number = rustix::fs::fstat(fd).map(|status| status.st_rdev).unwrap_or_default();
    json!([rustix::fs::major(number), rustix::fs::minor(number)])
}

fn ids(ask: unsafe extern "C" fn(*mut u32, *mut u32, *mut u32) -> i32) -> [u32; 3] {
    let [mut real, mut effective, mut saved] = [0; 3];
    // SAFETY: three numbers that outlive the call.
    unsafe { ask(&raw mut real, &raw mut effective, &raw mut saved) };
    [real, effective, saved]
}

fn capabilities() -> u64 {
    let sets = rustix::thread::capabilities(None);
    sets.map(|sets| (sets.effective | sets.permitted | sets.inheritable).bits()).unwrap_or(u64::MAX)
}

fn in_bounding_set(number: u64) -> bool {
    let capability = rustix::thread::CapabilitySet::from_bits_retain(1 << number);
    rustix::thread::capability_is_in_bounding_set(capability).unwrap_or(false)
}

/// Names and whether up, of all network interfaces.
fn interfaces() -> Vec<(String, bool)> {
    let Ok(socket) = std::net::UdpSocket::bind("0.0.0.0:0") else { return vec![("no socket".into(), true)] };
    let mut found = Vec::new();
    for index in 1..16 {
        let Ok(name) = rustix::net::netdevice::index_to_name(&socket, index) else { continue };
        // SAFETY: all zero is a request without a name.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = libc::c_char::from_ne_bytes([from]);
        }
        // SAFETY: the request outlives the call, which writes into it.
        unsafe { libc::syscall(libc::SYS_ioctl, socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) };
        // SAFETY: the call above has stored flags.
        let flags = i32::from(unsafe { request.ifr_ifru.ifru_flags });
        found.push((name, flags & libc::IFF_UP != 0));
    }
    found
}

/// Signals that are ignored or handled, beside those that std sets up itself.
fn signals_not_default() -> Vec<i32> {
    let own = [libc::SIGPIPE, libc::SIGSEGV, libc::SIGBUS];
    (1..=31).filter(|signal| !own.contains(signal) && !is_default(*signal)).collect()
}

fn is_default(signal: i32) -> bool {
    // SAFETY: all zero is a valid action to be written over.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: asks only; the action outlives the call.
    unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut action) };
    action.sa_sigaction == libc::SIG_DFL
}

fn signals_blocked() -> usize {
    // SAFETY: all zero is a set to be written over.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: asks only; the set outlives the call.
    unsafe { libc::sigprocmask(libc::SIG_BLOCK, std::ptr::null(), &raw mut set) };
    // SAFETY: the set was written by the call above.
    (1..=64).filter(|&signal| unsafe { libc::sigismember(&raw const set, signal) } == 1).count()
}
